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


LATE = """
import concurrent.futures, multiprocessing, os, sys, time
from fleet_cli import parent_death

def after_its_parents_end():
    print("up", flush=True)
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    parent_death.end_with_parent()

if __name__ == "__main__":
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(sys.argv[1]), after_its_parents_end) as pool:
        pool.submit(abs, 1)
        sys.stdin.read()
"""


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux' own")
@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize(("program", "up", "children_min"), [(PARENT, "1 2\n", 2), (LATE, "up\n", 1)], ids=["", "late"])
def test_children_and_a_pools_processes_do_not_outlive_their_parent(
    program: str, up: str, children_min: int, way: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "parent.py"
    path.write_text(program)
    with subprocess.Popen(
        [sys.executable, str(path), way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == up
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(children) >= children_min
    _, alive = psutil.wait_procs(children, GONE_S_MAX)
    for process in alive:
        process.kill()
    assert not alive
