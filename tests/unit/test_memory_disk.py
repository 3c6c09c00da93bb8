"""The disk in memory: what outlives a process, a machine, and a volume."""

from __future__ import annotations

import dataclasses

import pytest

from fleet_model import hashing, partition
from fleet_worker import errors
from fleet_worker.adapters import memory_disk, memory_store
from fleet_worker.core import commits
from tests.support import commits as build

LOWER, UPPER = hashing.HashKeyRange(end=2**127 - 1), hashing.HashKeyRange(start=2**127)
COMMITTED, SYNCED, NOTHING = (
    memory_store.Survivor.COMMITTED,
    memory_store.Survivor.SYNCED,
    memory_store.Survivor.NOTHING,
)


def identity(shard_id: str = "shard", key_range: hashing.HashKeyRange | None = None) -> partition.PartitionIdentity:
    return partition.PartitionIdentity("default", "fleet", "telemetry", shard_id, key_range or hashing.HashKeyRange())


def commit(number: int, *, ended: bool = False) -> commits.Commit:
    made = build.commit(number=number)
    return dataclasses.replace(made, state=dataclasses.replace(made.state, ended=ended))


@pytest.fixture
def disk() -> memory_disk.MemoryDisk:
    return memory_disk.MemoryDisk()


def test_what_was_committed_is_there_after_a_clean_close(disk: memory_disk.MemoryDisk) -> None:
    store = disk.open(identity()).store
    store.commit(commit(1))
    store.close()
    opened = disk.open(identity())
    assert opened.discarded is None
    assert opened.store.state.commit_number == 1


def test_a_process_that_dies_loses_nothing_committed(disk: memory_disk.MemoryDisk) -> None:
    store = disk.open(identity()).store
    store.commit(commit(1))
    disk.crash(COMMITTED)
    with pytest.raises(errors.StoreBrokenError):
        store.commit(commit(2))
    assert disk.open(identity()).store.state.commit_number == 1


def test_a_machine_that_dies_leaves_what_was_synced_or_what_was_closed(disk: memory_disk.MemoryDisk) -> None:
    store = disk.open(identity()).store
    store.commit(commit(1))
    store.sync()
    store.commit(commit(2))
    disk.crash(SYNCED)
    store = disk.open(identity()).store
    assert store.state.commit_number == 1
    closed = disk.open(identity("closed")).store
    closed.commit(commit(7))
    closed.close()
    disk.crash(NOTHING)
    again = disk.open(identity())
    assert again.discarded is not None
    assert again.store.state == commits.PartitionState()
    assert disk.open(identity("closed")).store.state.commit_number == 7


def test_an_environment_that_broke_is_never_used_again(disk: memory_disk.MemoryDisk) -> None:
    store = disk.open(identity()).store
    store.commit(commit(1))
    assert disk.fail_next("shard")
    with pytest.raises(errors.StoreBrokenError):
        store.sync()
    store.close()
    assert not disk.fail_next("shard")
    again = disk.open(identity())
    assert again.discarded == "fsync failed"
    assert again.store.state == commits.PartitionState()
    again.store.close()
    assert disk.open(identity()).discarded is None, "told once"


def test_what_was_to_fail_next_can_be_mended(disk: memory_disk.MemoryDisk) -> None:
    store = disk.open(identity()).store
    disk.fail_next("shard")
    disk.mend()
    store.commit(commit(1))
    store.close()
    assert disk.open(identity()).discarded is None


def test_a_broken_environment_stays_broken_when_its_process_dies(disk: memory_disk.MemoryDisk) -> None:
    store = disk.open(identity()).store
    disk.fail_next("shard")
    with pytest.raises(errors.StoreBrokenError):
        store.commit(commit(1))
    disk.crash(COMMITTED)
    assert disk.open(identity()).discarded is not None


def test_a_full_disk_takes_no_commit_and_nothing_new(disk: memory_disk.MemoryDisk) -> None:
    store = disk.open(identity()).store
    disk.is_full = True
    with pytest.raises(errors.DiskFullError):
        store.commit(commit(1))
    with pytest.raises(errors.DiskFullError):
        disk.open(identity("other"))
    disk.is_full = False
    store.commit(commit(1))
    disk.open(identity("other"))


def test_an_environment_belongs_to_its_partition(disk: memory_disk.MemoryDisk) -> None:
    disk.open(identity()).store.close()
    with pytest.raises(errors.StoreBrokenError):
        disk.open(identity(key_range=LOWER))


def test_one_environment_is_open_once(disk: memory_disk.MemoryDisk) -> None:
    disk.open(identity())
    with pytest.raises(AssertionError):
        disk.open(identity())
    with pytest.raises(AssertionError):
        disk.remove("shard")


def test_a_lost_volume_is_empty(disk: memory_disk.MemoryDisk) -> None:
    store = disk.open(identity()).store
    store.commit(commit(1))
    disk.lose()
    with pytest.raises(errors.StoreBrokenError):
        store.commit(commit(2))
    assert disk.shards() == []
    assert disk.open(identity()).store.state == commits.PartitionState()


def test_what_is_left_of_shards_that_are_no_longer_listed(disk: memory_disk.MemoryDisk) -> None:
    for shard_id, ended in (("begun", False), ("ended", True), ("unread", False)):
        store = disk.open(identity(shard_id, LOWER)).store
        store.commit(commit(1, ended=ended))
        store.close()
    disk.open(identity("torn")).store.commit(commit(1))
    disk.crash(NOTHING)
    left = {entry.shard_id: entry for entry in disk.left({"begun"})}
    assert sorted(left) == ["ended", "torn", "unread"]
    assert left["ended"].ended
    assert left["ended"].trouble == ""
    assert left["ended"].key_range == LOWER
    assert left["ended"].begun == {"begun"}
    assert "records are lost" in left["unread"].trouble
    assert "can't be trusted" in left["torn"].trouble
    disk.remove("torn")
    assert "torn" not in disk.shards()


def test_a_child_inherits_its_range(disk: memory_disk.MemoryDisk) -> None:
    parent = disk.open(identity("parent")).store
    names = [f"device-{number}" for number in range(20)]
    parent.commit(build.commit(build.twin_rows(names)))
    child = disk.open(identity("child", UPPER)).store
    disk.inherit(child, [parent], UPPER, commits.PartitionState(commit_number=2))
    kept = {name for rows in child.scan() for name in rows.device_ids}
    assert kept == {name for name in names if hashing.hash_key(name) >= UPPER.start}
    assert 0 < len(kept) < 20
