"""Several workers of one fleet in virtual time, over Kinesis, a bucket, disks and a control plane in memory.

    async with crew.assembled() as fleet:
        await fleet.start("worker-0")
        await fleet.assign(FIRST, "worker-0")
        await fleet.until(lambda: fleet.phase(FIRST) is Phase.RUNNING)

Who owns what is said by the test; there is no control loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

from fleet_model import generations, parse, partition, twin_partition
from fleet_worker import claimed, custody, metrics, supervisor, surroundings
from fleet_worker.adapters import kinesis, memory_control, memory_disk, memory_kinesis, memory_objects, memory_store
from tests.support import fleets, piped, supervised, virtual_time

FIRST, SECOND = supervised.FIRST, supervised.SECOND
INTERVAL_S = 60.0


@dataclasses.dataclass
class Worker:
    supervisor: supervisor.Supervisor
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def end(self) -> None:
        self.stop.set()
        await self.task

    async def die(self) -> None:
        """Without a farewell, as far as tasks can."""
        self.task.cancel()
        await asyncio.wait((self.task,))

    def twin(self, device_id: str) -> Any:
        """Its row in whichever table has it; None when none has."""
        found = [view.engine.table.snapshot(device_id) for view in self.supervisor.partitions()]
        return next((snapshot.row for snapshot in found if snapshot is not None), None)


class Crew:
    def __init__(self) -> None:
        self.clock = virtual_time.VirtualClock()
        self.kinesis = supervised.new_kinesis(self.clock)
        self.bucket = memory_objects.Bucket(self.clock)
        self.control = memory_control.MemoryControl(self.clock)
        self.disks: dict[str, memory_disk.MemoryDisk] = {}
        self.workers: dict[str, Worker] = {}
        self.plans: dict[str, Any] = {}
        self._nonces = itertools.count(1)
        document = fleets.smallest()
        document["spec"]["streams"]["deadLetter"] = {"name": piped.DEAD_LETTERS}
        document["spec"]["checkpoint"] = {"bucket": "checkpoints"}
        self.fleet = parse.parse(document)

    async def start(self, name: str) -> Worker:
        """On its disk, which outlives it."""
        connection = kinesis.KinesisConnection(self.kinesis, random.Random(1))
        around = surroundings.Surroundings(
            clock=self.clock,
            sink=connection.sink(self.fleet.streams, self.clock),
            metrics=metrics.Metrics(),
            fleet=self.fleet,
            retention_ms=memory_kinesis.RETENTION_MS,
            rules_settled=asyncio.Event(),
        )
        around.rules_settled.set()
        objects = memory_objects.MemoryObjects(
            self.bucket, self.clock, lambda call: self.plans.get(name, _no_faults)(call)
        )
        checkpoints = claimed.Checkpoints(
            objects, custody.Manifests(objects), INTERVAL_S, asyncio.Semaphore(1), lambda: f"{next(self._nonces):016x}"
        )
        local = supervisor.Local(
            name,
            self.disks.setdefault(name, memory_disk.MemoryDisk()),
            self.control.ownership(name),
            connection.stream(piped.TELEMETRY, self.clock),
            partition.Start(piped.TELEMETRY, None),
            checkpoints,
        )
        worker = supervisor.Supervisor(around, local, (generations.first_generation(self.fleet),))
        stop = asyncio.Event()
        self.workers[name] = Worker(worker, stop, asyncio.create_task(worker.run(stop)))
        return self.workers[name]

    async def kill(self, name: str, leaves: memory_store.Survivor = memory_store.Survivor.COMMITTED) -> None:
        self.disks[name].crash(leaves)
        await self.workers.pop(name).die()

    async def assign(self, shard_id: str, worker: str, **changed: Any) -> None:
        """Names it the owner, by the next epoch. changed: further fields of the spec; takeover=True grants it for that epoch."""
        known = (await self.control.partitions()).get(shard_id)
        if known is None:
            shards = {shard.shard_id: shard for shard in await self._stream().list_shards()}
            shard = shards[shard_id]
            spec = twin_partition.Spec(
                self.fleet.name, piped.TELEMETRY, shard_id, shard.hash_key_range, shard.parents, worker, epoch=1
            )
            name = twin_partition.object_name(self.fleet.name, shard_id)
            await self.control.create(twin_partition.TwinPartition(self.fleet.namespace, name, spec))
            return
        epoch = known.spec.epoch + 1
        if changed.pop("takeover", False):
            changed["takeover"] = epoch
        await self.change(shard_id, worker=worker, epoch=epoch, **changed)

    async def change(self, shard_id: str, **changed: Any) -> None:
        while True:
            known = (await self.control.partitions())[shard_id]
            spec = dataclasses.replace(known.spec, **changed)
            with contextlib.suppress(Exception):
                await self.control.update_spec(shard_id, spec, known.resource_version)
                return
            await self.clock.sleep(0.1)

    def status(self, shard_id: str) -> twin_partition.Status:
        return self.control.stored(shard_id).status

    async def until(self, condition: Any, seconds_max: float = 600.0) -> None:
        deadline = self.clock.monotonic() + seconds_max
        while not condition():
            for name, worker in self.workers.items():
                assert not worker.task.done(), f"{name} ended: {worker.task}"
            assert self.clock.monotonic() < deadline, f"not within {seconds_max} s of virtual time"
            await self.clock.sleep(0.1)

    async def is_running(self, shard_id: str, worker: str) -> None:
        await self.until(
            lambda: (
                (self.status(shard_id).phase, self.status(shard_id).worker) == (twin_partition.Phase.RUNNING, worker)
            )
        )

    def _stream(self) -> Any:
        return kinesis.KinesisConnection(self.kinesis, random.Random(1)).stream(piped.TELEMETRY, self.clock)


def _no_faults(call: memory_objects.Call) -> memory_objects.Fault:
    return memory_objects.Fault()


@contextlib.asynccontextmanager
async def assembled() -> AsyncIterator[Crew]:
    crew = Crew()
    try:
        yield crew
    finally:
        for worker in crew.workers.values():
            worker.stop.set()
        if crew.workers:
            await asyncio.wait([worker.task for worker in crew.workers.values()])
