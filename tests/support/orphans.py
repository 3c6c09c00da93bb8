"""No process that a test run started outlives it, however it ends: by kill -9, too.

Whoever starts a server, a worker or an operator says so here; the number goes to a process of its own (`orphans_keeper`) which watches
this one. It works for any thread and any namespace of the kernel. Elsewhere than on Linux nothing is kept, and only an orderly end ends all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

_PROGRAM = Path(__file__).with_name("orphans_keeper.py")
_lock = threading.Lock()
_keepers: dict[int, subprocess.Popen[bytes]] = {}
"""By the process that it watches: a fork of this one has another."""


def prevent(pid: int) -> None:
    """pid: of a child just started. It ends with this process: by SIGTERM, and by SIGKILL when it doesn't heed that. Raises OSError when the keeper is gone."""
    keeper = begin()
    if keeper is not None:
        assert keeper.stdin is not None
        # One write of some bytes goes through a pipe in one piece, so threads needn't wait for each other.
        os.write(keeper.stdin.fileno(), f"{pid}\n".encode())


def begin() -> subprocess.Popen[bytes] | None:
    """The keeper, begun if it isn't yet. To be called before this thread enters a namespace that is to go while this process lives: it would
    hold it. None elsewhere than on Linux."""
    if not hasattr(os, "pidfd_open"):
        return None
    with _lock:
        if os.getpid() not in _keepers:
            _keepers[os.getpid()] = _started()
        return _keepers[os.getpid()]


def _started() -> subprocess.Popen[bytes]:
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_PROGRAM), str(os.getpid())],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C isn't for it: the run ends its servers itself then
    )
    # From here on the end of this process is noticed.
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"ready\n", "the keeper of a test run's processes doesn't start"
    return keeper
