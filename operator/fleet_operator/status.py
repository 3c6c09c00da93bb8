"""A fleet's `.status`, from what is observed: the whole of it at each look, so that nothing old stays behind.

Pure. It is the same as long as nothing changed: a look at rest writes nothing. A condition's lastTransitionTime is that of the last change of
its status, not of its reason or message.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from fleet_model import rules, situation, twin_partition
from fleet_model.control import Kind
from fleet_model.situation import Stage
from fleet_model.twin_partition import Phase
from fleet_operator import clock, naming, reasons, workers

MESSAGE_MAX = 4_096
"""Characters of a condition's message."""


@dataclasses.dataclass(frozen=True, slots=True)
class RulesTold:
    """kept, packed: history.History's. applied: workers that judge by the newest generation. of: workers that should."""

    kept: tuple[rules.RulesGeneration, ...] = ()
    packed: str = ""
    applied: int = 0
    of: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """previous: the status that stands there. moving: partitions between two workers. restart: the pod that is being made anew."""

    owner: naming.Owner
    previous: Mapping[str, Any]
    now_ms: int
    pods: Sequence[workers.Pod]
    partitions: Sequence[twin_partition.TwinPartition]
    moving: int
    rules: RulesTold
    conditions: Sequence[reasons.Told]
    restart: workers.Restart | None = None


def build(inputs: Inputs) -> dict[str, Any]:
    """Every field is there, also an empty one, but for those that have nothing to say yet."""
    alive = [pod for pod in inputs.pods if not pod.terminating]
    still_open = [entry for entry in inputs.partitions if situation.stage(entry) is not Stage.CLOSED]
    built: dict[str, Any] = {
        "observedGeneration": inputs.owner.generation,
        "replicas": len(alive),
        "readyReplicas": sum(pod.ready for pod in alive),
        "selector": ",".join(f"{key}={value}" for key, value in naming.selector(inputs.owner.name).items()),
        "partitions": {
            "total": len(still_open),
            "running": sum(_runs(entry) for entry in still_open),
            "moving": inputs.moving,
            "failed": sum(entry.status.phase is Phase.FAILED for entry in still_open),
        },
        "twins": sum(entry.status.twins for entry in still_open),
        "rules": _rules(inputs.rules, inputs.previous),
        "conditions": conditions(inputs.conditions, inputs.previous, inputs.owner.generation, inputs.now_ms),
    }
    checkpoint_ms = last_checkpoint_ms(still_open)
    if checkpoint_ms is not None:
        built["lastCheckpoint"] = time_text(checkpoint_ms)
    if inputs.restart is not None:
        until = time_text(inputs.restart.until_ms)
        built["restarting"] = {"worker": inputs.restart.worker, "podUID": inputs.restart.uid, "until": until}
    return built


def _runs(entry: twin_partition.TwinPartition) -> bool:
    return situation.stage(entry) is Stage.HELD and entry.status.phase is Phase.RUNNING


def _rules(told: RulesTold, previous: Mapping[str, Any]) -> dict[str, Any]:
    """What was published stays, also when nobody can read it just now: workers judge by it."""
    if not told.kept:
        return {"generation": 0, **(previous.get("rules") or {}), "appliedWorkers": told.applied}
    newest = told.kept[-1]
    return {
        "generation": newest.generation,
        "effectiveMs": newest.effective_ms,
        "appliedWorkers": told.applied,
        "generations": told.packed,
    }


def last_checkpoint_ms(entries: Sequence[twin_partition.TwinPartition]) -> int | None:
    """The oldest of the partitions' newest: all of the fleet is in the bucket as of then. None: some partition has none."""
    checkpoints = [entry.status.checkpoint for entry in entries]
    times = [checkpoint.time_ms for checkpoint in checkpoints if checkpoint is not None]
    return min(times) if times and len(times) == len(checkpoints) else None


def conditions(
    told: Sequence[reasons.Told], previous: Mapping[str, Any], generation: int, now_ms: int
) -> list[dict[str, Any]]:
    """One of each kind, in the order of `reasons.KINDS`."""
    by_kind = {condition.kind: condition for condition in told}
    before = {entry.get("type"): entry for entry in previous.get("conditions") or ()}
    built = []
    for kind in reasons.KINDS:
        condition = by_kind[kind]
        state = "True" if condition.status else "False"
        known = before.get(kind, {})
        since = known.get("lastTransitionTime") if known.get("status") == state else None
        built.append(
            {
                "type": kind,
                "status": state,
                "reason": condition.reason,
                "message": _short(condition.message),
                "observedGeneration": generation,
                "lastTransitionTime": since or time_text(now_ms),
            }
        )
    return built


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Of Kubernetes. type: Normal or Warning."""

    type: str
    reason: str
    message: str


_GOOD_WHEN_FALSE = (Kind.PROGRESSING, Kind.REBALANCING, Kind.STALLED)


def events(built: Mapping[str, Any], previous: Mapping[str, Any]) -> tuple[Event, ...]:
    """One for each condition that turned, or turned to another reason for being bad. None for those that are well from the beginning."""
    before = {entry.get("type"): entry for entry in previous.get("conditions") or ()}
    made = []
    for entry in built["conditions"]:
        kind, known = entry["type"], before.get(entry["type"])
        is_well = (entry["status"] == "False") == (kind in _GOOD_WHEN_FALSE)
        if known is None and is_well:
            continue
        if known is not None and (known.get("status"), known.get("reason")) == (entry["status"], entry["reason"]):
            continue
        is_warning = not is_well and kind in (Kind.STALLED, Kind.CHECKPOINTS_HEALTHY)
        made.append(Event("Warning" if is_warning else "Normal", entry["reason"], entry["message"][:1_024]))
    return tuple(made)


def restart_of(previous: Mapping[str, Any]) -> workers.Restart | None:
    """The one that was written down; None when there is none, or nobody can read it any more."""
    kept = previous.get("restarting")
    if not isinstance(kept, Mapping):
        return None
    try:
        until_ms = clock.time_ms(kept["until"])
        return workers.Restart(str(kept["worker"]), str(kept["podUID"]), until_ms)
    except (KeyError, TypeError, ValueError):
        return None


def time_text(moment_ms: int) -> str:
    """Whole seconds, as Kubernetes writes times."""
    moment = datetime.datetime.fromtimestamp(moment_ms // 1000, datetime.UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _short(message: str) -> str:
    return message if len(message) <= MESSAGE_MAX else message[: MESSAGE_MAX - 1] + "…"
