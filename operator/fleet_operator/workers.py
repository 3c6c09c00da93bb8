"""What is seen of a fleet's workers: from pods, probes and nodes to the words that `handoff` and `rolling` decide by.

Pure. A worker has been heard of when it answered a probe, when it wrote a status, or when its container runs on a node that lives:
a probe that doesn't get through (a network policy, an operator that is cut off) is no sign of death, and neither is a container that
hangs: the kubelet starts that one again, on the same disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fleet_model import control
from fleet_operator import clock, naming, overlay

CRASHES = "CrashLoopBackOff"
BREAKS = frozenset(
    {
        CRASHES,
        "ImagePullBackOff",
        "ErrImagePull",
        "InvalidImageName",
        "ImageInspectError",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""Reasons for which a container waits that don't go away by waiting alone."""
EARLY_MS, EARLY_RESTARTS_MIN = 60_000, 2
"""A container that was started again so often, and whose last life was that short, crashes again and again: between two crashes it runs for
some seconds, and nothing is better then."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A worker's last answer to a probe. time_ms: of that answer; 0 = never. can_take: it may be given partitions. generation: of the
    rules that it judges by; 0 = unknown. load: records/s by shard id."""

    time_ms: int = 0
    can_take: bool = False
    generation: int = 0
    load: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Pod:
    """One worker's. template: the hash of the template that it was made from. running: its container runs. terminating: it was
    deleted and is still there, be it on a node that is lost. broken: why it won't become ready by waiting; "" = it may. crashed: its
    container has ended by an error, and hasn't become ready since. unready_ms: since when it isn't ready; before that it was, or wasn't there."""

    name: str
    ordinal: int
    uid: str
    template: str
    created_ms: int
    node: str = ""
    ready: bool = False
    running: bool = False
    terminating: bool = False
    broken: str = ""
    crashed: bool = False
    unready_ms: int = 0


def pod(found: Mapping[str, Any], fleet: str, created_ms: int) -> Pod | None:
    """None: it isn't of this fleet's StatefulSet. created_ms: metadata.creationTimestamp."""
    metadata, status = found["metadata"], found.get("status") or {}
    ordinal = naming.ordinal(fleet, metadata["name"])
    if ordinal is None:
        return None
    containers = {entry["name"]: entry for entry in status.get("containerStatuses") or ()}
    container = containers.get(overlay.WORKER) or {}
    state, ended = container.get("state") or {}, (container.get("lastState") or {}).get("terminated") or {}
    told: Mapping[str, Any] = next((entry for entry in status.get("conditions") or () if entry["type"] == "Ready"), {})
    is_over = status.get("phase") in ("Failed", "Succeeded")
    ready = told.get("status") == "True" and not is_over
    changed = told.get("lastTransitionTime")
    unready_ms = clock.time_ms(changed) if changed and not ready else 0
    return Pod(
        name=metadata["name"],
        ordinal=ordinal,
        uid=metadata["uid"],
        template=(metadata.get("labels") or {}).get(naming.TEMPLATE_HASH, ""),
        created_ms=created_ms,
        node=(found.get("spec") or {}).get("nodeName") or "",
        ready=ready,
        running="running" in state and not is_over,
        terminating=bool(metadata.get("deletionTimestamp")),
        broken=_broken(status, is_over),
        crashed=not ready and bool(ended.get("exitCode")),
        unready_ms=max(created_ms, unready_ms),
    )


def _broken(status: Mapping[str, Any], is_over: bool) -> str:
    """Of any container: a worker isn't ready without those beside it."""
    if is_over:
        return status.get("reason") or str(status["phase"])
    for entry in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        reason = ((entry.get("state") or {}).get("waiting") or {}).get("reason", "")
        if reason in BREAKS:
            return str(reason)
        ended = (entry.get("lastState") or {}).get("terminated") or {}
        if not entry.get("ready") and entry.get("restartCount", 0) >= EARLY_RESTARTS_MIN and _ended_early(ended):
            return CRASHES
    return ""


def _ended_early(ended: Mapping[str, Any]) -> bool:
    """ended: the last life of a container, as Kubernetes tells it."""
    if not (ended.get("exitCode") and ended.get("startedAt") and ended.get("finishedAt")):
        return False
    return clock.time_ms(ended["finishedAt"]) - clock.time_ms(ended["startedAt"]) < EARLY_MS


@dataclasses.dataclass(frozen=True, slots=True)
class Restart:
    """A pod that was told to end so that the StatefulSet makes it anew. Kept in the fleet's status, and written before the pod is deleted:
    whoever comes after a crash goes on with it. until_ms: so long the worker keeps its partitions while it is silent."""

    worker: str
    uid: str
    until_ms: int

    def awaited_ms(self, found: Pod | None) -> int:
        """Until when its partitions wait for the pod after it; 0 = they don't, as that can't start."""
        is_vain = found is not None and found.uid != self.uid and (bool(found.broken) or found.crashed)
        return 0 if is_vain else self.until_ms

    def has_ended(self, found: Pod | None, now_ms: int) -> bool:
        """The one after it is ready, or it is over anyway."""
        return now_ms >= self.until_ms or (found is not None and found.uid != self.uid and found.ready)


@dataclasses.dataclass(frozen=True, slots=True)
class Signs:
    """Of life, besides the pods. answers: by worker. told_ms: the last status that a worker wrote, by worker. nodes_ms: the last word of
    a node (its lease, renewed each 10 s), by node; without those that nobody may look at."""

    answers: Mapping[str, Answer] = dataclasses.field(default_factory=dict, hash=False)
    told_ms: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    nodes_ms: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)


def heard_ms(seen: Pod, signs: Signs, now_ms: int) -> int:
    """The last sign of life of any kind. That a container runs which crashed and isn't ready is none: one that crashes again and again runs
    each few seconds. Where nobody may look at nodes, Kubernetes' own word for the pod has to do: that takes it about
    40 s longer to notice that a node is gone."""
    answer = signs.answers.get(seen.name, Answer())
    by_pod = 0
    if seen.running and not seen.crashed:
        by_pod = min(now_ms, signs.nodes_ms[seen.node]) if seen.node in signs.nodes_ms else now_ms * seen.ready
    return max(answer.time_ms, signs.told_ms.get(seen.name, 0), by_pod, min(seen.created_ms, now_ms))


@dataclasses.dataclass(frozen=True, slots=True)
class Expected:
    """replicas: ordinals from it on are to own nothing. asked_for: pods that the StatefulSet was asked for last: while a fleet shrinks, more."""

    fleet: str
    replicas: int
    asked_for: int = 0


def observed(
    expected: Expected, pods: Sequence[Pod], signs: Signs, restart: Restart | None, now_ms: int
) -> list[control.Worker]:
    """Every worker that there is, and every one that should be or is still asked for, by ordinal: one whose pod is just being made anew was
    heard of when it was heard of last."""
    by_ordinal = {pod.ordinal: pod for pod in pods}
    made = []
    for number in sorted({*by_ordinal, *range(max(expected.replicas, expected.asked_for))}):
        name, found = naming.worker(expected.fleet, number), by_ordinal.get(number)
        answer = signs.answers.get(name, Answer())
        is_there = found is not None and not found.terminating
        heard = heard_ms(found, signs, now_ms) if found is not None else max(answer.time_ms, signs.told_ms.get(name, 0))
        made.append(
            control.Worker(
                name=name,
                ordinal=number,
                ready=is_there and (answer.can_take if answer.time_ms else found is not None and found.ready),
                heard_ms=heard,
                leaving=number >= expected.replicas,
                restarting_until_ms=0 if restart is None or restart.worker != name else restart.awaited_ms(found),
                load=answer.load,
            )
        )
    return made
