"""The slow and obvious planner, and the judge of any plan. Shares no code with the planner that it judges."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from fleet_model import planner

IDLE = 0.1
"""Of the mean: what an idle partition counts at least."""


@dataclasses.dataclass(frozen=True)
class Case:
    partitions: tuple[planner.Partition, ...]
    workers: tuple[planner.Worker, ...]
    current: Mapping[str, str]

    @property
    def able(self) -> list[str]:
        return [worker.name for worker in self.workers if worker.ready and not worker.leaving]

    def weights(self) -> dict[str, float]:
        """Of those that may be placed: a partition of an owner that isn't ready, but stays, isn't looked at."""
        placed = [
            partition for partition in self.partitions if not is_left_alone(self, self.current[partition.shard_id])
        ]
        known = [partition.load for partition in placed if partition.load is not None]
        mean = (sum(known) / len(known) if known else 0.0) or 1.0
        if not sum(known):
            return {partition.shard_id: 1.0 for partition in placed}
        return {
            partition.shard_id: mean if partition.load is None else max(partition.load, IDLE * mean)
            for partition in placed
        }


def is_left_alone(case: Case, owner: str) -> bool:
    return any(worker.name == owner and not worker.ready and not worker.leaving for worker in case.workers)


def loads(case: Case, plan: Mapping[str, str]) -> dict[str, float]:
    """Of each able worker."""
    summed = dict.fromkeys(case.able, 0.0)
    for shard_id, weight in case.weights().items():
        summed[plan[shard_id]] += weight
    return summed


def moves(case: Case, plan: Mapping[str, str]) -> int:
    return sum(plan[shard_id] != owner for shard_id, owner in case.current.items())


def runs(case: Case, plan: Mapping[str, str]) -> int:
    """Stretches of neighbouring ranges with one owner."""
    ordered = sorted(case.partitions, key=lambda partition: partition.hash_key_range.start)
    return len(list(itertools.groupby(plan[partition.shard_id] for partition in ordered)))


def share(case: Case) -> float:
    """What one of equal workers should carry: those with a partition of more than a share aside."""
    weights, workers = sorted(case.weights().values()), len(case.able)
    while workers > 1 and weights and weights[-1] > sum(weights) / workers:
        weights.pop()
        workers -= 1
    return sum(weights) / workers


def unevenness(case: Case, plan: Mapping[str, str], tolerance: float) -> list[str]:
    """Single moves that should have been made: a worker out of the tolerance, and a partition that would make a pair clearly more
    even. Workers of equal capacity. Measured weights may be off by a twentieth of the mean partition each."""
    weights, carried, fair = case.weights(), loads(case, plan), share(case)
    slack = 0.05 * sum(weights.values()) + 1e-9
    slack /= max(1, len(case.able))
    told = []
    for giver, taker in itertools.permutations(carried, 2):
        is_out = carried[giver] > fair * (1 + tolerance) + slack or carried[taker] < fair * (1 - tolerance) - slack
        for shard_id, weight in weights.items():
            if is_out and plan[shard_id] == giver and carried[giver] - carried[taker] > 1.25 * weight + 2 * slack:
                told.append(f"{shard_id} ({weight}) from {giver} ({carried[giver]}) to {taker} ({carried[taker]})")
    return told


def fewest_moves(case: Case, hardest: float, easiest: float) -> int:
    """Of all plans whose fullest worker carries at most `hardest` and whose emptiest at least `easiest`."""
    best = len(case.partitions) + 1
    for owners in itertools.product(case.able, repeat=len(case.partitions)):
        plan = {partition.shard_id: owner for partition, owner in zip(case.partitions, owners, strict=True)}
        if moves(case, plan) < best:
            carried = loads(case, plan).values()
            if max(carried) <= hardest + 1e-9 and min(carried) >= easiest - 1e-9:
                best = moves(case, plan)
    return best


def simple_plan(case: Case, tolerance: float) -> dict[str, str]:
    """One partition at a time: the homeless to the least loaded, then from the fullest to the emptiest while that helps."""
    weights, carried = case.weights(), dict.fromkeys(case.able, 0.0)
    plan = dict(case.current)
    homeless: Sequence[str] = [shard_id for shard_id in weights if plan[shard_id] not in carried]
    for shard_id in weights.keys() - set(homeless):
        carried[plan[shard_id]] += weights[shard_id]
    for shard_id in homeless:
        plan[shard_id] = min(carried, key=lambda name: carried[name])
        carried[plan[shard_id]] += weights[shard_id]
    while True:
        fullest, emptiest = max(carried, key=lambda name: carried[name]), min(carried, key=lambda name: carried[name])
        gap = carried[fullest] - carried[emptiest]
        if gap <= tolerance * share(case):
            return plan
        helping = [
            shard_id for shard_id, weight in weights.items() if plan[shard_id] == fullest and weight < 0.99 * gap
        ]
        if not helping:
            return plan
        moving = min(helping, key=lambda shard_id: (abs(weights[shard_id] - gap / 2), shard_id))
        plan[moving] = emptiest
        carried[fullest] -= weights[moving]
        carried[emptiest] += weights[moving]
