"""The control loop in virtual time: what it writes, what it survives. The workers are played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Callable

import pytest

from fleet_cli.control import loop
from fleet_model import control, parse, spec, twin_partition
from fleet_model.twin_partition import Phase
from fleet_worker import control_plane, errors
from fleet_worker.adapters import kinesis, memory_control, memory_kinesis
from tests.support import fleets, piped, supervised, virtual_time

FIRST, SECOND = supervised.FIRST, supervised.SECOND


class Fleet:
    """A fleet whose workers do at once what their TwinPartitions say, as far as one can tell from outside."""

    def __init__(self, shards: int = 2) -> None:
        self.clock = virtual_time.VirtualClock()
        self.kinesis = memory_kinesis.MemoryKinesis(self.clock)
        self.kinesis.create_stream(piped.TELEMETRY, shards)
        self.plane = memory_control.MemoryControl(self.clock)
        document = fleets.smallest()
        document["spec"]["checkpoint"] = {"bucket": "checkpoints"}
        self.fleet = parse.parse(document)
        self.leaving: set[str] = set()
        self.edits: asyncio.Queue[spec.FleetSpec | parse.InvalidFleetError] = asyncio.Queue()
        connection = kinesis.KinesisConnection(self.kinesis, random.Random(1))
        self.loop = loop.ControlLoop(
            self.plane,
            connection.stream(piped.TELEMETRY, self.clock),
            self.fleet,
            self.clock,
            lambda name: name in self.leaving,
        )
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def watched(self) -> AsyncIterator[spec.FleetSpec | parse.InvalidFleetError]:
        while True:
            yield await self.edits.get()

    def start(self, name: str) -> None:
        self.tasks[name] = asyncio.create_task(self._work(name))

    async def end(self, name: str) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.wait((task,))

    async def _work(self, name: str) -> None:
        owner = self.plane.ownership(name)
        while True:
            with contextlib.suppress(errors.ControlPlaneUnavailableError):
                state = self.plane.state() if not self.plane.is_cut(name) else {}
                load = {shard_id: 10.0 for shard_id, entry in state.items() if entry.status.worker == name}
                beat = control_plane.Heartbeat(name, "http://x", True, self.clock.wall_ms(), 1, load)
                await self.plane.heartbeat(beat)
                for shard_id, entry in state.items():
                    await owner.report(shard_id, lambda status, entry=entry: self._told(name, entry, status))  # type: ignore[misc]
            await self.clock.sleep(0.5)

    def _told(
        self, name: str, entry: twin_partition.TwinPartition, status: twin_partition.Status
    ) -> twin_partition.Status:
        """What it would say next; one step at a time."""
        checkpoint = twin_partition.CheckpointStatus(
            "base", max(1, status.epoch), self.clock.wall_ms() // 30_000 * 30_000, "1"
        )
        if name in entry.spec.standby:
            others = tuple(standby for standby in status.standby if standby.worker != name)
            return dataclasses.replace(status, standby=(*others, twin_partition.StandbyStatus(name, 1, True)))
        if entry.spec.worker == name:
            may_claim = (
                status.worker in ("", name) or status.phase is Phase.RELEASED or entry.spec.takeover == entry.spec.epoch
            )
            if not may_claim:
                return status
            return twin_partition.Status(Phase.RUNNING, name, entry.spec.epoch, checkpoint=checkpoint)
        if status.worker == name and status.phase is Phase.RUNNING:
            return dataclasses.replace(status, phase=Phase.RELEASED, checkpoint=checkpoint)
        return status

    def owners(self) -> dict[str, str]:
        """Who runs what, of those that run."""
        return {
            shard_id: entry.status.worker
            for shard_id, entry in self.plane.state().items()
            if entry.status.phase is Phase.RUNNING and entry.status.epoch == entry.spec.epoch
        }

    async def until(self, condition: Callable[[], object], seconds_max: float = 300.0) -> None:
        deadline = self.clock.monotonic() + seconds_max
        while not condition():
            assert self.clock.monotonic() < deadline, f"{self.owners()}, {self.plane.state()}"
            await self.clock.sleep(0.1)

    @contextlib.asynccontextmanager
    async def controlled(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.loop.run(self.watched()))
        try:
            yield task
        finally:
            for running in (task, *self.tasks.values()):
                running.cancel()
            await asyncio.wait((task, *self.tasks.values()))


def test_every_shard_gets_an_object_and_an_owner() -> None:
    async def play() -> None:
        fleet = Fleet(4)
        async with fleet.controlled():
            await fleet.until(lambda: len(fleet.plane.state()) == 4)
            entry = fleet.plane.state()[FIRST]
            assert (entry.spec.fleet, entry.spec.stream) == (fleet.fleet.name, piped.TELEMETRY)
            assert entry.name == twin_partition.object_name(fleet.fleet.name, FIRST)
            assert entry.spec.worker == "", "nobody is ready yet"
            for name in ("worker-0", "worker-1"):
                fleet.start(name)
            await fleet.until(lambda: sorted(fleet.owners().values()) == ["worker-0"] * 2 + ["worker-1"] * 2)
            stored = fleet.plane.state()
            await fleet.clock.sleep(60)
            specs = {shard_id: entry.spec for shard_id, entry in fleet.plane.state().items()}
            assert specs == {shard_id: entry.spec for shard_id, entry in stored.items()}, "what is well stays"
            ready = next(entry for entry in fleet.loop.conditions if entry.kind is control.Kind.READY)
            assert ready.status

    virtual_time.run(play())


def test_workers_come_and_go_with_each_partition_owned_once() -> None:
    async def play() -> None:
        fleet = Fleet(6)
        epochs: dict[str, int] = {}
        owner_of: dict[tuple[str, int], str] = {}

        async def watch() -> None:
            async for state in fleet.plane.ownership("watcher").assignments():
                for shard_id, entry in state.items():
                    assert entry.spec.epoch >= epochs.get(shard_id, 0), "epochs never fall"
                    epochs[shard_id] = entry.spec.epoch
                    named = owner_of.setdefault((shard_id, entry.spec.epoch), entry.spec.worker)
                    assert named == entry.spec.worker, "a worker changes only with a higher epoch"

        async with fleet.controlled():
            watching = asyncio.create_task(watch())
            fleet.start("worker-0")
            await fleet.until(lambda: set(fleet.owners().values()) == {"worker-0"} and len(fleet.owners()) == 6)
            for name in ("worker-1", "worker-2"):
                fleet.start(name)
            await fleet.until(
                lambda: sorted(fleet.owners().values()) == sorted(f"worker-{n}" for n in range(3) for _ in range(2))
            )
            fleet.leaving = {"worker-1", "worker-2"}
            await fleet.until(lambda: set(fleet.owners().values()) == {"worker-0"} and len(fleet.owners()) == 6)
            assert not watching.done()
            watching.cancel()

    virtual_time.run(play())


def test_a_worker_that_falls_silent_loses_its_partitions_after_twenty_seconds() -> None:
    async def play() -> None:
        fleet = Fleet(3)
        async with fleet.controlled():
            for number in range(3):
                fleet.start(f"worker-{number}")
            await fleet.until(lambda: set(fleet.owners().values()) == {"worker-0", "worker-1", "worker-2"})
            await fleet.clock.sleep(30)  # the loop has watched for long enough to believe in a silence
            lost = next(shard_id for shard_id, worker in fleet.owners().items() if worker == "worker-2")
            await fleet.end("worker-2")
            began = fleet.clock.monotonic()
            await fleet.until(lambda: fleet.owners().get(lost) not in ("worker-2", None))
            assert 19 <= fleet.clock.monotonic() - began < 25
            assert fleet.plane.state()[lost].spec.takeover == fleet.plane.state()[lost].spec.epoch

    virtual_time.run(play())


def test_children_of_a_split_get_objects_and_a_loop_that_starts_anew_goes_on() -> None:
    async def play() -> None:
        fleet = Fleet(1)
        async with fleet.controlled():
            fleet.start("worker-0")
            await fleet.until(lambda: fleet.owners() == {FIRST: "worker-0"})
            await fleet.clock.sleep(5)
        children = fleet.kinesis.split_shard(piped.TELEMETRY, FIRST)
        fleet.tasks.clear()
        async with fleet.controlled():
            await fleet.until(lambda: set(children) <= set(fleet.plane.state()))
            assert all(fleet.plane.state()[child].spec.parents == (FIRST,) for child in children)

    virtual_time.run(play())


def test_writes_that_fail_or_whose_replies_are_lost_are_made_good() -> None:
    async def play() -> None:
        fleet = Fleet(4)
        chance = random.Random(3)

        def plan(call: memory_control.Call) -> memory_control.Fault:
            return memory_control.Fault(
                failure=chance.random() < 0.2, lost_reply=chance.random() < 0.2, delay_s=chance.random() * 0.3
            )

        fleet.plane.plan = plan
        async with fleet.controlled() as running:
            for name in ("worker-0", "worker-1"):
                fleet.start(name)
            await fleet.until(lambda: sorted(fleet.owners().values()) == ["worker-0"] * 2 + ["worker-1"] * 2, 900)
            assert not running.done()

    virtual_time.run(play())


def test_without_kinesis_and_without_the_control_plane_it_waits_and_says_why() -> None:
    async def play() -> None:
        fleet = Fleet(2)
        fleet.plane.cut("")
        async with fleet.controlled() as running:
            await fleet.until(lambda: "doesn't reach the control plane" in fleet.loop.trouble)
            fleet.plane.mend("")
            await fleet.until(lambda: fleet.loop.trouble == "")
            await fleet.until(lambda: len(fleet.plane.state()) == 2)

            def down(call: memory_kinesis.Call) -> memory_kinesis.Fault:
                return memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE)

            fleet.kinesis.plan = down
            fleet.start("worker-0")
            await fleet.until(lambda: set(fleet.owners().values()) == {"worker-0"})  # those known go on
            assert not running.done()

    virtual_time.run(play())


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_threshold(fleet: spec.FleetSpec, threshold: float) -> spec.FleetSpec:
    temperature = dataclasses.replace(fleet.rules.temperature, threshold=threshold)
    return dataclasses.replace(fleet, rules=dataclasses.replace(fleet.rules, temperature=temperature))


@pytest.mark.parametrize("kinesis_ahead_ms", [0, 7_000, -7_000])
def test_an_edit_becomes_one_generation_for_all_stamped_a_second_ahead_of_both_clocks(kinesis_ahead_ms: int) -> None:
    async def play() -> None:
        fleet = Fleet(2)
        fleet.kinesis.clock_offset_ms = kinesis_ahead_ms
        async with fleet.controlled():
            kept = fleet.plane.follow_generations("worker-0")
            (first,) = await anext(kept)
            assert (first.generation, first.effective_ms, first.default) == (1, 0, fleet.fleet.rules)
            await fleet.clock.sleep(10)
            fleet.edits.put_nowait(with_threshold(fleet.fleet, 30.0))
            edited_ms = fleet.clock.wall_ms()
            _, second = await anext(kept)
            assert (second.generation, second.default.temperature.threshold) == (2, 30.0)
            # The Date header tells whole seconds.
            ahead_ms = second.effective_ms - edited_ms - max(0, kinesis_ahead_ms)
            assert 0 <= ahead_ms <= 2_100
            assert second.effective_ms >= edited_ms + 1_000
            fleet.edits.put_nowait(with_threshold(fleet.fleet, 30.0))
            await fleet.clock.sleep(5)
            assert len(await fleet.plane.generations()) == 2, "nothing changed"

    virtual_time.run(play())


def test_an_edit_that_is_not_valid_or_can_not_be_kept_leaves_the_last_good_rules() -> None:
    async def play() -> None:
        fleet = Fleet(2)
        async with fleet.controlled() as running:
            await fleet.clock.sleep(5)
            with pytest.raises(parse.InvalidFleetError) as wrong:
                parse.parse({})
            fleet.edits.put_nowait(wrong.value)
            await fleet.clock.sleep(5)
            assert fleet.loop.rules_error == str(wrong.value)
            assert len(await fleet.plane.generations()) == 1

            fleet.plane.cut("")
            fleet.edits.put_nowait(with_threshold(fleet.fleet, 30.0))
            await fleet.clock.sleep(5)
            assert "control plane" in fleet.loop.rules_error
            fleet.plane.mend("")
            await fleet.until(lambda: fleet.loop.rules_error == "")
            assert [entry.generation for entry in await fleet.plane.generations()] == [1, 2]
            assert not running.done()

    virtual_time.run(play())


def test_what_was_edited_while_no_loop_ran_is_stamped_when_one_starts() -> None:
    async def play() -> None:
        fleet = Fleet(2)
        async with fleet.controlled():
            await fleet.clock.sleep(5)
        connection = kinesis.KinesisConnection(fleet.kinesis, random.Random(1))
        stream = connection.stream(piped.TELEMETRY, fleet.clock)
        edited = with_threshold(fleet.fleet, 20.0)
        fleet.loop = loop.ControlLoop(fleet.plane, stream, edited, fleet.clock, lambda name: False)
        async with fleet.controlled():
            await fleet.clock.sleep(5)
        kept = await fleet.plane.generations()
        assert [entry.default.temperature.threshold for entry in kept] == [60.0, 20.0]

    virtual_time.run(play())


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_are_ordered_by_the_numbers_of_their_names() -> None:
    names = ["worker-10", "worker-2", "plain", "worker-0"]
    beats = {name: control_plane.Heartbeat(name, "", True, 5, 1, {FIRST: 3.0, SECOND: 4.0}) for name in names}
    seen = loop.observed_workers(beats, lambda name: name == "worker-2", {FIRST: 2.5})
    assert [(worker.name, worker.ordinal, worker.leaving) for worker in seen] == [
        ("worker-0", 0, False),
        ("worker-2", 1, True),
        ("worker-10", 2, False),
        ("plain", 3, False),
    ]
    assert all(worker.load == {FIRST: 2.5} for worker in seen)
    assert loop.told_loads(beats) == {FIRST: 12.0, SECOND: 16.0}
