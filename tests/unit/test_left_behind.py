"""Partitions whose shards the stream no longer lists: inherited from, told as lost, or cleared away. And worker-wide stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from fleet_model import hashing, twin_partition
from fleet_worker import errors, pipeline, ports, tenure
from fleet_worker.adapters import lmdb_look, local_folder, marks, memory_kinesis
from fleet_worker.core import lifecycle
from tests.support import piped, supervised, virtual_time
from tests.support.supervised import FIRST, SECOND, Worker

LOWER_CHILD, UPPER_CHILD = "shardId-000000000002", "shardId-000000000003"
CLOSED, FAILED, PENDING, RUNNING = (
    phase.value
    for phase in (lifecycle.Phase.CLOSED, lifecycle.Phase.FAILED, lifecycle.Phase.PENDING, lifecycle.Phase.RUNNING)
)
DEVICE = supervised.device_of(upper_half=False)


class OnlyThese:
    """ports.Ownership of some shards."""

    def __init__(self, every: ports.Ownership, shard_ids: tuple[str, ...]) -> None:
        self._every = every
        self._shard_ids = shard_ids

    async def assignments(self) -> AsyncIterator[Mapping[str, twin_partition.TwinPartition]]:
        async for known in self._every.assignments():
            yield {shard_id: wanted for shard_id, wanted in known.items() if shard_id in self._shard_ids}

    async def report(
        self, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
    ) -> twin_partition.Status:
        return await self._every.report(shard_id, change)

    @property
    def trouble(self) -> str:
        return self._every.trouble

    def look_again(self) -> None:
        self._every.look_again()


def forget_shard(memory: memory_kinesis.MemoryKinesis, shard_id: str) -> None:
    """As the stream does with a closed shard when the last of its records has left it."""
    del memory._streams[piped.TELEMETRY].shards[shard_id]


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "default" / "trucks" / "partitions").iterdir())


def folder_of(root: Path, shard_id: str) -> Path:
    return root / "default" / "trucks" / "partitions" / shard_id


def is_running(worker: Worker, *shard_ids: str) -> bool:
    return all(worker.phases().get(shard_id) == RUNNING for shard_id in shard_ids)


async def heard(worker: Worker) -> None:
    """DEVICE, of the first shard, has a twin."""
    worker.kinesis.put(piped.TELEMETRY, *piped.sample(DEVICE, 33.0))
    await worker.until(lambda: worker.twin(DEVICE) is not None)


# ── closed and inherited: cleared away ───────────────────────────────────────────────────────────────────────────────


def test_a_closed_partitions_folder_goes_once_the_shard_is_gone_and_its_children_have_its_twins(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            await heard(worker)
            worker.kinesis.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: is_running(worker, LOWER_CHILD, UPPER_CHILD))
            await worker.clock.sleep(30.0)
            assert FIRST in folders(tmp_path), "as long as the stream lists the shard"
            metrics = worker.supervisor._around.metrics
            assert f'shard="{FIRST}"' in exposed(metrics)
            forget_shard(worker.kinesis, FIRST)
            await worker.until(lambda: FIRST not in folders(tmp_path), 20.0)
            assert FIRST not in worker.phases()
            assert f'shard="{FIRST}"' not in exposed(metrics)
            assert worker.twin(DEVICE) is not None
            assert worker.supervisor.not_ready_because() == []

    virtual_time.run(body())


def exposed(metrics: object) -> str:
    import prometheus_client

    return prometheus_client.generate_latest(metrics.registry).decode()  # type: ignore[attr-defined]


def test_it_stays_while_a_child_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One child runs; the other can't start yet."""

    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            await heard(worker)
            right = tenure.LocalTenure._inherit

            async def fails_for_one(held: tenure.LocalTenure, store: ports.TwinStore) -> None:
                if store.identity.shard_id == UPPER_CHILD:  # type: ignore[attr-defined]
                    raise errors.DiskFullError("no room for its twins")
                await right(held, store)

            monkeypatch.setattr(tenure.LocalTenure, "_inherit", fails_for_one)
            worker.kinesis.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: is_running(worker, LOWER_CHILD))
            forget_shard(worker.kinesis, FIRST)
            await worker.clock.sleep(60.0)
            assert FIRST in folders(tmp_path)
            assert worker.messages()[UPPER_CHILD] == "no room for its twins"
            monkeypatch.undo()
            await worker.until(lambda: FIRST not in folders(tmp_path), 120.0)
            assert is_running(worker, LOWER_CHILD, UPPER_CHILD)

    virtual_time.run(body())


def test_what_an_earlier_run_could_not_clear_away_goes_after_the_restart(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            memory = worker.kinesis
            await heard(worker)
            memory.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: is_running(worker, LOWER_CHILD, UPPER_CHILD))
            await worker.end()
        forget_shard(memory, FIRST)
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: is_running(worker, LOWER_CHILD, UPPER_CHILD))
            await worker.until(lambda: FIRST not in folders(tmp_path), 30.0)
            assert worker.twin(DEVICE) is not None

    virtual_time.run(body())


def test_a_removal_that_was_cut_short_is_no_partition_any_more(tmp_path: Path) -> None:
    with local_folder.LocalFolder(tmp_path, "default", "trucks") as folder:
        for shard_id in (FIRST, SECOND):
            (folder.partition_folder(shard_id) / "environment").mkdir()
        going = folder_of(tmp_path, FIRST).with_name(f"{FIRST}.going")
        folder_of(tmp_path, FIRST).rename(going)
        assert folder.partitions() == [SECOND]
        folder.remove_partition(FIRST)
        assert not going.exists()
        folder.remove_partition(SECOND)
        folder.remove_partition(SECOND)
        assert folder.partitions() == []


# ── closed, not inherited yet ────────────────────────────────────────────────────────────────────────────────────────


def test_children_inherit_from_a_parent_that_the_stream_no_longer_lists(tmp_path: Path) -> None:
    async def body() -> None:
        def without_children(every: ports.Ownership) -> ports.Ownership:
            return OnlyThese(every, (FIRST, SECOND))

        async with supervised.running(tmp_path, owned=without_children) as worker:
            memory = worker.kinesis
            await heard(worker)
            memory.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: worker.phases()[FIRST] == CLOSED)
            await worker.end()
        forget_shard(memory, FIRST)
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: is_running(worker, LOWER_CHILD, UPPER_CHILD))
            assert float(worker.twin(DEVICE)["last"][0]) == 33.0
            await worker.until(lambda: FIRST not in folders(tmp_path), 30.0)

    virtual_time.run(body())


# ── not read to the end: lost ────────────────────────────────────────────────────────────────────────────────────────


def test_children_of_a_parent_that_was_not_read_to_its_end_do_not_start_silently(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            memory = worker.kinesis
            await heard(worker)
            await worker.end()
        memory.split_shard(piped.TELEMETRY, FIRST)
        memory.put(piped.TELEMETRY, *piped.sample(DEVICE, 44.0))
        forget_shard(memory, FIRST)
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: worker.phases().get(FIRST) == FAILED)
            await worker.clock.sleep(120.0)
            assert worker.phases() == {FIRST: FAILED, SECOND: RUNNING, LOWER_CHILD: PENDING, UPPER_CHILD: PENDING}
            told = worker.messages()[FIRST]
            assert "no longer lists its shard, which wasn't read to its end: records are lost" in told
            assert f"move {tmp_path}/default/trucks/partitions/{FIRST} away" in told
            assert worker.messages()[LOWER_CHILD] == f"waits for its parent {FIRST}"
            assert any(told in reason for reason in worker.supervisor.not_ready_because())
            await worker.end()
        # The way out that the message names:
        folder_of(tmp_path, FIRST).rename(tmp_path / "away")
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: is_running(worker, SECOND, LOWER_CHILD, UPPER_CHILD))
            await worker.until(lambda: worker.twin(DEVICE) is not None)
            assert float(worker.twin(DEVICE)["last"][0]) == 44.0

    virtual_time.run(body())


def test_a_parents_twins_that_cannot_be_trusted_are_told_and_left_as_they_are(tmp_path: Path) -> None:
    """The machine crashed after the parent was closed; the stream can't help any more."""

    async def body() -> None:
        async with supervised.running(tmp_path, owned=lambda every: OnlyThese(every, (FIRST, SECOND))) as worker:
            memory = worker.kinesis
            await heard(worker)
            memory.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: worker.phases()[FIRST] == CLOSED)
            await worker.end()
        forget_shard(memory, FIRST)
        (folder_of(tmp_path, FIRST) / marks.CLOSED).unlink()
        async with supervised.running(tmp_path, memory, boot_id="another boot") as worker:
            await worker.until(lambda: worker.phases().get(FIRST) == FAILED)
            assert "can't be trusted (not closed cleanly" in worker.messages()[FIRST]
            assert worker.phases()[LOWER_CHILD] == PENDING
            assert sorted(path.name for path in folder_of(tmp_path, FIRST).iterdir()) == ["environment", marks.OPENED]
            await worker.end()

    virtual_time.run(body())


def test_what_nobody_needs_any_more_keeps_nobody_from_starting(tmp_path: Path) -> None:
    """The children have begun long ago; what is left of the parent is no concern of theirs."""

    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            memory = worker.kinesis
            await heard(worker)
            memory.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: is_running(worker, LOWER_CHILD, UPPER_CHILD))
            await worker.end()
        forget_shard(memory, FIRST)
        (folder_of(tmp_path, FIRST) / marks.CLOSED).unlink()
        opened = folder_of(tmp_path, FIRST) / marks.OPENED
        opened.write_text(json.dumps({"boot_id": "another boot", "sync": "Interval"}))
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: is_running(worker, SECOND, LOWER_CHILD, UPPER_CHILD))
            assert FIRST not in worker.phases()
            assert worker.twin(DEVICE) is not None

    virtual_time.run(body())


def test_a_parent_without_a_folder_counts_as_absent(tmp_path: Path) -> None:
    async def body() -> None:
        memory = supervised.new_kinesis(virtual_time.VirtualClock())
        memory.split_shard(piped.TELEMETRY, FIRST)
        forget_shard(memory, FIRST)
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: is_running(worker, SECOND, LOWER_CHILD, UPPER_CHILD))

    virtual_time.run(body())


# ── another stream of the same name ──────────────────────────────────────────────────────────────────────────────────


def test_a_stream_made_anew_under_the_same_name_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    """Its shards have the old ones' ids. One that was read to its end would never be read again, and nobody would notice."""

    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            memory = worker.kinesis
            await heard(worker)
            memory.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: is_running(worker, LOWER_CHILD, UPPER_CHILD))
            await worker.end()
        memory.delete_stream(piped.TELEMETRY)
        memory.create_stream(piped.TELEMETRY, 2)
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: worker.phases().get(FIRST) == FAILED, 60.0)
            assert "the stream isn't the one that it was read from" in worker.messages()[FIRST]

    virtual_time.run(body())


# ── a worker as a whole ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_does_not_wait_for_a_listing_that_takes_long(tmp_path: Path) -> None:
    asked = []

    def slow(call: memory_kinesis.Call) -> memory_kinesis.Fault:
        if call.operation == "ListShards":
            asked.append(call)
        return memory_kinesis.Fault(delay_s=3_600.0 if len(asked) > 1 and call.operation == "ListShards" else 0.0)

    async def body() -> None:
        memory = supervised.new_kinesis(virtual_time.VirtualClock())
        memory.plan = slow
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: len(asked) == 2)
            began_s = worker.clock.monotonic()
            await worker.end()
            assert worker.clock.monotonic() - began_s < 2.0

    virtual_time.run(body())


def test_shards_that_were_never_listed_are_told_with_the_reason(tmp_path: Path) -> None:
    async def body() -> None:
        memory = supervised.new_kinesis(virtual_time.VirtualClock())
        memory.plan = lambda call: memory_kinesis.Fault(
            failure=memory_kinesis.UNAVAILABLE if call.operation == "ListShards" else None
        )
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: "can't be listed: " in "".join(worker.supervisor.not_ready_because()))
            memory.plan = memory_kinesis.no_faults
            await worker.until(lambda: is_running(worker, FIRST, SECOND))
            assert worker.supervisor.not_ready_because() == []

    virtual_time.run(body())


def test_a_bug_in_a_partition_ends_the_worker_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(piped_one: pipeline.PartitionPipeline, batch: object) -> None:
        if piped_one.identity.shard_id == SECOND:
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline.PartitionPipeline, "_take_in", broken)

    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            await asyncio.wait((worker.task,), timeout=60)
            with pytest.raises(ExceptionGroup) as caught:
                worker.task.result()
            (bug,) = caught.value.exceptions
            assert isinstance(bug, ZeroDivisionError)
            assert bug.__notes__ == [f"in partition {SECOND}"]
        # The others were closed all the same.
        assert (
            lmdb_look.look(folder_of(tmp_path, FIRST), "another boot") is None
            or (folder_of(tmp_path, FIRST) / marks.CLOSED).exists()
        )

    virtual_time.run(body())


# ── ranges ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_which_ranges_cover_another() -> None:
    def of(*pairs: tuple[int, int]) -> list[hashing.HashKeyRange]:
        return [hashing.HashKeyRange(*pair) for pair in pairs]

    whole = hashing.HashKeyRange(10, 20)
    assert hashing.covers(of((16, 30), (0, 15)), whole)
    assert hashing.covers(of((10, 20)), whole)
    assert hashing.covers(of((0, 12), (11, 18), (13, 20)), whole)
    assert not hashing.covers(of((0, 14), (16, 30)), whole)
    assert not hashing.covers(of((11, 20)), whole)
    assert not hashing.covers(of((0, 19)), whole)
    assert not hashing.covers([], whole)
    assert hashing.spanning(of((5, 7), (1, 2), (3, 9))) == hashing.HashKeyRange(1, 9)
