"""A fleet's folder in its bucket: opened by the fleet file, its partitions' manifests read, and what each has to say of the hash space.

It reads only, and says of everything that can't be read why and what to do. A bucket keeps the manifests of partitions that a split or
merge has closed; `standing` tells which twins are whose, so that each device counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from fleet_cli import console, loop
from fleet_model import hashing, spec
from fleet_model import manifest as fleet_manifest
from fleet_worker import custody, errors, ports

Result = TypeVar("Result")

MANIFEST = "/manifest.json"
READS_AT_ONCE = 16
NEIGHBOURS_SHOWN = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """where: the fleet's folder, for messages. neighbours: the folders of fleets that the prefix does have."""

    objects: ports.ObjectStore
    clock: ports.Clock
    where: str
    neighbours: Callable[[], Coroutine[Any, Any, list[str]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """One partition's manifest, or why it can't be read."""

    shard_id: str
    manifest: fleet_manifest.Manifest | None
    trouble: str = ""

    @property
    def checkpoint(self) -> fleet_manifest.Checkpoint | None:
        return self.manifest.checkpoint if self.manifest is not None else None


def run(fleet_path: pathlib.Path, work: Callable[[Opened], Coroutine[Any, Any, Result]]) -> Result:
    """Opens the fleet's bucket, does the work, and ends the command with a message when that can't be done."""
    from fleet_worker.adapters import allocation, fleet_file

    allocation.share_one_arena()  # lots of rows are made in one thread and freed in another
    with console.told_plainly():
        fleet = fleet_file.load(fleet_path)
        if not fleet.checkpoint.bucket:
            console.fail(
                f"{fleet_path} names no bucket, so no checkpoints are made of {fleet.namespace}/{fleet.name}.\n"
                "Give spec.checkpoint.bucket (and prefix, if it isn't fleet-twin) as the workers have them.",
                console.EXIT_USAGE,
            )
        try:
            return loop.run(_opened(fleet, work))
        except errors.ObjectStoreUnavailableError as error:
            console.fail(
                f"{error}\nIs spec.aws.endpointURL right, and the store there? Nothing was changed; try again.",
                console.EXIT_NOT_READY,
            )
        except errors.ObjectStoreRefusedError as error:
            console.fail(
                f"{error}\nHere the credentials of this shell count, and reading is enough: s3:ListBucket and s3:GetObject."
            )


async def _opened(fleet: spec.FleetSpec, work: Callable[[Opened], Coroutine[Any, Any, Result]]) -> Result:
    async with open_fleet(fleet) as opened:
        return await work(opened)


@contextlib.asynccontextmanager
async def open_fleet(fleet: spec.FleetSpec) -> AsyncIterator[Opened]:
    """Raises AwsSettingsError. Sends nothing yet."""
    from fleet_worker.adapters import clock, objects, objects_api, s3

    bucket, name = fleet.checkpoint.bucket, (fleet.namespace, fleet.name)
    assert bucket, "no bucket"
    with clock.RealClock() as real:
        async with s3.open_api(fleet.aws, bucket, real) as api:
            above = f"{fleet.checkpoint.prefix.strip('/')}/".lstrip("/")

            async def neighbours() -> list[str]:
                try:
                    page = await api.list_page(above, None)
                except objects_api.ApiError:
                    return []  # only a hint in a message
                return sorted({"/".join(found.key.removeprefix(above).split("/")[:2]) for found in page.found})

            prefix = s3.fleet_prefix(fleet.checkpoint.prefix, name)
            reader = objects.Objects(api, real, random.Random(), prefix, f"s3://{bucket}")
            yield Opened(reader, real, f"s3://{bucket}/{prefix}", neighbours)


# ── manifests ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def partitions(opened: Opened, wanted: Sequence[str] = ()) -> list[Partition]:
    """Of the whole fleet, or the wanted shards, by their ranges; those that can't be read last. Ends the command when the
    folder has none, or not those. Raises ObjectStoreUnavailableError, ObjectStoreRefusedError."""
    listed = await opened.objects.list("")
    known = [entry.key.removesuffix(MANIFEST) for entry in listed if entry.key.endswith(MANIFEST)]
    known = [shard_id for shard_id in known if "/" not in shard_id]
    if not known:
        await _none(opened)
    missing = [shard_id for shard_id in wanted if shard_id not in known]
    if missing:
        some = ", ".join(known[:NEIGHBOURS_SHOWN]) + (" …" if len(known) > NEIGHBOURS_SHOWN else "")
        console.fail(
            f"{opened.where} has no partition {', '.join(missing)}.\nIt has {len(known)}: {some}",
            console.EXIT_NOT_FOUND,
        )
    slots = asyncio.Semaphore(READS_AT_ONCE)
    found = await all_of(_read(opened, shard_id, slots) for shard_id in list(dict.fromkeys(wanted)) or known)
    return sorted(found, key=_place)


async def all_of(jobs: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Every job's result. The first failure ends the others, and is raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _none(opened: Opened) -> None:
    others = [name for name in await opened.neighbours() if "/" in name]
    remedy = "No worker with this bucket and prefix has claimed a partition yet, or the fleet file names other ones."
    if others:
        shown = ", ".join(others[:NEIGHBOURS_SHOWN]) + (" …" if len(others) > NEIGHBOURS_SHOWN else "")
        remedy = f"That prefix has {shown}. Compare metadata.namespace and metadata.name with the workers' fleet file."
    console.fail(f"There are no checkpoints at {opened.where}\n{remedy}", console.EXIT_NOT_FOUND)


async def read(opened: Opened, shard_id: str) -> Partition:
    """Raises ObjectStoreUnavailableError, ObjectStoreRefusedError."""
    return await _read(opened, shard_id, asyncio.Semaphore(1))


async def _read(opened: Opened, shard_id: str, slots: asyncio.Semaphore) -> Partition:
    async with slots:
        try:
            found = await custody.Manifests(opened.objects).read(shard_id)
        except errors.CheckpointBrokenError as error:
            return Partition(shard_id, None, str(error))
    if found is None:
        return Partition(shard_id, None, f"partition {shard_id}: its manifest has just gone")
    told = found[0].identity.shard_id
    if told != shard_id:
        return Partition(shard_id, None, f"partition {shard_id}: its manifest is {told}'s")
    return Partition(shard_id, found[0])


def _place(entry: Partition) -> tuple[int, str]:
    known = entry.manifest
    return (known.identity.hash_key_range.start if known is not None else hashing.HASH_KEY_MAX + 1, entry.shard_id)


# ── the hash space ───────────────────────────────────────────────────────────────────────────────────────────────────


def standing(found: Iterable[Partition]) -> list[tuple[Partition, hashing.HashKeyRange]]:
    """Which twins are whose: each partition with the ranges for which its checkpoint is the newest word. A child that has a checkpoint
    speaks for its range instead of its parents; of a closed parent without such children, nothing is left out."""
    known = [(entry, entry.manifest) for entry in found if entry.manifest is not None and entry.checkpoint is not None]
    children: dict[str, list[hashing.HashKeyRange]] = {}
    for _, of in known:
        for parent in of.parents:
            children.setdefault(parent, []).append(of.identity.hash_key_range)
    told = [
        (entry, rest)
        for entry, of in known
        for rest in without(of.identity.hash_key_range, children.get(entry.shard_id, ()))
    ]
    return sorted(told, key=lambda each: each[1].start)


def holes(found: Iterable[Partition]) -> list[hashing.HashKeyRange]:
    """What no manifest speaks for."""
    ranges = [entry.manifest.identity.hash_key_range for entry in found if entry.manifest is not None]
    return without(hashing.HashKeyRange(), ranges)


def without(whole: hashing.HashKeyRange, parts: Iterable[hashing.HashKeyRange]) -> list[hashing.HashKeyRange]:
    """What is left of the whole."""
    left: list[hashing.HashKeyRange] = []
    start = whole.start
    for part in sorted(part for part in parts if part.overlaps(whole)):
        if part.start > start:
            left.append(hashing.HashKeyRange(start, part.start - 1))
        start = max(start, part.end + 1)
    if start <= whole.end:
        left.append(hashing.HashKeyRange(start, whole.end))
    return left


def share(key_range: hashing.HashKeyRange) -> float:
    """Of the hash space, in percent: about the same of the devices."""
    return 100 * key_range.size / hashing.HashKeyRange().size
