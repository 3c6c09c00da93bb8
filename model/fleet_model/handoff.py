"""The hand-off of partitions: one step from what is observed to what is wanted.

Level-based: it remembers nothing, and the same look gives the same answer. All that a move needs to be gone on with stands in the
partition's object, so whoever makes the next step, after a crash too, goes on. It acts on nothing itself, never names two owners for one
epoch, and never changes an owner without a higher epoch.

A planned move:   receiver named, a standby → its copy is warm → epoch + 1, it is the owner → the former one drains, releases → it claims
Not in time:      epoch + 1 with takeover back to the former owner, if it answers; else to the receiver
Owner silent:     epoch + 1 with takeover to a warm standby, else to whom the planner wishes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from fleet_model import conditions, control, planner, situation, twin_partition
from fleet_model.situation import Stage
from fleet_model.twin_partition import Phase, TwinPartition


def step(observed: control.Observed) -> control.Wanted:
    """What is wanted now. When all of it was done and nothing else changed, the next step wants nothing."""
    one = _Step(situation.Situation(observed))
    one.create_partitions()
    one.give_owners()
    one.move()
    one.keep_standbys()
    return one.wanted()


class _Step:
    """entries: every partition with the spec that it is to have, by shard id, in range order."""

    def __init__(self, look: situation.Situation) -> None:
        self.look = look
        self.entries = dict(look.partitions)
        self._wishes: dict[str, str] | None = None

    # ── new and old shards ───────────────────────────────────────────────────────────────────────────────────────

    def create_partitions(self) -> None:
        """An object for every shard that the stream lists; closed ones too, as they may still hold records."""
        observed = self.look.observed
        for shard in self.look.listed.values():
            if shard.shard_id not in self.entries:
                spec = twin_partition.Spec(
                    fleet=observed.fleet,
                    stream=observed.stream,
                    shard_id=shard.shard_id,
                    hash_key_range=shard.hash_key_range,
                    parents=shard.parents,
                )
                name = twin_partition.object_name(observed.fleet, shard.shard_id)
                self.entries[shard.shard_id] = TwinPartition(observed.namespace, name, spec)
        self.entries = situation.in_order(self.entries.values())

    def retired(self) -> Iterator[TwinPartition]:
        """Closed, the stream retains nothing of it, and whoever inherits its twins has them."""
        if self.look.observed.shards is None:
            return
        waiting = {parent for entry in self.entries.values() if not _has_begun(entry) for parent in entry.spec.parents}
        for shard_id, entry in self.look.partitions.items():
            is_closed = situation.stage(entry) is Stage.CLOSED
            if is_closed and shard_id not in self.look.listed and shard_id not in waiting:
                yield entry

    # ── owners ───────────────────────────────────────────────────────────────────────────────────────────────────

    def give_owners(self) -> None:
        """What can't wait: partitions without an owner, with one that is silent, and changes of owner that don't come to an end."""
        for entry in list(self.entries.values()):
            where = situation.stage(entry)
            if where is Stage.CLOSED:
                continue
            if where is Stage.UNOWNED:
                self._assign_first(entry)
            elif not self.look.settings.has_checkpoints:
                continue
            elif self.look.is_lost(entry.spec.worker):
                self._assign(entry, self._successor(entry), takeover=True)
            elif situation.is_refused(entry) and self.look.answers(entry.spec.worker):
                self._assign(entry, entry.spec.worker, takeover=self._nobody_else_lives_off(entry))
            elif where is Stage.FIRST:
                self._help_first_claim(entry)
            elif where is Stage.CHANGING:
                self._hasten(entry)
        self._wishes = None

    def _assign_first(self, entry: TwinPartition) -> None:
        """Without checkpoints a child's twins are on its parents' disk."""
        worker = self._wish(entry.spec.shard_id)
        if not self.look.settings.has_checkpoints:
            owners = [self.entries[parent].spec.worker for parent in entry.spec.parents if parent in self.entries]
            worker = next(filter(None, owners), worker)
        self._assign(entry, worker, takeover=bool(entry.status.epoch or entry.status.manifest_epoch))

    def _help_first_claim(self, entry: TwinPartition) -> None:
        """Of a partition that nobody told a claim of. A manifest that was met all the same is of an earlier fleet, or of an owner that died
        before it could tell."""
        spec, met = entry.spec, bool(entry.status.manifest_epoch)
        if self.look.is_leaving(spec.worker):
            self._assign(entry, self._wish(spec.shard_id), takeover=met)
        elif met and spec.takeover != spec.epoch and self.look.is_overdue(entry) and self.look.answers(spec.worker):
            self._assign(entry, spec.worker, takeover=True)

    def _successor(self, entry: TwinPartition) -> str:
        """Who takes over from a silent owner: the former one that hasn't let go yet, a warm standby, whom the planner wishes."""
        former = entry.status.worker
        if former != entry.spec.worker and self.look.answers(former):
            return former
        wish = self._wish(entry.spec.shard_id)
        warm = [name for name in entry.spec.standby if self.look.is_able(name) and situation.is_warm(entry, name)]
        return wish if wish in warm or not warm else warm[0]

    def _nobody_else_lives_off(self, entry: TwinPartition) -> bool:
        """Whether a refused claim needs nobody's consent: the manifest's owner is of an earlier fleet, or dead, or the same."""
        told = entry.status.worker
        was_granted = entry.spec.takeover == entry.spec.epoch
        return was_granted or told in ("", entry.spec.worker) or self.look.is_lost(told)

    def _hasten(self, entry: TwinPartition) -> None:
        """A change of owner. One that can't end as it was meant to ends otherwise."""
        look, spec, former = self.look, entry.spec, entry.status.worker
        if former == spec.worker:
            return  # it has to take note of its new epoch, and answers
        is_granted = spec.takeover == spec.epoch
        cannot_release = look.is_lost(former) or entry.status.phase is Phase.FAILED
        if cannot_release and not is_granted and look.answers(spec.worker):
            self._assign(entry, spec.worker, takeover=True)
        elif not look.is_overdue(entry) or look.too_many_are_silent:
            return
        elif look.answers(former):
            self._assign(entry, former, takeover=True)
        elif not is_granted and look.answers(spec.worker):
            self._assign(entry, spec.worker, takeover=True)
        else:
            others = [worker.name for worker in look.able if worker.name != spec.worker]
            warm = [name for name in others if situation.is_warm(entry, name)]
            self._assign(entry, next(iter(warm + others), ""), takeover=True)

    def _assign(self, entry: TwinPartition, worker: str, *, takeover: bool = False) -> None:
        """A new epoch, for a new owner or for the same one. Nobody: it stays as it is."""
        if not worker:
            return
        status = entry.status
        epoch = max(entry.spec.epoch, status.epoch, status.manifest_epoch) + 1
        is_first = not status.epoch and not status.manifest_epoch
        self._set(
            entry,
            worker=worker,
            epoch=epoch,
            takeover=epoch if takeover else 0,
            first_epoch=epoch if is_first else entry.spec.first_epoch,
            standby=tuple(name for name in entry.spec.standby if name != worker),
            receiver="",
            standby_ms=0,
            assigned_ms=self.look.now_ms,
        )

    def _set(self, entry: TwinPartition, **changes: object) -> None:
        shard_id = entry.spec.shard_id
        spec = dataclasses.replace(self.entries[shard_id].spec, **changes)  # type: ignore[arg-type]
        self.entries[shard_id] = dataclasses.replace(entry, spec=spec)

    # ── moves ────────────────────────────────────────────────────────────────────────────────────────────────────

    def move(self) -> None:
        """Carries on with the moves that warm up, and begins others while there are places."""
        look = self.look
        if not look.settings.has_checkpoints or look.too_many_are_silent:
            return
        for entry in list(self.entries.values()):
            if entry.spec.receiver and situation.stage(entry) is not Stage.CLOSED:
                self._carry_on(entry)
        places = look.settings.max_concurrent_moves - sum(
            look.is_moving(entry) or look.is_warming(entry) for entry in self.entries.values()
        )
        ranked = sorted(self._candidates(), key=lambda candidate: candidate[:3])
        for _, _, _, entry, wish in ranked[: max(0, places)]:
            standby = entry.spec.standby if wish in entry.spec.standby else (*entry.spec.standby, wish)
            if entry.spec.receiver and entry.spec.receiver != wish:
                standby = tuple(name for name in standby if name != entry.spec.receiver)
            self._set(entry, receiver=wish, standby=standby, standby_ms=look.now_ms)

    def _carry_on(self, entry: TwinPartition) -> None:
        """Hands the partition over once all gates are open; gives the move up when its receiver can't have it any more."""
        look, receiver = self.look, entry.spec.receiver
        has_noticed = look.now_ms - entry.spec.standby_ms >= situation.NOTICE_MS
        worker = look.workers.get(receiver)
        if receiver == entry.spec.worker or worker is None or look.is_lost(receiver) or look.is_leaving(receiver):
            rest = tuple(name for name in entry.spec.standby if name != receiver)
            self._set(entry, receiver="", standby=rest, standby_ms=0)
        elif has_noticed and look.is_able(receiver) and situation.is_warm(entry, receiver):
            if look.may_move(entry):
                self._assign(entry, receiver)
            elif look.has_failed_where_it_leaves(entry):
                self._assign(entry, receiver, takeover=True)

    def _candidates(self) -> Iterator[tuple[bool, bool, int, TwinPartition, str]]:
        """Partitions that should move, with their receivers: warm ones first, then those whose owners leave."""
        for place, (shard_id, entry) in enumerate(self.entries.items()):
            wish, spec = self._wish(shard_id), entry.spec
            if situation.stage(entry) is not Stage.HELD or wish in ("", spec.worker):
                continue
            if spec.receiver and not self.look.is_stuck(entry):
                continue
            if self.look.may_move(entry) or self.look.has_failed_where_it_leaves(entry):
                is_leaving = self.look.is_leaving(spec.worker)
                yield not situation.is_warm(entry, wish), not is_leaving, place, entry, wish

    # ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _wish(self, shard_id: str) -> str:
        """Whom the planner wishes as its owner, given what is wanted so far; "" when nobody can have it."""
        if self._wishes is None:
            self._wishes = self._plan()
        wish = self._wishes.get(shard_id, "")
        return wish if self.look.is_able(wish) else ""

    def _plan(self) -> dict[str, str]:
        """Moves that have begun count as done. A worker whose copies don't become warm gets nothing."""
        look = self.look
        cold = {entry.spec.receiver for entry in self.entries.values() if look.is_stuck(entry)}
        workers = [
            planner.Worker(
                worker.name,
                worker.ordinal,
                ready=look.is_able(worker.name) and worker.name not in cold,
                leaving=look.is_leaving(worker.name) or look.is_lost(worker.name),
                capacity=worker.capacity,
            )
            for worker in look.workers.values()
        ]
        if look.too_many_are_silent:  # those that aren't even listed keep what they have
            unlisted = [name for name in look.silent if name not in look.workers]
            workers += [planner.Worker(name, len(workers) + place, ready=False) for place, name in enumerate(unlisted)]
        loads: dict[str, float] = {}
        for worker in look.workers.values():
            for shard_id, load in worker.load.items():
                if shard_id not in loads or self._owner_now(shard_id) == worker.name:
                    loads[shard_id] = load
        partitions, current = [], {}
        for shard_id, entry in self.entries.items():
            current[shard_id] = entry.spec.receiver if look.is_warming(entry) else entry.spec.worker
            if situation.stage(entry) is not Stage.CLOSED:
                is_pinned = not look.may_move(entry) or look.is_cooling(entry) or bool(entry.spec.receiver)
                partitions.append(
                    planner.Partition(
                        shard_id,
                        entry.spec.hash_key_range,
                        loads.get(shard_id),
                        entry.spec.parents,
                        entry.spec.standby,
                        pinned=is_pinned,
                    )
                )
        return planner.plan(partitions, workers, current)

    def _owner_now(self, shard_id: str) -> str:
        entry = self.entries.get(shard_id)
        return entry.status.worker if entry is not None else ""

    # ── standbys ─────────────────────────────────────────────────────────────────────────────────────────────────

    def keep_standbys(self) -> None:
        """So many copies as are wanted, on workers that could take over, spread so that one worker's partitions don't all fall to the
        same one; and the receivers of moves. Who is a standby stays one as long as it can."""
        look = self.look
        if not look.settings.has_checkpoints or look.too_many_are_silent:
            return
        held = [entry for entry in self.entries.values() if situation.stage(entry) is Stage.HELD]
        kept = {entry.spec.shard_id: self._kept_standbys(entry) for entry in held}
        total: dict[str, int] = {}
        beside: dict[tuple[str, str], int] = {}
        for entry in held:
            for name in kept[entry.spec.shard_id]:
                total[name] = total.get(name, 0) + 1
                beside[entry.spec.worker, name] = beside.get((entry.spec.worker, name), 0) + 1
        able = [worker.name for worker in look.able]
        for entry in held:
            owner, names = entry.spec.worker, kept[entry.spec.shard_id]
            while len(names) < look.settings.standby_replicas:
                others = [name for name in able if name != owner and name not in names]
                if not others:
                    break
                chosen = min(others, key=lambda name: (beside.get((owner, name), 0), total.get(name, 0)))
                names.append(chosen)
                total[chosen] = total.get(chosen, 0) + 1
                beside[owner, chosen] = beside.get((owner, chosen), 0) + 1
            if entry.spec.receiver and entry.spec.receiver not in names:
                names.append(entry.spec.receiver)
            if tuple(names) != entry.spec.standby:
                self._set(entry, standby=tuple(names))

    def _kept_standbys(self, entry: TwinPartition) -> list[str]:
        look, spec = self.look, entry.spec
        names = [
            name
            for name in spec.standby
            if name != spec.worker and name in look.workers and not look.is_lost(name) and not look.is_leaving(name)
        ]
        return names[: look.settings.standby_replicas]

    # ── the answer ───────────────────────────────────────────────────────────────────────────────────────────────

    def wanted(self) -> control.Wanted:
        known = self.look.partitions
        retired = {entry.spec.shard_id: entry for entry in self.retired()}
        created = parents_first({name: entry for name, entry in self.entries.items() if name not in known})
        changed = [
            entry
            for shard_id, entry in self.entries.items()
            if shard_id in known and entry.spec != known[shard_id].spec
        ]
        return control.Wanted(
            create=tuple(created),
            change=tuple(entry for entry in changed if entry.spec.shard_id not in retired),
            delete=tuple(retired.values()),
            conditions=conditions.conditions(self.look, list(self.entries.values())),
            workers_kept=workers_kept(self.look, [*known.values(), *self.entries.values()]),
        )


def parents_first(entries: Mapping[str, TwinPartition]) -> list[TwinPartition]:
    """A worker that sees a child without its parent takes the parent for gone, and begins."""
    ordered: dict[str, TwinPartition] = {}

    def add(shard_id: str) -> None:
        if shard_id in entries and shard_id not in ordered:
            for parent in entries[shard_id].spec.parents:
                add(parent)
            ordered[shard_id] = entries[shard_id]

    for shard_id in entries:
        add(shard_id)
    return list(ordered.values())


def workers_kept(look: situation.Situation, entries: Iterable[TwinPartition]) -> int:
    """Every ordinal that owns something, or still holds what another is to own, goes on existing, and those below it. As is and as
    wanted: a write may fail."""
    needed = look.settings.replicas
    for entry in entries:
        where = situation.stage(entry)
        if where is Stage.CLOSED:
            continue
        names = {entry.spec.worker}
        if where is Stage.CHANGING and entry.status.phase is not Phase.RELEASED and look.answers(entry.status.worker):
            names.add(entry.status.worker)
        needed = max([needed, *(look.workers[name].ordinal + 1 for name in names if name in look.workers)])
    return needed


def _has_begun(entry: TwinPartition) -> bool:
    """Whether it has the twins that it inherits."""
    return entry.status.checkpoint is not None or entry.status.phase in (
        Phase.RUNNING,
        Phase.DRAINING,
        Phase.RELEASED,
        Phase.CLOSED,
    )
