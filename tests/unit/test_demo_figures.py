"""What the demo tells: figures read from a worker's own metrics page and from both stream formats, a page that fits its
terminal, and an emulator that forgets in time."""

from __future__ import annotations

import io
import json
import pathlib
import subprocess
import sys

import prometheus_client
import pytest
import rich.console

from fleet_cli.control import moves
from fleet_cli.demonstration import figures, stage, view
from fleet_model import partition, rules, spec
from fleet_proto import fleet_pb2
from fleet_worker import errors, metrics
from fleet_worker.adapters import fleet_file
from fleet_worker.core import effects


def metrics_text() -> str:
    """A worker's page after 300 records, two alerts (0.35 s and 4 s old) and a command."""
    measured = metrics.Metrics()
    for shard, count in (("shard-0", 100), ("shard-1", 200)):
        told = measured.partition(shard)
        told.records.inc(count)
        told.twins.set(count / 10)
        told.set_lag(count * 10)
        told.set_open_alerts([1, 0, 2])
    measured.rules_generation.set(4)
    measured.dead_letters.labels("undecodable").inc(3)
    for target, latency_ms in (
        (effects.Target.ALERTS, 350),
        (effects.Target.ALERTS, 4000),
        (effects.Target.COMMANDS, 1),
    ):
        measured.published(effects.Effect(target, "id", "temp_spike", "d", 0, b""), latency_ms)
    return prometheus_client.generate_latest(measured.registry).decode()


def alert(state: fleet_pb2.AlertState.ValueType = fleet_pb2.FIRING) -> fleet_pb2.DeviceAlert:
    return fleet_pb2.DeviceAlert(
        device_id="d", trigger="offline", severity="warning", explanation="no telemetry", timestamp=5, state=state
    )


def test_figures_come_from_a_workers_metrics() -> None:
    now = figures.Figures()
    now.take_metrics({"worker": metrics_text()}, 12.0)
    assert (now.records, now.twins, now.lag_s, now.generation) == (300, 30, 2.0, 4)
    assert now.shard_twins == {"shard-0": 10.0, "shard-1": 20.0}
    assert now.open_alerts == {"temp_spike": 2, "battery_drop": 0, "offline": 4}
    assert (now.effects, now.published, now.dead_letters) == (3, 3, 3)
    assert now.latency_p50_s == pytest.approx(0.4)
    assert now.latency_p99_s == pytest.approx(5.0, abs=0.1)


def test_counters_of_workers_that_are_gone_count_on_and_gauges_do_not() -> None:
    now = figures.Figures()
    now.take_metrics({"worker-0/1": metrics_text(), "worker-1/2": metrics_text()}, 12.0)
    assert (now.records, now.twins, now.effects) == (600, 60, 6)
    now.take_metrics({"worker-0/1": metrics_text()}, 13.0)
    assert (now.records, now.twins, now.effects) == (600, 30, 6)
    now.take_metrics({"worker-0/1": metrics_text(), "worker-1/3": metrics_text()}, 14.0)
    assert (now.records, now.twins, now.effects) == (900, 60, 9)
    now.count("worker-1/3", metrics_text().replace("200.0", "250.0"))
    now.take_metrics({"worker-0/1": metrics_text()}, 15.0)
    assert now.records == 950


def test_a_counter_that_begins_anew_goes_on_from_where_it_was() -> None:
    counter = figures.Counter("records_total", {})
    for told in (5.0, 7.0, 7.0, 2.0, 3.0):
        counter.take(told)
    assert counter.value == 10.0


def test_what_happened_is_told_once_and_in_order() -> None:
    now = figures.Figures(started_s=100.0)
    now.happen("first", 90.0)
    now.happen("second", 103.0)
    assert now.happened_since(0) == [(0.0, "first"), (3.0, "second")]
    assert now.happened_since(1) == [(3.0, "second")]
    assert now.happened_since(now.happened_count) == []
    for number in range(2 * figures.KEPT_EVENTS):
        now.happen(str(number), 104.0)
    assert len(now.happened_since(2)) == figures.KEPT_EVENTS


def test_moves_are_summed_up() -> None:
    now = figures.Figures()
    assert not any(line.startswith("moves:") for line in view.summary(now))
    for pause_s in (0.4, 3.0, 0.5):
        now.move(moves.Move("shardId-000000000004", "worker-1", "worker-0", 2, pause_s), 7.0)
    assert "moves:          3, paused 0.5 s in the middle, 3.0 s at most" in view.summary(now)
    shared(now)
    assert "workers=2 moves=4" in view.line(now)


def test_rates_are_of_the_last_seconds() -> None:
    now = figures.Figures()
    assert now.rates() == (0.0, 0.0)
    for second in range(60):
        now.history.append((float(second), 1000 * min(second, 30), second))
    records, sent = now.rates()
    assert (records, sent) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([], 0.5, None),
        ([(1.0, 0.0), (float("inf"), 0.0)], 0.5, None),
        ([(1.0, 10.0), (2.0, 20.0), (float("inf"), 20.0)], 0.5, 1.0),
        ([(1.0, 10.0), (2.0, 20.0), (float("inf"), 20.0)], 0.75, 1.5),
        ([(1.0, 0.0), (float("inf"), 4.0)], 0.99, 1.0),
    ],
)
def test_quantiles_of_a_histogram(buckets: list[tuple[float, float]], share: float, expected: float | None) -> None:
    assert figures.quantile(buckets, share) == expected


def test_alerts_and_commands_are_read_in_both_formats_and_others_records_are_left_out() -> None:
    now = figures.Figures(records=9, sent=9, published=4)
    as_json = {"timestamp": 5, "device_id": "d", "trigger": "offline", "severity": "warning", "explanation": "x"}
    now.take_alerts([alert().SerializeToString(), json.dumps(as_json | {"state": "firing"}).encode(), b"{", b"\xff"])
    now.take_alerts([alert(fleet_pb2.RESOLVED).SerializeToString()])
    assert not now.is_settled
    now.take_commands([fleet_pb2.DeviceCommand(device_id="d", command="ping").SerializeToString(), b'{"a":1}'])
    assert (now.fired, now.resolved, now.commands) == ({"offline": 2}, 1, {"ping": 1})
    assert now.is_settled
    assert now.alerts_seen[0].state == "resolved", "the newest first"


def shared(now: figures.Figures, partitions: int = 20) -> None:
    """Two workers, one of which leaves, and a partition that moves."""
    now.workers = [figures.Worker("worker-0", "ready", 12, 99.0), figures.Worker("worker-1", "leaving", 8, 9.0)]
    now.partitions = [
        figures.Partition(f"shardId-{number:012}", "worker-0", "Running", 1, 1_234, 4.0, "")
        for number in range(partitions)
    ]
    now.partitions[-1] = figures.Partition("shardId-000000000077", "worker-1 → worker-0", "Restoring", 2, 9, None, "x")
    now.move(moves.Move("shardId-000000000004", "worker-1", "worker-0", 2, 0.84), 7.0)


@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (110, 30), (160, 50)])
def test_the_page_fits_its_terminal_and_keeps_its_height(width: int, height: int, is_shared: bool) -> None:
    scene = view.Scene(
        1000, 500.0, "http://127.0.0.1:9090", "/tmp/fleet.yaml", "/tmp", "Time is compressed.", is_shared
    )
    now = figures.Figures()
    heights = set()
    for _ in range(3):
        output = rich.console.Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
        output.print(view.page(scene, now, width, height))
        assert isinstance(output.file, io.StringIO)
        lines = output.file.getvalue().splitlines()
        heights.add(len(lines))
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        now.take_metrics({"worker": metrics_text()}, 12.0)
        now.take_alerts([alert().SerializeToString()] * 10)
        now.rules_error = "spec.rules: is wrong\nand more"
        shared(now)
    assert len(heights) == 1, "a page that jumps can't be read"
    text = "\n".join(lines)
    told = (
        [
            "shard 77",
            "worker-1 → worker-0",
            "1: 8 (leaving)" if width < 110 else "worker-1 8 (leaving)",
            "move: shard 4",
        ]
        if is_shared
        else []
    )
    for words in (
        *told,
        "30 of 1,000",
        "offline",
        "/tmp/fleet.yaml",
        "--url http://127.0.0.1:9090",
        "spec.rules: is wrong",
    ):
        assert words in text


def test_lines_and_summary_are_plain() -> None:
    now = figures.Figures()
    assert "latency_p50=–" in view.line(now)
    now.take_metrics({"worker": metrics_text()}, 12.0)
    now.take_simulator(b'{"records": 300, "lost": 2, "obeyed": 1, "late_s": 0.0}')
    now.take_simulator(b"no json")
    assert "records=300" in view.line(now)
    assert "records in:     300 (sent 300, lost 2)" in view.summary(now)


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_demos_fleet_file_is_valid_and_short_of_patience(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fleet.yaml"
    stage.write_fleet_file(path, "http://127.0.0.1:4567")
    fleet = fleet_file.load(path)
    assert fleet.aws.endpoint_url == "http://127.0.0.1:4567"
    assert fleet.rules.offline.after_ms < 30_000
    assert rules.RulesGeneration(1, 0, fleet.rules, fleet.profiles).profile_index("truck-7", "") == 1
    identity = partition.PartitionIdentity(fleet.namespace, fleet.name, fleet.streams.telemetry.stream_name, "s")
    assert (identity.namespace, identity.fleet, identity.stream) == ("default", "demo", "telemetry")


@pytest.mark.parametrize(
    ("url", "port"),
    [(None, 0), ("http://127.0.0.1:4567", 4567), ("http://localhost:99", 99), ("http://127.0.0.1", None)],
)
def test_only_a_loopback_endpoint_can_be_the_emulators(url: str | None, port: int | None) -> None:
    streams = spec.Streams(spec.TelemetryStream("t"), spec.EffectStream("a"), spec.EffectStream("c"))
    fleet = spec.FleetSpec("default", "x", streams, aws=spec.Aws(endpoint_url=url))
    if port is not None:
        assert stage.emulator_port(fleet) == port
        return
    with pytest.raises(errors.FleetTwinError, match="its own Kinesis"):
        stage.emulator_port(fleet)


_LIGHT = """
from fleet_cli import emulator
emulator.KEPT_RECORDS_MAX = 50
emulator.light_shards()
from moto.kinesis import models
shard = models.Shard(0, 0, 2**128 - 1)
numbers = [int(shard.put_record("k", "eA==", "")) for _ in range(120)]
assert numbers == list(range(1, 121))
assert len(shard.records) == 50, len(shard.records)
found, last, behind_ms = shard.get_records("0", 10)
assert [record.sequence_number for record in found] == list(range(71, 81)) and last == 80
found, last, behind_ms = shard.get_records(str(last), 1000)
assert last == 120 and behind_ms == 0 and len(found) == 40
assert shard.get_records("120", 10) == ([], 120, 0)
assert (shard.get_min_sequence_number(), shard.get_max_sequence_number()) == (71, 120)
assert shard.get_sequence_number_at(0.0) == 0
emulator.KEPT_S = -1.0
shard.put_record("k", "eA==", "")
assert len(shard.records) == 1
assert found[0].to_json()["Data"] == b"x"
"""


def test_the_emulators_shards_forget_and_count_on() -> None:
    """In a process of its own, since it changes moto."""
    pytest.importorskip("moto")
    done = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
