"""One round for one fleet: observe → plan → act → record. Blocking; for a thread of its own.

Remembers nothing of a fleet that its objects don't say, but for what the API server refused in the last round. Whoever is killed anywhere in
here leaves a fleet that the next round goes on with.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fleet_model import twin_partition
from fleet_model.control import Kind as Condition
from fleet_operator import acting, actions, errors, looking, observed, plan, probing, reasons, stream_watch
from fleet_operator.acting import End
from fleet_operator.kinds import FleetKey
from fleet_operator.metrics import Metrics
from fleet_operator.triggers import Outcome

log = logging.getLogger(__name__)

CONFLICT_S = 0.3
CUT_S = 0.05
STREAM_S = 1.0
"""Until the stream was asked for the first time; its answer wakes the fleet anyway."""
STANDBY_S = 1.0
FIRST_OF_REFUSED_S = 5.0

Tell = Callable[[FleetKey, Mapping[str, Any], actions.Plan], None]
"""Posts the plan's events for the fleet's document. Raises nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    looking: looking.Looking
    acting: acting.Acting
    streams: stream_watch.StreamWatch
    probing: probing.Probing
    metrics: Metrics
    tell: Tell
    check: Callable[[], None]
    """Raises NotLeadingError."""


class Reconciling:
    """`reconcile` may run for several fleets at once, never twice for one."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._refusals: dict[FleetKey, tuple[str, ...]] = {}
        self._said: dict[FleetKey, str] = {}

    def reconcile(self, fleet: FleetKey) -> Outcome:
        """Raises what is a bug, and nothing else."""
        parts = self._parts
        with parts.metrics.reconcile_seconds.time():
            try:
                parts.check()
                taken = parts.looking.look(fleet, self._refusals.get(fleet, ()))
                if taken is None:
                    self._forget(fleet)
                    return Outcome(0.0)
                ended, outcome = self._round(fleet, taken)
            except errors.NotLeadingError:
                return Outcome(STANDBY_S)
            except errors.OperatorError as error:
                self._say(fleet, f"can't be looked at: {error}")
                ended, outcome = str(End.FAILED), Outcome(0.0, failed=True)
        parts.metrics.reconciles.labels(ended).inc()
        parts.metrics.last_reconcile.labels(*fleet).set_to_current_time()
        return outcome

    def _round(self, fleet: FleetKey, taken: looking.Taken) -> tuple[str, Outcome]:
        parts, look = self._parts, taken.look
        if taken.is_early:
            return "waiting", Outcome(STREAM_S)
        if _hears_of_ended_shards(look):
            parts.streams.hint(fleet)
        made = plan.plan(look)
        result = parts.acting.carry_out(taken, made)
        late, again_s = result.why if result.rest is End.EXPIRED else "", 0.0
        if late or result.stamped is not None:
            again_s = parts.looking.stamped(fleet, in_time=bool(result.stamped))
        if late:
            # Only what stamps rules can be too late, and that mustn't keep partitions from being taken over where the API server is slow.
            taken = taken.without_stamping()
            look = taken.look
            made = plan.plan(look)
            result = parts.acting.carry_out(taken, made)
        self._refusals[fleet] = result.refusals
        if result.is_told and made.events:
            parts.tell(fleet, taken.document, made)
        self._record(fleet, look, made)
        self._say(fleet, result.why or late or made.why)
        if late and result.rest is End.DONE:
            return str(End.EXPIRED), Outcome(again_s)
        return str(result.end), _outcome(result, made)

    def _record(self, fleet: FleetKey, look: observed.Look, made: actions.Plan) -> None:
        written = [action.status for action in made.actions if isinstance(action, actions.WriteStatus)]
        status = written[0] if written else look.status
        self._parts.metrics.fleet_is(fleet, status, look.partitions)
        states = {entry["type"]: entry["status"] == "True" for entry in status.get("conditions") or ()}
        is_busy = (
            states.get(Condition.PROGRESSING, True)
            or states.get(Condition.REBALANCING, True)
            or not states.get(reasons.RULES_APPLIED, False)
        )
        self._parts.probing.busy(fleet, is_busy)

    def _forget(self, fleet: FleetKey) -> None:
        parts = self._parts
        for kept in (self._refusals, self._said):
            kept.pop(fleet, None)
        parts.looking.forget(fleet)
        parts.acting.forget(fleet)
        parts.streams.forget(fleet)
        parts.probing.busy(fleet, False)
        parts.metrics.forget(fleet)
        log.info("fleet %s is gone", "/".join(fleet))

    def _say(self, fleet: FleetKey, why: str) -> None:
        """Once for each thing that there is to say."""
        if self._said.get(fleet) != why:
            self._said[fleet] = why
            log.info("fleet %s: %s", "/".join(fleet), why)


def _outcome(result: acting.Result, made: actions.Plan) -> Outcome:
    """An object of the fleet's own that is refused, maybe for days, mustn't slow down the rounds that take partitions over."""
    match result.rest:
        case End.DONE:
            return Outcome(made.again_ms / 1_000)
        case End.CUT:
            return Outcome(CUT_S)
        case End.CONFLICT:
            return Outcome(CONFLICT_S, failed=True)
        case End.REFUSED:
            return Outcome(FIRST_OF_REFUSED_S, failed=True)
        case End.EXPIRED | End.FAILED:
            return Outcome(0.0, failed=True)


def _hears_of_ended_shards(look: observed.Look) -> bool:
    """A partition was read to its end, and the list of shards doesn't have its children yet."""
    if look.shards is None:
        return False
    parents = {parent for shard in look.shards for parent in shard.parents}
    listed = {shard.shard_id for shard in look.shards}
    return any(
        entry.status.phase is twin_partition.Phase.CLOSED
        and entry.spec.shard_id in listed
        and entry.spec.shard_id not in parents
        for entry in look.partitions
    )
