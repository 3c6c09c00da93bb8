"""When which fleet is reconciled: one run per fleet at a time, triggers that come meanwhile are one, a bounded number of fleets at once.

A trigger only says *look*. What waits is a time per fleet, never a queue of events, so neither a storm of events nor a thousand fleets
grow anything. A fleet that failed waits longer and longer, up to a maximum, and only an edit of the fleet itself cuts that short: a failing
fleet makes events of its own, and these mustn't drive it. After a start all fleets are due, and are taken as many at once as there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Awaitable, Callable

from fleet_operator.kinds import FleetKey

AT_ONCE_MAX = 4
SETTLE_S = 0.05
"""From a trigger to the run: what belongs together comes together."""
BETWEEN_S = 0.2
"""Between the beginnings of two runs of a fleet."""
FAILED_FIRST_S = 0.5
FAILED_MAX_S = 60.0
CLOCK_S = 0.001
"""What is due within this, is due: timers aren't finer."""
SPREAD = 0.1
"""Waits are shortened by a random part of up to this, so that fleets don't keep step."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """again_s: look again after so long, whatever happens; 0 = the fleet is gone. failed: then again_s is how long to wait at least."""

    again_s: float
    failed: bool = False


Run = Callable[[FleetKey], Awaitable[Outcome]]


@dataclasses.dataclass(slots=True)
class _Entry:
    due_s: float
    began_s: float = float("-inf")
    is_running: bool = False
    is_woken: bool = False
    is_edited: bool = False
    failures: int = 0


class Triggers:
    """On one event loop; `wake` from its thread only."""

    def __init__(self, run: Run, now_s: Callable[[], float], randomness: random.Random) -> None:
        self._run, self._now_s, self._random = run, now_s, randomness
        self._entries: dict[FleetKey, _Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def wake(self, fleet: FleetKey, *, is_edited: bool = False) -> None:
        """is_edited: the fleet itself changed; then it doesn't wait for the end of a back-off."""
        now_s = self._now_s()
        entry = self._entries.setdefault(fleet, _Entry(due_s=now_s + SETTLE_S))
        if entry.is_running:
            entry.is_woken = True
            entry.is_edited |= is_edited
        elif is_edited or not entry.failures:
            entry.due_s = min(entry.due_s, max(now_s + SETTLE_S, entry.began_s + BETWEEN_S))
        self._changed.set()

    def known(self) -> list[FleetKey]:
        return list(self._entries)

    def oldest_run_s(self) -> float:
        """How long the longest run has been going on."""
        now_s = self._now_s()
        return max((now_s - entry.began_s for entry in self._entries.values() if entry.is_running), default=0.0)

    async def run(self) -> None:
        """Until cancelled; runs that were begun are waited for then."""
        try:
            while True:
                self._changed.clear()
                wait_s = self._start_due()
                # Not wait_for: in Python 3.11 a cancellation that comes with the event is lost in there.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
        finally:
            if self._tasks:
                await asyncio.shield(asyncio.gather(*self._tasks, return_exceptions=True))

    def _start_due(self) -> float | None:
        """Begins what is due, longest due first; seconds until the next is, None = somebody has to say."""
        now_s = self._now_s()
        waiting = sorted((entry.due_s, fleet) for fleet, entry in self._entries.items() if not entry.is_running)
        for due_s, fleet in waiting:
            if len(self._tasks) >= AT_ONCE_MAX:
                return None
            if due_s > now_s + CLOCK_S:
                return due_s - now_s
            entry = self._entries[fleet]
            entry.is_running, entry.is_woken, entry.is_edited, entry.began_s = True, False, False, now_s
            task = asyncio.create_task(self._one(fleet, entry), name=f"reconcile {'/'.join(fleet)}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        return None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    async def _one(self, fleet: FleetKey, entry: _Entry) -> None:
        outcome = Outcome(FAILED_FIRST_S, failed=True)
        try:
            outcome = await self._run(fleet)
        finally:
            self._settle(fleet, entry, outcome)

    def _settle(self, fleet: FleetKey, entry: _Entry, outcome: Outcome) -> None:
        now_s = self._now_s()
        entry.is_running = False
        if outcome.failed:
            grown_s = min(FAILED_MAX_S, FAILED_FIRST_S * 2 ** min(entry.failures, 16))
            wait_s = max(outcome.again_s, grown_s * self._random.uniform(0.5, 1.0))
            entry.failures += 1
        elif outcome.again_s == 0 and not entry.is_woken:
            del self._entries[fleet]
            return
        else:
            wait_s = outcome.again_s * self._random.uniform(1.0 - SPREAD, 1.0)
            entry.failures = 0
        entry.due_s = now_s + wait_s
        if entry.is_edited or (entry.is_woken and not entry.failures):
            entry.due_s = min(entry.due_s, max(now_s + SETTLE_S, entry.began_s + BETWEEN_S))
