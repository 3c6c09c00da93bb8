"""How the partitions of a worker share one event loop: turns of bounded length, one at a time.

Python runs one thing at a time, and asyncio lets everything that is ready run before it looks at sockets and timers again. Two
hundred partitions that are all behind would keep it from both for seconds: health checks time out, calls to Kinesis expire.
So a partition asks for its turn before it judges, and between two turns the loop looks around. How much fits into a turn depends
on the records: an alert costs as much as thirty quiet records, and records of a single device, one after the other, a hundred times
as much as those of many. So it is measured.
"""

from __future__ import annotations

import asyncio

from fleet_worker.core import deaggregate

TURN_S = 0.05
"""A turn is to take about so long."""
RECORDS_MIN = 100
RECORDS_FIRST = 2_500
RECORDS_MAX = deaggregate.USER_RECORDS_MAX
EFFECTS_A_TURN = 1_000
"""A scan looks up after so many effects, which are about 30 ms of work."""


class Turns:
    """A worker's."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()  # first come, first served

    async def next(self) -> None:
        """Returns when the caller may work. Everything else that was ready has run by then, and the loop has looked around."""
        async with self._lock:
            await asyncio.sleep(0)


class TurnSize:
    """A partition's: how many records it judges in one turn."""

    def __init__(self) -> None:
        self.records = RECORDS_FIRST

    def took(self, records: int, seconds: float) -> None:
        """A turn with so many records took so long. Shrinks at once, grows by doubling."""
        if seconds > 2 * TURN_S:
            self.records = max(RECORDS_MIN, min(self.records, int(records * TURN_S / seconds)))
        elif seconds < TURN_S / 2 and 2 * records > self.records:
            self.records = min(RECORDS_MAX, 2 * self.records)
