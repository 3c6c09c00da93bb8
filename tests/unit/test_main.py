"""A worker's start and stop, apart from what it does in between."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from fleet_model import generations, parse, spec
from fleet_worker import main, orders
from fleet_worker.adapters import clock, local_folder
from tests.support import aws_env, fleets, orphans

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000
EXIT_S_MAX = 30.0


@pytest.fixture
def kept_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in main.STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("kept_handlers")
async def test_the_first_signal_stops_and_the_second_ends() -> None:
    stop = asyncio.Event()
    with main._stopped_by_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 10)
        assert {signal.getsignal(number) for number in main.STOP_SIGNALS} == {signal.SIG_DFL}


def test_the_limit_on_open_files_is_raised_as_far_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
        main.allow_open_files()
        raised, same = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert same == hard
        assert raised == (main.OPEN_FILES if hard == resource.RLIM_INFINITY else min(main.OPEN_FILES, hard))
        main.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def nothing() -> AsyncIterator[spec.FleetSpec | parse.InvalidFleetError]:
    """No edits."""
    return
    yield


async def test_generations_that_judge_nothing_any_more_go_at_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker whose rules were edited often enough could never start again."""
    monkeypatch.setattr(local_folder, "GENERATIONS_MAX", 3)

    def fleet(threshold: int) -> object:
        return fleets.with_field("spec.rules.temperature.threshold", threshold)

    with local_folder.LocalFolder(tmp_path, "default", "trucks") as folder, clock.RealClock() as real:
        for number in range(10):
            now_ms = real.wall_ms() + number * DAY_MS
            edited = parse.parse(fleet(60 + number))  # type: ignore[arg-type]
            await orders.Alone(edited, nothing(), folder, real).settle_rules(now_ms, DAY_MS)
            assert folder.generations[-1].generation == number + 1
            assert folder.generations[-1].default.temperature.threshold == 60 + number
        assert len(folder.generations) <= 3


async def test_the_first_generation_judges_everything(tmp_path: Path) -> None:
    fleet = parse.parse(fleets.smallest())
    with local_folder.LocalFolder(tmp_path, "default", "trucks") as folder, clock.RealClock() as real:
        await orders.Alone(fleet, nothing(), folder, real).settle_rules(NOW_MS, DAY_MS)
        assert folder.generations == (generations.first_generation(fleet),)
        await orders.Alone(fleet, nothing(), folder, real).settle_rules(NOW_MS + 1, DAY_MS)
        assert len(folder.generations) == 1


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_kinesis_is_out_of_reach_at_the_start_is_quick_and_clean(tmp_path: Path, number: int) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: refused
        fleet = fleets.with_field(
            "spec.aws", {"region": "eu-central-1", "endpointURL": f"http://127.0.0.1:{nobody.getsockname()[1]}"}
        )
        path = tmp_path / "fleet.yaml"
        path.write_text(yaml.safe_dump(fleet))
        command = [sys.executable, "-m", "fleet_cli", "worker", "--fleet", str(path), "--data", str(tmp_path / "data")]
        process = subprocess.Popen(
            [*command, "--port", "0", "--log-level", "debug"],
            env=aws_env.environment(PYTHONUNBUFFERED="1"),
            stderr=subprocess.PIPE,
            text=True,
        )
        orphans.prevent(process.pid)
        try:
            assert process.stderr is not None
            lock = tmp_path / "data" / "default" / "trucks"
            while not lock.exists():
                assert process.poll() is None
            process.send_signal(number)
            _, told = process.communicate(timeout=EXIT_S_MAX)
            assert process.returncode == 0, told
            assert "Traceback" not in told
        finally:
            process.kill()
            process.wait()
