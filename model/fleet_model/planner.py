"""Who should own which partition: a pure function of shards, workers and who owns what now.

It keeps what is well enough. An owner that is ready keeps its partitions unless it is leaving or the fleet is out of balance by more than
the tolerance and by more than one partition. An owner that isn't ready keeps them as well, as it may be back in a moment: that one has
stopped answering, that a move can begin, in which order and how many at once is for `handoff`, which calls this at each of its steps.
The same input gives the same plan, in whatever order it comes, and a plan is its own plan.

How: partitions without a home (new ones, those of workers that leave or are gone) are laid onto the workers in runs of neighbouring
ranges, up to each worker's share; then overloaded workers give to the least loaded ones, then the least loaded take, as long as a
move makes the pair clearly more even.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from fleet_model import hashing

TOLERANCE = 0.1
"""Of the mean: a worker within it has its share."""

RELUCTANCE = 1.2
"""Two workers must differ by so many times a partition's load for it to move between them: at 1 they would only have changed roles."""

GRAINS = 20
"""The mean partition weighs so many grains. Loads are measured, thus never the same twice; in grains most partitions are alike, which
leaves room to choose by range, and sums are exact."""

GRAINS_MIN = 2
"""An idle partition weighs this: it costs polls and memory, and may wake."""

CANDIDATES_MAX = 10
"""Partitions of equal weight among which neighbourhood decides."""

MOVES_PER_PARTITION_MAX = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """One partition to be owned. load: of any one unit, for all the same, None = unknown: taken for the mean. parents: shard ids whose
    owners are a good place for it. standby: workers that have a warm copy, or are about to. pinned: stays with an owner that is able."""

    shard_id: str
    hash_key_range: hashing.HashKeyRange
    load: float | None = None
    parents: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()
    pinned: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Worker:
    """ready: may be given partitions. leaving: is to own none. capacity: above 0, relative to other workers'."""

    name: str
    ordinal: int
    ready: bool = True
    leaving: bool = False
    capacity: float = 1.0


def plan(
    partitions: Iterable[Partition],
    workers: Iterable[Worker],
    current: Mapping[str, str],
    tolerance: float = TOLERANCE,
) -> dict[str, str]:
    """The wished owner of each partition by shard id. current: owners by shard id, "" or absent = none; it may name shards that
    aren't planned (closed parents) and workers that aren't there. Without a ready worker everything stays as it is."""
    ordered = sorted(partitions, key=lambda partition: (partition.hash_key_range, partition.shard_id))
    known = {worker.name: worker for worker in workers}
    able = sorted(
        (worker for worker in known.values() if worker.ready and not worker.leaving),
        key=lambda worker: (worker.ordinal, worker.name),
    )
    wished = {partition.shard_id: current.get(partition.shard_id, "") for partition in ordered}
    staying = {worker.name for worker in known.values() if not worker.leaving}
    able_names = {worker.name for worker in able}
    placed = [
        partition
        for partition in ordered
        if wished[partition.shard_id] in able_names or wished[partition.shard_id] not in staying
    ]
    if not able or not placed:
        return wished
    board = _Board(placed, able, tolerance)
    board.lay(current)
    board.even_out()
    board.take_short_cuts(current)
    for index, partition in enumerate(placed):
        wished[partition.shard_id] = able[board.owner[index]].name
    return wished


def grains(loads: Sequence[float | None]) -> list[int]:
    """The weight of each load, as whole grains; a load that is no number counts as unknown."""
    known = [load for load in loads if load is not None and 0 <= load < math.inf]
    mean = math.fsum(known) / len(known) if known else 0.0
    if not 0 < mean < math.inf:
        return [GRAINS] * len(loads)
    return [
        max(GRAINS_MIN, round(GRAINS * (load / mean))) if load is not None and 0 <= load < math.inf else GRAINS
        for load in loads
    ]


_Pick = tuple[int, int]
"""(weight, index of the partition): sorts by weight, then by range."""


class _Board:
    """Partitions, by their index in range order, on workers, by their index in order of ordinals. owner -1: none yet; the last
    entry stays -1, so that both ends of the hash space have a neighbour."""

    def __init__(self, partitions: Sequence[Partition], workers: Sequence[Worker], tolerance: float) -> None:
        self.owner = [-1] * (len(partitions) + 1)
        self._partitions = partitions
        self._weight = grains([partition.load for partition in partitions])
        self._capacity = [worker.capacity for worker in workers]
        self._number = {worker.name: index for index, worker in enumerate(workers)}
        self._load = [0] * len(workers)
        self._fixed: list[list[_Pick]] = [[] for _ in workers]  # would have to move
        self._free: list[list[_Pick]] = [[] for _ in workers]  # move anyhow
        self._is_free = [False] * len(partitions)
        self._copies: list[list[int]] = [[] for _ in workers]  # partitions of which a worker has a copy
        for index, partition in enumerate(partitions):
            for name in () if partition.pinned else partition.standby:
                if name in self._number:
                    self._copies[self._number[name]].append(index)
        self._level = _level(self._weight, self._capacity)
        self._tolerance = tolerance

    # ── those without a home ─────────────────────────────────────────────────────────────────────────────────────

    def lay(self, current: Mapping[str, str]) -> None:
        """Gives every partition an owner: the one it has, else a good place, else in runs of ranges."""
        homeless = []
        for index, partition in enumerate(self._partitions):
            worker = self._number.get(current.get(partition.shard_id, ""), -1)
            if worker < 0:
                homeless.append(index)
                self._is_free[index] = True
            else:
                self._put(index, worker)
        self._lay_in_runs([index for index in homeless if not self._goes_home(index, current)])

    def _goes_home(self, index: int, current: Mapping[str, str]) -> bool:
        """To a worker with a copy, else with a parent, if its share has room or nobody is better off."""
        partition = self._partitions[index]
        for names in (partition.standby, [current.get(parent, "") for parent in partition.parents]):
            homes = [self._number[name] for name in names if name in self._number]
            if homes:
                home = min(homes, key=self._rank)
                weight = self._weight[index]
                if self._load[home] + weight <= self._high(home) or all(
                    (self._load[home] + weight) / self._capacity[home] <= (load + weight) / capacity
                    for load, capacity in zip(self._load, self._capacity, strict=True)
                ):
                    self._put(index, home)
                    return True
        return False

    def _lay_in_runs(self, homeless: Sequence[int]) -> None:
        """Worker after worker gets neighbouring ranges up to its share. Shares end at the partition that lies on the border for
        the most part, and what a worker got too much or too little the following ones make up for."""
        shares = [max(0.0, self._share(worker) - load) for worker, load in enumerate(self._load)]
        weight = sum(self._weight[index] for index in homeless)
        scale = weight / sum(shares) if sum(shares) > 0 else 0.0
        if not scale:
            for index in homeless:
                self._put(index, min(range(len(self._load)), key=self._rank))
            return
        open_workers = [worker for worker, share in enumerate(shares) if share > 0]
        worker, reached, border = -1, 0.0, 0.0
        for index in homeless:
            middle = reached + self._weight[index] / 2
            while worker < 0 or (middle > border and open_workers):
                worker = self._next_to(index, open_workers)
                open_workers.remove(worker)
                border += shares[worker] * scale
            self._put(index, worker)
            reached += self._weight[index]

    def _next_to(self, index: int, open_workers: Sequence[int]) -> int:
        """Who begins a run here: who owns the range before or after it, else the first."""
        beside = (self.owner[index - 1], self.owner[index + 1])
        return next((worker for worker in beside if worker in open_workers), open_workers[0])

    # ── balance ──────────────────────────────────────────────────────────────────────────────────────────────────

    def even_out(self) -> None:
        """Each move makes the fuller of two workers emptier and the other not as full as it was, so this ends; the bound is for what
        nobody thought of."""
        moves_left = MOVES_PER_PARTITION_MAX * len(self._partitions)
        moved = 1
        while moved and moves_left > 0:
            moved = self._shed(moves_left)
            moves_left -= moved
            moved_too = self._fill(moves_left)
            moves_left -= moved_too
            moved += moved_too

    def _shed(self, moves_max: int) -> int:
        """Overloaded workers give, the fullest first."""
        moved, stuck = 0, set[int]()
        while moved < moves_max:
            over = [
                worker for worker, load in enumerate(self._load) if load > self._high(worker) and worker not in stuck
            ]
            if not over:
                break
            giver = max(over, key=self._rank)
            takers = sorted((worker for worker in range(len(self._load)) if worker != giver), key=self._rank)
            gave = next(filter(None, (self._pour(giver, taker, moves_max - moved) for taker in takers)), 0)
            moved += gave
            if not gave:
                stuck.add(giver)
        return moved

    def _fill(self, moves_max: int) -> int:
        """Workers with too little take, the emptiest first."""
        moved, stuck = 0, set[int]()
        while moved < moves_max:
            under = [
                worker for worker, load in enumerate(self._load) if load < self._low(worker) and worker not in stuck
            ]
            if not under:
                break
            taker = min(under, key=self._rank)
            givers = sorted(
                (worker for worker in range(len(self._load)) if worker != taker), key=self._rank, reverse=True
            )
            took = next(filter(None, (self._pour(giver, taker, moves_max - moved) for giver in givers)), 0)
            moved += took
            if not took:
                stuck.add(taker)
        return moved

    def _pour(self, giver: int, taker: int, moves_max: int) -> int:
        """Moves neighbouring partitions from one to the other until one of them has its share. How many."""
        moved, last = 0, -1
        while moved < moves_max:
            if self._load[giver] <= self._high(giver) and self._load[taker] >= self._low(taker):
                break
            last = self._pick(giver, taker, last)
            if last < 0 or (moved and self._weight[last] >= 2 * self._wanted(giver, taker)):
                break
            self._take(last, giver)
            self._put(last, taker)
            moved += 1
            if self._load[taker] >= self._share(taker) or self._load[giver] <= self._share(giver):
                break
        return moved

    def _pick(self, giver: int, taker: int, last: int) -> int:
        """The partition to move: one that moves anyhow, else one that the taker has a copy of, else the one whose weight comes
        nearest to what should move. -1: none makes the pair clearly more even. last: which one went before. A partition that is
        more than a share goes to an empty worker by itself: one move, instead of one of everything beside it."""
        wanted = self._wanted(giver, taker)
        if self._load[taker] <= self._share(taker) - self._low(taker):
            hot = max((picks[-1] for picks in (self._free[giver], self._fixed[giver]) if picks), default=(0, -1))
            if hot[0] > self._high(taker) and self._evens_out(hot[0], giver, taker):
                return hot[1]
        for picks in (self._free[giver], self._fixed[giver]):
            fitting = self._fitting(picks, wanted, giver, taker)
            if fitting is None:
                continue
            copied = [
                (abs(self._weight[index] - wanted), index)
                for index in self._copies[taker]
                if self.owner[index] == giver
                and self._is_free[index] == (picks is self._free[giver])
                and self._weight[index] <= max(wanted, fitting) * 1.25
                and self._evens_out(self._weight[index], giver, taker)
            ]
            return min(copied)[1] if copied else self._best_placed(picks, fitting, taker, last)
        return -1

    def _wanted(self, giver: int, taker: int) -> float:
        """How much should move: not more than makes the two even, than the giver has too much, than the taker lacks."""
        capacity, other = self._capacity[giver], self._capacity[taker]
        even = (self._load[giver] / capacity - self._load[taker] / other) / (1 / capacity + 1 / other)
        excess, lack = self._load[giver] - self._share(giver), self._share(taker) - self._load[taker]
        return min([even, *(amount for amount in (excess, lack) if amount > 0)])

    def _fitting(self, picks: Sequence[_Pick], wanted: float, giver: int, taker: int) -> int | None:
        """The weight nearest to what is wanted that evens out."""
        above = bisect.bisect_left(picks, (math.ceil(wanted), -1))
        weights = [picks[place][0] for place in (above - 1, above) if 0 <= place < len(picks)]
        weights.sort(key=lambda weight: (abs(weight - wanted), -weight))
        return next((weight for weight in weights if self._evens_out(weight, giver, taker)), None)

    def _evens_out(self, weight: int, giver: int, taker: int) -> bool:
        """Whether the pair would be clearly more even."""
        before = self._load[giver] / self._capacity[giver]
        after = (self._load[taker] + RELUCTANCE * weight) / self._capacity[taker]
        return before >= after

    def _best_placed(self, picks: Sequence[_Pick], weight: int, taker: int, last: int) -> int:
        """Of those of the weight, one that lies beside the taker's ranges and not within the giver's."""
        giver = self.owner[picks[0][1]]
        for beside in (last - 1, last + 1) if last >= 0 else ():
            if self.owner[beside] == giver and self._weight[beside] == weight and _holds(picks, (weight, beside)):
                return beside
        first = bisect.bisect_left(picks, (weight, -1))
        end = bisect.bisect_left(picks, (weight + 1, -1))
        near = [*range(max(first, end - CANDIDATES_MAX), end), *range(first, min(end, first + CANDIDATES_MAX))]
        best: tuple[tuple[int, int], int] = max(
            (self._neighbours(picks[place][1], giver, taker), picks[place][1]) for place in near
        )
        return best[1]

    def _neighbours(self, index: int, giver: int, taker: int) -> tuple[int, int]:
        """How well it would lie: what the move adds to runs; then whether the run that it begins may grow."""
        before, after = self.owner[index - 1], self.owner[index + 1]
        gain = (before == taker) + (after == taker) - (before == giver) - (after == giver)
        return gain, -(before == -1) - (after == -1)

    def take_short_cuts(self, current: Mapping[str, str]) -> None:
        """Where a worker got one partition and gave one of the same weight, the one stays and the other goes all the way."""
        away: dict[_Pick, list[int]] = {}
        came: list[_Pick] = []
        for index, partition in enumerate(self._partitions):
            home = self._number.get(current.get(partition.shard_id, ""), -1)
            if home == self.owner[index]:
                continue
            came.append((self.owner[index], index))
            if home >= 0:
                away.setdefault((home, self._weight[index]), []).append(index)
        for worker, index in sorted(came):
            gone = away.get((worker, self._weight[index]))
            if self.owner[index] == worker and gone and index not in self._copies[worker]:
                other = gone.pop()
                self.owner[index], self.owner[other] = self.owner[other], worker

    # ── the board ────────────────────────────────────────────────────────────────────────────────────────────────

    def _rank(self, worker: int) -> tuple[float, int]:
        return (self._load[worker] / self._capacity[worker], worker)

    def _share(self, worker: int) -> float:
        return self._level * self._capacity[worker]

    def _high(self, worker: int) -> float:
        return self._share(worker) * (1 + self._tolerance)

    def _low(self, worker: int) -> float:
        return self._share(worker) * (1 - self._tolerance)

    def _put(self, index: int, worker: int) -> None:
        self.owner[index] = worker
        self._load[worker] += self._weight[index]
        if self._partitions[index].pinned and not self._is_free[index]:
            return
        bisect.insort((self._free if self._is_free[index] else self._fixed)[worker], (self._weight[index], index))

    def _take(self, index: int, worker: int) -> None:
        picks = (self._free if self._is_free[index] else self._fixed)[worker]
        self._load[worker] -= self._weight[index]
        # What moved once moves anyhow.
        del picks[bisect.bisect_left(picks, (self._weight[index], index))]
        self._is_free[index] = True


def _holds(picks: Sequence[_Pick], pick: _Pick) -> bool:
    place = bisect.bisect_left(picks, pick)
    return place < len(picks) and picks[place] == pick


def _level(weights: Sequence[int], capacities: Sequence[float]) -> float:
    """What a worker of capacity 1 should carry. A partition that weighs more than a share can't be shared: it takes a worker, and the
    others share the rest."""
    rest, capacity = float(sum(weights)), math.fsum(capacities)
    one = capacity / len(capacities)
    for weight in sorted(weights, reverse=True)[: len(capacities) - 1]:
        if weight * capacity <= rest * one:
            break
        rest -= weight
        capacity -= one
    return rest / capacity
