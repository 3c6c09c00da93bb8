"""A fleet's own objects compared with what is there: what has to be applied, deleted, grown, and what can't be.

Decides from values. An object of a wanted name that somebody else made is never touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fleet_model import durations, sections, spec
from fleet_operator import actions, naming, observed, pod_template, resources
from fleet_operator.reasons import Own

Trouble = tuple[Own, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Upkeep:
    """actions: in this order. template: the hash that pods should have; "" when none could be built. is_seen: the StatefulSet's
    controller works by what is wanted. grows: volumes become larger."""

    actions: tuple[actions.Action, ...] = ()
    template: str = ""
    is_seen: bool = False
    grows: bool = False
    troubles: tuple[Trouble, ...] = ()


def compare(look: observed.Look, fleet: spec.FleetSpec, replicas: int) -> Upkeep:
    """replicas: pods that the StatefulSet is to have."""
    try:
        wanted = resources.children(fleet, look.owner, look.defaults, replicas)
    except sections.InvalidFleetError as error:
        # Its pods stay as they are; that they are enough, or too many, can still be said.
        return Upkeep(troubles=((Own.SPEC_INVALID, str(error).replace("\n", "; ")),))
    todo: list[actions.Action] = []
    troubles: list[Trouble] = []
    growth = _growth(look, fleet)
    todo += growth.actions
    for manifest in wanted:
        key = manifest["kind"], manifest["metadata"]["name"]
        found = look.children.get(key)
        if found is not None and naming.is_anothers(found, look.owner):
            troubles.append((Own.NAME_TAKEN, f"{key[0]} {key[1]} isn't this fleet's; delete or rename it"))
        elif key[0] == "StatefulSet" and growth.keeps_the_set:
            continue
        elif not naming.is_applied(manifest, found):
            todo.append(actions.Apply(manifest))
    todo += _unwanted(look, wanted)
    return Upkeep(
        actions=tuple(todo),
        template=resources.template_hash(wanted),
        is_seen=_is_seen(look.stateful_set, wanted[-1]),
        grows=growth.grows,
        troubles=(*troubles, *growth.troubles),
    )


def _is_seen(found: Mapping[str, Any] | None, wanted: naming.Manifest) -> bool:
    if found is None or not naming.is_applied(wanted, found):
        return False
    status = found.get("status") or {}
    return int(status.get("observedGeneration") or 0) >= int(found["metadata"].get("generation") or 0)


def _unwanted(look: observed.Look, wanted: Sequence[naming.Manifest]) -> list[actions.Action]:
    """Ours, and not wanted any more: the fleet's own account when it has another now."""
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
    return [
        actions.Delete(kind, name, found["metadata"]["uid"])
        for (kind, name), found in sorted(look.children.items())
        if (kind, name) not in names and not naming.is_anothers(found, look.owner)
    ]


# ── volumes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class _Growth:
    """keeps_the_set: the StatefulSet mustn't be applied in this round."""

    actions: tuple[actions.Action, ...] = ()
    keeps_the_set: bool = False
    grows: bool = False
    troubles: tuple[Trouble, ...] = ()


def _growth(look: observed.Look, fleet: spec.FleetSpec) -> _Growth:
    """Claims first, then the StatefulSet's template for claims to come. That can't be changed in place, so the StatefulSet is deleted, its
    pods and claims left alone, and the next look makes it anew, which takes them in again."""
    found = look.stateful_set
    if found is None or naming.is_anothers(found, look.owner):
        return _Growth()
    claim = found["spec"]["volumeClaimTemplates"][0]["spec"]
    had, wanted = claim["resources"]["requests"]["storage"], fleet.storage.size
    told_class = fleet.storage.storage_class_name
    if told_class is not None and claim.get("storageClassName") not in (None, told_class):
        why = f"spec.storage.storageClassName: volumes keep their class, {claim['storageClassName']}"
        return _Growth(keeps_the_set=True, troubles=((Own.STORAGE_FIXED, why),))
    if durations.parse_bytes(wanted) < durations.parse_bytes(had):
        why = f"spec.storage.size: volumes don't shrink; it is {had}, and {wanted} is asked for"
        return _Growth(keeps_the_set=True, troubles=((Own.STORAGE_FIXED, why),))
    small = [held for held in look.claims if durations.parse_bytes(held.size) < durations.parse_bytes(wanted)]
    grown: tuple[actions.Action, ...] = tuple(actions.GrowClaim(held.name, wanted) for held in small)
    if durations.parse_bytes(wanted) == durations.parse_bytes(had):
        return _Growth(grown, grows=bool(grown))
    if not grown:
        grown = (actions.Delete("StatefulSet", fleet.name, found["metadata"]["uid"], orphan=True),)
    return _Growth(grown, keeps_the_set=True, grows=True)


def restart_ms(fleet: spec.FleetSpec, now_ms: int) -> int:
    """Until when a worker that is made anew keeps its partitions: it drains, its volume changes hands, its image may have to come."""
    return now_ms + pod_template.grace_s(fleet) * 1_000 + START_PATIENCE_MS


START_PATIENCE_MS = 120_000
