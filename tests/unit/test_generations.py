"""Which edit makes a generation, and how one is kept."""

import dataclasses
import json
from typing import Any

import pytest

from fleet_model import generations, parse, rules
from tests.support import fleets


def test_an_edit_of_the_rules_makes_the_next_generation() -> None:
    first = generations.first_generation(parse.parse(fleets.smallest()))
    assert (first.generation, first.effective_ms) == (1, 0)
    edited = parse.parse(fleets.with_field("spec.rules.temperature.threshold", 50))
    second = generations.next_generation(first, edited, 5_000)
    assert second == rules.RulesGeneration(2, 5_000, edited.rules, edited.profiles)


def test_an_edit_of_a_profile_makes_one_too() -> None:
    first = generations.first_generation(parse.parse(fleets.smallest()))
    edited = parse.parse(fleets.with_field("spec.profiles", [{"name": "a", "match": {"firmware": "1"}}]))
    assert generations.next_generation(first, edited, 5_000) is not None


@pytest.mark.parametrize("path", ["spec.replicas", "spec.rules.temperature.threshold"])
def test_equal_rules_make_none(path: str) -> None:
    first = generations.first_generation(parse.parse(fleets.smallest()))
    assert generations.next_generation(first, parse.parse(fleets.with_field(path, 60)), 5_000) is None


def test_a_generation_never_starts_before_the_one_it_follows() -> None:
    current = rules.RulesGeneration(4, 9_000)
    edited = parse.parse(fleets.with_field("spec.rules.temperature.threshold", 50))
    following = generations.next_generation(current, edited, 5_000)
    assert following is not None
    assert following.effective_ms == 9_001


def test_generations_that_judge_no_retained_record_are_not_needed() -> None:
    kept = tuple(rules.RulesGeneration(number, (number - 1) * 100) for number in (1, 2, 3))
    assert generations.still_needed(kept, 0) == kept
    assert generations.still_needed(kept, 199) == kept[1:]
    assert generations.still_needed(kept, 200) == kept[2:]
    assert generations.still_needed(kept, 10_000) == kept[2:]
    assert generations.still_needed((), 0) == ()


def test_what_holds_from_the_next_start_only_is_told() -> None:
    running = parse.parse(fleets.smallest())
    edited = fleets.with_field("spec.storage.sync", "Commit")
    edited["spec"]["rules"] = {"temperature": {"threshold": 1}}
    edited["spec"]["standbyReplicas"] = 1
    assert generations.settings_changed(running, parse.parse(edited)) == ("storage", "standbyReplicas")
    assert generations.settings_changed(running, running) == ()


def _kept() -> dict[str, Any]:
    fleet = fleets.with_field("spec.profiles", [{"name": "a", "match": {"deviceIdRegex": "a+"}}])
    return generations.rules_document(generations.first_generation(parse.parse(fleet)))


def test_every_field_is_written_out() -> None:
    kept = json.loads(json.dumps(_kept()))
    assert kept["default"]["offline"] == {
        "enabled": True, "afterMs": 300_000, "repeatIntervalMs": 0, "severity": "warning", "command": "ping",
        "resolvedNotice": True,
    }  # fmt: skip
    assert kept["profiles"][0]["match"] == {"deviceIdPrefix": None, "deviceIdRegex": "a+", "firmware": None}


def test_bounds_of_today_do_not_judge_a_generation_of_yesterday() -> None:
    old = rules.RulesGeneration(1, 0, rules.Rules(offline=dataclasses.replace(rules.OfflineRule(), after_ms=1)))
    assert generations.parse_rules_document(generations.rules_document(old)) == old


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (["generation"], 0),
        (["generation"], True),
        (["effectiveMs"], -1),
        (["effectiveMs"], None),
        (["effectiveMs"], 2**63),
        (["profiles"], None),
        (["profiles"], {}),
        (["default", "temperature", "threshold"], "60"),
        (["default", "temperature", "threshold"], float("nan")),
        (["default", "temperature", "threshold"], 10**400),
        (["default", "temperature", "enabled"], 1),
        (["default", "temperature", "futureField"], 1),
        (["default", "battery", "severity"], None),
        (["default", "offline", "command"], 3),
        (["default", "humidity"], {}),
        (["profiles", 0, "match", "deviceIdRegex"], "("),
        (["profiles", 0, "match", "deviceIdPrefix"], 3),
        (["profiles", 0, "name"], None),
    ],
)
def test_anything_but_what_was_written_is_refused(way: list[Any], value: object) -> None:
    kept: Any = _kept()
    place = kept
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = value
    with pytest.raises(parse.InvalidFleetError) as caught:
        generations.parse_rules_document(kept)
    assert len(caught.value.mistakes) == 1


@pytest.mark.parametrize("way", [["generation"], ["default"], ["profiles"], ["default", "battery", "hysteresis"]])
def test_a_missing_field_is_refused(way: list[str]) -> None:
    kept = _kept()
    place = kept
    for step in way[:-1]:
        place = place[step]
    del place[way[-1]]
    with pytest.raises(parse.InvalidFleetError):
        generations.parse_rules_document(kept)
