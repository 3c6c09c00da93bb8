"""What a test run has started is gone soon after the run was killed, whatever it was and whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import orphans

pytestmark = pytest.mark.processes
PROJECT = Path(__file__).parents[2]
on_linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="elsewhere nothing is kept")
END_S_MAX = 30.0
GONE_S_MAX = 20.0

RUN = """
import os, signal, subprocess, sys, threading
from tests.support import moto_server, orphans, server_process

WAITING = "import threading; print('up', flush=True); threading.Event().wait()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITING

def start(program):
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"up\\n"
    orphans.prevent(process.pid)
    children[process.pid] = process

children = {}
start(WAITING)
start(DEAF)
start(WAITING)
os.kill(max(children), signal.SIGSTOP)
server = server_process.ServerProcess([sys.executable, "-c", WAITING], os.environ)
in_a_thread = threading.Thread(target=start, args=(WAITING,))
in_a_thread.start()
in_a_thread.join()
with moto_server.running():
    print(server.pid, *children, flush=True)
    sys.stdin.read()
"""
"""As a test run: servers of all kinds, one of them started by a thread that has ended since."""


@pytest.fixture
def run() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    orphans.prevent(process.pid)
    with process:
        yield process
        process.kill()


def started_by(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """All of it, the keeper too."""
    assert run.stdout is not None
    told = {int(pid) for pid in run.stdout.readline().split()}
    found = psutil.Process(run.pid).children(recursive=True)
    assert told < {process.pid for process in found}
    assert len(found) == len(told) + 2, "moto's server and the keeper"
    return found


@on_linux
def test_whatever_a_killed_run_had_started_ends(run: subprocess.Popen[str]) -> None:
    found = started_by(run)
    run.send_signal(signal.SIGKILL)
    run.wait(END_S_MAX)
    _, alive = psutil.wait_procs(found, GONE_S_MAX)
    for process in alive:
        process.kill()
    assert not alive


@on_linux
def test_what_has_ended_is_forgotten() -> None:
    """A run may start thousands, one after the other."""
    for _ in range(50):
        process = subprocess.Popen(["true"])
        orphans.prevent(process.pid)
        assert process.wait(END_S_MAX) == 0
    keeper = orphans.begin()
    assert keeper is not None
    deadline = time.monotonic() + END_S_MAX
    while len(os.listdir(f"/proc/{keeper.pid}/fd")) > 20:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # a poll with a deadline
