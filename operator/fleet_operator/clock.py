"""Time, as the operator asks for it. Tests bring their own."""

from __future__ import annotations

import datetime
import time
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int:
        """Milliseconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds, never going back: for intervals."""


def time_ms(text: str) -> int:
    """A time as Kubernetes writes it, in milliseconds since the epoch. Raises ValueError."""
    return int(datetime.datetime.fromisoformat(text).timestamp() * 1000)


def wall_ms(clock: Clock, moment_s: float) -> int:
    """A moment of the monotonic clock by the wall clock as it goes now: whoever sets that one changes no age."""
    return clock.now_ms() - round((clock.monotonic() - moment_s) * 1000)


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()
