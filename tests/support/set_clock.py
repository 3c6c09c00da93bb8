"""A clock that stands where a test sets it."""

from __future__ import annotations


class SetClock:
    """fleet_operator.clock.Clock. s: the seconds of both its times, to be set. ahead_s: by so much somebody set the wall clock."""

    def __init__(self, s: float = 1_000.0) -> None:
        self.s, self.ahead_s = s, 0.0

    def now_ms(self) -> int:
        return int((self.s + self.ahead_s) * 1000)

    def monotonic(self) -> float:
        return self.s
