"""Up to which arrival time all rules are known here, when whoever stamps them and the worker share no clock.

A generation stands where workers read it at least AHEAD_MS before it starts, by the stream's clock. So one that a look doesn't show, though
the look was begun when that clock read at least t, starts after t + AHEAD_MS. The worker knows what the stream's clock reads *at least*: a record that is here has arrived, and since then time has passed. Its own
wall clock isn't asked. Pure: seconds of the monotonic clock come in.
"""

from __future__ import annotations

import dataclasses

from fleet_model import generations

SKEW_MS_MAX = 200
"""Between the clocks of Kinesis' own machines, one of which gives arrival times and another answers the one who stamps."""

AHEAD_MS = generations.AHEAD_MS - SKEW_MS_MAX
"""So far beyond the moment of a look its answer holds."""

REMEMBERED_S = 60.0
"""At least so long an arrival time counts for what the clock reads now; a single one that was far too late is forgotten in the end."""


@dataclasses.dataclass(slots=True)
class Horizon:
    """Of one worker."""

    _known_until_ms: int = 0
    _ahead_ms: float | None = None  # the stream's clock less the monotonic one, at least
    _ahead_before_ms: float | None = None
    _since_s: float = 0.0

    def seen(self, arrival_ms: int, now_s: float) -> None:
        """The stream's clock has reached arrival_ms by now."""
        if now_s - self._since_s >= REMEMBERED_S:
            is_recent = now_s - self._since_s < 2 * REMEMBERED_S
            self._ahead_before_ms = self._ahead_ms if is_recent else None
            self._ahead_ms, self._since_s = None, now_s
        ahead_ms = arrival_ms - now_s * 1000
        self._ahead_ms = ahead_ms if self._ahead_ms is None else max(self._ahead_ms, ahead_ms)

    def stream_ms(self, now_s: float) -> int:
        """What the stream's clock reads at least; 0 before any record."""
        ahead = [each for each in (self._ahead_ms, self._ahead_before_ms) if each is not None]
        return int(max(ahead) + now_s * 1000) if ahead else 0

    def looked(self, stream_ms: int) -> None:
        """All that could be read when the stream's clock read at least stream_ms is known here, and given to whoever judges."""
        self._known_until_ms = max(self._known_until_ms, stream_ms + AHEAD_MS)

    def known_until_ms(self, now_s: float) -> int:
        """Every generation that starts at or before this arrival time is known; 0 before the first look. Never further than an answer
        of now would reach: a single arrival far ahead, forgotten since, would else cover all records until real time comes there."""
        return min(self._known_until_ms, self.stream_ms(now_s) + AHEAD_MS)
