"""The end of a run: everything stops in a clean way, and what it left is judged."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from fleet_model import twin_partition
from fleet_worker import restoring
from fleet_worker.adapters import memory_kinesis, memory_store
from tests.sim import judge, parts, surroundings

if TYPE_CHECKING:
    from tests.sim.world import World


async def end(world: World) -> None:
    """A clean stop of everything, then the judgement."""
    world.loop_process.kill()
    owners = {
        shard_id: entry.spec.worker
        for shard_id, entry in world.control.state().items()
        if entry.status.phase is not twin_partition.Phase.CLOSED
    }
    running = [worker for worker in world.workers.values() if worker.running is not None]
    await asyncio.gather(*(world.stop(worker, worker.running) for worker in running if worker.running is not None))
    if world.outcome.problems:
        return
    by_name = {worker.name: worker for worker in world.workers.values()}
    lefts: dict[str, list[judge.Left]] = {}
    for shard in world.shards():
        shard_id = shard.shard_id
        lefts[shard_id] = [await _restored(world, shard_id)]
        if shard_id in owners:
            disk = by_name[owners[shard_id]].disk
            lefts[shard_id].append(judge.left(f"{shard_id} on disk", disk.contents(shard_id)))
    streams = judge.Streams(
        shards=world.kinesis.shards(parts.TELEMETRY),
        alerts=[record.data for record in world.kinesis.records_of(parts.ALERTS)],
        commands=[record.data for record in world.kinesis.records_of(parts.COMMANDS)],
        dead_letters=[record.data for record in world.kinesis.records_of(parts.DEAD_LETTERS)],
    )
    found = judge.judged(
        (world.fleet.namespace, world.fleet.name, parts.TELEMETRY),
        streams,
        world.control.known_generations(),
        lefts,
        memory_kinesis.RETENTION_MS,
    )
    world.outcome.judgement = found
    world.outcome.problems += found.problems


async def _restored(world: World, shard_id: str) -> judge.Left:
    """What somebody would get who had nothing but the bucket. What is in its outbox was published since, or is its children's."""
    stands = world.watch.manifests()[shard_id]
    store = memory_store.MemoryTwinStore(stands.identity)
    network = surroundings.Network()
    objects = surroundings.objects(world.bucket, world.clock, world.sky, network, "judge")
    assert stands.checkpoint is not None
    await restoring.restore(objects, stands, store, world.clock)
    left = judge.left(f"{shard_id} in S3", store.contents)
    return dataclasses.replace(left, outbox=0, is_final=stands.final)
