"""How a process that is told to end while it starts does so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

STARTING = """
import os, signal
from fleet_cli import loop
loop.end_by_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
print("it went on")
"""


def test_sigterm_ends_a_process_that_starts_by_a_handler_of_its_own() -> None:
    """By default, too, but not the first process of a container, which the kernel spares what it has no handler for."""
    ended = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, timeout=60, env=os.environ.copy())
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, b"")
