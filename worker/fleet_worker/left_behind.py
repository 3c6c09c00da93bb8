"""What earlier runs left in the data folder of shards that the stream no longer lists.

Such a partition was either read to its end, and its twins may still have to be inherited; or it wasn't, and records are lost.
It only looks: what follows from it is the supervisor's to decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from fleet_model import hashing
from fleet_worker import errors
from fleet_worker.adapters import lmdb_look, local_folder


@dataclasses.dataclass(frozen=True, slots=True)
class LeftBehind:
    """ended: read to its end; then key_range is its. trouble: what is wrong with it otherwise. begun: the listed shards whose
    partitions have begun, and so have inherited already."""

    shard_id: str
    key_range: hashing.HashKeyRange
    ended: bool
    trouble: str
    begun: frozenset[str]


def found(folder: local_folder.LocalFolder, boot_id: str, listed: Collection[str]) -> list[LeftBehind]:
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
            left.append(LeftBehind(shard_id, seen.key_range, seen.ended, _trouble(seen), begun))
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
