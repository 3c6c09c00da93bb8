"""The worker's benchmark with real processes, small: what it says must add up."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import pytest
from click import testing

from fleet_cli import main
from fleet_cli.bench import replay

pytestmark = pytest.mark.processes


def bench(*asked: str) -> dict[str, Any]:
    result = testing.CliRunner().invoke(main.main, ["bench", "worker", *asked, "--json"])
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_behind_every_record_is_applied(tmp_path: pathlib.Path) -> None:
    told = bench("--behind", "--devices", "1500", "--records", "70000", "--shards", "1", "--data", str(tmp_path))
    assert told["applied"] == told["sent"] == 71_500
    assert told["records_per_s"] > 0
    assert told["records_per_cpu_s"] > 0
    assert told["anonymous_bytes"] > 20 * 2**20
    assert list(tmp_path.iterdir()) == []


def test_at_a_rate_cost_latency_and_restart_are_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SETTLE_S", 1.0)
    asked = ("--rate", "1000", "--devices", "1000", "--shards", "2", "--duration", "8", "--data", str(tmp_path))
    told = bench(*asked)
    assert told["records_per_s"] == pytest.approx(1000, rel=0.25)
    assert 0 < told["cpu_share"] < 1.5
    assert told["behind_ms"] < 60_000
    assert told["get_records_per_s"] >= 1
    assert 0 < told["restart_s"] < 60
    assert 0 < told["stop_s"] < 10
    # A hot device fires each third second here, and ten of a thousand are prone to it.
    if told["alerts"] >= 2:
        assert 0 < told["alert_latency_p50_ms"] <= told["alert_latency_p99_ms"] < 10_000


def test_a_worker_that_dies_is_told_with_its_last_words(tmp_path: pathlib.Path) -> None:
    child = replay.Child("worker", [sys.executable, "-c", "raise SystemExit('no such fleet')"], tmp_path, None)
    child.process.wait(20)
    with pytest.raises(replay.BenchError, match="no such fleet"):
        child.check()
    child.stop()
