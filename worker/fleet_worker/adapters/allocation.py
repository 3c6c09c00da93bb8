"""What the worker asks of the C library's allocator: one arena for every thread, and what is free to go back to the kernel.

glibc gives each thread an arena of its own, and what a commit in one of them freed serves no other: with a million twins that came
to 140 MB. The worker's threads rarely allocate at the same moment, as Python lets one run at a time, so one arena serves them
all. And of what a backlog took, glibc returns only what lies at the arena's end: 100 MB in the same case stayed in holes. Elsewhere
(musl, macOS) there is nothing to ask for.
"""

from __future__ import annotations

import ctypes
import threading
import time

M_ARENA_MAX = -8
"""mallopt(3)."""
RETURN_EVERY_S = 30.0
"""Some milliseconds, and what is needed again costs page faults."""


def share_one_arena() -> bool:
    """Whether the allocator knows of arenas and took it. To be called before the process' first thread starts."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_ARENA_MAX, 1) == 1


class Returns:
    """Of a process: who does something slow in a thread anyway calls `if_due` beside it."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._lock = threading.Lock()
        self._due_at = time.monotonic() + RETURN_EVERY_S

    def if_due(self) -> bool:
        """Gives what is free back to the kernel, unless that was done a short while ago. Whether it was done."""
        with self._lock:
            if self._trim is None or time.monotonic() < self._due_at:
                return False
            self._due_at = time.monotonic() + RETURN_EVERY_S
        self._trim(0)
        return True


RETURNS = Returns()
