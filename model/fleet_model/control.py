"""What the control plane observes of a fleet, and what it wants: the words that `handoff` and its callers share.

The operator fills them from the API server, the local control loop from the control folder. They decide nothing, but for one thing that
is in no need of a decision: what a fleet's spec says about it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence

from fleet_model import partition, spec, twin_partition

SILENT_AFTER_MS = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """replicas: workers wanted; ordinals from there on leave. max_concurrent_moves: planned ones, warming up included. drain_timeout_ms:
    as spec.rebalance. standby_replicas: warm copies per partition. checkpoint_interval_ms: between checkpoints.
    has_checkpoints: without them nothing can move. silent_after_ms: a worker not heard for so long has stopped answering."""

    replicas: int = 3
    max_concurrent_moves: int = 2
    drain_timeout_ms: int = 60_000
    standby_replicas: int = 0
    checkpoint_interval_ms: int = 60_000
    has_checkpoints: bool = True
    silent_after_ms: int = SILENT_AFTER_MS


def settings(fleet: spec.FleetSpec, silent_after_ms: int = SILENT_AFTER_MS) -> Settings:
    """What the fleet's spec says."""
    return Settings(
        replicas=fleet.replicas,
        max_concurrent_moves=fleet.rebalance.max_concurrent_moves,
        drain_timeout_ms=fleet.rebalance.drain_timeout_ms,
        standby_replicas=fleet.standby_replicas,
        checkpoint_interval_ms=fleet.checkpoint.interval_ms,
        has_checkpoints=fleet.checkpoint.bucket is not None,
        silent_after_ms=silent_after_ms,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Worker:
    """A worker that is there, or should be.

    ready: may be given partitions. heard_ms: the last sign of life of any kind, be it a heartbeat, its pod's state or a status that it
    wrote; 0 = none yet. A probe of ours that failed is no sign of death. leaving: is to own nothing, as every ordinal from `replicas`
    on. restarting_until_ms: it restarts in place on its own disk (a rolling update) and keeps its partitions until then; 0 = it doesn't.
    load: of its partitions by shard id, in any one unit. capacity: relative to other workers'.
    """

    name: str
    ordinal: int
    ready: bool
    heard_ms: int
    leaving: bool = False
    restarting_until_ms: int = 0
    load: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    capacity: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Observed:
    """One look at a fleet. now_ms: the control plane's clock. shards: all that the stream lists, None = it can't be asked;
    then shards_why says why. workers: every one that exists, and every ordinal below `replicas`. watching_since_ms: since when this caller
    looks; nobody counts as silent before it has looked for that long."""

    now_ms: int
    namespace: str
    fleet: str
    stream: str
    settings: Settings
    partitions: Iterable[twin_partition.TwinPartition]
    workers: Iterable[Worker]
    shards: Sequence[partition.Shard] | None
    watching_since_ms: int = 0
    shards_why: str = ""


class Kind(enum.StrEnum):
    """A condition's type."""

    READY = "Ready"
    PROGRESSING = "Progressing"
    REBALANCING = "Rebalancing"
    CHECKPOINTS_HEALTHY = "CheckpointsHealthy"
    STALLED = "Stalled"


class Reason(enum.StrEnum):
    """Why a condition is what it is, one word."""

    ALL_RUNNING = "AllPartitionsRunning"
    NOT_RUNNING = "PartitionsNotRunning"
    NO_PARTITIONS = "NoPartitions"

    SETTLED = "Settled"
    ASSIGNING = "AssigningPartitions"
    STARTING = "StartingPartitions"

    BALANCED = "Balanced"
    MOVING = "MovingPartitions"
    WAITING = "MovesWait"
    EMPTYING = "EmptyingWorkers"

    CHECKPOINTS_FRESH = "CheckpointsFresh"
    CHECKPOINTS_STALE = "CheckpointsStale"
    CHECKPOINTS_MISSING = "CheckpointsMissing"
    NO_CHECKPOINTS = "NoCheckpointBucket"

    NOT_STALLED = "NotStalled"
    RANGES_BROKEN = "RangesBroken"
    TOO_MANY_SILENT = "TooManyWorkersSilent"
    NO_WORKER = "NoWorkerReady"
    FAILED = "PartitionsFailed"
    CLAIM_REFUSED = "ClaimsRefused"
    MOVES_STUCK = "MovesStuck"
    CANNOT_MOVE = "PartitionsCannotMove"
    STREAM_NOT_LISTED = "StreamNotListed"
    SHARDS_MISSING = "ShardsMissing"


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """As Kubernetes knows them. message: a sentence or a few, for people."""

    kind: Kind
    status: bool
    reason: Reason
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done. create: objects that don't exist yet, parents before their children: in this order, and none after one that
    fails. change: objects with another spec, to be written over the resource_version
    that was read; one that another wrote meanwhile is left for the next look. delete: likewise. workers_kept: ordinals below it must
    go on existing; the StatefulSet may shrink to it."""

    create: tuple[twin_partition.TwinPartition, ...] = ()
    change: tuple[twin_partition.TwinPartition, ...] = ()
    delete: tuple[twin_partition.TwinPartition, ...] = ()
    conditions: tuple[Condition, ...] = ()
    workers_kept: int = 0

    def condition(self, kind: Kind) -> Condition:
        """The one of the kind; there is exactly one of each."""
        return next(condition for condition in self.conditions if condition.kind is kind)
