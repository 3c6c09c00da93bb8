"""A fleet's rules generations in Kubernetes: published in the fleet's status, kept as ControllerRevisions.

The status is what workers hear of, so a generation counts from when it stands there. A ControllerRevision is made after that, for people to
look at and for a status that gets lost (a restored backup has none); it never says what workers didn't hear. So whatever stands in
one place only is put into the other, and who is killed between the two writes is completed by the next look. Generations that differ
between the two are a fault that is told and not mended by guessing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fleet_model import generations, packed_generations, rules, sections, spec
from fleet_operator import naming


class BrokenHistoryError(ValueError):
    """What is kept can't be read, or contradicts itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """What stands in a fleet's status. packed: as it stands there, "" before the first generation; kept: what it says."""

    packed: str = ""
    kept: tuple[rules.RulesGeneration, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """kept: all that a replay may need, by number; the last one is in force or about to be. packed: the same as the status has it, ""
    as long as there is none. create: generations without a ControllerRevision. delete: names of those that nobody needs any more.
    refused: why the newest edit isn't among them; "" when it is."""

    kept: tuple[rules.RulesGeneration, ...]
    packed: str
    create: tuple[rules.RulesGeneration, ...] = ()
    delete: tuple[str, ...] = ()
    refused: str = ""


def revision(generation: rules.RulesGeneration, fleet: spec.FleetSpec, owner: naming.Owner) -> naming.Manifest:
    """Immutable: it is created, and goes when no record needs it."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": naming.rules_revision(fleet.name, generation.generation),
            "namespace": fleet.namespace,
            "labels": naming.labels(fleet.name, "rules"),
            "ownerReferences": [naming.owner_reference(owner)],
        },
        "revision": generation.generation,
        "data": generations.rules_document(generation),
    }


def read_revisions(found: Sequence[Mapping[str, Any]]) -> dict[str, rules.RulesGeneration]:
    """Generations by the names of their objects. Raises BrokenHistoryError."""
    read = {}
    for manifest in found:
        name = manifest["metadata"]["name"]
        try:
            read[name] = generations.parse_rules_document(manifest.get("data") or {})
        except sections.InvalidFleetError as error:
            raise BrokenHistoryError(f"ControllerRevision {name} can't be read: {error}") from error
    return read


def packed_in(status: Mapping[str, Any]) -> str:
    """The published generations of a fleet with this status; "" before the first."""
    return str((status.get("rules") or {}).get("generations") or "")


def published(packed: str) -> Published:
    """Raises BrokenHistoryError. A thousand generations take a third of a second: whoever looks often keeps what was read."""
    if not packed:
        return Published()
    try:
        return Published(packed, packed_generations.unpack(packed))
    except packed_generations.UnreadableGenerationsError as error:
        raise BrokenHistoryError(f"status.rules.generations: {error}") from error


def settled(
    told: Published,
    found: Mapping[str, rules.RulesGeneration],
    fleet: spec.FleetSpec | None,
    effective_ms: int,
    oldest_ms: int,
) -> History:
    """What is to stand in both places. told: the status' list. found: the ControllerRevisions'. fleet: None when its newest edit can't
    be read, or nobody knows the time of the stream just now: nothing new is stamped then. effective_ms: from when on an edit that is seen now is to judge. oldest_ms: no record older than this
    is read any more. Raises BrokenHistoryError."""
    before = _joined(told.kept, found)
    new, refused = _next(before, fleet, effective_ms), ""
    wanted = generations.still_needed((*before, new), oldest_ms) if new is not None else before
    text = told.packed
    try:
        if wanted != told.kept:
            text = packed_generations.pack(wanted)
    except packed_generations.TooManyGenerationsError as error:
        wanted, refused = before, str(error)
        text = told.packed or packed_generations.pack(wanted)
    numbers = {generation.generation for generation in wanted}
    known = {generation.generation for generation in found.values()}
    return History(
        kept=wanted,
        packed=text,
        create=tuple(generation for generation in wanted if generation.generation not in known),
        delete=tuple(sorted(name for name, generation in found.items() if generation.generation not in numbers)),
        refused=refused,
    )


def _next(
    before: tuple[rules.RulesGeneration, ...], fleet: spec.FleetSpec | None, effective_ms: int
) -> rules.RulesGeneration | None:
    if fleet is None:
        return None
    if not before:
        return generations.first_generation(fleet)
    return generations.next_generation(before[-1], fleet, effective_ms)


def _joined(
    told: Sequence[rules.RulesGeneration], found: Mapping[str, rules.RulesGeneration]
) -> tuple[rules.RulesGeneration, ...]:
    """Both together. What the status no longer has, and older than all it has, is on its way out."""
    by_number = {generation.generation: generation for generation in told}
    first = told[0].generation if told else 0
    for generation in found.values():
        other = (
            by_number.setdefault(generation.generation, generation) if generation.generation >= first else generation
        )
        if other != generation:
            raise BrokenHistoryError(
                f"rules generation {generation.generation} isn't the same in the fleet's status and in its ControllerRevision"
            )
    numbers = sorted(by_number)
    if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise BrokenHistoryError(f"rules generations are missing between {numbers[0]} and {numbers[-1]}")
    return tuple(by_number[number] for number in numbers)
