"""Rolling updates: which pod is made anew next, if any may be now. Decides; `plan` acts on it.

One worker at a time, and the next one only when every other is ready: a worker ends by itself in order (it commits, closes its
environments, marks them clean), comes back on the same disk, and keeps its partitions meanwhile. The first that doesn't become ready
stops the update: those not yet reached go on as they are. What is broken already and was made from an older template is made anew
whatever else waits, since nothing can be lost by it, and it is how a bad update is mended: by the next one.

    broken and outdated            → Restart, the highest ordinal first; while another one is being made anew → Wait
    the StatefulSet isn't seen     → Wait
    too many workers are silent    → Wait
    one ends, is missing, starts   → Wait; too long → Stuck
    one is outdated, gates open    → Restart, the highest ordinal first
    one is outdated, none open     → Wait
    none is outdated               → Settled
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

from fleet_model import situation, twin_partition
from fleet_model.twin_partition import Phase
from fleet_operator import workers

START_MS_MAX = 600_000
"""A worker that hasn't been ready for so long, be it since its pod was made, doesn't become ready by itself: its image, its node, its streams or its
bucket need somebody. Twins that come back from the bucket take a minute for tens of millions."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """Every pod is there, ready, and made from the wanted template."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """why: a sentence."""

    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Restart:
    """This pod is to be deleted, if it still has this uid."""

    worker: str
    uid: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Stuck:
    """The update goes no further until somebody does something."""

    worker: str
    why: str


Decision: TypeAlias = Settled | Wait | Restart | Stuck


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """template: the hash that pods should have. replicas: pods that the StatefulSet should have. is_seen: the StatefulSet's
    controller has seen what was applied last; before, it might make the old pod again. begun: the worker that is being made anew, whose
    partitions wait for it; "" = none. partitions: all of the fleet's.
    too_many_are_silent: of the workers."""

    template: str
    replicas: int
    pods: Sequence[workers.Pod]
    partitions: Sequence[twin_partition.TwinPartition]
    now_ms: int
    is_seen: bool = True
    begun: str = ""
    too_many_are_silent: bool = False


def decide(look: Look) -> Decision:
    highest_first = sorted(look.pods, key=lambda pod: -pod.ordinal)
    outdated = [pod for pod in highest_first if pod.template != look.template and not pod.terminating]
    if not look.is_seen:
        return Wait("the StatefulSet's controller hasn't seen the new template yet")
    for pod in outdated:
        if why := _broken(pod, look.now_ms):
            if look.begun not in ("", pod.name):
                return Wait(f"{look.begun} is being made anew")
            return Restart(pod.name, pod.uid, f"it is broken ({why}), and of an older template")
    if look.too_many_are_silent:
        return Wait("too many workers are silent")
    unfinished = _unfinished(look, highest_first)
    if unfinished is not None:
        return unfinished
    if not outdated:
        return Settled()
    closed = []
    for pod in outdated:
        why_not = why_it_may_not_go(pod.name, look.partitions)
        if not why_not:
            return Restart(pod.name, pod.uid, "its template is an older one")
        closed.append(why_not)
    return Wait(closed[0])


def _broken(pod: workers.Pod, now_ms: int) -> str:
    if pod.broken or pod.ready:
        return "" if pod.ready else pod.broken
    return "not ready for too long" if now_ms - max(pod.created_ms, pod.unready_ms) >= START_MS_MAX else ""


def _unfinished(look: Look, pods: Sequence[workers.Pod]) -> Decision | None:
    """Somebody who isn't ready; the next one waits for it. What is stuck is told rather than what merely takes a while."""
    there = {pod.ordinal for pod in pods}
    waits: list[Decision] = []
    for pod in pods:
        why = _broken(pod, look.now_ms)
        if pod.terminating:
            waits.append(Wait(f"{pod.name} is ending"))
        elif why:
            waits.insert(0, Stuck(pod.name, f"{pod.name} doesn't become ready: {why}"))
        elif not pod.ready:
            waits.append(Wait(f"{pod.name} isn't ready yet"))
    waits += [Wait(f"the pod of ordinal {number} is to come") for number in range(look.replicas) if number not in there]
    return waits[0] if waits else None


# ── gates: whether a worker may end now ──────────────────────────────────────────────────────────────────────────────


def why_it_may_not_go(worker: str, entries: Sequence[twin_partition.TwinPartition]) -> str:
    """A sentence; "" when it may."""
    for entry in entries:
        for is_open, why in _GATES:
            if not is_open(worker, entry):
                return f"{worker} waits: {entry.spec.shard_id} {why}"
    return ""


def it_takes_part_in_no_move(worker: str, entry: twin_partition.TwinPartition) -> bool:
    spec, status = entry.spec, entry.status
    takes_part = worker in (spec.worker, spec.receiver, status.worker)
    is_moving = bool(spec.receiver) or situation.stage(entry) is situation.Stage.CHANGING
    return not (takes_part and is_moving and status.phase is not Phase.CLOSED)


def its_partition_runs(worker: str, entry: twin_partition.TwinPartition) -> bool:
    """One that can't run where it is, isn't helped by waiting: a new start is."""
    is_on_its_way = entry.status.phase in (Phase.RESTORING, Phase.DRAINING)
    return not (entry.spec.worker == worker and is_on_its_way)


def its_checkpoint_is_fresh(worker: str, entry: twin_partition.TwinPartition) -> bool:
    """Should its disk not come back, the rest has to come from the stream."""
    is_held = entry.spec.worker == worker and entry.status.phase is Phase.RUNNING
    return not is_held or situation.the_last_checkpoint_is_fresh(entry)


Gate: TypeAlias = Callable[[str, twin_partition.TwinPartition], bool]
_GATES: tuple[tuple[Gate, str], ...] = (
    (it_takes_part_in_no_move, "is moving"),
    (its_partition_runs, "doesn't run yet"),
    (its_checkpoint_is_fresh, "has no fresh checkpoint"),
)
