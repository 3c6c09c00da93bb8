"""How much work each partition is, smoothed: what workers tell of the last two seconds is too restless to plan by. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

SMOOTHED_OVER_S = 30.0
KNOWN_AFTER_S = 10.0
"""A partition watched for less has no load yet: the planner takes it for an average one."""


class Loads:
    """Records/s by shard id, as a mean whose memory fades over SMOOTHED_OVER_S."""

    def __init__(self) -> None:
        self._seen_s: float | None = None
        self._mean: dict[str, tuple[float, float]] = {}

    def see(self, now_s: float, told: Mapping[str, float]) -> dict[str, float]:
        """told: by shard id, just now; one that nobody tells of is forgotten. Returns those that are known well enough."""
        past_s = 0.0 if self._seen_s is None else max(0.0, now_s - self._seen_s)
        self._seen_s = now_s
        mean = {}
        for shard_id, load in told.items():
            before, watched_s = self._mean.get(shard_id, (load, 0.0))
            watched_s += past_s
            # At first a plain mean over what was seen so far, else the first value would weigh for long.
            weight = 1 - math.exp(-past_s / min(SMOOTHED_OVER_S, watched_s)) if watched_s > 0 else 0.0
            mean[shard_id] = (before + weight * (load - before), watched_s)
        self._mean = mean
        return {shard_id: load for shard_id, (load, watched_s) in mean.items() if watched_s >= KNOWN_AFTER_S}
