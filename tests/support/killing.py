"""One seeded run of a real worker that is killed, over and over, while records come and its rules are edited.

The seed draws devices, records, edits, faults and what each kill waits for. Real time isn't replayed, so a seed brings back
the same kind of run, not the same interleaving: run it a few times.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from fleet_proto import fleet_pb2
from tests.support import catching_up, edits, field, left_behind, live_fleet, live_judge, proxy, streams, worker_process

TICK_S = 0.08
TRIGGER_S_MAX = 2.0
"""A kill that waits for something special comes after this long anyway."""
WATCH_S = 0.001
ALERTS_KEPT = 30
OFFLINE_SHORTEST_MS = 10_000
"""The shortest limit that a fleet may have; some runs wait for it."""
STOP_S_MAX = worker_process.STOP_S_MAX


class Run:
    """faults: the proxy between the worker and Kinesis, None = none."""

    def __init__(self, seed: int, fleet: live_fleet.LiveFleet, faults: proxy.FaultProxy | None) -> None:
        self.seed = seed
        self._dice = random.Random(f"{seed} director")
        self._fleet = fleet
        self._faults = faults
        self._ticks = self._dice.randrange(35, 60)
        dice = random.Random(f"{seed} field")
        self._field = field.Field(dice, dice.randrange(8, 32), self._ticks, _now_ms())
        self._alert_ids: list[tuple[str, str]] = []
        self._published = 0
        self.killed: list[str] = []
        self._watch = left_behind.PublishingWatch(fleet)
        self.stop_s = 0.0

    async def go(self) -> live_judge.Judgement:
        """Raises WorkerFailedError when the worker ends by itself, doesn't catch up, or doesn't stop as it should."""
        self._edit()
        telemetry = self._fleet.stream(live_fleet.TELEMETRY)
        kinesis = self._fleet.streams
        began_ms = _now_ms()
        await kinesis.put(telemetry, self._field.first(began_ms))
        await kinesis.put(telemetry, self._field.overrides(_now_ms()))
        if self._faults is not None:
            for rule in proxy.some_of_each(self._dice):
                self._faults.add(rule)
            self._faults.watch = self._watch
        async with self._fleet.worker() as worker:
            worker.start()
            watching = asyncio.create_task(self._watch_alerts())
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._traffic())
                    tasks.create_task(self._kills(worker))
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            if self._dice.randrange(2):
                await kinesis.put(telemetry, self._field.last(_now_ms()))
            waits_for_silence = self._dice.randrange(100) < 40
            await catching_up.caught_up(
                self._fleet, worker, began_ms + OFFLINE_SHORTEST_MS + 1_500 if waits_for_silence else 0
            )
            self.stop_s = await worker.stop()
        judgement = await live_judge.judged(self._fleet)
        judgement.problems += self._watch.problems
        return judgement

    @property
    def watched(self) -> int:
        """Alerts that were seen on their way to Kinesis."""
        return self._watch.seen

    # Records, edits, faults

    async def _traffic(self) -> None:
        stream = self._fleet.stream(live_fleet.TELEMETRY)
        for number in range(self._ticks):
            await self._fleet.streams.put(stream, self._field.tick(number, _now_ms(), self._alert_ids[-ALERTS_KEPT:]))
            await asyncio.sleep(TICK_S)

    def _edit(self) -> None:
        self._fleet.edit(*edits.draw(self._dice), in_place=self._dice.randrange(3) == 0)

    async def _watch_alerts(self) -> None:
        """What an operator sees, to acknowledge some of it; and the sign that something was published just now."""
        kinesis = self._fleet.streams
        (alerts,) = await kinesis.shards(self._fleet.stream(live_fleet.ALERTS))
        reader = streams.Reader(kinesis, self._fleet.stream(live_fleet.ALERTS), alerts.shard_id)
        while True:
            for record in await reader.more():
                alert = fleet_pb2.DeviceAlert.FromString(record.data)
                self._alert_ids.append((alert.device_id, alert.alert_id))
                self._published += 1
            await asyncio.sleep(0.02)

    # Kills

    async def _kills(self, worker: worker_process.WorkerProcess) -> None:
        triggers: dict[str, Callable[[], Awaitable[None]]] = {
            "some time": self._some_time,
            "a commit": self._commit,
            "an alert published": self._alert,
            "a new generation kept": self._generation,
            "its start": self._start,
        }
        for _ in range(self._dice.randint(1, 4)):
            name = self._dice.choice((*triggers, "a commit"))
            if name != "its start" and self._dice.randrange(4):
                await worker.ready()
            if name == "a new generation kept" or self._dice.randrange(2):
                self._edit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TRIGGER_S_MAX):
                    await triggers[name]()
            worker.kill()
            self.killed.append(name)
            if self._dice.randrange(4) == 0:
                self._edit()  # while nobody looks
            await asyncio.sleep(self._dice.choice((0.0, 0.1, 0.8)))
            worker.start()
        if self._dice.randrange(2):
            await worker.ready()
            self._edit()

    async def _some_time(self) -> None:
        await asyncio.sleep(self._dice.uniform(0.0, TRIGGER_S_MAX / 2))

    async def _start(self) -> None:
        await asyncio.sleep(self._dice.uniform(0.5, 2 * TRIGGER_S_MAX))

    async def _commit(self) -> None:
        """A transaction is being written, or was just now: its effects aren't published yet."""
        await _changed(list(self._fleet.partitions_folder.glob("*/environment/data.mdb")))
        await asyncio.sleep(self._dice.choice((0.0, 0.0, 0.001, 0.003, 0.01)))

    async def _alert(self) -> None:
        before = self._published
        await _until(lambda: self._published > before)
        await asyncio.sleep(self._dice.choice((0.0, 0.005, 0.05)))

    async def _generation(self) -> None:
        await _changed([self._fleet.partitions_folder.parent / "generations.json"])
        await asyncio.sleep(self._dice.choice((0.0, 0.001, 0.02, 0.9, 1.1)))


async def _changed(paths: list[Path]) -> None:
    """One of the files is another now, or was written to. Returns at once when there are none yet."""
    before = [_times(path) for path in paths]
    await _until(lambda: not paths or [_times(path) for path in paths] != before)


async def _until(condition: Callable[[], bool]) -> None:
    """As soon as it holds, to a millisecond: a kill has to come right after."""
    while True:
        if condition():
            return
        await asyncio.sleep(WATCH_S)


def _times(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
