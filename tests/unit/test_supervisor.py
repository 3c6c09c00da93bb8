"""A worker's partitions in virtual time, over Kinesis in memory and real stores: shards that split, restarts in between, edits."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from fleet_proto import fleet_pb2
from fleet_worker import errors
from fleet_worker.adapters import lmdb_store, memory_kinesis
from fleet_worker.core import lifecycle
from tests.support import piped, supervised, virtual_time

FIRST, SECOND = supervised.FIRST, supervised.SECOND


@pytest.mark.parametrize("failing", [None, "commit", "close"])
def test_a_stop_that_could_not_end_cleanly_is_told_by_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str | None
) -> None:
    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            device = supervised.device_of(upper_half=True)
            worker.kinesis.put(piped.TELEMETRY, *piped.sample(device))
            await worker.until(lambda: worker.twin(device) is not None)

            def fails(store: lmdb_store.LmdbTwinStore, *arguments: object) -> None:
                if store.identity.shard_id == SECOND:
                    raise errors.DiskFullError("no room on the disk")
                right(store, *arguments)

            if failing is not None:
                right = getattr(lmdb_store.LmdbTwinStore, failing)
                monkeypatch.setattr(lmdb_store.LmdbTwinStore, failing, fails)
            await worker.end()
            if failing is None:
                worker.supervisor.check_stop()
                return
            with pytest.raises(errors.UncleanStopError, match=f"partition {SECOND}: no room.*next start") as told:
                worker.supervisor.check_stop()
            assert FIRST not in str(told.value)

    virtual_time.run(body())


@pytest.mark.parametrize("ending", ["stopped", "died"])
def test_a_misrouted_record_at_the_end_of_a_shard_survives_a_restart(tmp_path: Path, ending: str) -> None:
    """The shard has ended, all of it is committed, and the record that is to be put again is still in the outbox."""

    async def body() -> None:
        device = supervised.device_of(upper_half=True)
        async with supervised.running(tmp_path) as worker:
            memory = worker.kinesis
            memory.plan = lambda call: memory_kinesis.Fault(
                failure=memory_kinesis.THROTTLED if call.operation == "PutRecords" else None
            )
            memory.put(piped.TELEMETRY, *piped.sample(device), explicit_hash_key=0)
            memory.put(piped.TELEMETRY, "junk", b"\xff\xff", explicit_hash_key=0)
            memory.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: any(view.state.ended for view in worker.supervisor.partitions()))
            await worker.clock.sleep(1.0)
            if ending == "died":
                worker.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await worker.task
            else:
                await worker.end()
        memory.plan = memory_kinesis.no_faults
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: worker.phases().get(FIRST) == lifecycle.Phase.CLOSED)
            again = [
                record
                for record in memory.records_of(piped.TELEMETRY)
                if b"shardId" in record.data and record.partition_key == device
            ]
            assert len(again) == 1
            origin = fleet_pb2.Telemetry.FromString(again[0].data).origin
            assert origin.shard_id == FIRST
            (letter,) = memory.records_of(piped.DEAD_LETTERS)
            assert b'"reason":"undecodable"' in letter.data
            await worker.until(lambda: list(worker.phases().values()).count(lifecycle.Phase.RUNNING) == 3)
            await worker.until(
                lambda: any(view.engine.table.snapshot(device) for view in worker.supervisor.partitions())
            )

    virtual_time.run(body())


def test_children_start_after_their_parent_and_have_its_twins(tmp_path: Path) -> None:
    async def body() -> None:
        devices = [f"device-{number}" for number in range(50)]
        async with supervised.running(tmp_path) as worker:
            for device in devices:
                worker.kinesis.put(piped.TELEMETRY, *piped.sample(device, timestamp_ms=1_000_001))
            worker.kinesis.split_shard(piped.TELEMETRY, FIRST)
            worker.kinesis.split_shard(piped.TELEMETRY, SECOND)
            for device in devices:
                worker.kinesis.put(piped.TELEMETRY, *piped.sample(device, timestamp_ms=1_000_002))
            await worker.until(lambda: list(worker.phases().values()).count(lifecycle.Phase.RUNNING) == 4)
            views = worker.supervisor.partitions()
            await worker.until(lambda: sum(int(view.engine.table.rows["samples"].sum()) for view in views) == 100)
            for device in devices:
                rows = [found.row for view in views if (found := view.engine.table.snapshot(device)) is not None]
                assert [int(row["samples"]) for row in rows] == [2]

    virtual_time.run(body())


def test_a_shard_that_ended_before_a_restart_stays_closed(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised.running(tmp_path) as worker:
            memory = worker.kinesis
            memory.put(piped.TELEMETRY, *piped.sample(supervised.device_of(upper_half=False)))
            memory.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: list(worker.phases().values()).count(lifecycle.Phase.RUNNING) == 3)
            await worker.end()
        async with supervised.running(tmp_path, memory) as worker:
            await worker.until(lambda: list(worker.phases().values()).count(lifecycle.Phase.RUNNING) == 3)
            assert worker.phases()[FIRST] == lifecycle.Phase.CLOSED
            assert worker.supervisor.not_ready_because() == []

    virtual_time.run(body())


def test_a_store_that_breaks_is_built_again_from_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is moved aside; the same records give the same twins, and effects with the same ids."""
    syncs = []
    really = lmdb_store.LmdbTwinStore.sync

    def breaks_once(store: lmdb_store.LmdbTwinStore) -> None:
        syncs.append(store)
        if len(syncs) == 3:
            with monkeypatch.context() as broken:
                broken.setattr("os.fdatasync", _io_error)
                really(store)
        really(store)

    monkeypatch.setattr(lmdb_store.LmdbTwinStore, "sync", breaks_once)

    async def body() -> None:
        device = supervised.device_of(upper_half=False)
        async with supervised.running(tmp_path) as worker:
            for sent in piped.spike(device):
                worker.kinesis.put(piped.TELEMETRY, *sent)
            await worker.until(lambda: len(worker.kinesis.records_of(piped.ALERTS)) == 1)
            await worker.until(lambda: lifecycle.Phase.FAILED in worker.phases().values())
            assert any("fsync failed" in reason for reason in worker.supervisor.not_ready_because())
            await worker.until(lambda: set(worker.phases().values()) == {lifecycle.Phase.RUNNING})
            await worker.clock.sleep(10.0)
            rows = [
                found.row
                for view in worker.supervisor.partitions()
                if (found := view.engine.table.snapshot(device)) is not None
            ]
            assert [int(row["samples"]) for row in rows] == [3]
            alerts = [
                fleet_pb2.DeviceAlert.FromString(record.data) for record in worker.kinesis.records_of(piped.ALERTS)
            ]
            assert len({alert.alert_id for alert in alerts}) == 1

    virtual_time.run(body())


def _io_error(descriptor: int) -> None:
    raise OSError(5, "Input/output error")
