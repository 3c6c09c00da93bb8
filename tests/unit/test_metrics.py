"""The metrics keep their promises: documented, bounded in labels, in Prometheus' units."""

from __future__ import annotations

import re
from pathlib import Path

import prometheus_client
import pytest

from fleet_worker import metrics
from fleet_worker.core import effects

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
LABELS = {"kind", "operation", "trouble", "shard", "trigger", "reason", "target", "phase"}


def value(measured: metrics.Metrics, name: str, **labels: str) -> float | None:
    return measured.registry.get_sample_value(f"fleet_twin_{name}", labels)


def series(measured: metrics.Metrics) -> list[str]:
    lines = prometheus_client.generate_latest(measured.registry).decode().splitlines()
    return [line for line in lines if line.startswith("fleet_twin_")]


def test_the_reference_page_is_what_the_file_says() -> None:
    assert PAGE.read_text() == metrics.reference_page(), (
        "run: python -m fleet_worker.metrics > docs/reference/metrics.md"
    )


def test_names_units_and_labels() -> None:
    for entry in metrics.Metrics().definitions:
        assert re.fullmatch(r"fleet_twin_[a-z_]+", entry.name), entry
        assert entry.kind != "counter" or entry.name.endswith("_total"), entry
        assert not re.search(r"_(ms|millis|milliseconds|kb|mb)(_|$)", entry.name), entry
        assert set(entry.labels) <= LABELS, entry
        assert entry.help.endswith("."), entry


def test_every_definition_is_exposed() -> None:
    measured = metrics.Metrics()
    measured.partition("shard-1")
    exposed = "\n".join(prometheus_client.generate_latest(measured.registry).decode().splitlines())
    for entry in measured.definitions:
        assert f"# TYPE {entry.name} {entry.kind}" in exposed


def test_the_latency_buckets_are_fine_where_the_promises_are() -> None:
    buckets = metrics.LATENCY_BUCKETS
    assert buckets[0] == 0.1
    assert buckets[-1] == 10
    assert {0.7, 1.5} <= set(buckets)
    assert list(buckets) == sorted(buckets)


def test_a_batch_costs_one_inc_and_binding_again_gives_the_same_counts() -> None:
    measured = metrics.Metrics()
    measured.partition("shard-1").records.inc(10_000)
    measured.partition("shard-1").records.inc(1)
    measured.partition("shard-2").records.inc(5)
    assert value(measured, "records_total", shard="shard-1") == 10_001
    assert value(measured, "records_total", shard="shard-2") == 5


def test_times_go_in_as_milliseconds_and_come_out_as_seconds() -> None:
    measured = metrics.Metrics()
    told = measured.partition("shard-1")
    told.set_lag(1_500)
    told.set_outbox_oldest(250)
    told.set_clock_age(2_000)
    assert value(measured, "lag_seconds", shard="shard-1") == 1.5
    assert value(measured, "outbox_oldest_seconds", shard="shard-1") == 0.25
    assert value(measured, "partition_clock_age_seconds", shard="shard-1") == 2.0


def test_exactly_one_phase_holds() -> None:
    measured = metrics.Metrics()
    told = measured.partition("shard-1")
    for phase in ("Restoring", "Running"):
        told.set_phase(phase)
        held = {name for name in metrics.PHASES if value(measured, "partition_phase", shard="shard-1", phase=name)}
        assert held == {phase}
    with pytest.raises(ValueError, match="Sleeping"):
        told.set_phase("Sleeping")


def test_a_partition_that_left_leaves_no_series() -> None:
    measured = metrics.Metrics()
    before = series(measured)
    told = measured.partition("shard-1")
    told.records.inc(5)
    told.set_open_alerts((1, 2, 3))
    told.set_phase("Running")
    assert any("shard-1" in line for line in series(measured))
    measured.forget_partition("shard-1")
    measured.forget_partition("shard-1")
    assert series(measured) == before


def test_an_acknowledged_alert_is_counted_and_timed_a_command_only_counted() -> None:
    measured = metrics.Metrics()
    for target in (effects.Target.ALERTS, effects.Target.COMMANDS):
        measured.published(effects.Effect(target, "00", "temp_spike", "device-7", 0, b""), latency_ms=650)
    assert value(measured, "effects_total", target="alerts", trigger="temp_spike") == 1
    assert value(measured, "effects_total", target="commands", trigger="temp_spike") == 1
    assert value(measured, "alert_latency_seconds_count", trigger="temp_spike") == 1
    assert value(measured, "alert_latency_seconds_bucket", trigger="temp_spike", le="0.7") == 1
    assert value(measured, "alert_latency_seconds_bucket", trigger="temp_spike", le="0.6") == 0


def test_two_workers_in_one_process_count_apart() -> None:
    one, other = metrics.Metrics(), metrics.Metrics()
    one.partition("shard-1").records.inc(3)
    assert value(other, "records_total", shard="shard-1") is None
