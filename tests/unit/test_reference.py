"""The reference itself, held against values worked out by hand from docs/reference/rules.md."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import numpy as np
import pytest

from fleet_model import hashing, partition, rules
from fleet_proto import fleet_pb2
from fleet_worker.core import twins
from tests.reference import judge, model, raw
from tests.reference.words import BATTERY, OFFLINE, TEMPERATURE, Control, Effect, Event, Kind, Origin, Twin

T0 = 1_750_000_000_000
IDENTITY = partition.PartitionIdentity("default", "trucks", "telemetry", "shardId-000000000000")
MINUTE_MS = 60_000


class Shard:
    """Writes events with rising sequence numbers and takes a reference through them."""

    def __init__(self, *generations: rules.RulesGeneration, retention_ms: int = 86_400_000) -> None:
        self.fleet = model.ReferenceFleet(IDENTITY, generations or (rules.RulesGeneration(),), retention_ms)
        self.sequence = 100

    def event(self, arrival_ms: int, device_id: str, **fields: Any) -> Event:
        self.sequence += 1
        event = Event(Kind.TELEMETRY, device_id, arrival_ms, str(self.sequence), **fields)
        message = fleet_pb2.Telemetry(
            device_id=device_id,
            timestamp=event.timestamp_ms,
            temperature_c=event.temperature_c,
            battery_pct=event.battery_pct,
            cpu_load=event.cpu_load,
        )
        return dataclasses.replace(event, telemetry=message.SerializeToString())

    def telemetry(self, arrival_ms: int, device_id: str = "device-7", **fields: Any) -> list[Effect]:
        return self.fleet.apply([self.event(arrival_ms, device_id, **{"timestamp_ms": arrival_ms, **fields})])

    def control(self, arrival_ms: int, control: Control, device_id: str = "device-7") -> list[Effect]:
        self.sequence += 1
        return self.fleet.apply([Event(Kind.CONTROL, device_id, arrival_ms, str(self.sequence), control=control)])

    def heard(self, arrival_ms: int, device_id: str = "device-7") -> list[Effect]:
        self.sequence += 1
        return self.fleet.apply([Event(Kind.HEARD, device_id, arrival_ms, str(self.sequence))])

    @property
    def twin(self) -> Twin:
        return self.fleet.twins["device-7"]


def with_temperature(**fields: Any) -> rules.RulesGeneration:
    return rules.RulesGeneration(default=rules.Rules(temperature=rules.TemperatureRule(**fields)))


def with_offline(**fields: Any) -> rules.RulesGeneration:
    return rules.RulesGeneration(default=rules.Rules(offline=rules.OfflineRule(**fields)))


def with_battery(**fields: Any) -> rules.RulesGeneration:
    return rules.RulesGeneration(default=rules.Rules(battery=rules.BatteryRule(**fields)))


# Temperature


def test_the_third_record_of_75_degrees_alerts_and_cools_down() -> None:
    shard = Shard()
    sample: dict[str, Any] = {"temperature_c": 75.0, "battery_pct": 80.0, "cpu_load": 0.5}
    assert shard.telemetry(T0, **sample) == []
    assert shard.telemetry(T0 + 1000, **sample) == []
    alert, command = shard.telemetry(T0 + 2000, **sample)
    assert (alert.kind, alert.trigger, alert.state, alert.severity) == ("alert", "temp_spike", "firing", "critical")
    assert alert.explanation == "temperature 75.0°C above 60.0 for 3 samples"
    assert (alert.timestamp_ms, alert.generation, alert.sequence_number) == (T0 + 2000, 1, "103")
    assert (alert.fleet, alert.shard_id) == ("default/trucks", "shardId-000000000000")
    assert fleet_pb2.Telemetry.FromString(alert.last).timestamp == T0 + 2000
    assert (command.kind, command.command, command.parameters) == ("command", "cool_down", '{"target_c":55.0}')
    assert shard.twin.spike_run == 0
    assert shard.twin.open == [True, False, False]


def test_an_effect_id_is_the_documented_hash() -> None:
    parts = ["default", "trucks", "telemetry", "device-7", "alert", "temp_spike", "firing", "103", "0", "0"]
    plain = b"".join(struct.pack(">H", len(part)) + part.encode() for part in parts)
    expected = hashlib.blake2b(plain, digest_size=16).hexdigest()
    shard = Shard()
    found = [effect for second in range(3) for effect in shard.telemetry(T0 + second, temperature_c=75.0)]
    assert found[0].effect_id == expected


def test_an_open_alert_fires_again_when_the_run_completes_and_the_interval_has_passed() -> None:
    shard = Shard(with_temperature(consecutive_samples=1, repeat_interval_ms=60_000))
    assert len(shard.telemetry(T0, temperature_c=70.0)) == 2
    assert shard.telemetry(T0 + 59_999, temperature_c=70.0) == []
    assert len(shard.telemetry(T0 + 60_000, temperature_c=70.0)) == 2
    assert shard.twin.repeats[TEMPERATURE] == 2
    assert shard.twin.alert_ms[TEMPERATURE] == T0 + 60_000


def test_hysteresis_keeps_an_alert_open_and_clearing_starts_over() -> None:
    shard = Shard(with_temperature(consecutive_samples=1, resolved_notice=True))
    shard.telemetry(T0, temperature_c=70.0)
    assert shard.telemetry(T0 + 1, temperature_c=58.1) == []
    assert shard.twin.open[TEMPERATURE]
    (resolved,) = shard.telemetry(T0 + 2, temperature_c=58.0)
    assert (resolved.state, resolved.severity) == ("resolved", "info")
    assert resolved.explanation == "temperature back to 58.0°C"
    assert shard.twin.repeats[TEMPERATURE] == 0


def test_exactly_the_threshold_isnt_above_it() -> None:
    shard = Shard(with_temperature(consecutive_samples=1))
    assert shard.telemetry(T0, temperature_c=60.0) == []
    assert shard.twin.spike_run == 0


# Battery


def drain(shard: Shard, minutes: int, per_minute: float, cpu_load: float = 0.1) -> list[Effect]:
    found = []
    for minute in range(minutes + 1):
        found += shard.telemetry(
            T0 + minute * MINUTE_MS, battery_pct=80.0 - minute * per_minute, cpu_load=cpu_load, temperature_c=20.0
        )
    return found


def test_a_quick_drop_over_ten_idle_minutes_alerts() -> None:
    shard = Shard()
    assert drain(shard, 9, 0.5) == []
    alert, command = shard.telemetry(T0 + 10 * MINUTE_MS, battery_pct=75.0, cpu_load=0.1)
    assert (alert.trigger, alert.severity) == ("battery_drop", "warning")
    assert alert.explanation == "battery dropping 30.0%/h while idle"
    assert (command.command, command.parameters) == ("reduce_duty", "{}")
    assert (shard.twin.battery_idle_ms, shard.twin.battery_drop) == (600_000, 5.0)


def test_busy_and_charging_stretches_and_gaps_dont_count() -> None:
    shard = Shard()
    assert drain(shard, 20, 0.5, cpu_load=0.3) == []
    assert shard.twin.battery_idle_ms == 0
    shard = Shard()
    assert drain(shard, 20, -0.5) == []
    assert shard.twin.battery_idle_ms == 0
    shard = Shard()
    shard.telemetry(T0, battery_pct=80.0)
    assert shard.telemetry(T0 + 1000, timestamp_ms=T0 + 300_001, battery_pct=20.0) == []
    assert (shard.twin.battery_idle_ms, shard.twin.gaps) == (0, 1)


def test_the_curve_forgets_beyond_an_hour() -> None:
    shard = Shard(with_battery(enabled=False))
    drain(shard, 65, 0.125)
    assert shard.twin.battery_idle_ms == 3_600_000
    assert shard.twin.battery_drop == pytest.approx(7.5)


# Offline


def test_five_silent_minutes_are_offline_once_and_return_resolves() -> None:
    shard = Shard()
    shard.telemetry(T0, temperature_c=21.3, battery_pct=80.0, cpu_load=0.1)
    assert shard.fleet.advance(T0 + 299_999) == []
    alert, command = shard.fleet.advance(T0 + 400_000)
    assert (alert.trigger, alert.state, alert.severity) == ("offline", "firing", "warning")
    assert alert.explanation == "no telemetry for 300 s"
    assert (alert.timestamp_ms, alert.sequence_number) == (T0 + 300_000, "101")
    last = fleet_pb2.Telemetry.FromString(alert.last)
    assert (last.timestamp, last.temperature_c, last.cpu_load) == (T0, 21.3, 0.1)
    assert (command.command, command.timestamp_ms) == ("ping", T0 + 300_000)
    assert shard.fleet.advance(T0 + 10_000_000) == []
    (resolved,) = shard.telemetry(T0 + 20_000_000)
    assert (resolved.state, resolved.explanation) == ("resolved", "telemetry is back")
    assert shard.twin.open == [False, False, False]


def test_a_record_settles_what_was_due_before_it_though_no_poll_came() -> None:
    shard = Shard()
    shard.telemetry(T0)
    found = shard.telemetry(T0 + 300_000)
    assert [(effect.kind, effect.state) for effect in found] == [
        ("alert", "firing"),
        ("command", "firing"),
        ("alert", "resolved"),
    ]


def test_offline_repeats_at_most_24_times_and_not_once_acknowledged() -> None:
    shard = Shard(with_offline(after_ms=60_500, repeat_interval_ms=1000, command=None))
    shard.telemetry(T0)
    found = shard.fleet.advance(T0 + 62_500)
    assert [effect.explanation for effect in found] == [
        "no telemetry for 60.5 s",
        "no telemetry for 61.5 s",
        "no telemetry for 62.5 s",
    ]
    shard.control(T0 + 62_600, Control("acknowledge", alert_id=found[1].effect_id))
    assert not shard.twin.acknowledged[OFFLINE]  # not the last firing's
    shard.control(T0 + 62_600, Control("acknowledge", alert_id=found[2].effect_id))
    assert shard.twin.acknowledged[OFFLINE]
    assert shard.fleet.advance(T0 + 10**7) == []
    shard = Shard(with_offline(repeat_interval_ms=1000, command=None))
    shard.telemetry(T0)
    assert len(shard.fleet.advance(T0 + 10**8)) == 24


def test_the_devices_own_clock_never_decides_offline() -> None:
    shard = Shard()
    shard.telemetry(T0, timestamp_ms=T0 - 3_600_000)
    assert shard.fleet.advance(T0 + 299_999) == []


# Time


def test_duplicates_and_late_records_are_counted_and_heard() -> None:
    shard = Shard()
    shard.telemetry(T0, temperature_c=20.0)
    shard.telemetry(T0 + 1000, timestamp_ms=T0, temperature_c=99.0)
    assert (shard.twin.late, shard.twin.samples, shard.twin.last[0]) == (1, 1, 20.0)
    assert shard.twin.last_arrival_ms == T0 + 1000


def test_ten_rising_late_records_over_five_minutes_are_a_clock_set_back() -> None:
    shard = Shard()
    shard.telemetry(T0)
    back = T0 - 3_600_000
    for minute in range(9):
        shard.telemetry(T0 + (minute + 1) * MINUTE_MS, timestamp_ms=back + minute * MINUTE_MS)
    assert (shard.twin.samples, shard.twin.late_run, shard.twin.late_span_ms) == (1, 9, 480_000)
    shard.telemetry(T0 + 10 * MINUTE_MS, timestamp_ms=back + 9 * MINUTE_MS, temperature_c=33.0)
    assert (shard.twin.samples, shard.twin.late_run, shard.twin.late) == (2, 0, 10)
    assert shard.twin.last_timestamp_ms == back + 9 * MINUTE_MS
    assert shard.twin.minimum[0] == shard.twin.maximum[0] == 33.0


@pytest.mark.parametrize(
    ("ahead_ms", "taken_ms", "skewed"), [(300_000, 300_000, 0), (300_001, 0, 1), (86_400_000, 0, 1)]
)
def test_clocks_ahead_are_believed_for_five_minutes(ahead_ms: int, taken_ms: int, skewed: int) -> None:
    shard = Shard()
    shard.telemetry(T0, timestamp_ms=T0 + ahead_ms)
    assert (shard.twin.last_timestamp_ms, shard.fleet.skewed) == (T0 + taken_ms, skewed)


def test_a_day_ahead_is_refused_but_heard() -> None:
    shard = Shard()
    shard.telemetry(T0, timestamp_ms=T0 + 86_400_001)
    assert (shard.twin.samples, shard.twin.last_arrival_ms) == (0, T0)


def test_arrivals_never_fall_and_stand_in_for_missing_timestamps() -> None:
    shard = Shard()
    shard.telemetry(T0 + 5000)
    shard.telemetry(T0, timestamp_ms=0)
    assert (shard.twin.late, shard.twin.last_arrival_ms) == (1, T0 + 5000)


def test_a_record_put_again_is_judged_by_when_it_first_came() -> None:
    shard = Shard()
    origin = Origin("shardId-000000000009", "7", 0, T0, 1)
    shard.telemetry(T0 + 60_000, timestamp_ms=0, origin=origin)
    assert (shard.twin.last_timestamp_ms, shard.twin.last_arrival_ms) == (T0, T0 + 60_000)


# Statistics


def test_mean_and_variance_by_the_backward_euler_weight() -> None:
    shard = Shard()
    shard.telemetry(T0, temperature_c=10.0)
    shard.telemetry(T0 + 100_000, temperature_c=20.0)
    share = 100_000 / 3_700_000
    assert shard.twin.mean[0] == model.single(10.0 + share * 10.0)
    assert shard.twin.variance[0] == model.single((1 - share) * share * 10.0 * 10.0)


def test_extremes_cover_this_and_the_last_half_hour() -> None:
    shard = Shard()
    start = T0 - T0 % 1_800_000
    for minute, value in ((0, 10.0), (1, 30.0), (31, 20.0)):
        shard.telemetry(start + minute * MINUTE_MS, temperature_c=value)
    twin = shard.twin
    assert (twin.minimum[0], twin.maximum[0], twin.previous_minimum[0], twin.previous_maximum[0]) == (20, 20, 10, 30)
    shard.telemetry(start + 95 * MINUTE_MS, temperature_c=25.0)
    twin = shard.twin
    assert (twin.minimum[0], twin.maximum[0], twin.previous_minimum[0], twin.previous_maximum[0]) == (25, 25, 25, 25)


# Control


def test_an_override_holds_from_the_next_record_and_older_instructions_are_ignored() -> None:
    shard = Shard(with_temperature(consecutive_samples=1))
    shard.control(T0, Control("update_threshold", T0, TEMPERATURE, 80.0))
    assert shard.telemetry(T0 + 1, temperature_c=75.0) == []
    shard.control(T0 + 2, Control("clear_override", T0 - 1, TEMPERATURE))
    assert shard.twin.overrides[TEMPERATURE] == 80.0
    shard.control(T0 + 3, Control("clear_override", T0 + 3, -1))
    alert, _ = shard.telemetry(T0 + 4, temperature_c=75.0)
    assert alert.explanation == "temperature 75.0°C above 60.0 for 1 samples"
    assert shard.twin.override_issued_ms == [T0 + 3] * 3


def test_an_offline_override_comes_in_seconds() -> None:
    shard = Shard()
    shard.telemetry(T0)
    shard.control(T0, Control("update_threshold", T0, OFFLINE, 30.0004))
    assert shard.twin.overrides[OFFLINE] == 30_000
    alert, _ = shard.fleet.advance(T0 + 30_000)
    assert alert.explanation == "no telemetry for 30 s"


def test_instructions_for_unknown_devices_leave_nothing_but_overrides_and_stamps() -> None:
    shard = Shard()
    shard.control(T0, Control("acknowledge", T0, alert_id="0" * 32), "a")
    shard.control(T0, Control("clear_override", T0, -1), "b")
    shard.control(T0, Control("update_threshold", T0, BATTERY, 5.0), "c")
    shard.control(T0, Control("forget_device", T0), "d")
    assert set(shard.fleet.twins) == {"c", "d"}


def test_a_forgotten_device_leaves_a_stamp_that_late_records_dont_lift() -> None:
    shard = Shard(retention_ms=1_000_000)
    shard.telemetry(T0, temperature_c=75.0)
    shard.control(T0 + 10, Control("forget_device", T0 + 10))
    assert (shard.twin.forgotten, shard.twin.samples, shard.twin.last_timestamp_ms) == (True, 0, T0 + 10)
    shard.telemetry(T0 + 20, timestamp_ms=T0 + 5)
    assert (shard.twin.forgotten, shard.twin.late, shard.twin.last_arrival_ms) == (True, 1, T0 + 10)
    assert shard.fleet.advance(T0 + 1_000_009) == []
    assert shard.twin.forgotten
    shard.telemetry(T0 + 1_000_009, timestamp_ms=T0 + 11)
    assert (shard.twin.forgotten, shard.twin.samples) == (False, 1)


def test_a_stamp_goes_after_the_retention_whether_a_scan_or_a_record_comes_first() -> None:
    for scans_first in (True, False):
        shard = Shard(retention_ms=1_000_000)
        shard.control(T0, Control("forget_device", T0))
        if scans_first:
            shard.fleet.advance(T0 + 1_000_000)
            assert shard.fleet.twins == {}
        shard.telemetry(T0 + 1_000_000, timestamp_ms=T0 - 5)
        assert (shard.twin.samples, shard.twin.late) == (1, 0)


def test_forgetting_before_the_device_spoke_last_is_ignored() -> None:
    shard = Shard()
    shard.telemetry(T0)
    shard.control(T0 + 1, Control("forget_device", T0 - 1))
    assert not shard.twin.forgotten


# Generations and profiles


def test_a_generation_starts_with_a_scan_by_the_rules_before() -> None:
    old = with_offline(after_ms=60_000)
    new = dataclasses.replace(with_offline(enabled=False), generation=2, effective_ms=T0 + 100_000)
    shard = Shard(old, new)
    shard.telemetry(T0, "device-7")
    alert, _ = shard.telemetry(T0 + 200_000, "device-8")
    assert (alert.device_id, alert.generation) == ("device-7", 1)


def test_of_generations_with_one_start_only_the_last_holds() -> None:
    first = with_offline(enabled=False)
    second = dataclasses.replace(with_offline(after_ms=1), generation=2, effective_ms=T0 + 10)
    third = dataclasses.replace(with_offline(after_ms=1000), generation=3, effective_ms=T0 + 10)
    shard = Shard(first, second, third)
    shard.telemetry(T0)
    assert shard.fleet.advance(T0 + 999) == []
    alert, _ = shard.fleet.advance(T0 + 1000)
    assert alert.generation == 3


def test_an_accepted_records_firmware_counts_for_itself_but_not_for_settling_before_it() -> None:
    strict = rules.Rules(
        temperature=rules.TemperatureRule(consecutive_samples=1, threshold=10.0),
        offline=rules.OfflineRule(after_ms=1000),
    )
    profile = rules.Profile("two", rules.Match(firmware="2"), strict)
    shard = Shard(rules.RulesGeneration(profiles=(profile,)))
    shard.telemetry(T0, temperature_c=20.0)
    found = shard.telemetry(T0 + 2000, temperature_c=20.0, firmware="2")
    assert [effect.trigger for effect in found] == ["temp_spike", "temp_spike"]
    found = shard.telemetry(T0 + 4000, temperature_c=0.0, firmware="1")
    assert [effect.state for effect in found] == ["firing", "firing", "resolved"]


# Routing, and what a child inherits


def test_devices_outside_the_range_are_put_again_once() -> None:
    half = hashing.HashKeyRange(0, hashing.HASH_KEY_MAX // 2)
    identity = dataclasses.replace(IDENTITY, hash_key_range=half)
    fleet = model.ReferenceFleet(identity, [rules.RulesGeneration()])
    outside = next(f"d{number}" for number in range(99) if hashing.hash_key(f"d{number}") not in half)
    event = Event(Kind.TELEMETRY, outside, T0, "1")
    origin = Origin("shardId-000000000009", "7", 0, T0, 1)
    fleet.apply([event, dataclasses.replace(event, sequence_number="2", origin=origin)])
    assert (len(fleet.misrouted), len(fleet.second_hops), fleet.twins) == (1, 1, {})


def test_a_child_starts_with_the_twins_of_its_range_and_its_parents_time() -> None:
    shard = Shard()
    for number in range(20):
        shard.telemetry(T0 + number, f"d{number}")
    shard.fleet.advance(T0 + 1000)
    half = hashing.HashKeyRange(0, hashing.HASH_KEY_MAX // 2)
    child = model.ReferenceFleet(dataclasses.replace(IDENTITY, hash_key_range=half), [rules.RulesGeneration()])
    child.inherit([shard.fleet])
    assert set(child.twins) == {device for device in shard.fleet.twins if hashing.hash_key(device) in half}
    assert (child.high_arrival_ms, child.clock_ms) == (T0 + 19, T0 + 1000)


def test_a_merged_child_scans_the_slower_parents_twins_at_a_generations_start() -> None:
    """By the rules before it, under which they were due then."""
    patient = dataclasses.replace(rules.Rules(), offline=rules.OfflineRule(after_ms=3_600_000))
    generations = [rules.RulesGeneration(), rules.RulesGeneration(2, T0 + 301_000, patient)]
    parents = [model.ReferenceFleet(IDENTITY, generations) for _ in range(2)]
    for number, parent in enumerate(parents):
        parent.apply([Event(Kind.TELEMETRY, f"d{number}", T0, str(number + 1))])
    assert parents[0].advance(T0 + 1_000) == []
    assert [effect.device_id for effect in parents[1].advance(T0 + 400_000) if effect.kind == "alert"] == ["d1"]
    child = model.ReferenceFleet(IDENTITY, generations)
    assert [effect.device_id for effect in child.inherit(parents) if effect.kind == "alert"] == ["d0"]


# Raw records


def raw_event(data: bytes) -> Event:
    (event,) = raw.events_of([raw.RawRecord("5", T0, data)])
    return event


def test_the_seeds_json_record_is_telemetry() -> None:
    event = raw_event(b'{"device_id":"device-7","temperature_c":75,"battery_pct":80,"cpu_load":0.5,"timestamp":1700}\n')
    assert (event.kind, event.device_id, event.temperature_c, event.timestamp_ms) == (
        Kind.TELEMETRY,
        "device-7",
        75.0,
        1700,
    )


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"\x0a\x05ab", Kind.UNREADABLE, "undecodable"),
        (fleet_pb2.Telemetry(temperature_c=1).SerializeToString(), Kind.UNREADABLE, "empty_id"),
        (fleet_pb2.Telemetry(device_id="é" * 129).SerializeToString(), Kind.UNREADABLE, "id_too_long"),
        (fleet_pb2.Telemetry(device_id="d", cpu_load=float("inf")).SerializeToString(), Kind.HEARD, "not_finite"),
        (fleet_pb2.Telemetry(device_id="d", cpu_load=1.1e9).SerializeToString(), Kind.HEARD, "out_of_range"),
        (fleet_pb2.Telemetry(device_id="d", location="x" * 1025).SerializeToString(), Kind.HEARD, "string_too_long"),
        (b'{"device_id":"d","temperature_c":NaN}', Kind.HEARD, "not_finite"),
        (b'{"device_id":"d","temperature_c":"75"}', Kind.HEARD, "wrong_type"),
        (b'{"device_id":"d","x":' + b"[" * 32 + b"]" * 32 + b"}", Kind.UNREADABLE, "json_too_deep"),
        (b'{"device_id":7}', Kind.UNREADABLE, "wrong_type"),
        (b'{"device_id":"d"', Kind.UNREADABLE, "undecodable"),
        (b'{"device_id":"d","control":{}}', Kind.UNREADABLE, "bad_control"),
        (raw.KPL_MAGIC + b"x" * 20, Kind.UNREADABLE, "kpl_checksum"),
    ],
)
def test_poison_is_told_by_its_reason(data: bytes, kind: Kind, reason: str) -> None:
    event = raw_event(data)
    assert (event.kind, event.reason) == (kind, reason)


@pytest.mark.parametrize(
    "control",
    [
        Control("update_threshold", T0, OFFLINE, 30.5),
        Control("clear_override", 0, -1),
        Control("clear_override", T0, BATTERY),
        Control("acknowledge", T0, alert_id="0123456789abcdef" * 2),
        Control("forget_device", T0),
    ],
)
def test_instructions_read_the_same_from_protobuf_and_json(control: Control) -> None:
    message = raw.control_message("d", control)
    assert raw_event(message.SerializeToString()).control == control
    assert raw_event(raw.as_json(message)).control == control


def test_aggregated_records_come_apart_in_order() -> None:
    parts = [(f"d{number}", fleet_pb2.Telemetry(device_id=f"d{number}").SerializeToString()) for number in range(3)]
    found = raw.events_of([raw.RawRecord("5", T0, raw.aggregated(parts))])
    assert [(event.device_id, event.subsequence_number) for event in found] == [("d0", 0), ("d1", 1), ("d2", 2)]


# The judge itself


def spike() -> tuple[list[Effect], list[bytes], list[bytes]]:
    """Expected effects, and the messages that say the same."""
    shard = Shard(with_temperature(consecutive_samples=1))
    expected = [effect for number in range(3) for effect in shard.telemetry(T0 + number, temperature_c=70.0)]
    alerts, commands = [], []
    for effect in expected:
        if effect.kind == "alert":
            alert = fleet_pb2.DeviceAlert(
                device_id=effect.device_id,
                trigger=effect.trigger,
                severity=effect.severity,
                explanation=effect.explanation,
                last=fleet_pb2.Telemetry.FromString(effect.last),
                timestamp=effect.timestamp_ms,
                alert_id=effect.effect_id,
                fleet=effect.fleet,
                generation=effect.generation,
                shard_id=effect.shard_id,
                sequence_number=effect.sequence_number,
            )
            alerts.append(alert.SerializeToString())
        else:
            command = fleet_pb2.DeviceCommand(
                device_id=effect.device_id,
                command=effect.command,
                parameters=effect.parameters,
                timestamp=effect.timestamp_ms,
                command_id=effect.effect_id,
                fleet=effect.fleet,
                generation=effect.generation,
            )
            commands.append(command.SerializeToString())
    return expected, alerts, commands


def test_the_judge_is_content_with_what_was_expected_and_counts_repeats() -> None:
    expected, alerts, commands = spike()
    verdict = judge.judge_effects(expected, alerts + alerts[1:], commands)
    assert verdict.is_good
    assert verdict.repeated == 2


def test_the_judge_tells_missing_unexpected_different_and_misordered_effects() -> None:
    expected, alerts, commands = spike()
    assert len(judge.judge_effects(expected, alerts[1:], commands).missing) == 1
    assert len(judge.judge_effects(expected[1:], alerts, commands).unexpected) == 1
    assert judge.judge_effects(expected, [alerts[1], alerts[0], alerts[2]], commands).misordered
    other = fleet_pb2.DeviceCommand.FromString(commands[0])
    other.parameters = "{}"
    verdict = judge.judge_effects(expected, alerts, [other.SerializeToString(), *commands[1:]])
    assert len(verdict.different) == 1
    assert "parameters" in str(verdict)


def filled(dtype: np.dtype[np.void], **fields: int) -> np.void:
    rows = np.zeros(1, dtype=dtype)
    for name, value in fields.items():
        rows[name] = value
    row: np.void = rows[0]
    return row


def test_the_judge_tells_every_field_in_which_a_row_differs() -> None:
    assert judge.judge_twin(Twin(), filled(twins.TWIN_DTYPE), None, None) == []
    for name in set(twins.TWIN_DTYPE.names or ()) - {"commit", "spare"}:
        assert judge.judge_twin(Twin(), filled(twins.TWIN_DTYPE, **{name: 1}), None, None), name
    with_details = filled(twins.TWIN_DTYPE, flags=int(twins.Flag.EXTRA))
    assert judge.judge_twin(Twin(extra=True), with_details, filled(twins.EXTRA_DTYPE), None) == []
    assert judge.judge_twin(Twin(extra=True), filled(twins.TWIN_DTYPE), filled(twins.EXTRA_DTYPE), None)
    for name in set(twins.EXTRA_DTYPE.names or ()) - {"override"}:
        assert judge.judge_twin(Twin(extra=True), with_details, filled(twins.EXTRA_DTYPE, **{name: 1}), None), name
    overridden = Twin(extra=True, overrides=[5.0, None, None])
    assert judge.judge_twin(overridden, with_details, filled(twins.EXTRA_DTYPE), None)
    assert judge.judge_twins({"a": Twin()}, {}) == ["'a': expected, isn't there"]
