"""The demo as a user without a terminal runs it: real processes, and a summary whose counts agree."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.support import aws_env, orphans, server_process

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(180)]

END_S_MAX = 120.0

OWN_FLEET = """\
apiVersion: fleettwin.io/v1alpha1
kind: DeviceFleet
metadata: {name: mine, namespace: home}
spec:
  streams:
    telemetry: {name: my-telemetry, startPosition: TrimHorizon}
    alerts: {name: my-alerts}
    commands: {name: my-commands}
"""


def environment(folder: pathlib.Path) -> dict[str, str]:
    return aws_env.environment(TMPDIR=str(folder), XDG_RUNTIME_DIR=str(folder))


@contextmanager
def demo(folder: pathlib.Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running demo, in a session of its own; its children, too, are gone afterwards, whatever happened."""
    log = (folder / "demo.log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "fleet_cli", "demo", *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment(folder),
        start_new_session=True,
        text=True,
    )
    orphans.prevent(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()
        log.close()


def said(folder: pathlib.Path) -> str:
    return (folder / "demo.log").read_text()


def wait_for(folder: pathlib.Path, pattern: str, seconds_max: float = 90.0) -> re.Match[str]:
    """The pattern in what the demo said so far; fails with all of it when it doesn't come in time."""
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        found = re.search(pattern, said(folder))
        if found:
            return found
        time.sleep(0.1)  # a poll with a deadline
    raise AssertionError(f"no {pattern!r} within {seconds_max} s in:\n{said(folder)}")


def number(text: str, name: str) -> int:
    found = re.search(rf"{name}\D*?([\d,]+)", text)
    assert found, f"no {name!r} in:\n{text}"
    return int(found[1].replace(",", ""))


def records_said(folder: pathlib.Path) -> int:
    """The newest figure."""
    return max(int(count) for count in re.findall(r"records=(\d+)", said(folder)))


def children_of(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """By what they are: fleet_cli.emulator, worker, simulate."""
    found = {}
    for child in psutil.Process(process.pid).children():
        command = child.cmdline()
        role = command[command.index("-m") + 1 :]
        found[role[1] if role[0] == "fleet_cli" else role[0]] = child
    return found


def test_a_run_of_some_seconds_says_what_came_of_it_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    port = server_process.free_port()
    with demo(tmp_path, "--duration", "25", "--devices", "200", "--port", str(port)) as process:
        wait_for(tmp_path, r"records=[1-9]")
        children = children_of(process)
        assert children.keys() == {"fleet_cli.emulator", "worker", "simulate"}
        assert process.wait(END_S_MAX) == 0, said(tmp_path)
    text = said(tmp_path)
    assert number(text, "records in:") == number(text, r"\(sent") == pytest.approx(2_400, rel=0.25)
    assert number(text, r"\ntwins:") == 200
    assert number(text, "temp_spike ") >= 1, text
    assert number(text, "cool_down ") == number(text, "temp_spike ")
    assert re.search(r"alert latency:  p50 \d\.\d+ s, p99 \d", text), text
    assert f"http://127.0.0.1:{port}/v1/twins" in text
    assert not any(child.is_running() for child in children.values())
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo.log"], "the demo's folder is gone"


def test_an_edit_of_the_fleet_file_holds_while_it_runs_and_a_signal_ends_it(tmp_path: pathlib.Path) -> None:
    port, kept = server_process.free_port(), tmp_path / "kept"
    with demo(tmp_path, "--devices", "100", "--rate", "100", "--port", str(port), "--keep", str(kept)) as process:
        wait_for(tmp_path, r"records=[1-9].*generation=1")
        fleet_file = kept / "fleet.yaml"
        fleet_file.write_text(fleet_file.read_text().replace("threshold: 60.0", "threshold: 10.0"))
        wait_for(tmp_path, r"generation=2")
        wait_for(tmp_path, r"alerts=[1-9]\d")  # so many are not hot by themselves
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/twins/sensor-0", timeout=10) as answer:
            assert answer.status == 200
        children = children_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S_MAX) == 0, said(tmp_path)
        assert not any(child.is_running() for child in children.values())
    assert number(said(tmp_path), "rules:") == 2
    assert {"fleet.yaml", "data", "worker-0.log", "simulator.log"} <= {entry.name for entry in kept.iterdir()}


def fleet_twin(folder: pathlib.Path, *arguments: str) -> str:
    """What another command says, in another terminal as it were."""
    command = [sys.executable, "-m", "fleet_cli", *arguments]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=END_S_MAX)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{said(folder)}"
    return done.stdout


def workers_of(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """By name."""
    commands = {child: child.cmdline() for child in psutil.Process(process.pid).children()}
    return {command[command.index("--name") + 1]: child for child, command in commands.items() if "--name" in command}


def test_workers_come_and_go_while_records_flow(tmp_path: pathlib.Path) -> None:
    port = server_process.free_port()
    with demo(tmp_path, "--workers", "2", "--devices", "200", "--rate", "200", "--port", str(port)) as process:
        wait_for(tmp_path, r"records=[1-9]")
        assert workers_of(process).keys() == {"worker-0", "worker-1"}
        grown = fleet_twin(tmp_path, "demo", "scale", "3")
        assert re.search(r"move: shardId-\d+ worker-[01] → worker-2, paused \d+\.\d s", grown), grown
        assert workers_of(process).keys() == {"worker-0", "worker-1", "worker-2"}
        owners = re.findall(r"^shardId-\d+ +(worker-\d) +Running", fleet_twin(tmp_path, "partitions"), re.MULTILINE)
        assert len(owners) == 4
        assert set(owners) == {"worker-0", "worker-1", "worker-2"}
        shrunk = fleet_twin(tmp_path, "demo", "scale", "1")
        assert "done: partitions of worker-0 4" in shrunk
        assert workers_of(process).keys() == {"worker-0"}
        wait_for(tmp_path, r"worker-1 owned nothing any more and ended")
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S_MAX) == 0, said(tmp_path)
    text = said(tmp_path)
    assert number(text, "records in:") == number(text, r"\(sent"), "none lost, none applied twice"
    assert number(text, r"\ntwins:") == 200
    assert number(text, r"\nmoves:") >= 3
    assert re.search(r"time=\d+s move: shardId-\d+ worker-\d → worker-\d, paused \d", text), text
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo.log"], "nothing stays"


def test_a_worker_of_several_that_dies_is_started_again_and_goes_on(tmp_path: pathlib.Path) -> None:
    port = server_process.free_port()
    with demo(tmp_path, "--workers", "2", "--devices", "100", "--rate", "100", "--port", str(port)) as process:
        wait_for(tmp_path, r"records=[1-9]")
        workers_of(process)["worker-1"].kill()
        wait_for(tmp_path, r"worker-1 died with exit code -9; it is started again")
        wait_for(tmp_path, r"move: shardId-\d+ back at worker-1, paused \d+\.\d s")
        by_then, deadline = records_said(tmp_path), time.monotonic() + 60.0
        while records_said(tmp_path) <= by_then:
            assert time.monotonic() < deadline, said(tmp_path)
            time.sleep(0.1)  # a poll with a deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S_MAX) == 0, said(tmp_path)
    text = said(tmp_path)
    assert number(text, "worker deaths:") == 1
    # What a worker applied in the second before it died isn't in its last figures: test_scaling judges that nothing is lost.
    assert number(text, "records in:") > by_then
    assert "records are counted only nearly" in text
    assert number(text, r"\ntwins:") == 100


def test_several_workers_want_a_bucket(tmp_path: pathlib.Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(OWN_FLEET)
    with demo(tmp_path, "--workers", "2", "--fleet-file", str(own)) as process:
        assert process.wait(END_S_MAX) == 1
    assert "spec.checkpoint.bucket" in said(tmp_path)


def test_a_worker_that_is_alone_and_dies_fails_the_demo_and_takes_the_rest_along(tmp_path: pathlib.Path) -> None:
    port, own = server_process.free_port(), tmp_path / "own.yaml"
    own.write_text(OWN_FLEET)  # names neither endpoint nor region
    with demo(tmp_path, "--devices", "50", "--port", str(port), "--fleet-file", str(own)) as process:
        wait_for(tmp_path, r"records=[1-9]")
        children = children_of(process)
        os.kill(children["worker"].pid, signal.SIGKILL)
        assert process.wait(END_S_MAX) == 1, said(tmp_path)
        assert not any(child.is_running() for child in children.values())
    assert "The worker ended with exit code -9" in said(tmp_path)
    assert own.read_text() == OWN_FLEET, "a user's file is only read"


def test_children_do_not_outlive_a_demo_that_was_killed(tmp_path: pathlib.Path) -> None:
    port = server_process.free_port()
    with demo(tmp_path, "--devices", "50", "--port", str(port)) as process:
        wait_for(tmp_path, r"records=[1-9]")
        children = list(children_of(process).values())
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=40)
        for child in alive:
            child.kill()
        assert not alive


def test_a_port_that_is_taken_is_told_with_what_to_do(tmp_path: pathlib.Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with demo(tmp_path, "--port", str(taken.getsockname()[1])) as process:
            assert process.wait(END_S_MAX) == 1
    assert "give another with --port" in said(tmp_path)
