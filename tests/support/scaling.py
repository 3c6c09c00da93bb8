"""One seeded run of a fleet whose workers become four of two, and one of four, while records come and processes die.

The seed draws devices, records, edits of the rules, splits and merges, when the number of workers changes, and who dies when and how. Real time
isn't replayed, so a seed brings back the same kind of run, not the same interleaving: run it a few times.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable, Mapping

from fleet_model import twin_partition
from fleet_model.twin_partition import Phase
from fleet_proto import fleet_pb2
from tests.support import edits, field, live_fleet, proxy, shared_fleet, streams, worker_process

TICK_S = 0.12
TICKS = 160
"""So many the devices plan for; traffic goes on for as long as the run does."""
SILENT_AFTER_MS = 3_500
"""A worker whose heartbeat is older than this counts as gone, here; a heartbeat comes every two seconds."""
TRIGGER_S_MAX = 4.0
"""A kill that waits for something special comes after this long anyway."""
TAKEN_OVER_S_MAX = 20.0
SETTLED_S_MAX = 150.0
"""On a busy machine; alone it takes seconds."""
WATCH_S = 0.01
ALERTS_KEPT = 30
STOP_S_MAX = worker_process.STOP_S_MAX
LAST = "worker-0"
"""Who stays when the others leave."""


@dataclasses.dataclass
class Crew:
    """The workers by name. wanted: how many there are to be; the others leave as soon as they own nothing. alive: runs, or is to run
    again in a moment."""

    shared: shared_fleet.SharedFleet
    stack: contextlib.AsyncExitStack
    wanted: int = 2
    workers: dict[str, worker_process.WorkerProcess] = dataclasses.field(default_factory=dict)
    hurt: set[str] = dataclasses.field(default_factory=set)
    """Killed or paused, and not yet back."""
    leaving: set[str] = dataclasses.field(default_factory=set)
    """Told to end."""
    left: int = 0

    def names(self) -> list[str]:
        return [f"worker-{number}" for number in range(self.wanted)]

    def is_leaving(self, name: str) -> bool:
        return name not in self.names()

    async def want(self, count: int) -> None:
        self.wanted = count
        for name in self.names():
            if name not in self.workers:
                self.workers[name] = await self.stack.enter_async_context(self.shared.worker(name))
            if not self.workers[name].is_running and name not in self.hurt:
                self.workers[name].start()

    def running(self) -> list[str]:
        apart = self.hurt | self.leaving
        return sorted(name for name, worker in self.workers.items() if worker.is_running and name not in apart)

    async def tend(self) -> None:
        """Ends those that have left, for as long as it isn't cancelled."""
        while True:
            known = self.shared.partitions()
            for name, worker in self.workers.items():
                gone = self.is_leaving(name) and name not in self.hurt and not is_needed(name, known)
                if gone and worker.is_running and worker.has_answered:
                    self.leaving.add(name)
                    await worker.stop()
                    self.leaving.discard(name)
                    self.left += 1
            await asyncio.sleep(0.1)


def is_needed(name: str, known: Mapping[str, twin_partition.TwinPartition]) -> bool:
    """Whether a worker owns a partition, is to, or has yet to give one away."""
    return not known or any(
        name in (entry.spec.worker, *entry.spec.standby)
        or (entry.status.worker == name and entry.status.phase not in (Phase.RELEASED, Phase.FAILED))
        for entry in known.values()
        if entry.status.phase is not Phase.CLOSED
    )


class Run:
    """faults: the proxy between the workers and Kinesis, None = none."""

    def __init__(
        self, seed: int, shared: shared_fleet.SharedFleet, crew: Crew, faults: proxy.FaultProxy | None
    ) -> None:
        self.seed = seed
        self.crew = crew
        self.happened: list[str] = []
        self._dice = random.Random(f"{seed} director")
        self._shared = shared
        self._fleet = shared.fleet
        self._faults = faults
        dice = random.Random(f"{seed} field")
        self._field = field.Field(dice, dice.randrange(16, 48), TICKS, now_ms())
        self._alert_ids: list[tuple[str, str]] = []
        self._published = 0
        self._is_over = asyncio.Event()
        self._edit()  # before anybody reads the file

    @property
    def devices(self) -> list[str]:
        return [device.device_id for device in self._field.devices]

    async def go(self) -> None:
        """Until one worker is left and owns everything. Raises WorkerFailedError when a worker ends by itself."""
        telemetry = self._fleet.stream(live_fleet.TELEMETRY)
        await self._fleet.streams.put(telemetry, self._field.first(now_ms()))
        await self._fleet.streams.put(telemetry, self._field.overrides(now_ms()))
        if self._faults is not None:
            for rule in proxy.some_of_each(self._dice):
                self._faults.add(rule)
        await self.crew.want(2)
        watching = asyncio.create_task(self._watch_alerts())
        tending = asyncio.create_task(self.crew.tend())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._traffic())
                tasks.create_task(self._script())
            await self.settled()
        finally:
            for task in (watching, tending):
                task.cancel()
            done = await asyncio.gather(watching, tending, return_exceptions=True)
        for error in done:
            if isinstance(error, Exception):
                raise error

    async def settled(self) -> None:
        """One worker is left, and owns all that is open."""
        await self._until(
            lambda: self.crew.running() == [LAST] and all_run(self._shared.partitions(), LAST),
            "not everything has come to the one worker that stays",
            SETTLED_S_MAX,
        )

    # What happens

    async def _script(self) -> None:
        """Two workers, four, one; kills, edits and reshards in between, in an order that the seed draws."""
        dice = self._dice
        try:
            acts: list[Callable[[], Awaitable[None]]] = [self._kill] * dice.randint(2, 4)
            acts += [self._edit_now] * dice.randint(0, 2)
            acts += [self._split] * dice.choice((0, 0, 1)) + [self._merge] * dice.choice((0, 0, 1))
            dice.shuffle(acts)
            cut, end = sorted(dice.choices(range(len(acts) + 1), k=2))
            if dice.randrange(4):
                await self._everyone_ready()
            await self._act(acts[:cut])
            self._note("four workers")
            await self.crew.want(4)
            if dice.randrange(3):
                await asyncio.sleep(dice.uniform(1.0, 6.0))
            await self._act(acts[cut:end])
            await self._until(self._has_spread, "nobody but the first two has got a partition", SETTLED_S_MAX)
            self._note("one worker")
            await self.crew.want(1)
            await self._act(acts[end:])
        finally:
            self._is_over.set()

    def _has_spread(self) -> bool:
        """A partition runs on one of those that came later: there was a move."""
        return any(
            entry.status.phase is Phase.RUNNING and entry.status.worker in ("worker-2", "worker-3")
            for entry in self._shared.partitions().values()
        )

    async def _act(self, acts: list[Callable[[], Awaitable[None]]]) -> None:
        for act in acts:
            await act()
            await asyncio.sleep(self._dice.uniform(0.0, 2.0))

    async def _everyone_ready(self) -> None:
        await self._until(
            lambda: (
                bool(known := self._shared.partitions())
                and all(entry.status.phase is Phase.RUNNING for entry in known.values())
            ),
            "the first two workers don't run all partitions",
            SETTLED_S_MAX,
        )

    async def _edit_now(self) -> None:
        self._edit()
        self._note("edit")

    def _edit(self) -> None:
        self._fleet.edit(*edits.draw(self._dice), in_place=self._dice.randrange(3) == 0)

    async def _split(self) -> None:
        shard = self._dice.choice(await self._open())
        self._note(f"split of {shard[-2:]}")
        await self._fleet.streams.split(self._fleet.stream(live_fleet.TELEMETRY), shard)

    async def _merge(self) -> None:
        """Of two that lie side by side."""
        open_ones = await self._open()
        first = self._dice.randrange(len(open_ones) - 1)
        self._note(f"merge of {open_ones[first][-2:]} and {open_ones[first + 1][-2:]}")
        await self._fleet.streams.merge(
            self._fleet.stream(live_fleet.TELEMETRY), open_ones[first], open_ones[first + 1]
        )

    async def _open(self) -> list[str]:
        """Open shards in the order of their ranges."""
        shards = await self._fleet.streams.shards(self._fleet.stream(live_fleet.TELEMETRY))
        return [shard.shard_id for shard in sorted(shards, key=lambda shard: shard.hash_key_range) if not shard.closed]

    # Kills

    async def _kill(self) -> None:
        triggers: dict[str, Callable[[str], Awaitable[None]]] = {
            "some time": self._some_time,
            "a move": self._move,
            "a commit": self._commit,
            "an alert": self._alert,
            "its checkpoint": self._checkpoint,
            "its start": self._start,
        }
        dice = self._dice
        if not (running := self.crew.running()):
            return
        trigger, name = dice.choice((*triggers, "a move")), dice.choice(running)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TRIGGER_S_MAX):
                await triggers[trigger](name)
        worker = self.crew.workers[name]
        if name not in self.crew.running():
            return  # it has left meanwhile
        fates = ["back at once", "back at once", "back soon", "disk lost"]
        if any(other != name and not self.crew.is_leaving(other) for other in self.crew.running()):
            fates += ["taken over", "disk lost and taken over", "paused and taken over"]
        fate = dice.choice(fates)
        self._note(f"{name} at {trigger}, {fate}")
        self.crew.hurt.add(name)
        try:
            if fate == "paused and taken over":
                await self._paused(name, worker)
            else:
                await self._killed(name, worker, fate)
        finally:
            self.crew.hurt.discard(name)

    async def _killed(self, name: str, worker: worker_process.WorkerProcess, fate: str) -> None:
        worker.kill()
        if fate.startswith("disk lost"):
            self._shared.take_disk(name)
        if fate == "back soon":
            await asyncio.sleep(self._dice.uniform(0.2, 2.0))
        if fate.endswith("taken over"):
            await self._taken_over(name)
        if not self.crew.is_leaving(name) or is_needed(name, self._shared.partitions()):
            worker.start()

    async def _paused(self, name: str, worker: worker_process.WorkerProcess) -> None:
        """It lives on as a zombie once others have what it had."""
        worker.pause()
        try:
            await self._taken_over(name)
            await asyncio.sleep(self._dice.choice((0.0, 1.0)))
        finally:
            worker.resume()

    async def _taken_over(self, name: str) -> None:
        def is_so() -> bool:
            return all(
                entry.spec.worker != name or entry.status.phase is Phase.CLOSED
                for entry in self._shared.partitions().values()
            )

        await self._until(is_so, f"nobody took over from {name}", TAKEN_OVER_S_MAX)
        if self._dice.randrange(2):
            await self._until(
                lambda: all(
                    entry.status.worker != name or entry.status.phase is Phase.CLOSED
                    for entry in self._shared.partitions().values()
                ),
                f"nobody claimed what {name} had",
                TAKEN_OVER_S_MAX,
            )

    async def _some_time(self, name: str) -> None:
        await asyncio.sleep(self._dice.uniform(0.0, TRIGGER_S_MAX / 2))

    async def _start(self, name: str) -> None:
        """Of itself: some moment in the seconds after one that it hasn't told about yet."""
        await asyncio.sleep(self._dice.uniform(0.5, TRIGGER_S_MAX))

    async def _move(self, name: str) -> None:
        """One of its partitions is just being handed over, from it or to it."""

        def is_moving() -> bool:
            return any(
                name in (entry.spec.worker, entry.status.worker, *entry.spec.standby)
                and entry.status.phase in (Phase.DRAINING, Phase.RELEASED, Phase.RESTORING)
                for entry in self._shared.partitions().values()
            )

        await _as_soon_as(is_moving)
        await asyncio.sleep(self._dice.choice((0.0, 0.0, 0.02, 0.1, 0.3)))

    async def _commit(self, name: str) -> None:
        paths = list(self._shared.partitions_folder(name).glob("*/environment/data.mdb"))
        before = [path.stat().st_mtime_ns for path in paths if path.exists()]
        await _as_soon_as(lambda: before != [path.stat().st_mtime_ns for path in paths if path.exists()])
        await asyncio.sleep(self._dice.choice((0.0, 0.001, 0.003, 0.01)))

    async def _checkpoint(self, name: str) -> None:
        """It told of one just now, or is in the middle of the next."""

        def numbers() -> list[object]:
            return [
                entry.status.checkpoint for entry in self._shared.partitions().values() if entry.status.worker == name
            ]

        before = numbers()
        await _as_soon_as(lambda: numbers() != before)
        await asyncio.sleep(self._dice.choice((0.0, 0.5, 1.5, 1.9, 2.0)))

    async def _alert(self, name: str) -> None:
        before = self._published
        await _as_soon_as(lambda: self._published > before)
        await asyncio.sleep(self._dice.choice((0.0, 0.005, 0.05)))

    # Records, faults

    async def _traffic(self) -> None:
        stream, number = self._fleet.stream(live_fleet.TELEMETRY), 0
        while not self._is_over.is_set() or number < TICKS:
            await self._fleet.streams.put(stream, self._field.tick(number, now_ms(), self._alert_ids[-ALERTS_KEPT:]))
            number += 1
            await asyncio.sleep(TICK_S)

    async def _watch_alerts(self) -> None:
        """What an operator sees, to acknowledge some of it; and the sign that something was published just now."""
        kinesis, stream = self._fleet.streams, self._fleet.stream(live_fleet.ALERTS)
        (alerts,) = await kinesis.shards(stream)
        reader = streams.Reader(kinesis, stream, alerts.shard_id)
        while True:
            for record in await reader.more():
                alert = fleet_pb2.DeviceAlert.FromString(record.data)
                self._alert_ids.append((alert.device_id, alert.alert_id))
                self._published += 1
            await asyncio.sleep(0.05)

    # Waiting

    def _note(self, what: str) -> None:
        self.happened.append(what)

    async def _until(self, condition: Callable[[], bool], what: str, seconds_max: float) -> None:
        """Raises WorkerFailedError when it doesn't come true in time, or a worker has ended by itself."""
        deadline = time.monotonic() + seconds_max
        while not condition():
            for name, worker in self.crew.workers.items():
                if name not in self.crew.hurt | self.crew.leaving:
                    worker.check_alive()
            if time.monotonic() > deadline:
                raise worker_process.WorkerFailedError(f"{what} after {seconds_max} s\n{self.told()}")
            await asyncio.sleep(0.05)

    def told(self) -> str:
        """Who owns what, and what its owners say."""
        lines = [f"so far: {', '.join(self.happened)}", f"running: {self.crew.running()}, {self.crew.wanted} wanted"]
        for shard_id, entry in self._shared.partitions().items():
            wanted, told = entry.spec, entry.status
            lines.append(
                f"{shard_id}: {wanted.worker}@{wanted.epoch} takeover {wanted.takeover} standby {list(wanted.standby)}; "
                f"{told.phase} {told.worker}@{told.epoch} refused by {told.manifest_epoch} {told.standby} {told.message}"
            )
        return "\n".join(lines)


def all_run(known: Mapping[str, twin_partition.TwinPartition], worker: str) -> bool:
    """Everything that isn't closed runs with that worker, and nothing is on its way elsewhere."""
    return bool(known) and all(
        entry.status.phase is Phase.CLOSED
        or (
            entry.status.phase is Phase.RUNNING
            and entry.spec.worker == entry.status.worker == worker
            and entry.spec.epoch == entry.status.epoch
            and not entry.spec.standby
        )
        for entry in known.values()
    )


async def _as_soon_as(condition: Callable[[], bool]) -> None:
    """To some milliseconds: a kill has to come right after."""
    while True:
        if condition():
            return
        await asyncio.sleep(WATCH_S)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
