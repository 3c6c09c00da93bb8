"""A worker's life in the simulator, laid out as its main module does it."""

from __future__ import annotations

import asyncio
import functools
import random
from typing import TYPE_CHECKING

from fleet_model import partition
from fleet_worker import claimed, custody, metrics, orders, supervisor
from fleet_worker import surroundings as worker_surroundings
from fleet_worker.adapters import kinesis, memory_disk, memory_kinesis
from tests.sim import parts, surroundings

if TYPE_CHECKING:
    from tests.sim.world import World


async def serve(world: World, worker: parts.Worker, running: parts.Running) -> None:
    """As a worker's main module lays it out."""
    process = running.process
    dice = random.Random(f"{world.setting.seed} {process}")
    objects = surroundings.objects(
        world.bucket, world.clock, world.sky, running.network, f"{world.setting.seed} {process} objects"
    )
    api = surroundings.Kinesis(
        world.kinesis, process, running.network, world.watch, functools.partial(_committed, worker.disk)
    )
    connection = kinesis.KinesisConnection(api, dice)
    stream = connection.stream(parts.TELEMETRY, world.clock, parts.PACING)
    ordered = orders.Controlled(surroundings.Plane(world.control, process), worker.name, world.clock)
    around = worker_surroundings.Surroundings(
        clock=world.clock,
        sink=connection.sink(world.fleet.streams, world.clock),
        metrics=metrics.Metrics(),
        fleet=world.fleet,
        retention_ms=memory_kinesis.RETENTION_MS,
        rules_settled=asyncio.Event(),
        rules_known=ordered.rules_known,
    )
    around.rules_settled.set()
    known = await ordered.generations(stream, memory_kinesis.RETENTION_MS)
    checkpoints = claimed.Checkpoints(
        objects=objects,
        manifests=custody.Manifests(objects),
        interval_s=world.setting.interval_s,
        one_at_a_time=asyncio.Semaphore(1),
        new_nonce=lambda: new_nonce(worker.name, dice),
    )
    local = supervisor.Local(
        worker.name,
        worker.disk,
        ordered.ownership(stream),
        stream,
        partition.Start(parts.TELEMETRY, None),
        checkpoints,
    )
    running.supervisor = supervisor.Supervisor(around, local, known)
    following = asyncio.create_task(ordered.follow(around, running.supervisor, f"http://{worker.name}"))
    try:
        await running.supervisor.run(running.stop)
    finally:
        following.cancel()
        await asyncio.wait((following,))
    if following.done() and not following.cancelled() and (error := following.exception()) is not None:
        raise error


def new_nonce(worker: str, dice: random.Random) -> str:
    """As a worker's main module draws one."""
    return f"{dice.getrandbits(64):016x}"


def _committed(disk: memory_disk.MemoryDisk) -> set[bytes]:
    """What the outboxes on a disk hold."""
    return {effect.data for shard_id in disk.shards() for effect in disk.contents(shard_id).entries.values()}
