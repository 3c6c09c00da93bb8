"""Rounds: a batch cut so that each piece holds at most one record a device, the k-th of a device in the k-th piece.

Rules that depend on the record before stay exact that way, while each round is a handful of NumPy operations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def split(slots: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices into `slots` by round; slots are >= 0. Inside a round they rise, and so keep stream order."""
    count = len(slots)
    if count == 0:
        return []
    last_at = np.zeros(int(slots.max()) + 1, dtype=np.int32)
    here = np.arange(count, dtype=np.int32)
    last_at[slots] = here
    if (last_at[slots] == here).all():  # every device once: by far the most common batch of a large fleet
        return [np.arange(count)]
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    is_first = np.empty(count, dtype=bool)
    is_first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first)
    lengths = np.diff(np.append(starts, count))
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count) - np.repeat(starts, lengths)
    by_round = np.argsort(rank, kind="stable")
    return np.split(by_round, np.cumsum(np.bincount(rank))[:-1])
