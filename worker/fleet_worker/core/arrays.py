"""Large arrays that live as long as a partition and grow with it, in memory of their own, straight from the kernel.

The C library keeps what was freed and gives it out again, zeroed by hand: an array's spare room then costs memory before anything
is in it, and holes that growing left behind stay with the process. A map of its own costs what is written to it, and its end
gives all of it back. Small arrays, and those that live for a batch only, are NumPy's business.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

OWN_BYTES_MIN = 2**20
HUGE_BYTES_MIN = 2**22
"""From here on the kernel is asked for huge pages: rows are looked up all over the table."""


def zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """As np.zeros."""
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if size_bytes < OWN_BYTES_MIN:
        return np.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size_bytes >= HUGE_BYTES_MIN and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)
