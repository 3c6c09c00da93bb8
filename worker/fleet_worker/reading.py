"""Reads a shard for its partition's loop: the next answer travels while this one is judged.

After an outage every partition of a worker is behind and every answer is as large as can be. So many of them at once would take
more memory than all twins; there are places for a bounded number. Whoever is behind reads with a place, and ahead only while
one of those is free; whoever is caught up needs none. It decides nothing about records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet_worker import ports
from fleet_worker.core import records

PLACES, PLACES_AHEAD = 8, 10
"""Answers of shards that are behind: so many being read or judged, and so many more read ahead. Each is at most 10 MB, about 3 MB
for plain telemetry."""
CAUGHT_UP_MS = 2_000
"""A partition this close to its shard's end counts as caught up: its alerts don't wait for company."""
READ_WAIT_S = 1.0
"""How long the loop waits for an answer before it looks at its other duties."""


class Places:
    """A worker's. now: for answers that are read and judged. ahead: how many more may be read ahead."""

    def __init__(self, now: int = PLACES, ahead: int = PLACES_AHEAD) -> None:
        self.now = asyncio.Semaphore(now)
        self.ahead = ahead

    def take_one_ahead(self) -> bool:
        if not self.ahead:
            return False
        self.ahead -= 1
        return True

    def give_one_ahead(self) -> None:
        self.ahead += 1


class Reader:
    """A partition's. `begin` if there is time before the first answer is wanted, `answer` and `done` in turn, `ended` at the
    end."""

    def __init__(self, source: ports.ShardSource, places: Places) -> None:
        self.is_behind = True
        self._source = source
        self._places = places
        self._reading: asyncio.Task[records.ShardBatch] | None = None
        self._read_with: Callable[[], None] | None = None  # gives back the place of the answer that is being read
        self._judged_with: Callable[[], None] | None = None  # … and of the one that is being judged
        self._asked_s: float | None = None  # by the loop's time: when the read under way began

    @property
    def silent_s(self) -> float:
        """How long the read under way has gone without an answer; 0 when there is none."""
        return 0.0 if self._asked_s is None else asyncio.get_running_loop().time() - self._asked_s

    def begin(self) -> None:
        """Asks for the first answer before anyone can judge it, while twins come back from the disk say, if there is a place
        ahead: one that is waited for would keep others from reading."""
        self._read_ahead()

    async def answer(self, stopping: asyncio.Task[bool]) -> records.ShardBatch | None:
        """The shard's next answer; None when it is time to look at something else. The read goes on meanwhile."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        await asyncio.wait((self._reading, stopping), timeout=READ_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        batch = reading.result()
        self.done()
        self._judged_with, self._read_with = self._read_with, None
        self.is_behind = batch.millis_behind > CAUGHT_UP_MS
        if not batch.shard_ended:
            self._read_ahead()
        return batch

    def done(self) -> None:
        """The answer is judged, or waits for something that may take long: its place is free for others."""
        if self._judged_with is not None:
            self._judged_with()
            self._judged_with = None

    async def ended(self) -> None:
        """Ends the read under way."""
        await ended(self._reading)
        self.done()
        if self._read_with is not None:
            self._read_with()
            self._read_with = None

    def _read_ahead(self) -> None:
        if self.is_behind:
            if not self._places.take_one_ahead():
                return
            self._read_with = self._places.give_one_ahead
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> records.ShardBatch:
        if self.is_behind and self._read_with is None:
            await self._places.now.acquire()
            self._read_with = self._places.now.release
        self._asked_s = asyncio.get_running_loop().time()
        try:
            return await self._source.read()
        finally:
            self._asked_s = None


async def ended(task: asyncio.Task[records.ShardBatch] | asyncio.Task[bool] | asyncio.Task[None] | None) -> None:
    """Cancels a helper task and waits for its end. An error that it ended by is raised where its result is asked for."""
    if task is None:
        return
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio doesn't call it forgotten
