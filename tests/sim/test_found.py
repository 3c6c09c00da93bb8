"""Schedules that found bugs once, by hand and in few events: they outlive every change of how schedules are drawn."""

from __future__ import annotations

import dataclasses

import pytest

from fleet_model import rules
from tests.sim import schedule, world
from tests.sim.schedule import Event, Kind
from tests.support import piped

CALM = dataclasses.replace(
    schedule.draw(1).setting,
    shards=1,
    workers=1,
    interval_s=20.0,
    standby_replicas=0,
    weather=schedule.Weather(),
    ends_s=120.0,
    drain_s=5.0,
    clock_offset_ms=0,
    list_lag_s=0.0,
)


def records(*times_s: float) -> list[Event]:
    made = [(at_s, *piped.sample(f"truck-{number}")) for number, at_s in enumerate(times_s)]
    return [Event(at_s, Kind.PUT, key=key, data=data) for at_s, key, data in made]


def edit(at_s: float, default: rules.Rules) -> Event:
    return Event(at_s, Kind.EDIT, rule=rules.RulesGeneration(default=default))


SOON_OFFLINE = rules.Rules(offline=rules.OfflineRule(after_ms=20_000, repeat_interval_ms=1_000))
FOUND = {
    "children aren't seen before their parents": [
        Event(5.0, Kind.KINESIS_AWAY, seconds=90.0),
        *records(20.0, 30.0, 40.0),
        Event(45.0, Kind.SPLIT),
        Event(50.0, Kind.MERGE),
        Event(55.0, Kind.SPLIT),
    ],
    "a closed partition stays closed when its environment can't be": [
        *records(10.0, 20.0),
        Event(45.0, Kind.OBJECTS_AWAY, seconds=70.0),
        Event(60.0, Kind.SPLIT),
        Event(100.0, Kind.DISK_ERROR),
    ],
    "a force-deleted owner that lives on doesn't stop its successor for good": [
        *records(10.0, 20.0),
        Event(30.0, Kind.SPLIT),
        Event(33.0, Kind.TWIN, seconds=80.0),
        *records(40.0, 60.0, 80.0),
    ],
    "edits of one moment follow one another": [
        *records(10.0),
        Event(20.0, Kind.EDIT, rule=CALM.generation),
        Event(20.0, Kind.EDIT, rule=CALM.generation),
    ],
    "a disk error that hasn't struck when all is over doesn't spoil the last stop": [
        edit(5.0, rules.Rules(offline=rules.OfflineRule(after_ms=100_000, repeat_interval_ms=1_000))),
        *records(10.0),
        Event(119.5, Kind.DISK_ERROR),
    ],
    "nobody is cut off from the control plane before it has heard of the last edit": [
        *records(10.0),
        edit(12.0, rules.Rules()),
        Event(20.0, Kind.PAUSE, seconds=15.0),
        edit(25.0, rules.Rules(temperature=rules.TemperatureRule(enabled=False))),
        Event(30.0, Kind.CONTROL_AWAY, seconds=40.0),
        *(Event(50.0, Kind.PUT, key=key, data=data) for key, data in piped.spike("truck-9")),
    ],
    "a fleet isn't at rest before its clocks are where a former owner's was": [
        edit(5.0, SOON_OFFLINE),
        *records(10.0),
        Event(40.0, Kind.CUT_CONTROL, seconds=80.0),
        Event(50.0, Kind.CUT_KINESIS, 1, seconds=70.0),
    ],
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_found_once_is_found_no_more(name: str, workers: int) -> None:
    events = sorted(FOUND[name], key=lambda event: event.at_s)
    setting = dataclasses.replace(CALM, workers=workers)
    assert world.run(schedule.Schedule(setting, tuple(events))).problems == []
