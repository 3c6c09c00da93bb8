"""`fleet-twin try` as people and `helm test` use it: hot records in, the command back, nothing left behind; and what it says when nothing comes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import aws_env, live_fleet, moto_server, streams

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

ENDS_S_MAX = 90
FORGOTTEN_S_MAX = 20.0
LOOK_AGAIN_S = 0.1


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[live_fleet.LiveFleet]:
    aws_env.apply(monkeypatch)
    with moto_server.running() as url:
        async with streams.Streams.at(url) as kinesis, live_fleet.made(tmp_path, kinesis, url) as made:
            yield made


async def tried(fleet: live_fleet.LiveFleet, *options: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "fleet_cli", "try", "--fleet", str(fleet.path), *options],
        env=aws_env.environment(),
        capture_output=True,
        text=True,
        timeout=ENDS_S_MAX,
        check=False,
    )


@pytest.mark.parametrize("telemetry_format", ["JSON", "Protobuf"])
async def test_the_command_comes_back_and_the_device_is_forgotten(
    fleet: live_fleet.LiveFleet, telemetry_format: str
) -> None:
    fleet.document["spec"]["streams"]["telemetry"]["format"] = telemetry_format
    fleet.edit({})
    async with fleet.worker() as worker:
        worker.start()
        await worker.ready()
        done = await tried(fleet, "--device", "warm-1")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("cool_down for warm-1 came after ")
        assert done.stdout.endswith("target 55 °C\n")
        deadline = time.monotonic() + FORGOTTEN_S_MAX
        while (await worker.get("/v1/twins"))["twins"]:
            assert time.monotonic() < deadline, "the device is still known"
            await asyncio.sleep(LOOK_AGAIN_S)
        await worker.stop()


async def test_without_a_command_the_alert_is_waited_for(fleet: live_fleet.LiveFleet) -> None:
    fleet.edit({"temperature": {"command": "", "threshold": 8.0, "consecutiveSamples": 1}})
    async with fleet.worker() as worker:
        worker.start()
        await worker.ready()
        done = await tried(fleet)
        assert done.returncode == 0, done.stderr
        assert "1 records of 23 °C of fleet-twin-try-" in done.stderr
        assert done.stdout.startswith("temp_spike for fleet-twin-try-")
        await worker.stop()


async def test_nothing_comes_while_no_worker_runs(fleet: live_fleet.LiveFleet) -> None:
    done = await tried(fleet, "--timeout", "2")
    assert done.returncode == 4
    assert "No cool_down for fleet-twin-try-" in done.stderr
    assert "within 2 s. Does the fleet run?" in done.stderr


async def test_a_rule_that_is_off_and_streams_that_are_not_there_are_told(fleet: live_fleet.LiveFleet) -> None:
    fleet.edit({"temperature": {"enabled": False}})
    done = await tried(fleet)
    assert done.returncode == 1
    assert "The temperature rule is off for device" in done.stderr
    fleet.document["spec"]["streams"]["commands"]["name"] = "none"
    fleet.edit({})
    done = await tried(fleet)
    assert done.returncode == 1
    assert "The stream 'none' can't be used" in done.stderr
