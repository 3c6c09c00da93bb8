"""How a process ends when the one that started it is killed and can end nobody any more: Linux sends it SIGTERM (parent-death signal).

Linux means the parent's thread: start children from one that lives as long as they do. Elsewhere than on Linux nothing is done.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def before_exec() -> Callable[[], None] | None:
    """`preexec_fn` of a child. What it needs is loaded here, since little is safe between fork and exec."""
    if not sys.platform.startswith("linux"):
        return None
    return functools.partial(_end_with, ctypes.CDLL(None).prctl, os.getpid())


def end_with_parent() -> None:
    """`initializer` of a pool's processes: they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if sys.platform.startswith("linux") and parent is not None and parent.pid is not None:
        _end_with(ctypes.CDLL(None).prctl, parent.pid)


def _end_with(prctl: Callable[[int, int], int], parent: int) -> None:
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it was killed before it was asked for
        os.kill(os.getpid(), signal.SIGTERM)
