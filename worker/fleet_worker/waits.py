"""What a worker that starts waits for just now: said in the log now and then, and to whoever asks its HTTP API.

A worker that waits for the API server, Kinesis or the bucket works as it should: it must look alive, and not ready, from its first second
on. It doesn't wait itself.
"""

from __future__ import annotations

import logging

from fleet_worker import ports

log = logging.getLogger(__name__)

TOLD_EVERY_S = 30.0


class Waits:
    """now: in words."""

    def __init__(self, clock: ports.Clock) -> None:
        self.now = "the start of its process"
        self._clock = clock
        self._told = ""
        self._told_at = 0.0

    def step(self, what: str) -> None:
        """The usual course: nothing to be said about unless somebody asks."""
        self.now = what

    def tell(self, what: str) -> None:
        """It isn't there yet: said when that is something else, and now and then."""
        self.now = what
        now = self._clock.monotonic()
        if what != self._told or now - self._told_at >= TOLD_EVERY_S:
            log.warning("waiting for %s", what)
            self._told, self._told_at = what, now
