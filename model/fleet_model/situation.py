"""What can be said of a fleet's workers and partitions at one look: the sentences that `handoff` decides by, and nothing decided.

A partition is in one of five stages, told from its object alone:

    CLOSED    its shard ended, all of it is applied
    UNOWNED   nobody is named
    FIRST     somebody is named, and nobody ever told of a claim
    CHANGING  the named owner hasn't told of a claim under the named epoch yet; a former owner may still hold it
    HELD      the named owner told of its claim under the named epoch
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from fleet_model import control, partition, twin_partition
from fleet_model.twin_partition import Phase

MOVE_MARGIN_MS = 30_000
"""Besides the drain timeout: for the checkpoint that ends a drain, and for the receiver's claim."""

COOLING_MS = 120_000
"""After a takeover or a take-back a partition isn't moved for the sake of balance for so long: what forced it may happen again."""

WARM_UP_MS_MAX = 600_000
"""A copy that isn't warm after so long doesn't come about; its move lets others go first."""

NOTICE_MS = 3_000
"""A receiver's word that it is warm counts from so long after it was named: an older one may be of an earlier time as a standby."""

SILENT_PART = 3
"""When more than one worker, and more than one in so many, is silent, the trouble is more likely on our side."""


class Stage(enum.Enum):
    CLOSED = "closed"
    UNOWNED = "unowned"
    FIRST = "first"
    CHANGING = "changing"
    HELD = "held"


def stage(entry: twin_partition.TwinPartition) -> Stage:
    spec, status = entry.spec, entry.status
    if status.phase is Phase.CLOSED:
        return Stage.CLOSED
    if not spec.worker:
        return Stage.UNOWNED
    if not status.epoch:
        return Stage.FIRST
    if status.worker == spec.worker and status.epoch >= spec.epoch:
        return Stage.HELD
    return Stage.CHANGING


class Situation:
    """One look. partitions: by shard id, in range order."""

    def __init__(self, observed: control.Observed) -> None:
        self.observed = observed
        self.settings = observed.settings
        self.now_ms = observed.now_ms
        self.workers: Mapping[str, control.Worker] = {worker.name: worker for worker in observed.workers}
        self.partitions = in_order(observed.partitions)
        self.listed: Mapping[str, partition.Shard] = {shard.shard_id: shard for shard in observed.shards or ()}
        self._unlisted_since_ms: dict[str, int] = {}
        named = set[str]()
        for entry in self.partitions.values():
            if stage(entry) is Stage.CLOSED:
                continue
            for name in {entry.spec.worker, entry.status.worker, *entry.spec.standby} - {""}:
                named.add(name)
                since_ms = max(self._unlisted_since_ms.get(name, 0), entry.spec.assigned_ms)
                self._unlisted_since_ms[name] = since_ms
        self.silent = sorted(name for name in named if self._is_silent(name))
        counted = named | {name for name in self.workers if self.answers(name)}
        self.too_many_are_silent = len(self.silent) > max(1, len(counted) // SILENT_PART)
        self._silent = frozenset(self.silent)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_silent(self, name: str) -> bool:
        """Not heard for long enough, by anybody, and not expected to be silent. One that isn't there counts from when it was given its
        newest partition."""
        worker = self.workers.get(name)
        heard_ms = worker.heard_ms if worker is not None else self._unlisted_since_ms.get(name, 0)
        if worker is not None and self.now_ms < worker.restarting_until_ms:
            return False
        return self.now_ms - max(heard_ms, self.observed.watching_since_ms) >= self.settings.silent_after_ms

    def is_lost(self, name: str) -> bool:
        """Silent, and that can be believed."""
        return name in self._silent and not self.too_many_are_silent

    def answers(self, name: str) -> bool:
        worker = self.workers.get(name)
        silent_after_ms = self.settings.silent_after_ms
        return worker is not None and bool(worker.heard_ms) and self.now_ms - worker.heard_ms < silent_after_ms

    def is_leaving(self, name: str) -> bool:
        worker = self.workers.get(name)
        return worker is not None and (worker.leaving or worker.ordinal >= self.settings.replicas)

    def is_able(self, name: str) -> bool:
        """May be given partitions."""
        worker = self.workers.get(name)
        return (
            worker is not None
            and worker.ready
            and self.answers(name)
            and not self.is_leaving(name)
            and self.now_ms >= worker.restarting_until_ms
        )

    @property
    def able(self) -> list[control.Worker]:
        """By ordinal."""
        able = [worker for worker in self.workers.values() if self.is_able(worker.name)]
        return sorted(able, key=lambda worker: (worker.ordinal, worker.name))

    # ── partitions ───────────────────────────────────────────────────────────────────────────────────────────────

    def deadline_ms(self, entry: twin_partition.TwinPartition) -> int:
        """When a change of owner should be over."""
        return entry.spec.assigned_ms + self.settings.drain_timeout_ms + MOVE_MARGIN_MS

    def is_overdue(self, entry: twin_partition.TwinPartition) -> bool:
        return self.now_ms >= self.deadline_ms(entry)

    def is_moving(self, entry: twin_partition.TwinPartition) -> bool:
        """Between two owners, by whatever cause: it holds one of the places for moves. From when the epoch is raised until the new owner runs
        it; one that comes to nothing holds its place until its deadline. A first start and a restart in place are no moves."""
        where = stage(entry)
        if where is Stage.CHANGING:
            return True
        is_there = entry.status.phase in (Phase.RUNNING, Phase.DRAINING, Phase.RELEASED)
        has_moved = entry.spec.epoch > entry.spec.first_epoch
        return where is Stage.HELD and not is_there and has_moved and not self.is_overdue(entry)

    def is_warming(self, entry: twin_partition.TwinPartition) -> bool:
        """A move that has begun and hasn't changed the owner yet; it holds one of the places, too."""
        return stage(entry) is Stage.HELD and bool(entry.spec.receiver) and not self.is_stuck(entry)

    def is_stuck(self, entry: twin_partition.TwinPartition) -> bool:
        """Its receiver doesn't become warm."""
        spec = entry.spec
        since_ms = self.now_ms - spec.standby_ms
        return bool(spec.receiver) and since_ms >= WARM_UP_MS_MAX and not is_warm(entry, spec.receiver)

    def is_cooling(self, entry: twin_partition.TwinPartition) -> bool:
        spec = entry.spec
        return spec.takeover == spec.epoch > 0 and self.now_ms - spec.assigned_ms < COOLING_MS

    def its_owner_runs_it(self, entry: twin_partition.TwinPartition) -> bool:
        return stage(entry) is Stage.HELD and entry.status.phase is Phase.RUNNING and self.answers(entry.spec.worker)

    def may_move(self, entry: twin_partition.TwinPartition) -> bool:
        """The gates that don't depend on the receiver: it runs, its owner can let it go, and there is a fresh checkpoint."""
        return self.its_owner_runs_it(entry) and the_last_checkpoint_is_fresh(entry)

    def has_failed_where_it_leaves(self, entry: twin_partition.TwinPartition) -> bool:
        """Its owner can't drain it, and is to go: it has to be taken over."""
        return (
            stage(entry) is Stage.HELD
            and entry.status.phase is Phase.FAILED
            and self.is_leaving(entry.spec.worker)
            and self.is_overdue(entry)
        )


def in_order(entries: Iterable[twin_partition.TwinPartition]) -> dict[str, twin_partition.TwinPartition]:
    """By shard id, in range order."""
    ordered = sorted(entries, key=lambda entry: (entry.spec.hash_key_range, entry.spec.shard_id))
    return {entry.spec.shard_id: entry for entry in ordered}


def the_last_checkpoint_is_fresh(entry: twin_partition.TwinPartition) -> bool:
    return entry.status.checkpoint is not None and not entry.status.checkpoint_stale


def is_warm(entry: twin_partition.TwinPartition, worker: str) -> bool:
    """Whether a worker that is named as standby says that its copy equals the newest checkpoint."""
    return worker in entry.spec.standby and any(
        standby.warm for standby in entry.status.standby if standby.worker == worker
    )


def is_refused(entry: twin_partition.TwinPartition) -> bool:
    """The manifest's epoch is at least that of the claim."""
    return bool(entry.spec.worker) and entry.status.manifest_epoch >= max(1, entry.spec.epoch)


def unfinished_ancestors(entries: Iterable[twin_partition.TwinPartition]) -> set[str]:
    """Shard ids of those that have an ancestor that isn't Closed."""
    known = {entry.spec.shard_id: entry for entry in entries}
    children: dict[str, list[str]] = {}
    for entry in known.values():
        for parent in entry.spec.parents:
            children.setdefault(parent, []).append(entry.spec.shard_id)
    found = set[str]()
    reached = [shard_id for shard_id, entry in known.items() if stage(entry) is not Stage.CLOSED]
    while reached:
        for child in children.get(reached.pop(), ()):
            if child not in found:
                found.add(child)
                reached.append(child)
    return found
