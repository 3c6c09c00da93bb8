"""Whether an owner may still believe that it is one: when it has to look before it publishes (design invariant 2).

It reads no clock and asks nobody: the caller brings the times and the answers.
"""

from __future__ import annotations

STILL_S_MAX = 10.0
"""A loop that stood still for longer may have been replaced meanwhile: it has to look before it publishes."""


class Watch:
    """Whether an owner may still believe that it is one. Times are monotonic seconds, given by the caller.

    A verification counts from when it was asked for: an answer that lay waiting while the loop stood still proves nothing about now.
    """

    def __init__(self, hold_after_s: float) -> None:
        self._hold_after_s = hold_after_s
        self._beat_s: float | None = None
        self._stood_still_until_s: float | None = None
        self._verified_s: float | None = None

    def beat(self, now_s: float) -> None:
        if self._stands_still(now_s):
            self._stood_still_until_s = now_s
        self._beat_s = now_s

    def note_verified(self, asked_at_s: float) -> None:
        self._verified_s = asked_at_s if self._verified_s is None else max(asked_at_s, self._verified_s)

    def is_sure(self, now_s: float) -> bool:
        if self._verified_s is None or now_s - self._verified_s > self._hold_after_s:
            return False
        if self._beat_s is None or self._stands_still(now_s):
            return False
        return self._stood_still_until_s is None or self._verified_s >= self._stood_still_until_s

    def _stands_still(self, now_s: float) -> bool:
        return self._beat_s is not None and now_s - self._beat_s > STILL_S_MAX
