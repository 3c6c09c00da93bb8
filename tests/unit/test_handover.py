"""Partitions between workers: claimed, moved, taken over, taken back, warm or cold."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from fleet_model import twin_partition
from fleet_worker import custody
from fleet_worker.adapters import memory_kinesis, memory_objects, memory_store
from tests.support import crew, piped, supervised, virtual_time
from tests.support.crew import FIRST, SECOND, Crew

Phase = twin_partition.Phase
DEVICE = supervised.device_of(upper_half=False)
LOWER_CHILD, UPPER_CHILD = "shardId-000000000002", "shardId-000000000003"


def in_a_crew(body: Callable[[Crew], Awaitable[None]]) -> None:
    async def main() -> None:
        async with crew.assembled() as fleet:
            await body(fleet)

    virtual_time.run(main())


async def heard(fleet: Crew, worker: str, temperature: float = 33.0) -> None:
    """DEVICE, of the first shard, has a twin with one more sample at that worker."""
    before = fleet.workers[worker].twin(DEVICE)
    count = 0 if before is None else int(before["samples"])
    fleet.kinesis.put(piped.TELEMETRY, *piped.sample(DEVICE, temperature))
    await fleet.until(lambda: (row := fleet.workers[worker].twin(DEVICE)) is not None and int(row["samples"]) > count)


async def owned(fleet: Crew, worker: str = "worker-0") -> None:
    await fleet.start(worker)
    await fleet.assign(FIRST, worker)
    await fleet.is_running(FIRST, worker)


def test_a_named_worker_claims_and_runs_and_checkpoints() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0")
        await fleet.until(lambda: f"{FIRST}/manifest.json" in fleet.bucket.contents())
        await fleet.clock.sleep(3 * crew.INTERVAL_S)
        await fleet.assign(SECOND, "worker-0")
        await fleet.is_running(SECOND, "worker-0")
        status = fleet.status(FIRST)
        assert (status.epoch, bool(status.nonce)) == (1, True)
        assert any(name.startswith(f"{FIRST}/base") for name in fleet.bucket.contents())
        assert status.checkpoint is not None, "without one it can't be moved"
        assert not status.checkpoint_stale
        fleet.plans["worker-0"] = lambda call: memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        await fleet.until(lambda: fleet.status(FIRST).checkpoint_stale, 4 * crew.INTERVAL_S)
        del fleet.plans["worker-0"]
        await fleet.until(lambda: not fleet.status(FIRST).checkpoint_stale, 4 * crew.INTERVAL_S)

    in_a_crew(body)


def test_the_first_twins_are_told_soon_and_those_after_them_seldom() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await fleet.clock.sleep(60.0)
        assert fleet.status(FIRST).twins == 0
        await heard(fleet, "worker-0")
        await fleet.until(lambda: fleet.status(FIRST).twins == 1, 20.0)
        await fleet.until(
            lambda: not fleet.status(FIRST).checkpoint_stale and fleet.status(FIRST).checkpoint is not None
        )
        told = fleet.status(FIRST)
        await fleet.clock.sleep(60.0)
        assert fleet.status(FIRST) == told

    in_a_crew(body)


def test_a_planned_move_hands_over_everything() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await fleet.start("worker-1")
        await heard(fleet, "worker-0", 70.0)
        await heard(fleet, "worker-0", 71.0)
        await fleet.assign(FIRST, "worker-1")
        await fleet.is_running(FIRST, "worker-1")
        assert fleet.workers["worker-0"].twin(DEVICE) is None
        assert int(fleet.workers["worker-1"].twin(DEVICE)["samples"]) == 2
        await heard(fleet, "worker-1", 72.0)
        await fleet.until(lambda: len(fleet.kinesis.records_of(piped.ALERTS)) == 1)
        await fleet.until(lambda: FIRST not in fleet.disks["worker-0"].shards())

    in_a_crew(body)


def test_a_warm_standby_takes_over_from_a_dead_owner() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await fleet.start("worker-1")
        await fleet.change(FIRST, standby=("worker-1",))
        await heard(fleet, "worker-0")
        await fleet.until(lambda: any(entry.warm for entry in fleet.status(FIRST).standby))
        await fleet.kill("worker-0")
        began = fleet.clock.monotonic()
        await fleet.assign(FIRST, "worker-1", takeover=True, standby=())
        await fleet.is_running(FIRST, "worker-1")
        await fleet.until(lambda: fleet.workers["worker-1"].twin(DEVICE) is not None)
        assert fleet.clock.monotonic() - began < 3.0
        assert fleet.status(FIRST).standby == ()

    in_a_crew(body)


def test_without_a_release_or_a_grant_nobody_else_gets_it() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await fleet.start("worker-1")
        await fleet.kill("worker-0")
        await fleet.assign(FIRST, "worker-1")
        await fleet.clock.sleep(120.0)
        status = fleet.status(FIRST)
        assert (status.worker, status.manifest_epoch) == ("worker-0", 1)
        await fleet.assign(FIRST, "worker-1", takeover=True)
        await fleet.is_running(FIRST, "worker-1")

    in_a_crew(body)


def test_a_restart_on_the_same_disk_goes_on_from_its_last_commit() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0")
        await fleet.clock.sleep(10.0)
        await fleet.kill("worker-0")
        await fleet.start("worker-0")
        await fleet.until(lambda: fleet.workers["worker-0"].twin(DEVICE) is not None)
        reads = [name for name in fleet.bucket.contents() if "base" in name]
        assert reads == [], "no checkpoint was there to restore from"

    in_a_crew(body)


def test_a_lost_disk_is_restored_from_the_checkpoint_and_the_stream() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0")
        await fleet.clock.sleep(2 * crew.INTERVAL_S)
        await heard(fleet, "worker-0")
        await fleet.kill("worker-0", memory_store.Survivor.NOTHING)
        fleet.disks["worker-0"].lose()
        await fleet.start("worker-0")
        await fleet.until(
            lambda: (row := fleet.workers["worker-0"].twin(DEVICE)) is not None and int(row["samples"]) == 2
        )

    in_a_crew(body)


def test_a_zombie_is_fenced_and_says_nothing_more() -> None:
    """It can't reach the control plane, so it doesn't hear that another one was named."""

    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0", 70.0)
        await fleet.start("worker-1")
        fleet.control.cut("worker-0")
        await fleet.assign(FIRST, "worker-1", takeover=True)
        await fleet.is_running(FIRST, "worker-1")
        await fleet.until(lambda: not fleet.workers["worker-0"].supervisor.partitions(), 3 * crew.INTERVAL_S)
        assert (
            "has claimed it"
            in "".join(
                entry.message for entry in fleet.workers["worker-0"].supervisor.elsewhere() if entry.shard_id == FIRST
            )
            or fleet.status(FIRST).worker == "worker-1"
        )
        fleet.control.mend("worker-0")
        await fleet.clock.sleep(30.0)
        assert fleet.status(FIRST).worker == "worker-1"

    in_a_crew(body)


def test_who_was_fenced_by_another_process_of_its_own_name_asks_for_the_next_epoch() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        ghost = fleet.workers.pop("worker-0")
        fleet.disks["ghost"] = fleet.disks.pop("worker-0")
        await fleet.start("worker-0")  # its successor, on a volume of its own
        await fleet.until(lambda: fleet.workers["worker-0"].supervisor.applied())
        await fleet.until(lambda: not ghost.supervisor.partitions(), 3 * crew.INTERVAL_S)
        status = fleet.status(FIRST)
        assert (status.phase, status.manifest_epoch) == (Phase.RUNNING, 0), "the successor's words stand"
        await ghost.die()
        found = custody.Manifests(memory_objects.MemoryObjects(fleet.bucket, fleet.clock))
        standing = await found.read(FIRST)
        assert standing is not None
        await found.write(
            dataclasses.replace(standing[0], nonce="f" * 16, revision=99), standing[1]
        )  # once more a ghost
        await fleet.until(lambda: fleet.status(FIRST).phase is Phase.FAILED, 3 * crew.INTERVAL_S)
        assert fleet.status(FIRST).manifest_epoch == 1
        await fleet.assign(FIRST, "worker-0", takeover=True)
        await fleet.is_running(FIRST, "worker-0")

    in_a_crew(body)


def test_a_move_that_cannot_be_finished_is_taken_back_and_goes_on_here() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0")
        away = memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        fleet.plans["worker-0"] = lambda call: away
        await fleet.assign(FIRST, "worker-1")
        await fleet.until(lambda: fleet.status(FIRST).phase is Phase.DRAINING)
        await fleet.clock.sleep(30.0)
        assert fleet.status(FIRST).phase is Phase.DRAINING
        await fleet.assign(FIRST, "worker-0", takeover=True)
        await fleet.until(lambda: fleet.status(FIRST).phase is Phase.RUNNING)
        await heard(fleet, "worker-0")
        del fleet.plans["worker-0"]
        await fleet.until(lambda: fleet.status(FIRST).epoch == 3)

    in_a_crew(body)


def test_children_on_other_workers_wait_for_their_parents_final_checkpoint() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0")
        await fleet.start("worker-1")
        fleet.kinesis.split_shard(piped.TELEMETRY, FIRST)
        for child in (LOWER_CHILD, UPPER_CHILD):
            await fleet.assign(child, "worker-1")
        for child in (LOWER_CHILD, UPPER_CHILD):
            await fleet.is_running(child, "worker-1")
        assert fleet.status(FIRST).phase is Phase.CLOSED
        assert int(fleet.workers["worker-1"].twin(DEVICE)["samples"]) == 1
        await fleet.until(lambda: FIRST not in fleet.disks["worker-0"].shards())

    in_a_crew(body)


def test_a_partition_that_was_closed_by_an_owner_who_died_before_saying_so_is_closed_by_the_next() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0")
        fleet.control.cut("worker-0")
        fleet.kinesis.split_shard(piped.TELEMETRY, FIRST)
        await fleet.until(lambda: FIRST not in fleet.workers["worker-0"].supervisor.applied())
        await fleet.clock.sleep(10.0)
        await fleet.kill("worker-0")
        assert fleet.status(FIRST).phase is Phase.RUNNING
        manifest = fleet.bucket.contents()[f"{FIRST}/manifest.json"]
        await fleet.start("worker-1")
        await fleet.assign(LOWER_CHILD, "worker-1")
        await fleet.clock.sleep(30.0)
        assert fleet.status(LOWER_CHILD).phase is Phase.PENDING
        await fleet.assign(FIRST, "worker-1", takeover=True)
        await fleet.is_running(LOWER_CHILD, "worker-1")
        assert (fleet.status(FIRST).phase, fleet.status(FIRST).worker) == (Phase.CLOSED, "worker-1")
        assert fleet.bucket.contents()[f"{FIRST}/manifest.json"] == manifest, "nothing was claimed"

    in_a_crew(body)


def test_a_worker_that_died_before_it_could_clear_away_does_so_when_it_is_back() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await fleet.start("worker-1")
        await fleet.assign(SECOND, "worker-0")
        await fleet.is_running(SECOND, "worker-0")
        await fleet.workers.pop("worker-0").end()
        left = fleet.disks["worker-0"].shards()
        assert left == [FIRST, SECOND]
        await fleet.assign(SECOND, "worker-1", takeover=True)
        await fleet.is_running(SECOND, "worker-1")
        closed = dataclasses.replace(fleet.status(FIRST), phase=Phase.CLOSED)
        await fleet.control.ownership("worker-0").report(FIRST, lambda status: closed)
        await fleet.start("worker-0")
        await fleet.until(lambda: fleet.disks["worker-0"].shards() == [])

    in_a_crew(body)


def test_a_standby_of_a_partition_that_closes_clears_its_copy_away() -> None:
    """Its object may go on naming it: nobody will ever take a closed partition over."""

    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await fleet.start("worker-1")
        await fleet.change(FIRST, standby=("worker-1",))
        await heard(fleet, "worker-0")
        await fleet.until(lambda: any(entry.warm for entry in fleet.status(FIRST).standby))
        assert fleet.disks["worker-1"].shards() == [FIRST]
        fleet.kinesis.split_shard(piped.TELEMETRY, FIRST)
        await fleet.until(lambda: fleet.status(FIRST).phase is Phase.CLOSED)
        await fleet.until(lambda: fleet.disks["worker-1"].shards() == [], 60.0)

    in_a_crew(body)


def test_effects_wait_while_nobody_can_tell_whether_it_is_still_ours() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        away = memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        fleet.plans["worker-0"] = lambda call: away
        fleet.control.cut("worker-0")
        await fleet.clock.sleep(2 * crew.INTERVAL_S + 30.0)
        for sent in piped.spike(DEVICE):
            fleet.kinesis.put(piped.TELEMETRY, *sent)
        await fleet.clock.sleep(60.0)
        assert fleet.kinesis.records_of(piped.ALERTS) == []
        fleet.control.mend("worker-0")
        await fleet.until(lambda: len(fleet.kinesis.records_of(piped.ALERTS)) == 1, 60.0)

    in_a_crew(body)


def test_a_standstill_in_the_middle_of_publishing_holds_what_is_left_until_it_is_known_whose_it_is() -> None:
    """For longer than a successor needs, and shorter than publishing may go on for."""

    async def body(fleet: Crew) -> None:
        await owned(fleet)
        calls: list[float] = []

        def stands_still(call: memory_kinesis.Call) -> memory_kinesis.Fault:
            if call.operation != "PutRecords" or call.stream != piped.ALERTS:
                return memory_kinesis.NO_FAULT
            calls.append(fleet.clock.monotonic())
            if len(calls) > 1:
                return memory_kinesis.NO_FAULT
            virtual_time.stand_still(15.0)
            away = memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
            fleet.plans["worker-0"] = lambda call: away
            fleet.control.cut("worker-0")
            return memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE)

        fleet.kinesis.plan = stands_still
        for sent in piped.spike(DEVICE):
            fleet.kinesis.put(piped.TELEMETRY, *sent)
        await fleet.until(lambda: calls, 60.0)
        await fleet.clock.sleep(60.0)
        assert len(calls) == 1, "it went on publishing after it had stood still"
        fleet.control.mend("worker-0")
        await fleet.until(lambda: len(fleet.kinesis.records_of(piped.ALERTS)) == 1, 60.0)

    in_a_crew(body)


def test_the_way_out_of_a_position_that_the_stream_no_longer_holds() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0")
        await fleet.clock.sleep(2 * crew.INTERVAL_S)
        await fleet.workers.pop("worker-0").end()
        await fleet.clock.sleep(memory_kinesis.RETENTION_MS / 1000 + 3_600)
        await fleet.start("worker-0")
        await fleet.until(lambda: fleet.status(FIRST).phase is Phase.FAILED)
        assert "skipToTime" in fleet.status(FIRST).message
        await fleet.change(FIRST, skip_to_ms=fleet.clock.wall_ms() - 60_000)
        await fleet.is_running(FIRST, "worker-0")
        await heard(fleet, "worker-0")
        row = fleet.workers["worker-0"].twin(DEVICE)
        assert int(row["samples"]) == 2
        assert fleet.kinesis.records_of(piped.ALERTS) == []

    in_a_crew(body)


def test_a_parent_that_was_never_read_to_its_end_is_loud_and_can_be_given_up() -> None:
    async def body(fleet: Crew) -> None:
        await owned(fleet)
        await heard(fleet, "worker-0")
        await fleet.clock.sleep(2 * crew.INTERVAL_S)
        await fleet.kill("worker-0")
        fleet.kinesis.split_shard(piped.TELEMETRY, FIRST)
        await fleet.assign(LOWER_CHILD, "worker-1")
        await fleet.control.delete(FIRST, fleet.control.stored(FIRST).resource_version)
        await fleet.start("worker-1")
        await fleet.until(lambda: fleet.status(LOWER_CHILD).phase is Phase.FAILED)
        assert "was not read to its end" in fleet.status(LOWER_CHILD).message
        await fleet.change(LOWER_CHILD, skip_to_ms=fleet.clock.wall_ms())
        await fleet.is_running(LOWER_CHILD, "worker-1")
        assert fleet.workers["worker-1"].twin(DEVICE) is None

    in_a_crew(body)
