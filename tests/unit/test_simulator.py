"""The simulated fleet: the same seed tells the same story, healthy devices overstep no rule, each fault oversteps its own,
and the producer loses nothing and keeps each device's order."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest

from fleet_cli.simulator import commands, devices, encoding, faults, places, producer, runner, schedule
from fleet_model import parse, spec
from fleet_proto import fleet_pb2
from fleet_worker import errors
from fleet_worker.adapters import memory_kinesis
from fleet_worker.core import decode
from fleet_worker.core import records as worker_records
from tests.support import virtual_time

START_MS = 1_700_000_000_000

FLEET = parse.parse(
    {
        "apiVersion": parse.API_VERSION,
        "kind": parse.KIND,
        "metadata": {"name": "test"},
        "spec": {
            "streams": {"telemetry": {"name": "t"}, "alerts": {"name": "a"}, "commands": {"name": "c"}},
            "rules": {"offline": {"after": "20s"}},
            "profiles": [
                {
                    "name": "trucks",
                    "match": {"deviceIdPrefix": "truck-"},
                    "rules": {"temperature": {"threshold": 80.0}, "offline": {"after": "40s"}},
                }
            ],
        },
    }
)


def fleet_of(count: int, shares: str = "", time_scale: float = 1.0) -> devices.Fleet:
    """Limits are 60 °C and 60 s."""
    settings = devices.Settings(count, 10.0, 7, time_scale, faults.parse(shares))
    return devices.Fleet(settings, devices.Limits.same(count, 60.0, 60.0))


def turns(fleet: devices.Fleet, seconds: float) -> Iterator[devices.Samples]:
    """Everybody's samples, every 10 s."""
    index = np.arange(len(fleet.ids))
    for turn in range(round(seconds / 10.0)):
        at_s = 10.0 * turn + 10.0 * index / len(index)
        yield fleet.measure(index, at_s, np.random.default_rng([7, turn]))


def history(
    count: int, seconds: float, shares: str = "", time_scale: float = 1.0
) -> tuple[devices.Fleet, list[devices.Samples]]:
    fleet = fleet_of(count, shares, time_scale)
    return fleet, list(turns(fleet, seconds))


def by_device(told: list[devices.Samples]) -> dict[int, list[tuple[float, float, float, float]]]:
    """device → (time, temperature, battery, cpu load), in order."""
    found: dict[int, list[tuple[float, float, float, float]]] = collections.defaultdict(list)
    for samples in told:
        rows = zip(
            samples.index.tolist(),
            samples.at_s.tolist(),
            samples.temperature_c.tolist(),
            samples.battery_pct.tolist(),
            samples.cpu_load.tolist(),
            strict=True,
        )
        for device, *values in rows:
            found[device].append((values[0], values[1], values[2], values[3]))
    return found


# ── the --faults text ────────────────────────────────────────────────────────────────────────────────────────────


def test_faults_are_read_as_percent_or_as_a_share() -> None:
    shares = faults.parse(" hot=1%, silent=0.02 ,json=100%")
    assert (shares.hot, shares.silent, shares.json, shares.drain) == (0.01, 0.02, 1.0, 0.0)
    assert faults.parse(faults.describe(shares)) == shares
    assert faults.parse("") == faults.Shares()
    assert faults.describe(faults.Shares()) == "none"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hot", "NAME=SHARE"),
        ("warm=1%", "there are hot, drain, silent, clock, poison, duplicate, json"),
        ("hot=101%", "between 0% and 100%"),
        ("hot=1.2.3%", "not a number"),
        ("hot=1%,hot=2%", "given twice"),
    ],
)
def test_a_fault_that_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(faults.FaultsSpecError, match=said):
        faults.parse(text)


# ── schedule ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("interval_s", [0.02, 0.5, 10.0])
def test_every_device_speaks_once_an_interval_with_jitter(interval_s: float) -> None:
    planned = schedule.Schedule(50, interval_s, 3)
    spoken = collections.defaultdict(list)
    last_s = 0.0
    for window in range(round(10 * interval_s / planned.window_s)):
        index, at_s = planned.due(window)
        assert len(set(index.tolist())) == len(index), "a device is in a window once"
        for device, when in zip(index.tolist(), at_s.tolist(), strict=True):
            assert last_s <= when < (window + 1) * planned.window_s
            last_s = when
            spoken[device].append(when)
    assert all(9 <= len(times) <= 10 for times in spoken.values())
    steps = np.concatenate([np.diff(times) for times in spoken.values()])
    assert steps.min() >= 0.79 * interval_s
    assert steps.max() <= 1.21 * interval_s
    assert steps.std() > 0.02 * interval_s, "no jitter"
    firsts = np.array([times[0] for times in spoken.values()])
    assert firsts.max() - firsts.min() > 0.7 * interval_s, "not spread over the interval"


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_tells_the_same_and_another_does_not() -> None:
    options = runner.Options(300, 100.0, 11, faults.parse("hot=5%,drain=5%,silent=5%,poison=5%,duplicate=5%,json=5%"))

    def told(options: runner.Options) -> list[encoding.Record]:
        simulation = runner.Simulation(FLEET, options, lambda _: None)
        return [record for window in range(150) for record in simulation.records(window, START_MS)]

    first = told(options)
    assert first == told(options)
    assert len(first) > 1000
    assert first != told(dataclasses.replace(options, seed=12))


@pytest.mark.parametrize("time_scale", [1.0, 20.0])
def test_healthy_devices_overstep_no_rule(time_scale: float) -> None:
    _, told = history(200, 1200.0, time_scale=time_scale)
    for samples in by_device(told).values():
        temperatures = [temperature for _, temperature, _, _ in samples]
        assert -10.0 < min(temperatures) < max(temperatures) < 55.0
        assert all(0.0 <= battery <= 100.0 and 0.0 <= load <= 1.0 for _, _, battery, load in samples)
        for (then_s, _, battery_then, load_then), (now_s, _, battery, load) in itertools.pairwise(samples):
            assert now_s - then_s < 15.0, "nobody falls silent"
            if load_then < 0.3 and load < 0.3 and battery <= battery_then:
                assert (battery_then - battery) / (now_s - then_s) * 3600.0 < 5.0


def test_days_are_warmer_than_nights_and_trucks_drive_on_land() -> None:
    longitude, day, night = np.array([15.0]), np.array([14 * 3600.0]), np.array([2 * 3600.0])
    warm = places.ambient_c(np.array([20.0]), np.array([6.0]), longitude, day)
    cold = places.ambient_c(np.array([20.0]), np.array([6.0]), longitude, night)
    assert (warm[0], cold[0]) == (pytest.approx(26.0), pytest.approx(14.0))
    fleet, told = history(100, 600.0)
    seen = collections.defaultdict(list)
    for samples in told:
        for device, place in zip(samples.index.tolist(), samples.location, strict=True):
            seen[fleet.ids[device]].append(tuple(map(float, place.split(","))))
    for device_id, way in seen.items():
        moved_km = np.hypot(*(np.array(way[-1]) - np.array(way[0]))) * 111.0
        if device_id.startswith("truck-"):
            assert 1.0 < moved_km < 25.0, device_id  # ten minutes on the road
        else:
            assert moved_km == 0.0


def test_batteries_are_charged_again_and_firmware_rolls_out() -> None:
    _, told = history(60, 3600.0, time_scale=24.0)
    charged = 0
    for samples in by_device(told).values():
        levels = [battery for _, _, battery, _ in samples]
        charged += any(now > then for then, now in itertools.pairwise(levels))
        assert min(levels) > 1.0
    assert charged > 40
    newer = [np.mean([version == devices.FIRMWARES[1] for version in samples.firmware]) for samples in told]
    assert 0.0 < newer[0] < 0.3
    assert newer[-1] > 0.95
    assert all(then <= now for then, now in itertools.pairwise(newer)), "a rollout goes one way"


def test_hot_devices_stay_above_their_limit_until_told_to_cool_down() -> None:
    _, told = history(100, 1200.0, "hot=10%")
    rows = by_device(told)
    hot = {device for device in rows if max(row[1] for row in rows[device]) > 60.0}
    assert len(hot) == 10
    for device in hot:
        assert "1111" in "".join("01"[row[1] > 60.0] for row in rows[device])

    fleet = fleet_of(100, "hot=10%")
    told_at: dict[int, float] = {}
    for samples in turns(fleet, 1200.0):
        for device, now_s, temperature in zip(
            samples.index.tolist(), samples.at_s.tolist(), samples.temperature_c.tolist(), strict=True
        ):
            if temperature > 60.0 and device not in told_at:
                told_at[device] = now_s
                assert fleet.react(fleet.ids[device], "cool_down", 55.0, now_s)
            elif device in told_at and 30.0 < now_s - told_at[device] < 180.0:
                assert temperature < 60.0
    assert told_at.keys() == hot


@pytest.mark.parametrize("obey", [False, True])
def test_draining_devices_lose_charge_while_idle_until_told_to_reduce_duty(obey: bool) -> None:
    fleet = fleet_of(40, "drain=25%")
    last: dict[int, tuple[float, float, float]] = {}
    steep: collections.Counter[int] = collections.Counter()
    for samples in turns(fleet, 3 * 3600.0):
        columns = (samples.index, samples.at_s, samples.battery_pct, samples.cpu_load)
        for device, now_s, battery, load in zip(*(column.tolist() for column in columns), strict=True):
            then_s, battery_then, load_then = last.get(device, (now_s - 1.0, battery, 1.0))
            last[device] = (now_s, battery, load)
            if max(load, load_then) < 0.3 and (battery_then - battery) / (now_s - then_s) * 3600.0 > 10.0:
                steep[device] += 1
                if obey:
                    assert fleet.react(fleet.ids[device], "reduce_duty", None, now_s)
    assert len(steep) == 10
    if obey:
        assert max(steep.values()) <= 4, "each is told once an episode"
    else:
        assert min(steep.values()) > 60, "ten minutes at least, or the rule sees nothing"


def test_silent_devices_stop_for_longer_than_their_limit_and_return() -> None:
    _, told = history(100, 2500.0, "silent=10%")
    gaps = {
        device: max(now[0] - then[0] for then, now in itertools.pairwise(rows))
        for device, rows in by_device(told).items()
    }
    silent = {device: gap for device, gap in gaps.items() if gap > 15.0}
    assert len(silent) == 10
    assert all(70.0 < gap < 200.0 for gap in silent.values()), silent


def test_devices_know_their_profiles_limits() -> None:
    limits = runner.limits(FLEET, ["sensor-0", "truck-7"])
    assert limits.temperature_c.tolist() == [60.0, 80.0]
    assert limits.offline_s.tolist() == [20.0, 40.0]


def test_a_command_for_nobody_or_of_an_unknown_name_moves_nothing() -> None:
    fleet, _ = history(10, 1.0)
    assert not fleet.react("sensor-99", "cool_down", 55.0, 1.0)
    assert not fleet.react("sensor-0", "self_destruct", None, 1.0)
    assert fleet.react("sensor-0", "ping", None, 1.0)


# ── how they speak ───────────────────────────────────────────────────────────────────────────────────────────────


def spoken(shares: str) -> tuple[devices.Fleet, list[encoding.Record]]:
    fleet, told = history(200, 60.0, shares)
    generator = np.random.default_rng(1)
    return fleet, [record for samples in told for record in encoding.records(fleet, samples, START_MS, generator)]


def test_telemetry_is_protobuf_under_the_devices_key() -> None:
    fleet, records = spoken("")
    assert len(records) > 1000
    for key, data in records:
        message = fleet_pb2.Telemetry.FromString(data)
        assert message.device_id == key
        assert START_MS <= message.timestamp <= START_MS + 62_000
        assert message.firmware in devices.FIRMWARES
    assert len({key for key, _ in records}) == len(fleet.ids)


def test_some_speak_json_with_and_without_a_line_end() -> None:
    fleet, records = spoken("json=100%")
    assert {data[-1:] for _, data in records} == {b"}", b"\n"}
    told = json.loads(records[0][1])
    assert told.keys() == {
        "device_id", "timestamp", "temperature_c", "battery_pct", "cpu_load", "location", "firmware"
    }  # fmt: skip
    assert told["device_id"] == records[0][0] in fleet.ids


def test_duplicates_are_the_same_bytes_and_wrong_clocks_stay_wrong() -> None:
    _, records = spoken("duplicate=100%")
    repeated = sum(count - 1 for count in collections.Counter(records).values())
    assert repeated == pytest.approx(encoding.DUPLICATE_SHARE * len(set(records)), rel=0.2)
    fleet, records = spoken("clock=100%")
    wrong = {key: fleet_pb2.Telemetry.FromString(data).timestamp - START_MS for key, data in records}
    assert all(not -5_000 <= offset_ms <= 65_000 for offset_ms in wrong.values())
    assert all(offset_ms < 86_400_000 for offset_ms in wrong.values()), "that would be refused, not wrong"
    assert len(set(fleet.clock_offset_ms.tolist())) > 3


def test_each_poison_is_poisonous() -> None:
    fleet, records = spoken("poison=100%")
    good = fleet_pb2.Telemetry(device_id="x", timestamp=START_MS, temperature_c=20.0, battery_pct=50.0)
    bad = [encoding.poison(("sensor-0", good.SerializeToString()), number) for number in range(encoding.POISONS)]
    assert len(set(bad)) == encoding.POISONS
    batch = worker_records.ShardBatch(
        sequence_numbers=[str(number) for number in range(1, len(bad) + 1)],
        arrival_ms=np.full(len(bad), START_MS),
        data=bad,
        millis_behind=0,
        poll_ms=START_MS,
    )
    columns = decode.decode(batch, decode.Options())
    assert len(columns.dead_letters) == encoding.POISONS
    assert {key for key, _ in records} == set(fleet.ids)


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_commands_are_read_in_both_formats() -> None:
    message = fleet_pb2.DeviceCommand(device_id="d", command="cool_down", parameters='{"target_c":55.0}')
    expected = commands.Command("d", "cool_down", 55.0)
    assert commands.read(message.SerializeToString()) == expected
    as_json = {"device_id": "d", "command": "cool_down", "parameters": '{"target_c":55.0}'}
    assert commands.read(json.dumps(as_json).encode()) == expected
    assert commands.read(json.dumps({"device_id": "d", "command": "ping"}).encode()) == commands.Command(
        "d", "ping", None
    )


@pytest.mark.parametrize(
    "data", [b"{", b"\xff\xff", b'{"device_id": 1}', b'{"device_id":"d","command":"x","parameters":"["}']
)
def test_what_is_no_command_is_none(data: bytes) -> None:
    assert commands.read(data) is None


# ── producer ─────────────────────────────────────────────────────────────────────────────────────────────────────


TURNS = 12


def test_exactly_the_failed_records_are_sent_again_and_order_is_kept() -> None:
    def plan(call: memory_kinesis.Call) -> memory_kinesis.Fault:
        # The trouble ends before the producer would give a record up, however its back-off falls.
        if call.operation != "PutRecords" or call.number % 3 == 0 or call.number > 30:
            return memory_kinesis.NO_FAULT
        if call.number % 3 == 1:
            return memory_kinesis.Fault(failed=frozenset(range(0, call.size, 2)))
        return memory_kinesis.Fault(failure=memory_kinesis.THROTTLED)

    async def put() -> tuple[producer.Counts, list[bytes]]:
        kinesis = memory_kinesis.MemoryKinesis(virtual_time.VirtualClock(), plan, enforce_quotas=False)
        kinesis.create_stream("t", 2)
        async with producer.Producer(kinesis, "t", 10_000.0) as sending:
            for turn in range(TURNS):
                await sending.put([(f"device-{number}", f"{number}:{turn}".encode()) for number in range(300)])
        return sending.counts, [record.data for record in kinesis.records_of("t")]

    counts, stored = virtual_time.run(put())
    assert (counts.put, counts.lost, counts.waiting) == (300 * TURNS, 0, 0)
    assert counts.again > 0
    assert sorted(stored) == sorted(f"{number}:{turn}".encode() for number in range(300) for turn in range(TURNS))
    turns = collections.defaultdict(list)
    for data in stored:
        device, turn = data.decode().split(":")
        turns[device].append(int(turn))
    assert all(told == sorted(told) for told in turns.values()), "a device's samples arrive in order"


def test_what_could_not_be_sent_at_the_end_is_lost_and_nothing_is_counted_twice() -> None:
    def plan(call: memory_kinesis.Call) -> memory_kinesis.Fault:
        return memory_kinesis.Fault(failed=frozenset(range(call.size - call.size // 10)))

    async def put() -> producer.Counts:
        kinesis = memory_kinesis.MemoryKinesis(virtual_time.VirtualClock(), plan, enforce_quotas=False)
        kinesis.create_stream("t", 1)
        async with producer.Producer(kinesis, "t", 10_000.0) as sending:
            await sending.put([(f"device-{number}", b"x") for number in range(4000)])
        return sending.counts

    counts = virtual_time.run(put())
    assert counts.put > 0
    assert counts.lost > 0
    assert counts.put + counts.lost == 4000


def test_what_is_refused_for_too_long_is_counted_as_lost() -> None:
    async def put() -> producer.Counts:
        always = memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE)
        kinesis = memory_kinesis.MemoryKinesis(virtual_time.VirtualClock(), lambda call: always)
        kinesis.create_stream("t", 1)
        async with producer.Producer(kinesis, "t", 100.0) as sending:
            await sending.put([("d", b"x")] * 7)
            await asyncio.sleep(producer.RETRY_S + 5.0)  # virtual
            assert sending.counts.lost == 7
        return sending.counts

    counts = virtual_time.run(put())
    assert (counts.put, counts.lost, counts.waiting) == (0, 7, 0)


def test_a_full_lane_makes_the_caller_wait_and_a_missing_stream_ends_it() -> None:
    async def put(exists: bool) -> float:
        slow = memory_kinesis.Fault(delay_s=1.0)
        kinesis = memory_kinesis.MemoryKinesis(virtual_time.VirtualClock(), lambda call: slow, enforce_quotas=False)
        if exists:
            kinesis.create_stream("t", 1)
        loop = asyncio.get_running_loop()
        async with producer.Producer(kinesis, "t", 100.0) as sending:
            for _ in range(100):
                await sending.put([("d", b"x")] * 500)
            return loop.time()

    assert virtual_time.run(put(exists=True)) > 70.0
    with pytest.raises(errors.StreamGoneError, match="'t' can't be used"):
        virtual_time.run(put(exists=False))


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────


def simulated(options: runner.Options, fleet: spec.FleetSpec = FLEET) -> tuple[runner.Report, list[runner.Report], int]:
    told: list[runner.Report] = []

    async def run() -> tuple[runner.Report, int]:
        kinesis = memory_kinesis.MemoryKinesis(virtual_time.VirtualClock(), enforce_quotas=False)
        for name in "tac":
            kinesis.create_stream(name, 2)
        simulation = runner.Simulation(fleet, options, told.append)
        hot = fleet_pb2.DeviceCommand(device_id="sensor-0", command="cool_down", parameters='{"target_c":55.0}')
        loop = asyncio.get_running_loop()
        loop.call_later(5.0, kinesis.put, "c", "sensor-0", hot.SerializeToString())
        report = await simulation.run(kinesis, asyncio.Event())
        return report, len(kinesis.records_of("t"))

    report, stored = virtual_time.run(run())
    return report, told, stored


def test_a_run_keeps_its_rate_for_its_duration_and_devices_obey() -> None:
    report, told, stored = simulated(runner.Options(500, 250.0, duration_s=20.0))
    assert report.records == stored == pytest.approx(20 * 250, rel=0.1)
    assert (report.lost, report.waiting, report.late_s) == (0, 0, 0.0)
    assert report.obeyed == 1
    assert 18 <= len(told) <= 21
    assert told[10].rate == pytest.approx(250, rel=0.15)


def test_devices_that_ignore_commands_send_what_the_seed_says() -> None:
    report, _, _ = simulated(runner.Options(500, 250.0, duration_s=10.0, listens=False))
    assert report.obeyed == 0


def test_a_missing_stream_is_told_before_anything_is_sent() -> None:
    async def run() -> None:
        kinesis = memory_kinesis.MemoryKinesis(virtual_time.VirtualClock())
        simulation = runner.Simulation(FLEET, runner.Options(10, 1.0, duration_s=5.0), lambda _: None)
        await simulation.run(kinesis, asyncio.Event())

    with pytest.raises(errors.StreamGoneError, match="Create it"):
        virtual_time.run(run())
