"""Carries a plan out: action by action, in order, each only while the Lease is held.

Nothing is decided here but what an error means for the rest of the plan:

    nobody answers, we don't lead any more     → nothing more is done
    it isn't what it was when it was read      → nothing more, but for partitions: each is a matter of its own
    refused, an object of the fleet's own      → told in its conditions, the rest goes on: a quota mustn't keep partitions without an owner;
                                                 asked for again after REFUSED_S, told of all the while
    refused, anything else                     → told, nothing more is done
    it has been going on for PLAN_S_MAX        → nothing more in this round; the next one, at once, goes on from there

Whoever is killed between two actions leaves what the next look goes on from. Blocking; for threads.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fleet_model import twin_partition_document
from fleet_operator import actions, clock, errors, kinds, looking, naming
from fleet_operator.cache import Cache, Found
from fleet_operator.kinds import FleetKey, Kind

log = logging.getLogger(__name__)

WRITE_S = 5.0
STAMP_S_MIN = 0.08
"""With less time left, a write that stamps rules isn't begun: the look has become too old."""

PLAN_S_MAX = 20.0
"""No action is begun later than this after the first one: the look that they rest on grows old, and other fleets wait for the thread."""

REFUSED_S = 5.0
"""Until what was refused is asked for again, from the end of the round that asked: rounds come more often, and for other reasons, and one that
was cut short mustn't meet the same slow refusals again."""

_OWN = (actions.Apply, actions.Delete, actions.GrowClaim)
_EACH_ALONE = (actions.ChangePartition, actions.DeletePartition)


class Api(Protocol):
    """Of `adapters.kubernetes_api.KubernetesApi`."""

    def create(self, kind: Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]: ...

    def apply(self, kind: Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]: ...

    def merge(self, kind: Kind, namespace: str, name: str, change: Mapping[str, Any]) -> dict[str, Any]: ...

    def replace(
        self, kind: Kind, namespace: str, manifest: dict[str, Any], subresource: str, within_s: float
    ) -> dict[str, Any]: ...

    def delete(self, kind: Kind, namespace: str, name: str, options: Mapping[str, Any]) -> None: ...


class End(enum.StrEnum):
    """How a plan ended, from well to bad."""

    DONE = "done"
    CUT = "cut"
    EXPIRED = "expired"
    CONFLICT = "conflict"
    REFUSED = "refused"
    FAILED = "failed"


_GRAVITY = list(End)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """rest: the end but for refusals of the fleet's own objects, which keep nothing else from being done. done: actions that were carried
    out. stamped: whether a new rules generation was published in time; None: there was none. is_told: the status that the plan's events belong
    to stands. why: the first thing that went wrong. refusals: to be told in the fleet's conditions."""

    end: End = End.DONE
    rest: End = End.DONE
    done: int = 0
    stamped: bool | None = None
    is_told: bool = False
    why: str = ""
    refusals: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Refused:
    """asked_s: when the round ended that last asked for it, by the monotonic clock; None: it goes on."""

    action: actions.Action
    asked_s: float | None
    why: str

    def is_fresh(self, now_s: float) -> bool:
        return self.asked_s is None or now_s - self.asked_s < REFUSED_S


class Acting:
    """check: raises NotLeadingError."""

    def __init__(self, api: Api, cache: Cache, check: Callable[[], None], now: clock.Clock) -> None:
        self._api, self._cache, self._check, self._clock = api, cache, check, now
        self._refused: dict[FleetKey, list[_Refused]] = {}
        """Of a fleet's last plan; mostly nothing."""

    def carry_out(self, taken: looking.Taken, plan: actions.Plan) -> Result:
        round_ = _Round(self._api, self._cache, taken, self._clock)
        end, rest, why, done = End.DONE, End.DONE, "", 0
        fleet = taken.look.namespace, taken.look.owner.name
        before, refused = self._refused.pop(fleet, []), list[_Refused]()
        # Events belong to the status; without one to write they belong to the plan's end.
        is_told = not any(isinstance(action, actions.WriteStatus | actions.RemoveFinalizer) for action in plan.actions)
        until_s = self._clock.monotonic() + PLAN_S_MAX
        for action in plan.actions:
            now_s = self._clock.monotonic()
            known = next((each for each in before if each.action == action and each.is_fresh(now_s)), None)
            try:
                self._check()
                if known is not None:
                    raise errors.RefusedError(known.why)
                if now_s >= until_s:
                    raise errors.CutError(f"{done} of {len(plan.actions)} changes are made; the API server is slow")
                round_.act(action)
            except errors.OperatorError as error:
                failed = _end_of(error, action)
                end, why = max(end, failed, key=_GRAVITY.index), why or str(error)
                if failed is End.REFUSED:
                    refused.append(known or _Refused(action, None, str(error)))
                if failed is not End.REFUSED or not _is_own(action):
                    rest = max(rest, failed, key=_GRAVITY.index)
                if not _goes_on(action, failed):
                    break
            else:
                done += 1
                is_told |= isinstance(action, actions.WriteStatus | actions.RemoveFinalizer)
        self._keep(fleet, [*refused, *before])
        return Result(end, rest, done, round_.stamped, is_told, why, tuple(each.why for each in refused))

    def _keep(self, fleet: FleetKey, refused: Sequence[_Refused]) -> None:
        """The newest of each action; of those that weren't come to, what is known of them."""
        now_s, kept = self._clock.monotonic(), list[_Refused]()
        for each in refused:
            if each.is_fresh(now_s) and _is_own(each.action) and each.action not in [k.action for k in kept]:
                kept.append(each if each.asked_s is not None else dataclasses.replace(each, asked_s=now_s))
        if kept:
            self._refused[fleet] = kept

    def forget(self, fleet: FleetKey) -> None:
        self._refused.pop(fleet, None)


def _end_of(error: errors.OperatorError, action: actions.Action) -> End:
    if isinstance(error, errors.RefusedError):
        return End.REFUSED
    if isinstance(error, errors.ConflictError) and _is_copy(action):
        return End.REFUSED  # another one has its name, which the next look wouldn't know better
    if isinstance(error, errors.ConflictError | errors.MissingError):
        return End.CONFLICT
    if isinstance(error, errors.CutError):
        return End.CUT
    return End.EXPIRED if isinstance(error, errors.ExpiredError) else End.FAILED


def _is_own(action: actions.Action) -> bool:
    """Of the fleet's own objects; nothing waits for them. The copy of a rules generation is one: the fleet's status has it, too."""
    return isinstance(action, _OWN) or _is_copy(action)


def _is_copy(action: actions.Action) -> bool:
    return isinstance(action, actions.Create) and action.manifest["kind"] == kinds.REVISION.name


def _goes_on(action: actions.Action, end: End) -> bool:
    if _is_own(action):
        return end is End.REFUSED
    return isinstance(action, _EACH_ALONE) and end is End.CONFLICT


class _Round:
    """Of one plan. The fleet's own document changes on the way: the finalizer gives it another resourceVersion."""

    def __init__(self, api: Api, cache: Cache, taken: looking.Taken, now: clock.Clock) -> None:
        self._api, self._cache, self._clock = api, cache, now
        self._look, self._fleet = taken.look, taken.document
        self._namespace, self._publish_by_s = taken.look.namespace, taken.publish_by_s
        self.stamped: bool | None = None

    def act(self, action: actions.Action) -> None:
        """Raises OperatorError."""
        match action:
            case actions.AddFinalizer():
                self._set_finalizers([*self._finalizers(), naming.FINALIZER])
            case actions.RemoveFinalizer():
                self._set_finalizers([name for name in self._finalizers() if name != naming.FINALIZER])
            case actions.WriteStatus(status):
                self._write_status(status)
            case actions.Apply(manifest):
                kind = kinds.BY_NAME[manifest["kind"]]
                self._cache.written(kind, self._api.apply(kind, self._namespace, self._of_this(manifest)))
            case actions.Create(manifest):
                kind = kinds.BY_NAME[manifest["kind"]]
                self._cache.written(kind, self._api.create(kind, self._namespace, manifest))
            case actions.GrowClaim(name, size):
                growth: naming.Manifest = {"spec": {"resources": {"requests": {"storage": size}}}}
                self._cache.written(kinds.CLAIM, self._api.merge(kinds.CLAIM, self._namespace, name, growth))
            case actions.Delete(kind_name, name, uid, orphan):
                policy = "Orphan" if orphan else "Background"
                self._delete(kinds.BY_NAME[kind_name], name, {"uid": uid} if uid else {}, policy)
            case actions.ChangePartition(entry):
                change: naming.Manifest = {
                    "metadata": {"resourceVersion": entry.resource_version},
                    "spec": twin_partition_document.spec_document(entry.spec),
                }
                self._cache.written(
                    kinds.PARTITION, self._api.merge(kinds.PARTITION, self._namespace, entry.name, change)
                )
            case actions.DeletePartition(entry):
                self._delete(kinds.PARTITION, entry.name, {"resourceVersion": entry.resource_version})
            case actions.RestartPod(name, uid):
                self._restart(name, uid)

    # ── the fleet itself ─────────────────────────────────────────────────────────────────────────────────────────

    def _finalizers(self) -> list[str]:
        return list(self._fleet["metadata"].get("finalizers") or ())

    def _set_finalizers(self, names: list[str]) -> None:
        version = self._fleet["metadata"]["resourceVersion"]
        change = {"metadata": {"finalizers": names, "resourceVersion": version}}
        self._keep(self._api.merge(kinds.FLEET, self._namespace, self._look.owner.name, change))

    def _write_status(self, status: Mapping[str, Any]) -> None:
        document = {**self._fleet, "status": status}
        if not self._stamps(status):
            self._keep(self._api.replace(kinds.FLEET, self._namespace, document, "status", WRITE_S))
            return
        # A generation's start is a promise that workers hear of it in time. The first one judges all that was before, too.
        late = "the rules' new generation would be published too late; it is stamped anew"
        within_s = self._publish_by_s - self._clock.monotonic()
        if within_s < STAMP_S_MIN:
            raise errors.ExpiredError(late)
        try:
            self._keep(self._api.replace(kinds.FLEET, self._namespace, document, "status", within_s))
        except errors.ApiUnavailableError as error:
            raise errors.ExpiredError(f"{late} ({error})") from error
        over_s = self._clock.monotonic() - self._publish_by_s
        self.stamped = over_s <= 0
        if over_s * 1_000 > looking.LATE_MS:
            # The server counts the time from when the write reached it. Workers look at it, too (fleet_twin_rules_late).
            log.warning(
                "a rules generation was answered %.0f ms too late: some records may be judged by the one before",
                over_s * 1_000,
            )

    def _stamps(self, status: Mapping[str, Any]) -> bool:
        """Whether the newest generation comes into being with this write. One that was known before only is put back where it stood."""
        told, stood = status.get("rules") or {}, self._look.status.get("rules") or {}
        number = int(told.get("generation") or 0)
        is_kept = any(each.generation == number for each in self._look.rules.revisions.values())
        return number > 1 and number != stood.get("generation") and not is_kept

    def _keep(self, answer: Found) -> None:
        self._fleet = answer
        self._cache.written(kinds.FLEET, answer)

    # ── its objects ──────────────────────────────────────────────────────────────────────────────────────────────

    def _of_this(self, manifest: naming.Manifest) -> naming.Manifest:
        """With the uid of what was looked at: another object of that name isn't written."""
        found = self._look.children.get((manifest["kind"], manifest["metadata"]["name"]))
        if found is None:
            return manifest
        return {**manifest, "metadata": {**manifest["metadata"], "uid": found["metadata"]["uid"]}}

    def _delete(self, kind: Kind, name: str, preconditions: Mapping[str, str], policy: str = "Background") -> None:
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
        if preconditions:
            options["preconditions"] = preconditions
        try:
            self._api.delete(kind, self._namespace, name, options)
        except errors.MissingError:
            return  # it is what was wanted

    def _restart(self, name: str, uid: str) -> None:
        try:
            self._delete(kinds.POD, name, {"uid": uid})
        except errors.ConflictError:
            return  # the one that was meant is gone
