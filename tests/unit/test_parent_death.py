"""Children end with whoever started them, also when that is killed."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import psutil
import pytest

GONE_S_MAX = 30.0

PARENT = """
import concurrent.futures, multiprocessing, subprocess, sys
from fleet_cli import parent_death

WAITING = "import threading; print('up', flush=True); threading.Event().wait()"
if __name__ == "__main__":
    child = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, preexec_fn=parent_death.before_exec()
    )
    child.stdout.readline()
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[1]), parent_death.end_with_parent) as pool:
        print(*pool.map(abs, [1, 2]), flush=True)
        sys.stdin.read()
"""


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux' own")
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_children_and_a_pools_processes_do_not_outlive_their_parent(way: str, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(program), way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "1 2\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, GONE_S_MAX)
    for process in alive:
        process.kill()
    assert not alive
