"""Judges a run of several workers when one is left: partitions on its disk, closed ones in the bucket, the objects of the control plane,
and what the API says of each device, held against the reference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.parse
from collections.abc import Mapping
from typing import Any

import aiohttp

from fleet_model import hashing, manifest, partition, twin_partition
from fleet_model.twin_partition import Phase
from fleet_worker import restoring
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import local_folder, memory_store
from tests.support import live_fleet, live_judge, shared_fleet, waiting, worker_process

CLEARED_S_MAX = 20.0
SHOWN_MAX = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Before:
    """What was so just before the last worker stopped. twins: what its API said, by device. left_over: environments on its disk of
    partitions that aren't its own."""

    twins: Mapping[str, Mapping[str, Any]]
    partitions: Mapping[str, twin_partition.TwinPartition]
    left_over: set[str]


async def judged(shared: shared_fleet.SharedFleet, last: str, before: Before) -> live_judge.Judgement:
    """After the last worker's clean stop."""
    fleet = shared.fleet
    shards = await fleet.streams.shards(fleet.stream(live_fleet.TELEMETRY))
    lefts, problems = await _left_in_bucket(shared, [shard for shard in shards if shard.closed])
    told = fleet.spec()
    with local_folder.LocalFolder(shared.data_folder(last), told.namespace, told.name) as folder:
        there = folder.partitions()
        for shard in shards:
            if not shard.closed and shard.shard_id in there:
                lefts[shard.shard_id] = live_judge.left_on_disk(fleet, folder, shard)
    found = await live_judge.judged_by(fleet, shared.files.generations(), lefts)
    found.problems += problems + _objects(before.partitions, shards, last) + _api(lefts, before.twins, shards)
    found.problems += [f"left on the disk of {last}: {shard_id}" for shard_id in sorted(before.left_over)]
    return found


async def _left_in_bucket(
    shared: shared_fleet.SharedFleet, closed: list[partition.Shard]
) -> tuple[dict[str, live_judge.Left], list[str]]:
    """The final checkpoints of shards that were read to their end."""
    lefts, problems = {}, []
    async with shared.objects() as objects:
        with clocks.RealClock() as clock:
            for shard in closed:
                kept = await objects.get(f"{shard.shard_id}/manifest.json")
                read = None if kept is None else manifest.parse(kept.data)
                if read is None or not (read.final and read.ended) or read.checkpoint is None:
                    problems.append(f"{shard.shard_id}: its shard ended, and it has no final checkpoint")
                    continue
                store = memory_store.MemoryTwinStore(shared.fleet.identity(shard))
                await restoring.restore(objects, read, store, clock)
                left = live_judge.left_in(store)
                left.outbox = 0  # what is in it travels to the children, and is judged on the streams
                lefts[shard.shard_id] = left
    return lefts, problems


def _objects(known: Mapping[str, twin_partition.TwinPartition], shards: list[partition.Shard], last: str) -> list[str]:
    """TwinPartitions: closed ones for closed shards, running ones at the last worker for the others, the hash space covered once."""
    wrong = []
    for shard in shards:
        entry = known.get(shard.shard_id)
        if entry is None:
            wrong.append(f"{shard.shard_id}: there is no object for it")
            continue
        wanted = Phase.CLOSED if shard.closed else Phase.RUNNING
        if entry.status.phase is not wanted:
            wrong.append(f"{shard.shard_id}: is {entry.status.phase}, should be {wanted}: {entry.status.message}")
        if not shard.closed and entry.status.worker != last:
            wrong.append(f"{shard.shard_id}: runs at {entry.status.worker}")
    ranges = sorted(entry.spec.hash_key_range for entry in known.values() if entry.status.phase is not Phase.CLOSED)
    whole = hashing.HashKeyRange()
    if not hashing.covers(ranges, whole) or sum(key_range.size for key_range in ranges) != whole.size:
        wrong.append(f"the partitions that aren't closed don't cover the hash space once: {ranges}")
    return wrong


def _api(
    lefts: Mapping[str, live_judge.Left], seen: Mapping[str, Mapping[str, Any]], shards: list[partition.Shard]
) -> list[str]:
    """The API has said the same of each device as the store; the store is held against the reference."""
    wrong = []
    rows = {
        device_id: row
        for shard in shards
        if not shard.closed and shard.shard_id in lefts
        for device_id, (row, _, _) in lefts[shard.shard_id].rows.items()
    }
    for device_id, view in seen.items():
        row = rows.get(device_id)
        if row is None:
            wrong.append(f"{device_id!r}: the API knows it, the store doesn't")
            continue
        told = (view["last_seen_ms"] or 0, *(view["counters"][name] for name in ("samples", "late", "gaps")))
        kept = tuple(int(row[name]) for name in ("last_arrival_ms", "samples", "late", "gaps"))
        if told != kept:
            wrong.append(f"{device_id!r}: the API tells {told}, the store {kept}")
    return wrong[:SHOWN_MAX]


async def asked(
    shared: shared_fleet.SharedFleet, worker: worker_process.WorkerProcess, name: str, devices: list[str]
) -> Before:
    """Of the one worker that is left, and owns everything."""
    left_over = await _cleared(shared, name)
    twins = {}
    for device_id in devices:
        try:
            twins[device_id] = await worker.get(f"/v1/twins/{urllib.parse.quote(device_id, safe='')}")
        except aiohttp.ClientResponseError as error:
            if error.status != 404:
                raise
    return Before(twins, shared.partitions(), left_over)


async def _cleared(shared: shared_fleet.SharedFleet, name: str) -> set[str]:
    """Environments on the worker's disk of partitions that it doesn't own, when there was time enough to clear them away."""
    with contextlib.suppress(AssertionError):
        await waiting.until(lambda: not _left_over(shared, name), "folders are left over", CLEARED_S_MAX)
    return _left_over(shared, name)


def _left_over(shared: shared_fleet.SharedFleet, name: str) -> set[str]:
    there = {path.name for path in shared.partitions_folder(name).glob("*") if path.is_dir()}
    return there - {
        shard_id for shard_id, entry in shared.partitions().items() if entry.status.phase is not Phase.CLOSED
    }
