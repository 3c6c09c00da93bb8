"""A worker's partitions in virtual time, over Kinesis in memory and real stores: shards that split, restarts in between, edits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet_model import generations, hashing, parse, partition
from fleet_proto import fleet_pb2
from fleet_worker import metrics, supervisor, surroundings
from fleet_worker.adapters import kinesis, lmdb_store, local_folder, local_ownership, memory_kinesis
from fleet_worker.core import lifecycle
from tests.support import fleets, piped, virtual_time

BOOT_ID = "boot"
FIRST, SECOND = "shardId-000000000000", "shardId-000000000001"


@dataclasses.dataclass
class Worker:
    clock: virtual_time.VirtualClock
    kinesis: memory_kinesis.MemoryKinesis
    supervisor: supervisor.Supervisor
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def until(self, condition: object, seconds_max: float = 600.0) -> None:
        """condition: called until it holds."""
        assert callable(condition)
        deadline = self.clock.monotonic() + seconds_max
        while not condition():
            if self.task.done():
                self.task.result()
            assert self.clock.monotonic() < deadline, f"not within {seconds_max} s of virtual time"
            await self.clock.sleep(0.1)

    async def end(self) -> None:
        self.stop.set()
        await self.task

    def phases(self) -> dict[str, str]:
        ours = {entry.identity.shard_id: entry.phase for entry in self.supervisor.partitions()}
        return ours | {entry.shard_id: entry.phase for entry in self.supervisor.elsewhere()}


@contextlib.asynccontextmanager
async def running(root: Path, memory: memory_kinesis.MemoryKinesis | None = None) -> AsyncIterator[Worker]:
    clock = virtual_time.VirtualClock()
    memory = memory or new_kinesis(clock)
    document = fleets.smallest()
    document["spec"]["streams"]["deadLetter"] = {"name": piped.DEAD_LETTERS}
    document["spec"]["storage"] = {"mapSize": "64Mi"}
    fleet = parse.parse(document)
    connection = kinesis.KinesisConnection(memory, random.Random(1))
    stream = connection.stream(piped.TELEMETRY, clock)
    with local_folder.LocalFolder(root, fleet.namespace, fleet.name) as folder:
        if not folder.generations:
            folder.append_generation(generations.first_generation(fleet))
        around = surroundings.Surroundings(
            clock=clock,
            sink=connection.sink(fleet.streams, clock),
            metrics=metrics.Metrics(),
            fleet=fleet,
            retention_ms=memory_kinesis.RETENTION_MS,
            rules_settled=asyncio.Event(),
        )
        around.rules_settled.set()
        start = partition.Start(piped.TELEMETRY, None)
        local = supervisor.Local("local", BOOT_ID, folder, local_ownership.EveryShard(stream), stream, start)
        stop = asyncio.Event()
        worker = supervisor.Supervisor(around, local)
        running_one = Worker(clock, memory, worker, stop, asyncio.create_task(worker.run(stop)))
        try:
            yield running_one
        finally:
            stop.set()
            await asyncio.wait((running_one.task,))


def new_kinesis(clock: virtual_time.VirtualClock) -> memory_kinesis.MemoryKinesis:
    """Two shards of telemetry."""
    made = memory_kinesis.MemoryKinesis(clock)
    made.create_stream(piped.TELEMETRY, 2)
    for name in (piped.ALERTS, piped.COMMANDS, piped.DEAD_LETTERS):
        made.create_stream(name)
    return made


def device_of(upper_half: bool) -> str:
    """A device id of the first or of the second shard."""
    names = (f"device-{number}" for number in range(100))
    return next(name for name in names if (hashing.hash_key(name) > hashing.HASH_KEY_MAX // 2) is upper_half)


@pytest.mark.parametrize("ending", ["stopped", "died"])
def test_a_misrouted_record_at_the_end_of_a_shard_survives_a_restart(tmp_path: Path, ending: str) -> None:
    """The shard has ended, all of it is committed, and the record that is to be put again is still in the outbox."""

    async def body() -> None:
        device = device_of(upper_half=True)
        async with running(tmp_path) as worker:
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
        async with running(tmp_path, memory) as worker:
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
        async with running(tmp_path) as worker:
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
        async with running(tmp_path) as worker:
            memory = worker.kinesis
            memory.put(piped.TELEMETRY, *piped.sample(device_of(upper_half=False)))
            memory.split_shard(piped.TELEMETRY, FIRST)
            await worker.until(lambda: list(worker.phases().values()).count(lifecycle.Phase.RUNNING) == 3)
            await worker.end()
        async with running(tmp_path, memory) as worker:
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
        device = device_of(upper_half=False)
        async with running(tmp_path) as worker:
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
