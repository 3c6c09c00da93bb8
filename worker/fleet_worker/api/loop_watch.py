"""Watches the event loop from inside: how late it wakes from a short sleep is how long something held it."""

from __future__ import annotations

from fleet_worker import metrics, ports

INTERVAL_SECONDS = 0.25


async def watch(clock: ports.Clock, measured: metrics.Metrics) -> None:
    """Runs until cancelled; one observation an interval."""
    while True:
        slept_from = clock.monotonic()
        await clock.sleep(INTERVAL_SECONDS)
        measured.loop_stall.observe(max(0.0, clock.monotonic() - slept_from - INTERVAL_SECONDS))
