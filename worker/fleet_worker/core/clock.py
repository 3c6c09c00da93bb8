"""The partition clock: how far a partition has seen time.

It decides offline, so it errs late: never back, never by our own clock, and not at all by an answer that ended the shard.
"""

from __future__ import annotations

ON_THEIR_WAY_MS = 2_000
"""Margin for records that Kinesis has accepted but an empty answer doesn't show yet."""


def after_poll(clock_ms: int, last_arrival_ms: int | None, poll_ms: int, millis_behind: int, shard_ended: bool) -> int:
    """The clock after an answer. last_arrival_ms: highest arrival seen, None when the poll brought no records.

    poll_ms: the answer's Date header. All in milliseconds since the epoch. Source: the design's definition.
    """
    if last_arrival_ms is not None:
        return max(clock_ms, last_arrival_ms)
    if shard_ended:
        return clock_ms
    return max(clock_ms, poll_ms - millis_behind - ON_THEIR_WAY_MS)
