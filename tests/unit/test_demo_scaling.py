"""Changing the number of the demo's workers: who is needed, when it is done, how a running demo is found."""

from __future__ import annotations

import asyncio
import dataclasses
import http.server
import os
import pathlib
import pty
import subprocess
import sys
import threading
import time

import pytest
from click import testing

from fleet_cli import main, running
from fleet_cli.demonstration import crew, processes, scaling
from fleet_model import twin_partition
from fleet_model.twin_partition import Phase
from fleet_worker import control_plane, errors
from fleet_worker.adapters import clock, control_files, control_folder
from tests.contract import test_control as suite


def owned(
    worker: str, *, phase: Phase = Phase.RUNNING, status_worker: str = "", standby: tuple[str, ...] = (), epoch: int = 1
) -> twin_partition.TwinPartition:
    spec = dataclasses.replace(suite.SPEC, worker=worker, epoch=1, standby=standby)
    status = twin_partition.Status(phase, status_worker or worker, epoch)
    return dataclasses.replace(suite.wanted(), spec=spec, status=status)


def beats(*names: str, ready: bool = True) -> dict[str, control_plane.Heartbeat]:
    return {name: suite.beat(name, ready=ready) for name in names}


# ── who is needed, and when it is done ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("entry", "is_needed"),
    [
        (owned("worker-1"), True),
        (owned("worker-0"), False),
        (owned("worker-0", status_worker="worker-1", phase=Phase.DRAINING), True),
        (owned("worker-0", status_worker="worker-1", phase=Phase.RUNNING), True),
        (owned("worker-0", status_worker="worker-1", phase=Phase.RELEASED), False),
        (owned("worker-0", standby=("worker-1",)), True),
        (owned("worker-1", phase=Phase.CLOSED), False),
    ],
)
def test_a_worker_is_needed_while_it_owns_gives_or_takes(entry: twin_partition.TwinPartition, is_needed: bool) -> None:
    assert crew.is_needed("worker-1", {suite.SHARD: entry}) is is_needed


@pytest.mark.parametrize(
    ("entry", "heartbeats", "why"),
    [
        (owned("worker-0"), beats("worker-0"), ""),
        (owned("worker-0"), beats("worker-0", "worker-1"), "worker-1 has not left"),
        (owned("worker-0"), beats("worker-0", ready=False), "worker-0 is not ready"),
        (owned("worker-0"), {}, "worker-0 is not ready"),
        (owned("worker-1"), beats("worker-0"), "to leave worker-1"),
        (owned(""), beats("worker-0"), "to leave nobody"),
        (owned("worker-0", phase=Phase.RESTORING), beats("worker-0"), "is Restoring"),
        (owned("worker-0", status_worker="worker-1"), beats("worker-0"), "is Running"),
        (owned("worker-0", epoch=0), beats("worker-0"), "is Running"),
    ],
)
def test_it_is_done_when_the_wanted_workers_run_everything(
    entry: twin_partition.TwinPartition, heartbeats: dict[str, control_plane.Heartbeat], why: str
) -> None:
    unsettled = scaling.why_unsettled({suite.SHARD: entry}, heartbeats, 1)
    assert why in unsettled
    assert bool(unsettled) is bool(why)


def test_a_worker_without_partitions_is_waited_for_as_long_as_there_are_enough() -> None:
    both = {suite.SHARD: owned("worker-0"), suite.OTHER: owned("worker-0")}
    assert scaling.why_unsettled(both, beats("worker-0", "worker-1"), 2) == "worker-1 owns nothing yet"
    assert scaling.why_unsettled({suite.SHARD: owned("worker-0")}, beats("worker-0", "worker-1"), 2) == ""
    # Every partition has a standby: that is how the fleet is; one more is a move.
    warm = {shard: owned("worker-0", standby=("worker-1",)) for shard in (suite.SHARD, suite.OTHER)}
    assert "owns nothing" in scaling.why_unsettled(warm, beats("worker-0", "worker-1"), 2)
    warm[suite.OTHER] = owned("worker-1")
    assert "is to leave worker-0" in scaling.why_unsettled(warm, beats("worker-0", "worker-1"), 2)


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────


class Sleepers:
    """Stand-ins for workers: processes that do nothing until they are ended."""

    def __init__(self) -> None:
        self.arguments: list[list[str]] = []

    async def start(
        self, name: str, arguments: list[str], folder: pathlib.Path, environment: object
    ) -> processes.Child:
        self.arguments.append(arguments)
        program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print(flush=True); signal.pause()"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        await process.stdout.readline()  # it listens to signals now
        return processes.Child(name, process, folder / "log")


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> Sleepers:
    made = Sleepers()
    monkeypatch.setattr(processes, "start", made.start)
    return made


async def nobody(name: str) -> None:
    """Nothing to ask."""


def made_crew(folder: pathlib.Path, told: list[str], wanted: int, is_shared: bool = True) -> crew.Crew:
    control = folder / "control" if is_shared else None
    return crew.Crew(crew.Place(folder / "fleet.yaml", folder, control, 8080, {}), wanted, told.append)


async def test_a_crew_grows_at_once_and_shrinks_when_the_leaving_own_nothing(
    tmp_path: pathlib.Path, sleepers: Sleepers
) -> None:
    told: list[str] = []
    workers = made_crew(tmp_path, told, 1)
    asked: list[str] = []

    async def ask(name: str) -> None:
        asked.append(name)

    try:
        await workers.start()
        assert sorted(workers.children) == ["worker-0"]
        workers.want(3)
        await workers.tend({}, told.append, ask)
        assert sorted(workers.children) == ["worker-0", "worker-1", "worker-2"]
        ports = [arguments[arguments.index("--port") + 1] for arguments in sleepers.arguments]
        assert ports == ["8080", "0", "0"]
        workers.want(1)
        assert workers.is_leaving("worker-1")
        assert not workers.is_leaving("worker-0")
        left = await workers.tend({suite.SHARD: owned("worker-2")}, told.append, ask)
        assert (left, sorted(workers.children)) == (["worker-1"], ["worker-0", "worker-2"])
        assert await workers.tend({suite.SHARD: owned("worker-0")}, told.append, ask) == ["worker-2"]
        assert asked == ["worker-1", "worker-2"]
        assert told[:2] == ["3 workers wanted, 1 before", "1 worker wanted, 3 before"]
        assert workers.deaths == 0
    finally:
        assert await workers.end() is None


async def test_a_worker_that_dies_is_started_again_until_it_dies_too_often(
    tmp_path: pathlib.Path, sleepers: Sleepers
) -> None:
    told: list[str] = []
    died: list[str] = []
    workers = made_crew(tmp_path, told, 2)
    try:
        await workers.start()
        for count in range(1, crew.DEATHS_MAX + 1):
            workers.children["worker-1"].process.kill()
            await workers.children["worker-1"].process.wait()
            await workers.tend({}, died.append, nobody)
            assert workers.deaths == count
            assert sorted(workers.children) == ["worker-0", "worker-1"]
        assert died == ["worker-1"] * crew.DEATHS_MAX
        assert told[-1] == "worker-1 died with exit code -9; it is started again"
        workers.children["worker-1"].process.kill()
        await workers.children["worker-1"].process.wait()
        with pytest.raises(errors.FleetTwinError, match="worker-1 ended with exit code -9"):
            await workers.tend({}, died.append, nobody)
    finally:
        await workers.end()


async def test_leaving_workers_that_die_come_back_until_they_have_given_everything_away(
    tmp_path: pathlib.Path, sleepers: Sleepers
) -> None:
    """Both at once: as silent ones they would be too many to be believed, and their partitions nobody's for good."""
    told: list[str] = []
    workers = made_crew(tmp_path, told, 3)
    try:
        await workers.start()
        workers.want(1)
        still_owned = {suite.SHARD: owned("worker-1"), suite.OTHER: owned("worker-2")}
        assert await workers.tend(still_owned, lambda name: None, nobody) == []
        await killed(workers, "worker-1", "worker-2")
        assert await workers.tend(still_owned, lambda name: None, nobody) == []
        assert sorted(workers.pids()) == ["worker-0", "worker-1", "worker-2"]
        assert sum("it was leaving, and comes back" in words for words in told) == 2
        given = {suite.SHARD: owned("worker-0"), suite.OTHER: owned("worker-2")}
        assert await workers.tend(given, lambda name: None, nobody) == ["worker-1"], "ended, and to be forgotten"
        assert sorted(workers.pids()) == ["worker-0", "worker-2"]
    finally:
        await workers.end()


async def test_a_leaving_worker_that_dies_with_nothing_left_to_give_away_is_forgotten_at_once(
    tmp_path: pathlib.Path, sleepers: Sleepers
) -> None:
    workers = made_crew(tmp_path, [], 2)
    try:
        await workers.start()
        workers.want(1)
        await killed(workers, "worker-1")
        assert await workers.tend({suite.SHARD: owned("worker-0")}, lambda name: None, nobody) == ["worker-1"]
        assert await workers.tend({suite.SHARD: owned("worker-0")}, lambda name: None, nobody) == []
        assert sorted(workers.children) == ["worker-0"]
    finally:
        await workers.end()


async def killed(workers: crew.Crew, *names: str) -> None:
    for name in names:
        workers.children[name].process.kill()
        await workers.children[name].process.wait()


async def test_the_death_of_a_worker_that_is_alone_is_the_end(tmp_path: pathlib.Path, sleepers: Sleepers) -> None:
    workers = made_crew(tmp_path, [], 1, is_shared=False)
    await workers.start()
    assert "--control" not in sleepers.arguments[0]
    assert await workers.tend({}, lambda name: None, nobody) == []
    assert list(workers.children) == ["worker"]
    workers.children["worker"].process.kill()
    await workers.children["worker"].process.wait()
    with pytest.raises(errors.FleetTwinError, match="The worker ended with exit code -9"):
        await workers.tend({}, lambda name: None, nobody)


# ── finding a demo, and telling it ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "fleet-twin"


def demo(folder: pathlib.Path, pid: int | None = None) -> running.Demo:
    return running.Demo(os.getpid() if pid is None else pid, folder, folder / "control", folder / "scale.json")


def test_a_running_demo_is_found_and_a_dead_one_is_not(runtime: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.FleetTwinError, match="fleet-twin demo --workers 2"):
        running.find()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with running.told(demo(tmp_path / "dead", dead.pid)), running.told(demo(tmp_path)):
        assert running.find() == demo(tmp_path)
        assert running.find_in(tmp_path) == demo(tmp_path)
        assert [path.name for path in runtime.iterdir()] == [f"demo-{os.getpid()}.json"]
        with pytest.raises(errors.FleetTwinError, match="elsewhere"):
            running.find_in(tmp_path / "elsewhere")
        with running.told(demo(tmp_path / "other", os.getppid())):
            with pytest.raises(errors.FleetTwinError, match=f"--folder {tmp_path}"):
                running.find()
            assert running.find_in(tmp_path / "other").pid == os.getppid()
    assert not runtime.exists()


def test_scale_without_a_demo_says_how_to_start_one(runtime: pathlib.Path) -> None:
    result = testing.CliRunner().invoke(main.main, ["demo", "scale", "3"], prog_name="fleet-twin")
    assert result.exit_code == 1
    assert "fleet-twin demo --workers 2" in result.output


@pytest.mark.parametrize("arguments", [["demo", "scale", "0"], ["demo", "scale", "17"], ["demo", "--workers", "17"]])
def test_numbers_of_workers_have_bounds(arguments: list[str]) -> None:
    assert testing.CliRunner().invoke(main.main, arguments, prog_name="fleet-twin").exit_code == 2


def test_what_is_wanted_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "scale.json"
    assert scaling.read_wanted(path) is None
    scaling.write_wanted(path, 3)
    assert scaling.read_wanted(path) == 3
    for text in ("", "[]", '{"workers": "3"}', "{}"):
        path.write_text(text)
        assert scaling.read_wanted(path) is None
    with pytest.raises(errors.FleetTwinError, match="can't be told"):
        scaling.write_wanted(tmp_path / "missing" / "scale.json", 3)


async def test_keys_come_at_once_and_the_terminal_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import termios

    master, slave = pty.openpty()
    try:
        with os.fdopen(slave, "r", closefd=False) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            before = termios.tcgetattr(slave)
            heard: list[str] = []
            come = asyncio.Event()

            def on_key(key: str) -> None:
                heard.append(key)
                if len(heard) == 3:
                    come.set()

            with scaling.keys(on_key):
                os.write(master, b"++-")
                await asyncio.wait_for(come.wait(), 10)
            assert heard == ["+", "+", "-"]
            assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


# ── fleet-twin partitions ────────────────────────────────────────────────────────────────────────────────────────


def partitions(folder: pathlib.Path, *arguments: str) -> testing.Result:
    options = ["partitions", "--control", str(folder), *arguments]
    return testing.CliRunner().invoke(main.main, options, prog_name="fleet-twin")


def test_partitions_are_shown_with_their_workers(tmp_path: pathlib.Path) -> None:
    async def fill() -> None:
        with clock.RealClock() as real:
            plane = control_folder.ControlFolder(tmp_path, real)
            await plane.prepare()
            stored = await plane.create(suite.wanted())
            spec = dataclasses.replace(suite.SPEC, worker="worker-1", epoch=3)
            await plane.update_spec(suite.SHARD, spec, stored.resource_version)
            checkpoint = twin_partition.CheckpointStatus("base", 2, real.wall_ms() - 7_000, "1")
            status = twin_partition.Status(
                Phase.DRAINING, "worker-0", 2, twins=1_234, checkpoint=checkpoint, message="drains"
            )
            await plane.ownership("worker-0").report(suite.SHARD, lambda _: status)
            await plane.heartbeat(dataclasses.replace(suite.beat("worker-0"), time_ms=real.wall_ms()))
            await plane.heartbeat(suite.beat("worker-1", time_ms=real.wall_ms() - 60_000))

    missing = partitions(tmp_path / "none")
    assert missing.exit_code == 1
    assert "no control folder" in missing.output
    asyncio.run(fill())
    shown = partitions(tmp_path)
    assert shown.exit_code == 0
    for words in (suite.SHARD, "worker-0 → worker-1", "Draining", "1,234", "drains", "silent for 60 s", "ready"):
        assert words in shown.output
    assert "7 s" in shown.output or "8 s" in shown.output
    as_json = partitions(tmp_path, "--json")
    assert '"worker": "worker-1"' in as_json.output


class Metrics(http.server.BaseHTTPRequestHandler):
    """Of a worker that knows more than the object says."""

    def do_GET(self) -> None:
        body = (
            f'# TYPE fleet_twin_twins gauge\nfleet_twin_twins{{shard="{suite.SHARD}"}} 4321\n'
            "# TYPE fleet_twin_checkpoint_time_seconds gauge\n"
            f'fleet_twin_checkpoint_time_seconds{{shard="{suite.SHARD}"}} {time.time() - 3600}\n'
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


def test_figures_of_this_moment_come_from_the_workers_that_answer(tmp_path: pathlib.Path) -> None:
    files = control_files.ControlFiles(tmp_path)
    files.prepare()
    with files.locked():
        files.create(owned("worker-0"))
    now_ms = time.time_ns() // 1_000_000
    files.put_heartbeat(control_plane.Heartbeat("worker-1", "http://127.0.0.1:9", True, now_ms, 1))  # doesn't answer
    assert " 0 " in partitions(tmp_path).output.splitlines()[1]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        files.put_heartbeat(control_plane.Heartbeat("worker-0", address, True, now_ms, 1))
        line = partitions(tmp_path).output.splitlines()[1]
        server.shutdown()
        thread.join()
    assert "4,321" in line
    assert "60 min" in line
