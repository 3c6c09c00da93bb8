"""What every control plane promises, judged on the folder, on the one in memory, and on a real API server."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import pytest

from fleet_model import hashing, partition, rules, twin_partition
from fleet_worker import control_plane, errors
from fleet_worker.adapters import clock, control_folder, memory_control
from tests.support import kubernetes_plane

Item = TypeVar("Item")

SHARD, OTHER = "shardId-000000000000", "shardId-000000000001"
SPEC = twin_partition.Spec("trucks", "telemetry", SHARD, hashing.HashKeyRange())
START = partition.Start("telemetry", 1_000)
ARRIVES_S = 10.0


def wanted(shard_id: str = SHARD) -> twin_partition.TwinPartition:
    spec = dataclasses.replace(SPEC, shard_id=shard_id)
    return twin_partition.TwinPartition("default", twin_partition.object_name("trucks", shard_id), spec)


def beat(name: str, time_ms: int = 1_000, ready: bool = True) -> control_plane.Heartbeat:
    return control_plane.Heartbeat(name, "http://127.0.0.1:8080", ready, time_ms, 4711, {SHARD: 12.5})


def generation(number: int) -> rules.RulesGeneration:
    default = rules.Rules(rules.TemperatureRule(threshold=float(number)))
    return rules.RulesGeneration(number, (number - 1) * 1_000, default)


def made(number: int) -> control_plane.Make:
    return lambda kept, late_ms: generation(number)


@pytest.fixture
def real() -> Iterator[clock.RealClock]:
    with clock.RealClock() as made:
        yield made


@pytest.fixture(params=["folder", "memory"])
async def outside(
    request: pytest.FixtureRequest, tmp_path: Path, real: clock.RealClock
) -> control_folder.ControlFolder | memory_control.MemoryControl:
    """Outside Kubernetes there are heartbeats, and the start is the control plane's to keep."""
    return await made_outside(request.param, tmp_path, real)


@pytest.fixture(params=["folder", "memory", pytest.param("kubernetes", marks=pytest.mark.processes)])
async def plane(
    request: pytest.FixtureRequest, tmp_path: Path, real: clock.RealClock
) -> AsyncIterator[control_plane.ControlPlane]:
    if request.param != "kubernetes":
        yield await made_outside(request.param, tmp_path, real)
        return
    server = request.getfixturevalue("api_server")
    namespace = f"contract-{secrets.token_hex(4)}"
    async with kubernetes_plane.opened(server, namespace, tmp_path / "account", real) as opened:
        yield cast(control_plane.ControlPlane, opened)


async def made_outside(
    kind: str, folder: Path, real: clock.RealClock
) -> control_folder.ControlFolder | memory_control.MemoryControl:
    if kind == "memory":
        return memory_control.MemoryControl(real)
    made = control_folder.ControlFolder(folder / "control", real)
    await made.prepare()
    return made


async def upcoming(items: AsyncIterator[Item], is_it: Callable[[Item], bool] = lambda item: True) -> Item:
    """The next item that is the one; others before it are what a slow reader might have missed."""
    async with asyncio.timeout(ARRIVES_S):
        async for item in items:
            if is_it(item):
                return item
    raise AssertionError("it ended, and never does")


async def test_what_is_created_is_there_with_a_resource_version(plane: control_plane.ControlPlane) -> None:
    assert await plane.partitions() == {}
    stored = await plane.create(wanted())
    assert stored.resource_version
    assert dataclasses.replace(stored, resource_version="", uid="", namespace="default") == wanted()
    assert await plane.partitions() == {SHARD: stored}
    with pytest.raises(errors.PreconditionFailedError, match=SHARD):
        await plane.create(wanted())
    assert await plane.partitions() == {SHARD: stored}


async def test_every_write_gives_a_resource_version_of_its_own(plane: control_plane.ControlPlane) -> None:
    versions = [(await plane.create(wanted())).resource_version]
    for epoch in range(1, 12):
        spec = dataclasses.replace(SPEC, epoch=epoch, worker="worker-0")
        versions.append((await plane.update_spec(SHARD, spec, versions[-1])).resource_version)
    await plane.delete(SHARD, versions[-1])
    versions.append((await plane.create(wanted())).resource_version)
    assert len(set(versions)) == len(versions)


async def test_an_object_that_is_made_anew_is_told_apart_by_its_uid(plane: control_plane.ControlPlane) -> None:
    first = await plane.create(wanted())
    second = await plane.update_spec(SHARD, dataclasses.replace(SPEC, epoch=1), first.resource_version)
    await plane.ownership("worker-0").report(SHARD, lambda status: dataclasses.replace(status, twins=1))
    third = (await plane.partitions())[SHARD]
    assert (first.uid, third.uid) == (second.uid, second.uid)
    await plane.delete(SHARD, third.resource_version)
    assert (await plane.create(wanted())).uid not in ("", first.uid)
    assert (await plane.partitions())[SHARD].uid != first.uid


async def test_a_spec_changes_only_from_what_was_read(plane: control_plane.ControlPlane) -> None:
    first = await plane.create(wanted())
    spec = dataclasses.replace(SPEC, worker="worker-0", epoch=1, standby=("worker-1",), assigned_ms=1_700_000_000_000)
    second = await plane.update_spec(SHARD, spec, first.resource_version)
    assert second.spec == spec
    for stale in (first.resource_version, ""):
        with pytest.raises(errors.PreconditionFailedError, match=SHARD):
            await plane.update_spec(SHARD, dataclasses.replace(spec, epoch=2), stale)
        with pytest.raises(errors.PreconditionFailedError, match=SHARD):
            await plane.delete(SHARD, stale)
    assert await plane.partitions() == {SHARD: second}


async def test_what_is_deleted_is_gone(plane: control_plane.ControlPlane) -> None:
    stored, other = await plane.create(wanted()), await plane.create(wanted(OTHER))
    await plane.delete(SHARD, stored.resource_version)
    assert await plane.partitions() == {OTHER: other}
    with pytest.raises(errors.PartitionGoneError, match=SHARD):
        await plane.update_spec(SHARD, SPEC, stored.resource_version)
    with pytest.raises(errors.PartitionGoneError, match=SHARD):
        await plane.delete(SHARD, stored.resource_version)
    with pytest.raises(errors.PartitionGoneError, match=SHARD):
        await plane.ownership("worker-0").report(SHARD, lambda status: status)


async def test_a_report_changes_the_status_alone_and_returns_it(plane: control_plane.ControlPlane) -> None:
    stored = await plane.create(wanted())
    told = twin_partition.Status(
        twin_partition.Phase.RUNNING,
        worker="worker-0",
        epoch=3,
        twins=7,
        checkpoint=twin_partition.CheckpointStatus("base-3-ab.parquet", 3, 1_700_000_000_123, "4" * 56),
        standby=(twin_partition.StandbyStatus("worker-1", 4, True),),
        message="all is well",
    )
    assert await plane.ownership("worker-0").report(SHARD, lambda status: told) == told
    after = (await plane.partitions())[SHARD]
    assert (after.spec, after.status) == (SPEC, told)
    assert after.resource_version != stored.resource_version
    with pytest.raises(errors.PreconditionFailedError):
        await plane.update_spec(SHARD, SPEC, stored.resource_version)
    spec = dataclasses.replace(SPEC, epoch=4)
    assert (await plane.update_spec(SHARD, spec, after.resource_version)).status == told


async def test_a_report_that_changes_nothing_writes_nothing(plane: control_plane.ControlPlane) -> None:
    await plane.create(wanted())
    owner = plane.ownership("worker-0")

    def told(status: twin_partition.Status) -> twin_partition.Status:
        return dataclasses.replace(status, message="m" * 5_000)  # is cut

    status = await owner.report(SHARD, told)
    before = await plane.partitions()
    assert await owner.report(SHARD, told) == status
    assert await owner.report(SHARD, lambda stored: stored) == status
    assert await plane.partitions() == before


async def test_reports_at_once_are_all_kept(plane: control_plane.ControlPlane) -> None:
    await plane.create(wanted())

    def entry(name: str) -> Callable[[twin_partition.Status], twin_partition.Status]:
        def with_entry(status: twin_partition.Status) -> twin_partition.Status:
            return dataclasses.replace(status, standby=(*status.standby, twin_partition.StandbyStatus(name)))

        return with_entry

    names = [f"worker-{number}" for number in range(6)]
    await asyncio.gather(*(plane.ownership(name).report(SHARD, entry(name)) for name in names))
    status = (await plane.partitions())[SHARD].status
    assert sorted(standby.worker for standby in status.standby) == names


async def test_assignments_tell_the_state_at_once_and_then_every_change(plane: control_plane.ControlPlane) -> None:
    stored = await plane.create(wanted())
    owner = plane.ownership("worker-0")
    states = owner.assignments()
    assert await upcoming(states) == {SHARD: stored}
    stored = await plane.update_spec(SHARD, dataclasses.replace(SPEC, epoch=1), stored.resource_version)
    owner.look_again()
    assert await upcoming(states, lambda state: state != {}) == {SHARD: stored}
    other = await plane.create(wanted(OTHER))
    assert await upcoming(states) == {SHARD: stored, OTHER: other}
    await plane.ownership("worker-1").report(OTHER, lambda status: dataclasses.replace(status, twins=1))
    assert (await upcoming(states))[OTHER].status.twins == 1
    await plane.delete(SHARD, stored.resource_version)
    assert set(await upcoming(states)) == {OTHER}


async def test_a_fleet_without_partitions_is_told_as_such(plane: control_plane.ControlPlane) -> None:
    assert await upcoming(plane.ownership("worker-0").assignments()) == {}


async def test_nothing_is_told_while_nothing_changes(plane: control_plane.ControlPlane) -> None:
    await plane.create(wanted())
    states = plane.ownership("worker-0").assignments()
    await upcoming(states)
    following = asyncio.ensure_future(anext(states))
    await plane.heartbeat(beat("worker-1"))
    await plane.append_generation(made(1), 0)
    done, _ = await asyncio.wait((following,), timeout=0.6)
    assert not done
    await plane.create(wanted(OTHER))
    async with asyncio.timeout(ARRIVES_S):
        assert set(await following) == {SHARD, OTHER}


async def test_a_slow_reader_gets_the_newest_state_only(plane: control_plane.ControlPlane) -> None:
    stored = await plane.create(wanted())
    slow, quick = (plane.ownership(name).assignments() for name in ("worker-0", "worker-1"))
    await upcoming(slow)
    await upcoming(quick)
    for epoch in range(1, 6):
        spec = dataclasses.replace(SPEC, epoch=epoch)
        stored = await plane.update_spec(SHARD, spec, stored.resource_version)
    while await upcoming(quick) != {SHARD: stored}:
        pass
    told = [await upcoming(slow)]
    if told[0] != {SHARD: stored}:  # its own watch is a little behind the other's
        told.append(await upcoming(slow))
    assert told[-1] == {SHARD: stored}


async def test_two_readers_hear_the_same(plane: control_plane.ControlPlane) -> None:
    readers = [plane.ownership(name).assignments() for name in ("worker-0", "worker-0", "worker-1")]
    for reader in readers:
        await upcoming(reader)
    stored = await plane.create(wanted())
    assert [await upcoming(reader) for reader in readers] == [{SHARD: stored}] * 3


async def test_the_last_heartbeat_of_each_worker_is_kept(outside: control_plane.ControlPlane) -> None:
    assert await outside.heartbeats() == {}
    await outside.heartbeat(beat("worker-1"))
    await outside.heartbeat(beat("worker-0", 1_000, ready=False))
    await outside.heartbeat(beat("worker-0", 2_000))
    assert await outside.heartbeats() == {"worker-0": beat("worker-0", 2_000), "worker-1": beat("worker-1")}
    await outside.forget_worker("worker-1")
    await outside.forget_worker("worker-1")
    assert set(await outside.heartbeats()) == {"worker-0"}


def test_a_worker_is_silent_after_twenty_seconds() -> None:
    assert not beat("worker-0", 1_000).is_silent(21_000)
    assert beat("worker-0", 1_000).is_silent(21_001)


async def test_generations_are_told_when_there_are_any_and_when_they_change(plane: control_plane.ControlPlane) -> None:
    kept = plane.follow_generations("worker-0")
    following = asyncio.ensure_future(anext(kept))
    done, _ = await asyncio.wait((following,), timeout=0.3)
    assert not done
    assert await plane.generations() == ()
    assert await plane.append_generation(made(1), 0) == (generation(1),)
    async with asyncio.timeout(ARRIVES_S):
        assert await following == (generation(1),)
    await plane.append_generation(made(2), 0)
    assert await upcoming(kept) == (generation(1), generation(2))
    assert await upcoming(plane.follow_generations("worker-1")) == (generation(1), generation(2))
    assert await plane.generations() == (generation(1), generation(2))


async def test_generations_that_judge_nothing_any_more_go(outside: control_plane.ControlPlane) -> None:
    await outside.append_generation(made(1), 0)
    await outside.append_generation(made(2), 0)
    assert await outside.append_generation(made(3), 1_500) == (generation(2), generation(3))
    assert await outside.generations() == (generation(2), generation(3))


async def test_a_generation_is_made_from_what_is_kept_or_not_at_all(plane: control_plane.ControlPlane) -> None:
    seen: list[int] = []

    def make(kept: tuple[rules.RulesGeneration, ...], late_ms: int) -> rules.RulesGeneration | None:
        seen.append(len(kept))
        return generation(len(kept) + 1) if len(kept) < 2 else None

    for count in (1, 2, 2):
        assert len(await plane.append_generation(make, 0)) == count
    assert seen == [0, 1, 2]


async def test_a_start_is_settled_once(outside: control_plane.ControlPlane) -> None:
    assert await outside.start() is None
    assert await outside.settle_start(START) == START
    assert await outside.settle_start(partition.Start("telemetry", None)) == START
    assert await outside.start() == START
