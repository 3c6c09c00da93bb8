"""Tells of calls to Kinesis that are tried again: as a metric each, in the log so that one can read it.

Trying again is normal and quiet; that it goes on is what someone has to know. So a kind of trouble is told once when it begins
and then once a minute with how often it came; throttling, which is daily bread, only when it is dense. It decides nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import logging

from fleet_worker import metrics, ports
from fleet_worker.adapters import kinesis_api

log = logging.getLogger(__name__)

TOLD_EVERY_S = 60.0
THROTTLED_MIN = 30
"""Within a minute; fewer are a shard's usual elbowing."""
QUIET = (kinesis_api.Trouble.EXPIRED_ITERATOR,)
"""Only counted: a new iterator is the cure, and takes no time."""


@dataclasses.dataclass(slots=True)
class Kind:
    """Of one operation and trouble. since_s: when the count began."""

    count: int = 0
    since_s: float = 0.0
    has_been_told: bool = False


class Retries:
    """A kinesis_api.OnRetry."""

    def __init__(self, clock: ports.Clock, measured: metrics.Metrics) -> None:
        self._clock = clock
        self._counter = measured.kinesis_retries
        self._kinds: dict[tuple[str, kinesis_api.Trouble], Kind] = collections.defaultdict(Kind)

    def __call__(self, retry: kinesis_api.Retry) -> None:
        trouble = retry.failure.trouble
        self._counter.labels(retry.operation, trouble.value).inc()
        if trouble in QUIET:
            return
        kind = self._kinds[(retry.operation, trouble)]
        now_s = self._clock.monotonic()
        if now_s - kind.since_s >= 2 * TOLD_EVERY_S:  # it had ended
            kind.count, kind.since_s, kind.has_been_told = 0, now_s, False
        kind.count += 1
        if kind.has_been_told and now_s - kind.since_s < TOLD_EVERY_S:
            return
        if trouble is kinesis_api.Trouble.THROTTLED and kind.count < THROTTLED_MIN:
            if now_s - kind.since_s >= TOLD_EVERY_S:
                kind.count, kind.since_s = 0, now_s
            return
        log.warning(
            "Kinesis: %s of %s failed%s and is tried again: %s",
            retry.operation,
            retry.where,
            f" {kind.count} times" if kind.count > 1 else "",
            retry.failure,
        )
        kind.count, kind.since_s, kind.has_been_told = 0, now_s, True
