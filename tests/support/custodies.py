"""Custodies over an object store in memory, and manifests to claim: what tests of fencing share."""

from __future__ import annotations

import itertools

from fleet_model import hashing, manifest, partition
from fleet_worker import custody
from fleet_worker.adapters import memory_objects
from fleet_worker.core import claims
from tests.support import virtual_time

SHARD_ID = "shardId-000000000001"
IDENTITY = partition.PartitionIdentity("default", "cars", "telemetry", SHARD_ID, hashing.HashKeyRange(0, 2**127))
PARENTS = ("shardId-000000000000",)
KEY = claims.manifest_key(SHARD_ID)
INTERVAL_S = 60.0

_nonces = itertools.count(1)


def fresh_nonce() -> str:
    return f"{next(_nonces):016x}"


def checkpoint(number: int, *, commit_number: int = 0) -> manifest.Checkpoint:
    part = manifest.Part(manifest.Kind.BASE, f"{number}.parquet", 1, 1, "00", 0, commit_number)
    return manifest.Checkpoint(number, number, 1, partition.Position(str(number)), 1, 1, commit_number, 1, (part,))


class World:
    """A bucket, and custodies of one partition by any number of starts. Only inside virtual_time.run()."""

    def __init__(self) -> None:
        self.clock = virtual_time.VirtualClock()
        self.bucket = memory_objects.Bucket(self.clock)

    def objects(self, plan: memory_objects.Plan = memory_objects.no_faults) -> memory_objects.MemoryObjects:
        return memory_objects.MemoryObjects(self.bucket, self.clock, plan)

    def custody(
        self,
        worker: str,
        *,
        nonce: str | None = None,
        identity: partition.PartitionIdentity = IDENTITY,
        plan: memory_objects.Plan = memory_objects.no_faults,
    ) -> custody.Custody:
        """A new start's."""
        return custody.Custody(
            custody.Manifests(self.objects(plan)),
            identity,
            PARENTS,
            worker,
            nonce or fresh_nonce(),
            self.clock,
            2 * INTERVAL_S,
        )

    def standing(self) -> manifest.Manifest:
        """What stands there."""
        return manifest.parse(self.bucket.contents()[KEY])

    def lay(self, standing: manifest.Manifest) -> None:
        """Puts a manifest there, however it came to be."""
        self.bucket.tamper(KEY, manifest.encode(standing))
