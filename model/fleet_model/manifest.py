"""A partition's manifest: who owns it, and which files are its checkpoint. One JSON object per partition, the truth.

`<prefix>/<namespace>/<fleet>/<shardId>/manifest.json`, changed by conditional writes only. It speaks of files by their key below
the partition's folder; files are immutable and carry epoch and nonce in their names.
"""

from __future__ import annotations

import dataclasses
import enum

from fleet_model import partition

FORMAT = 1


class Kind(enum.StrEnum):
    BASE = "base"  # every twin
    DELTA = "delta"  # twins whose commit number is above `since`
    OUTBOX = "outbox"  # effects not yet acknowledged; each checkpoint has its own
    DEAD_LETTERS = "deadLetters"  # the newest kept dead letters; each checkpoint has its own


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One file. name: below the partition's folder. size: bytes. sha256: hex, of the whole file. since: deltas hold the rows above
    this commit number, else 0. through: the commit number of the snapshot it was made from."""

    kind: Kind
    name: str
    rows: int
    size: int
    sha256: str
    since: int
    through: int


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """One snapshot. number: 1, 2, … over the partition's life. time_ms: when the snapshot was taken. The rest is the partition's state
    in it (PartitionState of the worker). parts: a base, its deltas in order, and this checkpoint's outbox and dead letters if any."""

    number: int
    time_ms: int
    twins: int
    position: partition.Position
    clock_ms: int
    high_arrival_ms: int
    commit_number: int
    outbox_next: int
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """epoch, nonce, worker: of the last claim. final: drained, nothing is to come from this owner; the next claim is free. ended: the
    shard was read to its end. parents: shard ids whose twins are in this partition. kept: names of the files of the last few checkpoints
    before this one, newest first, which garbage collection leaves alone."""

    identity: partition.PartitionIdentity
    parents: tuple[str, ...]
    epoch: int
    nonce: str
    worker: str
    final: bool = False
    ended: bool = False
    checkpoint: Checkpoint | None = None
    kept: tuple[tuple[str, ...], ...] = ()
