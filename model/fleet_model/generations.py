"""Rules generations: which edit makes a new one, and the plain form in which they are kept.

A generation judges records again whenever they are replayed, so what is kept must come back exactly: milliseconds as
integers, doubles as JSON numbers (shortest form, exact both ways), every field written out, so that a later change of a
default changes no old generation. Reading back checks shape and types, not `parse_rules`' bounds: these may become
narrower, and what once judged must go on to. A field it doesn't know is refused: it can't judge as that generation did.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fleet_model import patterns, rules, sections, spec

AHEAD_MS = 1_000
"""An edit takes effect this long after it was seen: everybody who judges hears of it before its time comes."""

_RULES: dict[str, type[Any]] = {
    "temperature": rules.TemperatureRule,
    "battery": rules.BatteryRule,
    "offline": rules.OfflineRule,
}


def first_generation(fleet: spec.FleetSpec) -> rules.RulesGeneration:
    """A fleet's first: it judges everything that came before the second."""
    return rules.RulesGeneration(1, 0, fleet.rules, fleet.profiles)


def next_generation(
    current: rules.RulesGeneration, fleet: spec.FleetSpec, effective_ms: int
) -> rules.RulesGeneration | None:
    """The generation that an edit makes, None when the rules are equal to the current ones.

    effective_ms: the arrival time it is to start at. Generations never overtake each other: should the clock have gone
    back, it starts a millisecond after the current one.
    """
    if (fleet.rules, fleet.profiles) == (current.default, current.profiles):
        return None
    effective_ms = max(effective_ms, current.effective_ms + 1)
    return rules.RulesGeneration(current.generation + 1, effective_ms, fleet.rules, fleet.profiles)


def still_needed(
    generations: tuple[rules.RulesGeneration, ...], oldest_arrival_ms: int
) -> tuple[rules.RulesGeneration, ...]:
    """Those that judge records which arrived at oldest_arrival_ms or later; never none of some."""
    if not generations:
        return ()
    return generations[rules.generation_index(generations, oldest_arrival_ms) :]


def settings_changed(running: spec.FleetSpec, edited: spec.FleetSpec) -> tuple[str, ...]:
    """Names of the settings, rules and profiles apart, that an edit changed: these hold from the next start only."""
    return tuple(
        camel_case(field.name)
        for field in dataclasses.fields(spec.FleetSpec)
        if field.name not in ("rules", "profiles") and getattr(running, field.name) != getattr(edited, field.name)
    )


def rules_document(generation: rules.RulesGeneration) -> dict[str, Any]:
    """Plain data for JSON: {"generation", "effectiveMs", "default": {rule: fields}, "profiles": [...]}."""
    return {
        "generation": generation.generation,
        "effectiveMs": generation.effective_ms,
        "default": _fields_document(generation.default),
        "profiles": [_fields_document(profile) for profile in generation.profiles],
    }


def parse_rules_document(kept: Mapping[str, object]) -> rules.RulesGeneration:
    """What rules_document made, exactly. Raises InvalidFleetError when it is anything else."""
    mistakes = sections.Mistakes()
    top = sections.Section(kept, "", mistakes)
    mistakes.raise_any()
    generation = _Kept(top).integer("generation", 1)
    effective_ms = _Kept(top).integer("effectiveMs", 0)
    default = _read_rules(top.section("default"))
    if not isinstance(top.value("profiles"), list):
        top.mistake("profiles", "must be a list")
        mistakes.raise_any()
    # A bound of its own would add nothing: the document is one that was written, and its file's size is bounded.
    profiles = tuple(_read_profile(section) for section in top.sections("profiles", 1_000_000))
    top.finish()
    mistakes.raise_any()
    return rules.RulesGeneration(generation, effective_ms, default, profiles)


def camel_case(name: str) -> str:
    """after_ms → afterMs."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _fields_document(value: Any) -> dict[str, Any]:
    document_fields = {}
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        document_fields[camel_case(field.name)] = _fields_document(entry) if dataclasses.is_dataclass(entry) else entry
    return document_fields


def _read_profile(section: sections.Section) -> rules.Profile:
    name = _Kept(section).text("name")
    match: rules.Match = _read_fields(section.section("match"), rules.Match)
    if match.device_id_regex is not None:
        try:
            patterns.check(match.device_id_regex)
        except patterns.BadPatternError as error:
            section.mistake("match.deviceIdRegex", f"is no regular expression that RE2 takes: {error}")
    profile = rules.Profile(name, match, _read_rules(section.section("rules")))
    section.finish()
    return profile


def _read_rules(section: sections.Section) -> rules.Rules:
    read = {name: _read_fields(section.section(name), rule) for name, rule in _RULES.items()}
    section.finish()
    return rules.Rules(**read)


def _read_fields(section: sections.Section, made: type[Any]) -> Any:
    """One flat dataclass, each field by its annotated type."""
    kept = _Kept(section)
    read = {field.name: kept.typed(camel_case(field.name), str(field.type)) for field in dataclasses.fields(made)}
    section.finish()
    return made(**read)


class _Kept:
    """Reads fields that were written by rules_document: all are there, each of its exact type."""

    def __init__(self, section: sections.Section) -> None:
        self._section = section

    def typed(self, name: str, annotation: str) -> object:
        if annotation == "bool":
            return self._checked(name, isinstance(self._section.value(name), bool), "true or false", False)
        if annotation == "float":
            return self.number(name)
        if annotation == "int":
            return self.integer(name, 0)
        if annotation == "str | None" and self._section.has(name) and self._section.value(name) is None:
            return None
        assert annotation in ("str", "str | None"), f"no form is decided for fields of type {annotation}"
        return self.text(name)

    def integer(self, name: str, lowest: int) -> int:
        value = self._section.value(name)
        is_integer = isinstance(value, int) and not isinstance(value, bool) and lowest <= value < 2**63
        return self._checked(name, is_integer, f"a whole number from {lowest}", lowest)  # type: ignore[no-any-return]

    def number(self, name: str) -> float:
        value = self._section.value(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
        try:
            return float(self._checked(name, is_number, "a finite number", 0.0))
        except OverflowError:
            self._section.mistake(name, "must be a number that a double can hold")
            return 0.0

    def text(self, name: str) -> str:
        is_text = isinstance(self._section.value(name), str)
        return self._checked(name, is_text, "text", "")  # type: ignore[no-any-return]

    def _checked(self, name: str, is_right: bool, expected: str, instead: object) -> Any:
        if is_right:
            return self._section.value(name)
        self._section.mistake(name, f"must be {expected}, not {sections.shown(self._section.value(name))}")
        return instead
