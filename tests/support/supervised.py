"""A worker's supervisor for tests in virtual time: real stores in a folder, over Kinesis in memory.

    async with supervised.running(tmp_path) as worker:
        worker.kinesis.put(piped.TELEMETRY, *piped.sample("device-7"))
        await worker.until(lambda: worker.twin("device-7") is not None)

Run it again over the same folder and Kinesis for a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fleet_model import generations, hashing, parse, partition
from fleet_worker import metrics, ports, supervisor, surroundings
from fleet_worker.adapters import kinesis, lmdb_disk, local_folder, local_ownership, memory_kinesis
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

    def messages(self) -> dict[str, str]:
        """Of partitions that don't run here."""
        return {entry.shard_id: entry.message for entry in self.supervisor.elsewhere()}

    def twin(self, device_id: str) -> Any:
        """Its row in whichever table has it; None when none has."""
        found = [view.engine.table.snapshot(device_id) for view in self.supervisor.partitions()]
        return next((snapshot.row for snapshot in found if snapshot is not None), None)

    def phases(self) -> dict[str, str]:
        ours = {entry.identity.shard_id: entry.phase for entry in self.supervisor.partitions()}
        return ours | {entry.shard_id: entry.phase for entry in self.supervisor.elsewhere()}


@contextlib.asynccontextmanager
async def running(
    root: Path,
    memory: memory_kinesis.MemoryKinesis | None = None,
    *,
    boot_id: str = BOOT_ID,
    retention_ms: int = memory_kinesis.RETENTION_MS,
    owned: Callable[[ports.Ownership], ports.Ownership] = lambda every: every,
) -> AsyncIterator[Worker]:
    """owned: lays something over the shards that the worker owns, which are all."""
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
            retention_ms=retention_ms,
            rules_settled=asyncio.Event(),
        )
        around.rules_settled.set()
        start = partition.Start(piped.TELEMETRY, None)
        ownership = owned(local_ownership.EveryShard(stream, fleet.namespace, fleet.name, "local"))
        disk = lmdb_disk.LmdbDisk(folder, fleet.storage, boot_id)
        local = supervisor.Local("local", disk, ownership, stream, start)
        stop = asyncio.Event()
        worker = supervisor.Supervisor(around, local, folder.generations)
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
