"""Every reason that a fleet's conditions may have, in one table: the condition it is of, whether that is true then, and what it means.

Those that partitions tell of are the model's (`control.Reason`); the operator adds its own. Nothing else may be told: `told` refuses a reason
that stands with another condition than here. The documentation has the same table, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from fleet_model import control
from fleet_model.control import Kind, Reason

RULES_APPLIED = "RulesApplied"
KINDS = (*(str(kind) for kind in Kind if kind is not Kind.STALLED), RULES_APPLIED, str(Kind.STALLED))
"""The conditions, in the order in which they are told."""


class Own(enum.StrEnum):
    """The operator's reasons."""

    SUSPENDED = "Suspended"
    DELETING = "Deleting"
    SPEC_INVALID = "SpecInvalid"

    SCALING = "ScalingWorkers"
    UPDATING = "UpdatingWorkers"
    GROWING = "GrowingVolumes"
    SUSPENDING = "ReleasingPartitions"

    RULES_APPLIED = "EveryWorkerJudges"
    RULES_SPREADING = "WorkersCatchUp"
    RULES_UNKNOWN = "NoRulesYet"
    RULES_REFUSED = "TooManyGenerations"
    RULES_BROKEN = "HistoryBroken"

    UPDATE_STUCK = "UpdateStuck"
    NAME_TAKEN = "NameTaken"
    STORAGE_FIXED = "StorageCannotChange"
    WRITE_REFUSED = "WriteRefused"


TABLE: Mapping[tuple[str, str], tuple[bool, str]] = {
    (Kind.READY, Reason.ALL_RUNNING): (True, "every partition is run by a worker that answers"),
    (Kind.READY, Reason.NOT_RUNNING): (False, "the message names partitions that don't run"),
    (Kind.READY, Reason.NO_PARTITIONS): (False, "the stream's shards aren't known yet"),
    (Kind.READY, Own.SUSPENDED): (False, "`spec.suspend` is set"),
    (Kind.READY, Own.DELETING): (False, "the fleet is being deleted"),
    (Kind.READY, Own.SPEC_INVALID): (False, "the spec can't be read, so nothing is known of the fleet"),
    (Kind.PROGRESSING, Reason.SETTLED): (False, "nothing is under way"),
    (Kind.PROGRESSING, Reason.ASSIGNING): (True, "partitions wait for a worker"),
    (Kind.PROGRESSING, Reason.STARTING): (True, "partitions are on their way"),
    (Kind.PROGRESSING, Own.SCALING): (True, "workers come or go"),
    (Kind.PROGRESSING, Own.UPDATING): (True, "workers are made anew, one at a time"),
    (Kind.PROGRESSING, Own.GROWING): (True, "volumes become larger"),
    (Kind.PROGRESSING, Own.SUSPENDING): (True, "partitions take their final checkpoint before the workers end"),
    (Kind.REBALANCING, Reason.BALANCED): (False, "no partition moves"),
    (Kind.REBALANCING, Reason.MOVING): (True, "partitions move between workers"),
    (Kind.REBALANCING, Reason.EMPTYING): (True, "workers that leave still have partitions"),
    (Kind.REBALANCING, Reason.WAITING): (True, "copies don't become warm"),
    (Kind.CHECKPOINTS_HEALTHY, Reason.CHECKPOINTS_FRESH): (True, "every running partition's last checkpoint is fresh"),
    (Kind.CHECKPOINTS_HEALTHY, Reason.CHECKPOINTS_STALE): (False, "a last checkpoint is older than two intervals"),
    (Kind.CHECKPOINTS_HEALTHY, Reason.CHECKPOINTS_MISSING): (False, "a partition has none"),
    (Kind.CHECKPOINTS_HEALTHY, Reason.NO_CHECKPOINTS): (False, "`spec.checkpoint.bucket` isn't set"),
    (RULES_APPLIED, Own.RULES_APPLIED): (True, "every worker judges by the newest generation"),
    (RULES_APPLIED, Own.RULES_SPREADING): (False, "the newest generation isn't in force at every worker yet"),
    (RULES_APPLIED, Own.RULES_UNKNOWN): (False, "the first generation isn't stamped yet"),
    (RULES_APPLIED, Own.SPEC_INVALID): (False, "the message names the field; the last good rules stay in force"),
    (RULES_APPLIED, Own.RULES_REFUSED): (False, "too many edits within the stream's retention; the last one waits"),
    (RULES_APPLIED, Own.RULES_BROKEN): (False, "what is kept of the rules contradicts itself; nothing new is stamped"),
    (Kind.STALLED, Reason.NOT_STALLED): (False, "nothing needs anybody"),
    (Kind.STALLED, Reason.TOO_MANY_SILENT): (True, "more than a third of the workers is silent"),
    (Kind.STALLED, Reason.NO_WORKER): (True, "nobody can be given partitions"),
    (Kind.STALLED, Reason.RANGES_BROKEN): (True, "the partitions don't cover the hash space exactly once"),
    (Kind.STALLED, Reason.STREAM_NOT_LISTED): (True, "Kinesis doesn't answer; known partitions go on"),
    (Kind.STALLED, Reason.SHARDS_MISSING): (True, "the stream dropped a shard that wasn't read to its end"),
    (Kind.STALLED, Reason.FAILED): (True, "see the partition's own message"),
    (Kind.STALLED, Reason.CLAIM_REFUSED): (True, "the manifest doesn't let the owner in"),
    (Kind.STALLED, Reason.MOVES_STUCK): (True, "copies don't become warm, or changes of owner don't come to an end"),
    (Kind.STALLED, Reason.CANNOT_MOVE): (True, "a worker is silent or leaves, and there are no checkpoints"),
    (Kind.STALLED, Own.SPEC_INVALID): (
        True,
        "the spec has a mistake that the schema can't see; the message names the field",
    ),
    (Kind.STALLED, Own.UPDATE_STUCK): (True, "an updated worker doesn't become ready; the others stay as they are"),
    (Kind.STALLED, Own.NAME_TAKEN): (True, "an object of a name that the fleet needs is somebody else's"),
    (Kind.STALLED, Own.STORAGE_FIXED): (True, "volumes don't shrink, and keep their class"),
    (Kind.STALLED, Own.WRITE_REFUSED): (True, "the API server refuses an object: a quota, a policy, a missing right"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """A condition of the fleet. kind: one of KINDS."""

    kind: str
    status: bool
    reason: str
    message: str


def told(kind: str, reason: str, message: str) -> Told:
    """A reason that isn't of this condition is a bug."""
    status, _ = TABLE[kind, reason]
    return Told(str(kind), status, str(reason), message)


def of(condition: control.Condition) -> Told:
    made = told(condition.kind, condition.reason, condition.message)
    assert made.status == condition.status, condition
    return made
