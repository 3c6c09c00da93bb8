"""Publishes a partition's outbox: committed effects go to Kinesis in order and are told when it has acknowledged them.

It never sees an effect before its commit, and never deletes one: the acknowledged numbers go into the next commit.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Sequence

from fleet_worker import metrics, ports
from fleet_worker.core import effects

ENTRIES_A_CALL_MAX = 5_000
OUTBOX_MAX = 50_000
"""More than this waiting stops intake until Kinesis has taken some."""


@dataclasses.dataclass(slots=True)
class Settled:
    """Since last taken. removed: outbox numbers that can go. refused: effects that Kinesis will never take, with why."""

    removed: list[int] = dataclasses.field(default_factory=list)
    refused: list[tuple[effects.Effect, str]] = dataclasses.field(default_factory=list)


class Lane:
    """The entries for one stream, in order. Streams don't wait for one another: one that throttles delays only its own."""

    def __init__(self) -> None:
        self.waiting: collections.deque[effects.OutboxEntry] = collections.deque()
        self.has_work = asyncio.Event()


class Publisher:
    """One partition's. `add` committed entries, `run` in a task, `take_settled` at each commit."""

    def __init__(
        self,
        sink: ports.EffectSink,
        clock: ports.Clock,
        told: metrics.Metrics,
        may_publish: Callable[[], Awaitable[None]],
        may_go_on: Callable[[], bool] = ports.always,
    ) -> None:
        """may_publish: returns when effects may go out. may_go_on: whether they still may, asked before each call to Kinesis: publishing
        takes a while, in which the process may have stood still and lost the partition."""
        self._sink = sink
        self._may_publish = may_publish
        self._may_go_on = may_go_on
        self._clock = clock
        self._metrics = told
        self._lanes = {target: Lane() for target in effects.Target}
        self._settled = Settled()
        self._progress = asyncio.Event()

    def __len__(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def is_full(self) -> bool:
        return len(self) >= OUTBOX_MAX

    @property
    def has_settled(self) -> bool:
        """Whether there are numbers that the next commit can take out of the outbox."""
        return bool(self._settled.removed)

    @property
    def oldest_ms(self) -> int | None:
        """arrival_ms of the oldest effect not yet acknowledged."""
        oldest = [lane.waiting[0].effect.arrival_ms for lane in self._lanes.values() if lane.waiting]
        return min(oldest, default=None)

    def add(self, entries: Sequence[effects.OutboxEntry]) -> None:
        for entry in entries:
            lane = self._lanes[entry.effect.target]
            lane.waiting.append(entry)
            lane.has_work.set()

    def take_settled(self) -> Settled:
        settled, self._settled = self._settled, Settled()
        return settled

    def give_back(self, settled: Settled) -> None:
        """The commit that should have removed these changed nothing."""
        self._settled = Settled(settled.removed + self._settled.removed, settled.refused + self._settled.refused)

    async def progress(self, seconds: float) -> None:
        """Returns when something was settled, at the latest after so many seconds."""
        self._progress.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._progress.wait()
        except TimeoutError:
            return

    async def run(self) -> None:
        """Until cancelled. A cancelled call may have published effects whose acknowledgement is lost: they go again,
        with the same ids."""
        try:
            async with asyncio.TaskGroup() as lanes:
                for lane in self._lanes.values():
                    lanes.create_task(self._run(lane))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _run(self, lane: Lane) -> None:
        while True:
            await lane.has_work.wait()
            await self._may_publish()
            entries = list(itertools.islice(lane.waiting, ENTRIES_A_CALL_MAX))
            result = await self._sink.publish(entries, self._may_go_on)
            self._settle(lane, entries, set(result.acknowledged), dict(result.refused))
            if not lane.waiting:
                lane.has_work.clear()

    def _settle(
        self, lane: Lane, entries: Sequence[effects.OutboxEntry], acknowledged: set[int], refused: dict[int, str]
    ) -> None:
        now_ms = self._clock.wall_ms()
        left = []
        for entry in entries:
            if entry.number in acknowledged:
                self._metrics.published(entry.effect, max(0, now_ms - entry.effect.arrival_ms))
                self._settled.removed.append(entry.number)
            elif entry.number in refused:
                self._settled.refused.append((entry.effect, refused[entry.number]))
                self._settled.removed.append(entry.number)
            else:
                left.append(entry)
        for _ in entries:
            lane.waiting.popleft()
        lane.waiting.extendleft(reversed(left))
        self._progress.set()
