"""The engine against the reference: equal twins and equal effects for any history, however it is cut.

Each test draws whole histories (see `histories`); what counts as right is the reference's business (tests/reference).
"""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings, strategies

from fleet_model import hashing, rules
from fleet_proto import fleet_pb2
from fleet_worker.core import effects
from tests.property import driving, histories
from tests.reference import raw

hard = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a failing history is made smaller by `smallest`, in seconds
)
seeds = strategies.integers(0, 2**32)


@hard
@given(histories.histories(), seeds)
def test_twins_and_effects_equal_the_reference_however_the_history_is_cut(history: histories.History, cut: int) -> None:
    assert not disagreements(history, cut), smallest(history, cut)


@hard
@given(histories.histories(), seeds)
def test_commits_that_fail_rows_that_leave_and_deaths_change_nothing(history: histories.History, cut: int) -> None:
    """An effect leaves with the commit that holds it, so a death before it takes the effect along and a replay brings it
    back under the same id."""
    assert not disagreements(history, cut, has_store=True), smallest(history, cut, has_store=True)


@hard
@given(histories.histories(), seeds, seeds)
def test_two_cuttings_of_one_history_give_the_same_twins_and_effects(
    history: histories.History, one: int, other: int
) -> None:
    assume(history.strict)
    first, second = (driving.run(history, driving.Cutting(random.Random(seed))) for seed in (one, other))
    assert by_device(first) == by_device(second)
    assert twins_of(first) == twins_of(second)


@pytest.mark.parametrize("seed", range(4))
def test_crowds_equal_the_reference(seed: int) -> None:
    """Hundreds of devices: tables that grow, rounds of many rows, batches long enough for every shortcut of decoding."""
    history = histories.draw(random.Random(seed), records_max=1500, crowd=300)
    found = driving.disagreements(
        history, driving.run(history, driving.Cutting(random.Random(seed) if seed % 2 else None))
    )
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("hours", [-1, 1])
@hard
@given(history=histories.histories(records_max=30))
def test_device_clocks_an_hour_wrong_change_neither_offline_nor_alerts(history: histories.History, hours: int) -> None:
    """Every device's clock is wrong by the same hour from the first record on. Ahead, none may be believed, so only
    histories count whose devices told no time that the rules already repaired."""
    right = without_extremes(history)
    shifted = with_shifted_clocks(right, hours * histories.HOUR_MS)
    if hours > 0:
        right = with_shifted_clocks(right, None)  # what a clock that nobody believes amounts to
    first, second = (driving.run(entry, driving.Cutting(None)) for entry in (right, shifted))
    assert alert_facts(first) == alert_facts(second)


@hard
@given(histories.histories())
def test_nobody_goes_offline_while_the_clock_stands_still(history: histories.History) -> None:
    """However long a worker was away: without a record or a poll nothing is due, and a second look finds nothing new."""
    outcome = driving.run(history, driving.Cutting(None))
    assert outcome.engine.advance(history.final_clock_ms) == []
    assert outcome.engine.advance(histories.BASE_MS) == []


@hard
@given(histories.histories())
def test_every_silent_device_is_reported_once_the_clock_has_passed_its_limit(history: histories.History) -> None:
    """Told from the outside: the last thing said of a device whose rule is on is that it is offline."""
    calm = dataclasses.replace(
        history,
        generations=(rules.RulesGeneration(),),
        final_clock_ms=history.final_clock_ms + 2 * histories.HOUR_MS,
        retention_ms=10**12,
    )
    outcome = driving.run(calm, driving.Cutting(None))
    state: dict[str, str] = {}
    for effect in outcome.effects:
        if effect.target == effects.Target.ALERTS and effect.trigger == "offline":
            alert = fleet_pb2.DeviceAlert.FromString(effect.data)
            state[alert.device_id] = fleet_pb2.AlertState.Name(alert.state)
    for device_id in heard_devices(calm):
        assert state[device_id] == "FIRING"


# What the tests look at


def disagreements(history: histories.History, cut: int, has_store: bool = False) -> list[str]:
    return driving.disagreements(history, driving.run(history, driving.Cutting(random.Random(cut), has_store)))


def smallest(history: histories.History, cut: int, has_store: bool = False) -> str:
    """A failing history with all left out that it fails without, and how it fails."""
    smaller = histories.smaller(history, lambda entry: bool(disagreements(entry, cut, has_store)))
    return "\n".join([repr(smaller), f"cut by seed {cut}", *disagreements(smaller, cut, has_store)])


def by_device(outcome: driving.Outcome) -> dict[tuple[str, effects.Target], list[effects.Effect]]:
    told: dict[tuple[str, effects.Target], list[effects.Effect]] = {}
    for effect in outcome.effects:
        told.setdefault((effect.partition_key, effect.target), []).append(effect)
    return told


def twins_of(outcome: driving.Outcome) -> dict[str, tuple[object, ...]]:
    """Rows and telemetry; the extra's bytes are compared with the reference, where only some of its fields mean something."""
    return {
        device_id: (row.tobytes(), None if extra is None else extra["alert_id"].tolist(), telemetry)
        for device_id, (row, extra, telemetry) in outcome.twins.items()
    }


def alert_facts(outcome: driving.Outcome) -> dict[str, list[tuple[object, ...]]]:
    """What an operator reads, without the device's own words (`last`)."""
    facts: dict[str, list[tuple[object, ...]]] = {}
    for effect in outcome.effects:
        if effect.target == effects.Target.ALERTS:
            alert = fleet_pb2.DeviceAlert.FromString(effect.data)
            facts.setdefault(alert.device_id, []).append(
                (alert.alert_id, alert.trigger, alert.state, alert.explanation, alert.timestamp)
            )
    return facts


def without_extremes(history: histories.History) -> histories.History:
    """Only what devices say themselves at the time they say it: the records whose timestamp is their arrival, each later
    than the device's one before. (Battery rules look at device time, so a repaired clock has to tell the same steps.)"""
    steps: list[histories.Step] = []
    said: dict[str, int] = {}
    for step in history.steps:
        if isinstance(step, histories.Idle):
            steps.append(step)
            continue
        (event, *others) = raw.events_of([step])
        if others or event.kind != "telemetry" or event.origin or step.arrival_ms <= said.get(event.device_id, 0):
            continue
        if steps and step.arrival_ms < max(said.values(), default=0):
            continue
        said[event.device_id] = step.arrival_ms
        message = fleet_pb2.Telemetry.FromString(event.telemetry)
        message.timestamp = step.arrival_ms
        steps.append(dataclasses.replace(step, data=message.SerializeToString()))
    return dataclasses.replace(history, steps=tuple(steps))


def with_shifted_clocks(history: histories.History, shift_ms: int | None) -> histories.History:
    """shift_ms None: clocks that tell nothing."""
    steps: list[histories.Step] = []
    for step in history.steps:
        if isinstance(step, raw.RawRecord):
            message = fleet_pb2.Telemetry.FromString(step.data)
            message.timestamp = 0 if shift_ms is None else message.timestamp + shift_ms
            step = dataclasses.replace(step, data=message.SerializeToString())
        steps.append(step)
    return dataclasses.replace(history, steps=tuple(steps))


def heard_devices(history: histories.History) -> set[str]:
    """Devices that sent something at least, in histories without any instruction about them, on this shard."""
    heard: set[str] = set()
    instructed: set[str] = set()
    for step in history.steps:
        if isinstance(step, raw.RawRecord):
            for event in raw.events_of([step]):
                (instructed if event.control else heard).add(event.device_id)
    key_range = history.identity.hash_key_range
    return {device_id for device_id in heard - instructed if device_id and hashing.hash_key(device_id) in key_range}
