"""A partition with a store, a bucket and a custody, to take checkpoints of and to restore: what their tests share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from fleet_model import hashing, manifest, partition, spec
from fleet_worker import checkpointing, custody, metrics, ports
from fleet_worker.adapters import lmdb_store, memory_objects, memory_store
from fleet_worker.core import commits, effects, records
from tests.support import virtual_time

SHARD_ID = "shardId-000000000000"
IDENTITY = partition.PartitionIdentity("default", "fleet", "telemetry", SHARD_ID)
Store = lmdb_store.LmdbTwinStore | memory_store.MemoryTwinStore
MakeStore = Callable[[partition.PartitionIdentity], Store]
Twin = tuple[bytes, bytes, bytes | None, bytes | None]
ENDLESS_MS = 10**15


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """All that a store holds but the index. twins: device id → digest, row, details, telemetry."""

    twins: dict[str, Twin]
    state: commits.PartitionState
    outbox: list[effects.OutboxEntry]
    dead_letters: list[records.DeadLetter]


def held(store: ports.TwinStore) -> Held:
    found: dict[str, Twin] = {}
    with store.snapshot() as snapshot:
        for rows in snapshot.scan(with_telemetry=True):
            for at, name in enumerate(rows.device_ids):
                raw = rows.telemetry[at]
                found[name] = rows.digests[at].tobytes(), rows.rows[at].tobytes(), rows.extras.get(at), raw
        state = dataclasses.replace(snapshot.state, epoch=0, nonce="")
        return Held(found, state, snapshot.outbox(), snapshot.dead_letters(10_000))


def lmdb_stores(folder: pathlib.Path) -> MakeStore:
    """Stores on this disk, each in a folder of its own."""
    made: list[Store] = []

    def new(identity: partition.PartitionIdentity) -> Store:
        storage = spec.Storage(map_size_bytes=2**30)
        made.append(lmdb_store.LmdbTwinStore.open(folder / str(len(made)), identity, storage, "boot"))
        return made[-1]

    return new


class World:
    """Only inside virtual_time.run()."""

    def __init__(self, make: MakeStore = memory_store.MemoryTwinStore) -> None:
        self.clock = virtual_time.VirtualClock()
        self.bucket = memory_objects.Bucket(self.clock)
        self.metrics = metrics.Metrics()
        self._make = make
        self._starts = 0

    def objects(self, plan: memory_objects.Plan = memory_objects.no_faults) -> memory_objects.MemoryObjects:
        return memory_objects.MemoryObjects(self.bucket, self.clock, plan)

    def store(self, identity: partition.PartitionIdentity = IDENTITY) -> Any:
        return self._make(identity)

    async def owner(
        self, store: ports.TwinStore, identity: partition.PartitionIdentity = IDENTITY, epoch: int = 1, **more: Any
    ) -> Owner:
        """A new start that claims the partition. more: of the checkpointer; plan: what goes wrong with its object store."""
        self._starts += 1
        objects = self.objects(more.pop("plan", memory_objects.no_faults))
        nonce = f"{self._starts:016x}"
        mine = custody.Custody(
            custody.Manifests(self.objects()), identity, (), f"worker-{self._starts}", nonce, self.clock, 120.0
        )
        await mine.claim(epoch, epoch)
        checkpointer = checkpointing.Checkpointer(objects, store, mine, self.clock, self.metrics, **more)
        return Owner(mine, objects, checkpointer)

    def files(self, shard_id: str = SHARD_ID) -> list[str]:
        """Names of the data objects, without the manifest."""
        names = [key.removeprefix(f"{shard_id}/") for key in self.bucket.contents() if key.startswith(f"{shard_id}/")]
        return [name for name in names if name != "manifest.json"]


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    custody: custody.Custody
    objects: memory_objects.MemoryObjects
    checkpointer: checkpointing.Checkpointer

    @property
    def manifest(self) -> manifest.Manifest:
        return self.custody.manifest


def kinds(checkpoint: manifest.Checkpoint) -> list[tuple[str, int]]:
    """(kind, rows) of its files."""
    return [(part.kind.value, part.rows) for part in checkpoint.parts]


def halves() -> Sequence[hashing.HashKeyRange]:
    return hashing.HashKeyRange(end=2**127 - 1), hashing.HashKeyRange(start=2**127)
