"""What the worker asks of the C library's allocator, before its first thread starts.

glibc gives each thread an arena of its own, and what a commit in one of them freed serves no other: with a million twins that came
to 140 MB. The worker's threads rarely allocate at the same moment, as Python lets one run at a time, so one arena serves them
all. Elsewhere (musl, macOS) there is nothing to ask for.
"""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8
"""mallopt(3)."""


def share_one_arena() -> bool:
    """Whether the allocator knows of arenas and took it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_ARENA_MAX, 1) == 1
