"""A clock that stands where a test sets it."""

from __future__ import annotations


class SetClock:
    """fleet_operator.clock.Clock. s: the seconds of both its times, to be set."""

    def __init__(self, s: float = 1_000.0) -> None:
        self.s = s

    def now_ms(self) -> int:
        return int(self.s * 1000)

    def monotonic(self) -> float:
        return self.s
