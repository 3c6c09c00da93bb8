"""Who speaks when: every device once an interval, spread over it, with jitter.

Time is cut into windows of fixed width on the schedule's own time line, so what falls due in a window depends on the seed
only, never on how fast the caller works through them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW_S_MAX = 0.1
JITTER = 0.2
"""A sample comes up to this share of the interval late; two of one device are never in one window."""


class Schedule:
    """interval_s: between two samples of a device. devices: how many."""

    def __init__(self, devices: int, interval_s: float, seed: int) -> None:
        self.interval_s = interval_s
        self.window_s = min(WINDOW_S_MAX, interval_s / 2.0)
        self._seed = seed
        self._slot_s = np.random.default_rng([seed, 1]).uniform(0.0, interval_s, devices)
        self._next_s = self._slot_s + self._jitter(np.arange(devices), np.zeros(devices, dtype=np.int64))
        self._turn = np.zeros(devices, dtype=np.int64)

    def _jitter(self, index: NDArray[np.int64], turn: NDArray[np.int64]) -> NDArray[np.float64]:
        """A number for each (device, turn) from a hash of both, so that no order of calls changes it."""
        mixed = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + turn.astype(np.uint64)
        mixed ^= np.uint64(self._seed & 0xFFFFFFFF) << np.uint64(17)
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        return (mixed >> np.uint64(11)).astype(np.float64) * (JITTER * self.interval_s / 2.0**53)

    def due(self, window: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(device indexes, times in seconds since the start) of window number `window`, in order of time.

        Call it with 0, 1, 2 …, each once.
        """
        index = np.nonzero(self._next_s < (window + 1) * self.window_s)[0]
        at_s = self._next_s[index]
        order = np.argsort(at_s, kind="stable")
        self._turn[index] += 1
        turn = self._turn[index]
        self._next_s[index] = self._slot_s[index] + turn * self.interval_s + self._jitter(index, turn)
        return index[order], at_s[order]
