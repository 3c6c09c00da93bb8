"""ports.EffectSink over PutRecords: which effects go into the next call, and what to do about those that failed.

Kinesis promises no order inside a call and takes or refuses each record by itself. So a call carries at most one effect
of a device, and a device's next one waits for the acknowledgement of the one before. Streams don't wait for each other;
within a stream calls follow one another. Nothing is ever dropped: an effect is acknowledged, refused with a reason, or
left for the caller to give again.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import heapq
import random
from collections.abc import Callable, Sequence

from fleet_model import spec
from fleet_worker import ports
from fleet_worker.adapters import kinesis_api
from fleet_worker.core import effects

PUBLISH_S_MAX = 30.0
PUT_BACKOFF_FIRST_S = 0.1
PUT_BACKOFF_MAX_S = 3.0


@dataclasses.dataclass(slots=True)
class Published:
    """ports.PublishResult."""

    acknowledged: list[int] = dataclasses.field(default_factory=list)
    refused: list[tuple[int, str]] = dataclasses.field(default_factory=list)


class Lane:
    """The effects of one publish() for one stream: a queue a device, in the order of their numbers. Pure.

    ready: the first effect of each device that may go now. parked: those that failed and wait until their time.
    """

    def __init__(self, entries: Sequence[effects.OutboxEntry]) -> None:
        self._queues: dict[str, collections.deque[effects.OutboxEntry]] = {}
        for entry in sorted(entries, key=lambda entry: entry.number):
            self._queues.setdefault(entry.effect.partition_key, collections.deque()).append(entry)
        self._ready = [(queue[0].number, device) for device, queue in self._queues.items()]
        heapq.heapify(self._ready)
        self._parked: list[tuple[float, int, str]] = []

    def take(self, now_s: float) -> list[effects.OutboxEntry]:
        """The next call's effects, oldest first, one a device, within the limits of a call. Empty: see next_at."""
        while self._parked and self._parked[0][0] <= now_s:
            _, number, device = heapq.heappop(self._parked)
            heapq.heappush(self._ready, (number, device))
        taken: list[effects.OutboxEntry] = []
        room = kinesis_api.PUT_BYTES_MAX
        while self._ready and len(taken) < kinesis_api.PUT_RECORDS_MAX:
            entry = self._queues[self._ready[0][1]][0]
            room -= size_bytes(entry)
            if room < 0 and taken:
                break
            heapq.heappop(self._ready)
            taken.append(entry)
        return taken

    def next_at(self) -> float | None:
        """When the first parked effect may go; None when there is nothing left."""
        return self._parked[0][0] if self._parked else None

    def park(self, entry: effects.OutboxEntry, until_s: float) -> None:
        heapq.heappush(self._parked, (until_s, entry.number, entry.effect.partition_key))

    def settle(self, entry: effects.OutboxEntry) -> None:
        """The effect is acknowledged or refused: its device's next one may go."""
        device = entry.effect.partition_key
        queue = self._queues[device]
        settled = queue.popleft()
        assert settled is entry, f"effect {entry.number} of {device} was settled out of its turn"
        if queue:
            heapq.heappush(self._ready, (queue[0].number, device))


def size_bytes(entry: effects.OutboxEntry) -> int:
    """What Kinesis counts of a record: data and partition key."""
    return len(entry.effect.data) + len(entry.effect.partition_key.encode())


def unfit(entry: effects.OutboxEntry) -> str | None:
    """Why Kinesis can't ever take it, as far as one can tell without asking; None when it may be sent."""
    size = size_bytes(entry)
    if size > kinesis_api.RECORD_BYTES_MAX:
        return f"{size} bytes with its key; a Kinesis record has at most {kinesis_api.RECORD_BYTES_MAX}"
    return None if entry.effect.partition_key else "no partition key"


class KinesisSink:
    """ports.EffectSink. Publishes of one partition follow one another; those of several may overlap."""

    def __init__(
        self,
        api: kinesis_api.KinesisApi,
        streams: spec.Streams,
        clock: ports.Clock,
        randomness: random.Random,
        on_retry: kinesis_api.OnRetry = kinesis_api.ignore_retry,
    ) -> None:
        self._api = api
        self._clock = clock
        self._randomness = randomness
        self._on_retry = on_retry
        telemetry = streams.telemetry
        self._stream_of: dict[effects.Target, str | None] = {
            effects.Target.ALERTS: streams.alerts.name,
            effects.Target.COMMANDS: streams.commands.name,
            effects.Target.TELEMETRY: telemetry.arn if telemetry.name is None else telemetry.name,
            effects.Target.DEAD_LETTER: streams.dead_letter,
        }

    async def publish(
        self, entries: Sequence[effects.OutboxEntry], may_go_on: Callable[[], bool] = ports.always
    ) -> Published:
        published = Published()
        by_stream: dict[str, list[effects.OutboxEntry]] = {}
        for entry in entries:
            stream = self._stream_of[entry.effect.target]
            reason = unfit(entry) if stream is not None else "no dead letter stream is configured"
            if stream is None or reason is not None:
                published.refused.append((entry.number, str(reason)))
            else:
                by_stream.setdefault(stream, []).append(entry)
        deadline_s = self._clock.monotonic() + PUBLISH_S_MAX
        async with asyncio.TaskGroup() as group:
            for stream, lane_entries in by_stream.items():
                one = _StreamPublish(
                    self, stream, Lane(lane_entries), published, _Time(self._clock, deadline_s, may_go_on)
                )
                group.create_task(one.run(), name=f"publish to {stream}")
        return published

    @property
    def api(self) -> kinesis_api.KinesisApi:
        return self._api

    @property
    def clock(self) -> ports.Clock:
        return self._clock

    def backoff(self) -> kinesis_api.Backoff:
        return kinesis_api.Backoff(self._randomness, PUT_BACKOFF_FIRST_S, PUT_BACKOFF_MAX_S)

    def tell_retry(self, stream: str, failure: kinesis_api.Failure) -> None:
        self._on_retry(kinesis_api.Retry("PutRecords", stream, failure))


@dataclasses.dataclass(frozen=True, slots=True)
class _Time:
    """For how long one publish() may go on."""

    clock: ports.Clock
    deadline_s: float
    may_go_on: Callable[[], bool]

    @property
    def left_s(self) -> float:
        """0 when it is over, or when whoever asked for it isn't sure any more that it may."""
        return max(0.0, self.deadline_s - self.clock.monotonic()) if self.may_go_on() else 0.0


class _StreamPublish:
    """One publish() to one stream, until everything is settled or the time is up."""

    def __init__(self, sink: KinesisSink, stream: str, lane: Lane, published: Published, time: _Time) -> None:
        self._sink = sink
        self._stream = stream
        self._lane = lane
        self._published = published
        self._time = time
        self._backoff = sink.backoff()

    async def run(self) -> None:
        clock = self._sink.clock
        while self._time.left_s:
            batch = self._lane.take(clock.monotonic())
            if batch:
                await self._put(batch)
                continue
            next_at = self._lane.next_at()
            if next_at is None or next_at >= self._time.deadline_s:
                return
            await clock.sleep(max(0.0, next_at - clock.monotonic()))

    async def _put(self, batch: list[effects.OutboxEntry]) -> None:
        """One call; one that is refused as a whole for an invalid record is cut in halves until that one is found."""
        remaining_s = self._time.left_s
        if not remaining_s:
            return
        try:
            outcomes = await self._call(batch, remaining_s)
        except kinesis_api.ApiError as error:
            if error.trouble is not kinesis_api.Trouble.INVALID:
                await self._try_later(batch, [error.failure], all_failed=True)
            elif len(batch) == 1:
                self._refuse(batch[0], error.failure)
            else:
                half = len(batch) // 2
                await self._put(batch[:half])
                await self._put(batch[half:])
            return
        if outcomes is not None:
            await self._settle(batch, outcomes)

    async def _call(self, batch: list[effects.OutboxEntry], remaining_s: float) -> list[kinesis_api.PutOutcome] | None:
        """None when the time was up before the answer; the call is then given up, and may have been done."""
        entries = [kinesis_api.PutRecord(entry.effect.partition_key, entry.effect.data) for entry in batch]
        call = asyncio.ensure_future(self._sink.api.put_records(self._stream, entries))
        alarm = asyncio.ensure_future(self._sink.clock.sleep(remaining_s))
        try:
            await asyncio.wait((call, alarm), return_when=asyncio.FIRST_COMPLETED)
            return call.result() if call.done() else None
        finally:
            alarm.cancel()
            if not call.done():
                call.cancel()
                # Its end is waited for, so that no call outlives the publish it belongs to.
                await asyncio.gather(call, return_exceptions=True)

    async def _settle(self, batch: list[effects.OutboxEntry], outcomes: list[kinesis_api.PutOutcome]) -> None:
        failed: list[effects.OutboxEntry] = []
        failures: dict[kinesis_api.Trouble, kinesis_api.Failure] = {}
        for entry, outcome in zip(batch, outcomes, strict=True):
            if outcome.failure is None:
                self._published.acknowledged.append(entry.number)
                self._lane.settle(entry)
            elif outcome.failure.trouble is kinesis_api.Trouble.INVALID:
                self._refuse(entry, outcome.failure)
            else:
                failed.append(entry)
                failures.setdefault(outcome.failure.trouble, outcome.failure)
        if failed:
            await self._try_later(failed, list(failures.values()), all_failed=len(failed) == len(batch))
        elif self._lane.next_at() is None:
            # Calls without the failing ones going well says nothing about those.
            self._backoff.reset()

    async def _try_later(
        self, entries: list[effects.OutboxEntry], failures: list[kinesis_api.Failure], *, all_failed: bool
    ) -> None:
        """Sets them aside for a while in which others go on; when nothing at all went through, everyone waits. failures: one
        of each trouble."""
        for failure in failures:
            self._sink.tell_retry(self._stream, failure)
        wait_s = self._backoff.next_s()
        now_s = self._sink.clock.monotonic()
        for entry in entries:
            self._lane.park(entry, now_s + wait_s)
        if all_failed:
            await self._sink.clock.sleep(max(0.0, min(wait_s, self._time.deadline_s - now_s)))

    def _refuse(self, entry: effects.OutboxEntry, failure: kinesis_api.Failure) -> None:
        self._published.refused.append((entry.number, str(failure)))
        self._lane.settle(entry)
