"""The `TwinPartition` object: who owns a partition, and what its owner says of it.

The control plane (the operator, or outside Kubernetes the local control loop) alone writes the spec; the owner alone writes the
status, a standby its own entry of `standby` only. Each write names the resourceVersion that it read. The manifest in S3 is the truth about
ownership; this object is how it is asked for and told.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import re

from fleet_model import hashing

_KINESIS_SHARD_ID = re.compile(r"shardId-[0-9]{1,100}")


class Phase(enum.StrEnum):
    """Where a partition is in its life; `fleet_worker.core.lifecycle` has the table of transitions."""

    PENDING = "Pending"  # waits for its parents, or for an owner
    RESTORING = "Restoring"
    RUNNING = "Running"
    DRAINING = "Draining"
    RELEASED = "Released"  # drained, its final checkpoint stands; whoever is named next may claim it
    CLOSED = "Closed"  # the shard ended and all of it was applied; its final checkpoint stands
    FAILED = "Failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """What the control plane wants.

    parents: shard ids, also of shards that the stream no longer lists. worker: the owner's name, "" = none yet. epoch: +1 at each
    change of owner, 0 before the first. takeover: the epoch for which the owner may claim although the manifest is neither final nor
    its own; 0 = none. standby: workers that keep a warm copy. assigned_ms: when the epoch was raised, by the control plane's clock:
    deadlines of a move count from it. skip_to_ms: the documented way out of a position older than the stream's retention:
    an owner whose partition clock is behind it goes on from this arrival time and lifts every last_seen to it; 0 = none.
    first_epoch: the one claim that may find no manifest: 1, and as long as no owner ever told of a claim, the newest assignment's.
    receiver: the worker that it moves to as soon as its copy is warm, "" = none; it is one of standby. standby_ms: when it was named, by the
    control plane's clock: how long a copy may take to become warm counts from it.
    """

    fleet: str
    stream: str
    shard_id: str
    hash_key_range: hashing.HashKeyRange
    parents: tuple[str, ...] = ()
    worker: str = ""
    epoch: int = 0
    takeover: int = 0
    standby: tuple[str, ...] = ()
    assigned_ms: int = 0
    skip_to_ms: int = 0
    first_epoch: int = 1
    receiver: str = ""
    standby_ms: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class CheckpointStatus:
    """The newest confirmed checkpoint. key: of the manifest's newest data object. time_ms: when its snapshot was taken, by the
    worker's clock. sequence_number: the position in it."""

    key: str
    epoch: int
    time_ms: int
    sequence_number: str


@dataclasses.dataclass(frozen=True, slots=True)
class StandbyStatus:
    """A standby's own entry. checkpoint_number: the checkpoint that its copy equals, 0 = none yet. warm: it equals the manifest's
    newest one as of its last look."""

    worker: str
    checkpoint_number: int = 0
    warm: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """What the owner says. epoch: that it acts under. nonce: of its claim. manifest_epoch: after a refused claim, the manifest's: the control plane goes on
    from there. checkpoint_stale: the last one is older than two intervals. message: why it isn't Running, or what troubles it."""

    phase: Phase = Phase.PENDING
    worker: str = ""
    epoch: int = 0
    nonce: str = ""
    twins: int = 0
    checkpoint: CheckpointStatus | None = None
    checkpoint_stale: bool = False
    manifest_epoch: int = 0
    standby: tuple[StandbyStatus, ...] = ()
    message: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class TwinPartition:
    """One object. resource_version: of the object store that it was read from; "" = not stored yet. uid: one that was deleted and made anew has
    another; "" = not stored yet, or by a version that gave none."""

    namespace: str
    name: str
    spec: Spec
    status: Status = Status()
    resource_version: str = ""
    uid: str = ""


def object_name(fleet: str, shard_id: str) -> str:
    """The name of a shard's object, the same for good: a DNS subdomain, which has no capitals. A shard id of another form than
    Kinesis' gets a few digits of its hash, so that two that differ by their signs only stay two."""
    if _KINESIS_SHARD_ID.fullmatch(shard_id):
        return f"{fleet}-{shard_id.lower()}"
    plain = re.sub(r"[^a-z0-9]+", "-", shard_id.lower()).strip("-")
    return f"{fleet}-{plain}-{hashlib.sha256(shard_id.encode()).hexdigest()[:8]}".replace("--", "-")
