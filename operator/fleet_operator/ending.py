"""What is left to do for a fleet that is being deleted, and for one whose spec can't be read; and the words that all plans share.

A deleted fleet keeps its finalizer until every partition has its final checkpoint, or none can be expected any more: its owner is silent,
or had its time. Its user may say that it isn't to wait (the annotation `naming.FORCE_DELETION`). It decides nothing about fleets that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleet_model import sections, situation
from fleet_model.control import Kind, Reason
from fleet_operator import actions, letting_go, observed, reasons, status
from fleet_operator.actions import Plan
from fleet_operator.reasons import Own, told

DELETION_MS_MAX = 4_500_000
"""A fleet that is deleted goes after so long whatever else holds: more than the longest drain timeout there may be."""

AGAIN_MS = 5_000


def deletion(look: observed.Look, asked: observed.Deletion) -> Plan:
    if not look.has_finalizer:
        return Plan((), "it goes")
    if asked.at_once:
        event = status.Event("Warning", "FinalCheckpointSkipped", "deleted without waiting, as its annotation asks")
        return Plan((actions.RemoveFinalizer(),), "it goes without a final checkpoint, as was asked", (event,))
    seen = situation.Situation(observed.of_partitions(look))
    change = letting_go.named_for_nobody(look.partitions, look.now_ms)
    held = letting_go.still_held(seen)
    is_over = look.now_ms - asked.since_ms >= DELETION_MS_MAX
    if not is_over and (change or held):
        why = f"{len(held)} partitions take their final checkpoint before the fleet goes"
        conditions = _with(look, told(Kind.READY, Own.DELETING, why), told(Kind.PROGRESSING, Own.SUSPENDING, why))
        built = _rewritten(look, conditions)
        todo = (*status_written(built, look), *(actions.ChangePartition(entry) for entry in change))
        return Plan(todo, why, status.events(built, look.status), AGAIN_MS)
    missing = [entry.spec.shard_id for entry in (*held, *letting_go.without_final(seen))]
    return Plan((actions.RemoveFinalizer(),), "it goes", _farewell(look, missing))


def _farewell(look: observed.Look, missing: Sequence[str]) -> tuple[status.Event, ...]:
    """Nothing of a fleet that never had partitions. A foreground deletion takes the partitions' objects before the fleet: of those nobody
    knows any more."""
    told = look.status.get("partitions") or {}
    gone = int(told.get("total") or 0) - len(look.partitions) - len(look.unreadable)
    without = []
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        without.append(f"without a final checkpoint: {named}")
    if look.unreadable:
        without.append("; ".join(look.unreadable[:3]))
    if gone > 0:
        without.append(f"{gone} partitions were deleted before the fleet, so nobody knows of a final checkpoint")
    if without:
        message = f"{'; '.join(without)}; a new fleet goes on from the last one and the stream"
        return (status.Event("Warning", "FinalCheckpointMissing", message),)
    if not look.partitions:
        return ()
    return (status.Event("Normal", "FinalCheckpointTaken", "every partition has its final checkpoint"),)


def unreadable(look: observed.Look) -> Plan:
    """Everything stays as it is; the conditions name the fields."""
    message = mistakes(look.reading.mistakes)
    conditions = _with(
        look,
        told(reasons.RULES_APPLIED, Own.SPEC_INVALID, message),
        told(Kind.STALLED, Own.SPEC_INVALID, message),
    )
    built = _rewritten(look, conditions)
    return Plan(status_written(built, look), message, status.events(built, look.status), AGAIN_MS)


def _rewritten(look: observed.Look, conditions: Sequence[reasons.Told]) -> dict[str, Any]:
    generation = look.owner.generation
    return {
        **look.status,
        "observedGeneration": generation,
        "conditions": status.conditions(conditions, look.status, generation, look.now_ms),
    }


_UNKNOWN = (
    (Kind.READY, Own.SPEC_INVALID),
    (Kind.PROGRESSING, Reason.SETTLED),
    (Kind.REBALANCING, Reason.BALANCED),
    (Kind.CHECKPOINTS_HEALTHY, Reason.CHECKPOINTS_MISSING),
    (reasons.RULES_APPLIED, Own.RULES_UNKNOWN),
    (Kind.STALLED, Reason.NOT_STALLED),
)
"""Of a fleet that was never looked at before."""


def _with(look: observed.Look, *changed: reasons.Told) -> list[reasons.Told]:
    """Those that stand there, but for those that changed."""
    made = {str(kind): told(kind, reason, reasons.TABLE[kind, reason][1]) for kind, reason in _UNKNOWN}
    for entry in look.status.get("conditions") or ():
        key = entry.get("type"), entry.get("reason")
        if key in reasons.TABLE:
            made[entry["type"]] = told(*key, entry.get("message", ""))
    made.update({condition.kind: condition for condition in changed})
    return [made[kind] for kind in reasons.KINDS]


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def stalled(said: reasons.Told | None, troubles: Sequence[tuple[Own, str]]) -> reasons.Told:
    """What partitions say is the gravest; the message tells all of it."""
    messages = [message for _, message in troubles]
    if said is not None and said.status:
        return told(said.kind, said.reason, "; ".join([said.message, *messages]))
    if troubles:
        return told(Kind.STALLED, troubles[0][0], "; ".join(messages))
    return told(Kind.STALLED, Reason.NOT_STALLED, "nothing needs anybody")


def mistakes(found: Sequence[sections.Mistake]) -> str:
    return "; ".join(str(mistake) for mistake in found)


def sentence(conditions: Sequence[reasons.Told]) -> str:
    """Done, or why not yet: the first of what somebody would want to know."""
    by_kind = {condition.kind: condition for condition in conditions}
    troubles = [by_kind[kind] for kind in (Kind.STALLED, Kind.PROGRESSING, Kind.REBALANCING) if by_kind[kind].status]
    wishes = (by_kind[kind] for kind in (str(Kind.READY), reasons.RULES_APPLIED, str(Kind.CHECKPOINTS_HEALTHY)))
    waits = [*troubles, *(wish for wish in wishes if not wish.status)]
    return waits[0].message if waits else "done"


def status_written(built: dict[str, Any], look: observed.Look) -> tuple[actions.Action, ...]:
    """Nothing when it stands there already."""
    return () if built == look.status else (actions.WriteStatus(built),)
