"""What is known of each fleet's telemetry stream: its shards, how long it keeps records, and its clock. Asked every half minute, sooner on a hint.

Kept in memory only: who has just begun asks before it decides anything of shards. A stream that can't be listed for a while counts as
unknown, and what is known of its clock stays good for longer, since clocks hardly drift. It decides nothing about partitions.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from fleet_model import partition, spec
from fleet_operator import clock, errors
from fleet_operator.adapters import streams
from fleet_operator.kinds import FleetKey

log = logging.getLogger(__name__)

EVERY_S = 30.0
HINTED_S = 2.0
"""Between two lists when something hints at a change (ListShards allows 1,000 calls/s)."""
FAILED_FIRST_S = 1.0
FAILED_MAX_S = 10.0
SHARDS_S_MAX = 120.0
"""A list that is older says nothing any more."""
CLOCK_S_MAX = 3_600.0
AT_ONCE_MAX = 8
LOOK_S_MAX = 20.0
FIRST_S_MAX = 5.0
"""So long a fleet's first round waits for the first answer. Then its stream is one that can't be listed: takeovers don't need it."""
SOON, SOON_S = 6, 0.2
"""So many first answers so far apart: an edit may come in the first seconds, and a clock known by one header may be a second behind."""
SAMPLES = 32
"""Date headers come in whole seconds: the farthest ahead of this many tells the clock to a fraction of one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """shards None: it can't be listed. now_ms None: nobody knows the stream's clock. is_asked: it was asked at all, or has kept us waiting for
    FIRST_S_MAX. why: it can't be
    listed; "" = it was."""

    is_asked: bool = False
    shards: tuple[partition.Shard, ...] | None = None
    now_ms: int | None = None
    retention_ms: int = 0
    why: str = ""


@dataclasses.dataclass(slots=True)
class _Entry:
    fleet: spec.FleetSpec
    due_s: float
    since_s: float
    is_asked: bool = False
    is_running: bool = False
    answer: streams.Answer | None = None
    answered_s: float = float("-inf")
    began_s: float = float("-inf")
    why: str = ""
    failures: int = 0
    ahead_ms: collections.deque[int] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=SAMPLES))


class Look(Protocol):
    async def look(self, place: streams.Place) -> streams.Answer:
        """Raises StreamUnavailableError."""


Credentials = Callable[[FleetKey, str], Awaitable[streams.Credentials]]
"""Of a Secret of the fleet's namespace. Raises StreamUnavailableError."""


class StreamWatch:
    """`run` on the event loop, the rest from any thread."""

    def __init__(
        self, looks: Look, credentials: Credentials, now: clock.Clock, wake: Callable[[FleetKey], None]
    ) -> None:
        self._looks, self._credentials, self._clock, self._wake = looks, credentials, now, wake
        self._entries: dict[FleetKey, _Entry] = {}
        self._random = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, fleet: FleetKey, document: spec.FleetSpec) -> None:
        """Idempotent. Another stream, endpoint or Secret is asked at once."""
        entry = self._entries.get(fleet)
        if entry is None or (entry.fleet.aws, entry.fleet.streams.telemetry) != (
            document.aws,
            document.streams.telemetry,
        ):
            now_s = self._clock.monotonic()
            self._entries[fleet] = _Entry(document, due_s=now_s, since_s=now_s)

    def forget(self, fleet: FleetKey) -> None:
        self._entries.pop(fleet, None)

    def hint(self, fleet: FleetKey) -> None:
        """Its shards may have changed."""
        entry = self._entries.get(fleet)
        if entry is not None:
            entry.due_s = min(entry.due_s, max(self._clock.monotonic(), entry.began_s + HINTED_S))

    def seen(self, fleet: FleetKey) -> Seen:
        entry = self._entries.get(fleet)
        if entry is None:
            return Seen()
        if entry.answer is None:
            waited_s = self._clock.monotonic() - entry.since_s
            return Seen(entry.is_asked or waited_s >= FIRST_S_MAX, why=entry.why or "no answer yet")
        age_s = self._clock.monotonic() - entry.answered_s
        ahead_ms = max(entry.ahead_ms, default=None)
        return Seen(
            is_asked=True,
            shards=entry.answer.shards if age_s <= SHARDS_S_MAX else None,
            now_ms=self._monotonic_ms() + ahead_ms if ahead_ms is not None and age_s <= CLOCK_S_MAX else None,
            retention_ms=entry.answer.retention_ms,
            why=entry.why,
        )

    async def run(self, every_s: float = 0.2) -> None:
        """Until cancelled."""
        try:
            while True:
                now_s = self._clock.monotonic()
                # Rounds follow and forget fleets from their threads meanwhile.
                due = sorted((each.due_s, key) for key, each in self._entries.copy().items() if not each.is_running)
                for due_s, fleet in due:
                    if due_s > now_s or len(self._tasks) >= AT_ONCE_MAX:
                        break
                    entry = self._entries.get(fleet)
                    if entry is None or entry.is_running:
                        continue
                    entry.is_running, entry.began_s = True, now_s
                    task = asyncio.create_task(self._ask(fleet, entry), name=f"stream of {'/'.join(fleet)}")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                await asyncio.sleep(every_s)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=LOOK_S_MAX)

    async def _ask(self, fleet: FleetKey, entry: _Entry) -> None:
        before = (entry.is_asked, entry.answer and entry.answer.shards, bool(entry.why))
        wait_s = min(FAILED_MAX_S, FAILED_FIRST_S * 2 ** min(entry.failures, 8))
        try:
            async with asyncio.timeout(LOOK_S_MAX):
                answer = await self._looks.look(await self._place(fleet, entry.fleet))
            entry.ahead_ms.append(answer.date_ms - self._monotonic_ms())
            entry.answer, entry.answered_s, entry.why = answer, self._clock.monotonic(), ""
            entry.failures, wait_s = 0, EVERY_S if len(entry.ahead_ms) >= SOON else SOON_S
        except (errors.StreamUnavailableError, TimeoutError) as error:
            why = (
                str(error) or f"stream {entry.fleet.streams.telemetry.stream_name}: no answer within {LOOK_S_MAX:.0f} s"
            )
            if not entry.why:
                log.warning("fleet %s: %s", "/".join(fleet), why)
            entry.why, entry.failures = why, entry.failures + 1
        finally:
            entry.is_asked, entry.is_running = True, False
            entry.due_s = self._clock.monotonic() + wait_s * self._random.uniform(0.8, 1.0)
        if before != (entry.is_asked, entry.answer and entry.answer.shards, bool(entry.why)):
            self._wake(fleet)

    def _monotonic_ms(self) -> int:
        """What the stream's clock is known by: whoever sets ours doesn't set that one."""
        return int(self._clock.monotonic() * 1000)

    async def _place(self, key: FleetKey, fleet: spec.FleetSpec) -> streams.Place:
        aws, telemetry = fleet.aws, fleet.streams.telemetry
        given = streams.Credentials()
        if aws.credentials_secret is not None:
            given = await self._credentials(key, aws.credentials_secret)
        region = aws.region or (telemetry.arn.split(":")[3] if telemetry.arn else None)
        return streams.Place(telemetry.arn or telemetry.stream_name, region, aws.endpoint_url, given)
