"""What to do about a fleet: from one look at it to a list of actions, in order. Level-based: it remembers nothing but what stands in
objects, so the same look gives the same plan, and a plan that was carried out by half is gone on with by the next.

Order is part of the plan. The status comes first: it publishes rules before anything is kept of them, and says whose pod is made anew
before that pod is deleted. Partitions change owners last, when what they need is there. Nothing is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleet_model import conditions, control, generations, handoff, rules, situation, spec, twin_partition
from fleet_model.control import Kind, Reason
from fleet_operator import (
    actions,
    ending,
    history,
    letting_go,
    naming,
    observed,
    reasons,
    resources,
    rolling,
    status,
    upkeep,
    workers,
)
from fleet_operator.actions import Plan
from fleet_operator.reasons import Own, told


def plan(look: observed.Look) -> Plan:
    fleet = look.reading.fleet
    if look.deletion is not None:
        return ending.deletion(look, look.deletion)
    if fleet is None:
        return ending.unreadable(look)
    return _Round(look, fleet).plan()


class _Round:
    """One plan for a fleet that can be read and is to stay."""

    def __init__(self, look: observed.Look, fleet: spec.FleetSpec) -> None:
        self.look, self.fleet = look, fleet
        self.seen = observed.of_partitions(look)
        self.situation = situation.Situation(self.seen)
        self.restart = status.restart_of(look.status)
        self.troubles: list[upkeep.Trouble] = []

    def plan(self) -> Plan:
        wanted = self._suspended() if self.fleet.suspend else handoff.step(self.seen)
        kept = upkeep.compare(self.look, self.fleet, wanted.workers_kept)
        self.troubles += kept.troubles
        decided = self._rolling(kept, wanted.workers_kept)
        written = self._history()
        told_all = self._conditions(wanted, kept, decided, written)
        built = self._status(told_all, written)
        todo: list[actions.Action] = [] if self.look.has_finalizer else [actions.AddFinalizer()]
        todo += ending.status_written(built, self.look)
        revisions = [history.revision(each, self.fleet, self.look.owner) for each in written.create]
        todo += [actions.Create(manifest) for manifest in revisions]
        todo += [actions.Delete("ControllerRevision", name, "") for name in written.delete]
        todo += kept.actions
        todo += [actions.Create(self._object(entry)) for entry in wanted.create]
        todo += [actions.ChangePartition(entry) for entry in wanted.change]
        todo += [actions.DeletePartition(entry) for entry in wanted.delete]
        if isinstance(decided, rolling.Restart):
            todo.append(actions.RestartPod(decided.worker, decided.uid))
        return Plan(tuple(todo), ending.sentence(told_all), status.events(built, self.look.status))

    def _object(self, entry: twin_partition.TwinPartition) -> naming.Manifest:
        return resources.twin_partition_object(entry, self.fleet, self.look.owner)

    # ── suspended ────────────────────────────────────────────────────────────────────────────────────────────────

    def _suspended(self) -> control.Wanted:
        """Partitions first, then workers. What handoff would say of a fleet without owners is nothing that anybody needs to know."""
        change = letting_go.named_for_nobody(self.look.partitions, self.look.now_ms)
        waits = change or letting_go.still_held(self.situation)
        # A set that is just being made anew, for larger claims, asks for none.
        there = max((pod.ordinal + 1 for pod in self.look.pods), default=0)
        kept = max(self.look.pods_asked_for, there) if waits else 0
        return control.Wanted(change=tuple(change), workers_kept=kept)

    # ── updates ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _rolling(self, kept: upkeep.Upkeep, replicas: int) -> rolling.Decision:
        """Writes down whose pod is made anew, and forgets it when that is over."""
        by_name = {pod.name: pod for pod in self.look.pods}
        restart = self.restart
        if restart is not None and restart.has_ended(by_name.get(restart.worker), self.look.now_ms):
            restart = self.restart = None
        if self.fleet.suspend or not kept.template:
            return rolling.Wait("nothing is updated now")
        if restart is not None:
            pod = by_name.get(restart.worker)
            if pod is not None and pod.uid == restart.uid and not pod.terminating:
                return rolling.Restart(pod.name, pod.uid, "it was begun")
        decided = rolling.decide(
            rolling.Look(
                template=kept.template,
                replicas=replicas,
                pods=[pod for pod in self.look.pods if pod.ordinal < replicas],
                partitions=self.look.partitions,
                now_ms=self.look.now_ms,
                is_seen=kept.is_seen,
                begun="" if restart is None else restart.worker,
                too_many_are_silent=self.situation.too_many_are_silent,
            )
        )
        if isinstance(decided, rolling.Restart):
            until_ms = upkeep.restart_ms(self.fleet, self.look.now_ms) // 1_000 * 1_000
            self.restart = workers.Restart(decided.worker, decided.uid, until_ms)
        return decided

    # ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _history(self) -> history.History:
        """A mistake in the rules, or a stream whose clock nobody knows, leaves what is in force."""
        packed = history.packed_in(self.look.status)
        stamped = self.look.rules
        fleet = self.fleet if self.look.reading.rules_are_good and stamped.effective_ms is not None else None
        try:
            if stamped.broken:
                raise history.BrokenHistoryError(stamped.broken)
            return history.settled(
                stamped.published, stamped.revisions, fleet, stamped.effective_ms or 0, stamped.oldest_ms
            )
        except history.BrokenHistoryError as error:
            self._broken_rules = str(error)
            return history.History((), packed)

    _broken_rules = ""

    def _applied(self, written: history.History) -> tuple[int, int]:
        """Workers that judge by the newest generation, and those that should: whoever runs and answers, those that leave, too."""
        asked = [pod.name for pod in self.look.pods if pod.running and self.situation.answers(pod.name)]
        newest = written.kept[-1].generation if written.kept else 0
        answers = [self.look.signs.answers.get(name, workers.Answer()) for name in asked]
        return sum(bool(newest) and answer.generation >= newest for answer in answers), len(asked)

    def _rules_condition(self, written: history.History) -> reasons.Told:
        kind = reasons.RULES_APPLIED
        if not self.look.reading.rules_are_good:
            return told(kind, Own.SPEC_INVALID, ending.mistakes(self.look.reading.mistakes))
        if self._broken_rules:
            return told(kind, Own.RULES_BROKEN, self._broken_rules)
        if written.refused:
            return told(kind, Own.RULES_REFUSED, written.refused)
        if not written.kept:
            return told(kind, Own.RULES_UNKNOWN, "the stream's clock isn't known yet, so no rules are stamped")
        newest, (applied, asked) = written.kept[-1], self._applied(written)
        if self.look.rules.effective_ms is None and generations.next_generation(newest, self.fleet, 0) is not None:
            message = f"the last edit isn't stamped yet; generation {newest.generation} goes on until it is"
            return told(kind, Own.RULES_SPREADING, message)
        if everybody_judges_by(newest, applied, asked, self.look.now_ms):
            return told(kind, Own.RULES_APPLIED, f"all {asked} workers judge by generation {newest.generation}")
        message = f"{applied} of {asked} workers judge by generation {newest.generation}"
        return told(kind, Own.RULES_SPREADING, message)

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────

    def _conditions(
        self, wanted: control.Wanted, kept: upkeep.Upkeep, decided: rolling.Decision, written: history.History
    ) -> list[reasons.Told]:
        if isinstance(decided, rolling.Stuck):
            self.troubles.append((Own.UPDATE_STUCK, decided.why))
        if not self.look.reading.rules_are_good:
            self.troubles.append((Own.SPEC_INVALID, ending.mistakes(self.look.reading.mistakes)))
        self.troubles += [(Own.WRITE_REFUSED, refusal) for refusal in self.look.refusals]
        if self.fleet.suspend:
            made = self._suspended_conditions(wanted)
        else:
            made = {str(each.kind): reasons.of(each) for each in wanted.conditions}
            made[Kind.PROGRESSING] = self._progressing(made[Kind.PROGRESSING], wanted, kept, decided)
        made[Kind.STALLED] = ending.stalled(made.get(Kind.STALLED), self.troubles)
        made[reasons.RULES_APPLIED] = self._rules_condition(written)
        return [made[kind] for kind in reasons.KINDS]

    def _progressing(
        self, said: reasons.Told, wanted: control.Wanted, kept: upkeep.Upkeep, decided: rolling.Decision
    ) -> reasons.Told:
        """What the operator itself is at comes before what partitions are at, which mostly follows from it."""
        alive = [pod for pod in self.look.pods if not pod.terminating]
        outdated = [pod.name for pod in alive if kept.template and pod.template != kept.template]
        if kept.grows:
            return told(Kind.PROGRESSING, Own.GROWING, f"volumes grow to {self.fleet.storage.size}")
        if outdated or self.restart is not None:
            why = getattr(decided, "why", "")
            message = f"{len(alive) - len(outdated)} of {len(alive)} workers are updated" + (f"; {why}" if why else "")
            return told(Kind.PROGRESSING, Own.UPDATING, message)
        if len(alive) != wanted.workers_kept:
            message = f"{len(alive)} workers are there, {wanted.workers_kept} are wanted"
            return told(Kind.PROGRESSING, Own.SCALING, message)
        return said

    def _suspended_conditions(self, wanted: control.Wanted) -> dict[str, reasons.Told]:
        held = letting_go.still_held(self.situation)
        alive = len(self.look.pods)
        if wanted.change or held:
            message = f"{len(wanted.change) or len(held)} partitions take their final checkpoint"
            progressing = told(Kind.PROGRESSING, Own.SUSPENDING, message)
        elif alive:
            progressing = told(Kind.PROGRESSING, Own.SCALING, f"{alive} workers are there, none is wanted")
        else:
            progressing = told(Kind.PROGRESSING, Reason.SETTLED, "the fleet is suspended")
        said = conditions.conditions(self.situation, list(self.situation.partitions.values()))
        healthy = next(each for each in said if each.kind is Kind.CHECKPOINTS_HEALTHY)
        return {
            Kind.READY: told(Kind.READY, Own.SUSPENDED, "spec.suspend is set: nothing is read, twins are kept"),
            Kind.PROGRESSING: progressing,
            Kind.REBALANCING: told(Kind.REBALANCING, Reason.BALANCED, "no partition moves"),
            Kind.CHECKPOINTS_HEALTHY: reasons.of(healthy),
        }

    def _status(self, told_all: Sequence[reasons.Told], written: history.History) -> dict[str, Any]:
        applied, asked = self._applied(written)
        look = self.situation
        moving = sum(look.is_moving(entry) or look.is_warming(entry) for entry in look.partitions.values())
        return status.build(
            status.Inputs(
                owner=self.look.owner,
                previous=self.look.status,
                now_ms=self.look.now_ms,
                pods=self.look.pods,
                partitions=list(look.partitions.values()),
                moving=moving,
                rules=status.RulesTold(written.kept, written.packed, applied, asked),
                conditions=told_all,
                restart=self.restart,
            )
        )


def everybody_judges_by(newest: rules.RulesGeneration, applied: int, asked: int, now_ms: int) -> bool:
    """Every worker knows it, and its time has come."""
    return bool(asked) and applied == asked and now_ms >= newest.effective_ms
