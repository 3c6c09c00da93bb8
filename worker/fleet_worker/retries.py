"""Tells of calls to Kinesis and to the object store that are tried again: as a metric each, in the log so that one can read it.

Trying again is normal and quiet; that it goes on is what someone has to know. So a kind of trouble is told once when it begins
and then once a minute with how often it came; throttling, which is daily bread, only when it is dense. It decides nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import logging

import prometheus_client

from fleet_worker import metrics, ports
from fleet_worker.adapters import kinesis_api, objects_api

log = logging.getLogger(__name__)

TOLD_EVERY_S = 60.0
THROTTLED_MIN = 30
"""Within a minute; fewer are a shard's usual elbowing."""

Trouble = kinesis_api.Trouble | objects_api.Trouble

QUIET = (kinesis_api.Trouble.EXPIRED_ITERATOR, objects_api.Trouble.CONFLICT)
"""Only counted: a new iterator is the cure, or a look at who wrote at the same time, and neither takes time."""


@dataclasses.dataclass(slots=True)
class Kind:
    """Of one operation and trouble. since_s: when the count began."""

    count: int = 0
    since_s: float = 0.0
    has_been_told: bool = False


class _Telling:
    """service: as the log calls it."""

    def __init__(self, service: str, clock: ports.Clock, counter: prometheus_client.Counter) -> None:
        self._service = service
        self._clock = clock
        self._counter = counter
        self._kinds: dict[tuple[str, Trouble], Kind] = collections.defaultdict(Kind)

    def tell(self, operation: str, where: str, failure: kinesis_api.Failure | objects_api.Failure) -> None:
        trouble = failure.trouble
        self._counter.labels(operation, trouble.value).inc()
        if trouble in QUIET:
            return
        kind = self._kinds[(operation, trouble)]
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
            "%s: %s of %s failed%s and is tried again: %s",
            self._service,
            operation,
            where,
            f" {kind.count} times" if kind.count > 1 else "",
            failure,
        )
        kind.count, kind.since_s, kind.has_been_told = 0, now_s, True


class Retries:
    """Of Kinesis: a kinesis_api.OnRetry."""

    def __init__(self, clock: ports.Clock, measured: metrics.Metrics) -> None:
        self._telling = _Telling("Kinesis", clock, measured.kinesis_retries)

    def __call__(self, retry: kinesis_api.Retry) -> None:
        self._telling.tell(retry.operation, retry.where, retry.failure)


class ObjectRetries:
    """Of the object store: an objects_api.OnRetry."""

    def __init__(self, clock: ports.Clock, measured: metrics.Metrics) -> None:
        self._telling = _Telling("The object store", clock, measured.object_store_retries)

    def __call__(self, retry: objects_api.Retry) -> None:
        self._telling.tell(retry.operation, retry.key, retry.failure)
