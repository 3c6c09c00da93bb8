"""The engine where the property tests look away: work cut into turns, and scans that only look when something may be due."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fleet_model import rules
from fleet_proto import fleet_pb2
from fleet_worker.core import effects, engine, limits, offline
from tests.support import partitions
from tests.support.partitions import START_MS, Reading, SeenPartition

MINUTE_MS = 60_000
SECOND_MS = 1_000


def offline_rules(generation: int = 1, effective_ms: int = 0, **changed: Any) -> rules.RulesGeneration:
    default = rules.Rules(offline=rules.OfflineRule(**changed))
    return rules.RulesGeneration(generation, effective_ms, default)


def crowd(count: int) -> list[Reading]:
    """So many devices, each speaking once, a millisecond apart."""
    return [Reading(f"device-{number}", START_MS + number) for number in range(count)]


def in_turns(machine: engine.TwinEngine, time_ms: int, effects_max: int) -> list[list[effects.Effect]]:
    """A scan as the pipeline makes it."""
    turns = [machine.scan(time_ms, effects_max)]
    while len(turns[-1]) >= effects_max:
        assert len(turns) < 1_000
        turns.append(machine.scan(time_ms, effects_max))
    return turns


def alerts_of(found: list[effects.Effect]) -> list[str]:
    return [effect.partition_key for effect in found if effect.target is effects.Target.ALERTS]


# ── a fleet that goes silent as a whole ──────────────────────────────────────────────────────────────────────────────


def test_a_mass_outage_is_told_in_turns_of_bounded_size() -> None:
    whole, cut = SeenPartition(), SeenPartition()
    for seen in (whole, cut):
        seen.feed(*crowd(3_000))
    expected = whole.engine.scan(START_MS + 10 * MINUTE_MS)
    turns = in_turns(cut.engine, START_MS + 10 * MINUTE_MS, 1_000)
    assert [effect for turn in turns for effect in turn] == expected
    assert len(expected) == 6_000
    assert max(map(len, turns)) < 1_000 + 2 * engine.SETTLE_ROWS


def test_records_between_the_turns_of_a_scan_are_judged_as_ever() -> None:
    seen = SeenPartition()
    seen.feed(*crowd(3_000))
    told = alerts_of(seen.engine.scan(START_MS + 10 * MINUTE_MS, 1_000))
    late_speaker, already_told = "device-2999", told[0]
    assert late_speaker not in told
    came = seen.feed(
        Reading(late_speaker, START_MS + 10 * MINUTE_MS), Reading(already_told, START_MS + 10 * MINUTE_MS + 1)
    )
    alerts = [fleet_pb2.DeviceAlert.FromString(entry.data) for entry in came if entry.target is effects.Target.ALERTS]
    assert [(alert.device_id, alert.state) for alert in alerts] == [
        (late_speaker, fleet_pb2.FIRING),  # settled before its record is judged
        (late_speaker, fleet_pb2.RESOLVED),
        (already_told, fleet_pb2.RESOLVED),
    ]
    for turn in in_turns(seen.engine, START_MS + 10 * MINUTE_MS + 2, 1_000):
        told += alerts_of(turn)
    assert sorted({*told, late_speaker}) == sorted(f"device-{number}" for number in range(3_000))
    assert len(told) == 2_999


def test_advance_passes_generations_as_scan_and_start_do() -> None:
    known = (offline_rules(), offline_rules(2, START_MS + 7 * MINUTE_MS, after_ms=MINUTE_MS))
    whole, cut = SeenPartition(generations=known), SeenPartition(generations=known)
    for seen in (whole, cut):
        seen.feed(Reading("early"), Reading("later", START_MS + 5 * MINUTE_MS))
    expected = whole.engine.advance(START_MS + 8 * MINUTE_MS)
    start_ms = cut.engine.next_start_ms
    assert start_ms == START_MS + 7 * MINUTE_MS
    came = cut.engine.scan(start_ms)
    cut.engine.start_next_generation()
    came += cut.engine.scan(START_MS + 8 * MINUTE_MS)
    assert came == expected
    assert alerts_of(came) == ["early", "later"]
    assert cut.engine.next_start_ms is None
    with pytest.raises(AssertionError):
        cut.engine.start_next_generation()


# ── when a scan looks at all ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each look of a scan considered due."""
    counted: list[int] = []
    right = engine.TwinEngine._settle

    def counting(machine: engine.TwinEngine, slots: Any, time_ms: Any, out: Any) -> None:
        counted.append(len(slots))
        right(machine, slots, time_ms, out)

    monkeypatch.setattr(engine.TwinEngine, "_settle", counting)
    return counted


def test_offline_devices_cost_nothing_while_they_have_nothing_new_to_tell(looks: list[int]) -> None:
    seen = SeenPartition(generations=(offline_rules(repeat_interval_ms=10 * MINUTE_MS),))
    seen.feed(*crowd(100))
    assert len(seen.advance(START_MS + 6 * MINUTE_MS)) == 200
    looks.clear()
    for second in range(8 * 60):
        assert seen.advance(START_MS + 6 * MINUTE_MS + second * SECOND_MS) == []
    assert looks == []
    assert len(seen.advance(START_MS + 16 * MINUTE_MS)) == 200
    assert looks == [100]


def test_devices_with_longer_limits_of_their_own_are_not_looked_at_before(looks: list[int]) -> None:
    seen = SeenPartition()
    control = partitions.control(
        "patient", START_MS, update_threshold=fleet_pb2.UpdateThreshold(rule=fleet_pb2.OFFLINE, threshold=3600)
    )
    seen.feed(Reading("patient"), control)
    for minute in range(1, 60):
        assert seen.advance(START_MS + minute * MINUTE_MS - 1) == []
    assert looks == []
    assert alerts_of(seen.advance(START_MS + 60 * MINUTE_MS)) == ["patient"]


def test_a_shorter_limit_of_ones_own_holds_again_after_each_return() -> None:
    """Back from offline, such a device is due sooner than anything that a scan has seen waiting."""
    seen = SeenPartition()
    control = partitions.control(
        "hasty", START_MS, update_threshold=fleet_pb2.UpdateThreshold(rule=fleet_pb2.OFFLINE, threshold=10)
    )
    seen.feed(Reading("hasty"), control)
    for round_ in range(1, 4):
        start_ms = START_MS + round_ * MINUTE_MS
        assert alerts_of(seen.advance(start_ms)) == ["hasty"]
        assert seen.advance(start_ms + 1) == []  # a scan that sees it open: nothing waits
        seen.feed(Reading("hasty", start_ms + 2))
        assert seen.advance(start_ms + 2 + 9_999) == []
        assert alerts_of(seen.advance(start_ms + 2 + 10_000)) == ["hasty"]
        seen.feed(Reading("hasty", start_ms + 30 * SECOND_MS))


def test_due_times_are_those_that_the_rule_fires_at() -> None:
    seen = SeenPartition(generations=(offline_rules(repeat_interval_ms=MINUTE_MS),))
    seen.feed(Reading("device-7"))
    everything = slice(0, 1)
    for repeat in range(25):
        (due_ms,) = offline.due_ms(seen.engine.context, everything).tolist()
        if repeat == 24:
            assert due_ms == offline.NEVER_MS
            break
        assert due_ms == START_MS + 5 * MINUTE_MS + repeat * MINUTE_MS
        assert seen.advance(due_ms - 1) == []
        assert len(seen.advance(due_ms)) == 2


def test_where_the_rule_is_off_nobody_has_to_be_looked_at() -> None:
    never = offline_rules(enabled=False)
    assert limits.Limits(never).offline_least_ms() > START_MS * 1_000
    profile = rules.Profile(
        "watched", rules.Match(device_id_prefix="w"), rules.Rules(offline=rules.OfflineRule(after_ms=MINUTE_MS))
    )
    some = dataclasses.replace(never, profiles=(profile,))
    assert limits.Limits(some).offline_least_ms() == MINUTE_MS
    seen = SeenPartition(generations=(some,))
    seen.feed(Reading("w-1"), Reading("other"))
    assert alerts_of(seen.advance(START_MS + 30 * MINUTE_MS)) == ["w-1"]


# ── profiles ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_edit_that_leaves_the_matches_alone_looks_no_device_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million devices against a few patterns take seconds; most edits only change numbers."""

    def generation(number: int, effective_ms: int, prefix: str, after_ms: int) -> rules.RulesGeneration:
        lasting = rules.Rules(offline=rules.OfflineRule(after_ms=after_ms))
        return rules.RulesGeneration(
            number, effective_ms, profiles=(rules.Profile("some", rules.Match(device_id_prefix=prefix), lasting),)
        )

    asked: list[str] = []
    right = rules.RulesGeneration.profile_index

    def counting(own: rules.RulesGeneration, device_id: str, firmware: str) -> int:
        asked.append(device_id)
        return right(own, device_id, firmware)

    monkeypatch.setattr(rules.RulesGeneration, "profile_index", counting)
    seen = SeenPartition(
        generations=(
            generation(1, 0, "a", MINUTE_MS),
            generation(2, START_MS + 10 * SECOND_MS, "a", 2 * MINUTE_MS),
            generation(3, START_MS + 20 * SECOND_MS, "b", 2 * MINUTE_MS),
        )
    )
    seen.feed(Reading("a-1"), Reading("b-1"))
    asked.clear()
    seen.advance(START_MS + 11 * SECOND_MS)
    assert asked == []
    assert alerts_of(seen.advance(START_MS + 19 * SECOND_MS)) == []
    seen.advance(START_MS + 21 * SECOND_MS)
    assert sorted(asked) == ["a-1", "b-1"]
    assert alerts_of(seen.advance(START_MS + 2 * MINUTE_MS)) == ["b-1"]
