"""The Disk port over a data folder: an LMDB environment for each partition, and what earlier runs left there.

What was left of a shard that the stream no longer lists was either read to its end, and its twins may still have to be inherited; or
it wasn't, and records are lost. Here it is only looked at: what follows from it is the supervisor's to decide.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from fleet_model import hashing, partition, spec
from fleet_worker import errors, ports
from fleet_worker.adapters import lmdb_look, lmdb_store, local_folder
from fleet_worker.core import commits


class LmdbDisk:
    """ports.Disk."""

    def __init__(self, folder: local_folder.LocalFolder, storage: spec.Storage, boot_id: str) -> None:
        """boot_id: the machine's, with the pod's token where there is one."""
        self._folder = folder
        self._storage = storage
        self._boot_id = boot_id

    def open(self, identity: partition.PartitionIdentity) -> ports.OpenedStore:
        folder = self._folder.partition_folder(identity.shard_id)
        store = lmdb_store.LmdbTwinStore.open(folder, identity, self._storage, self._boot_id)
        return ports.OpenedStore(store, store.discarded)

    def shards(self) -> list[str]:
        return self._folder.partitions()

    def where(self, shard_id: str) -> str:
        return f"{self._folder.path}/partitions/{shard_id}"

    def remove(self, shard_id: str) -> None:
        self._folder.remove_partition(shard_id)

    def inherit(
        self,
        child: ports.TwinStore,
        parents: Sequence[ports.TwinStore],
        key_range: hashing.HashKeyRange,
        state: commits.PartitionState,
    ) -> None:
        stores = cast(list[lmdb_store.LmdbTwinStore], [child, *parents])  # all of them came from `open`
        lmdb_store.copy_range(stores[0], stores[1:], key_range, state)

    def left(self, listed: Collection[str]) -> list[ports.LeftBehind]:
        return found(self._folder, self._boot_id, listed)


def found(folder: local_folder.LocalFolder, boot_id: str, listed: Collection[str]) -> list[ports.LeftBehind]:
    """By shard id. Blocks on the disk."""
    there = folder.partitions()
    begun = frozenset(shard_id for shard_id in there if shard_id in listed and _has_begun(folder, shard_id, boot_id))
    left = []
    for shard_id in there:
        if shard_id in listed:
            continue
        try:
            seen = lmdb_look.look(folder.partition_folder(shard_id), boot_id)
        except errors.StoreBrokenError as error:
            seen = lmdb_look.Left(unfit=str(error))
        if seen is not None:
            left.append(ports.LeftBehind(shard_id, seen.key_range, seen.ended, _trouble(seen), begun))
    return left


def _has_begun(folder: local_folder.LocalFolder, shard_id: str, boot_id: str) -> bool:
    try:
        seen = lmdb_look.look(folder.partition_folder(shard_id), boot_id)
    except errors.StoreBrokenError:
        return False
    return seen is not None and seen.has_begun


def _trouble(seen: lmdb_look.Left) -> str:
    if seen.ended:
        return ""
    gone = "the stream no longer lists its shard"
    if seen.unfit is not None:
        return f"{gone}, and what was kept of its twins can't be trusted ({seen.unfit})"
    return f"{gone}, which wasn't read to its end: records are lost"
