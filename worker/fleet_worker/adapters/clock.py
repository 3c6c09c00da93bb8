"""Real time and real threads behind ports.Clock.

It owns the thread pool of a worker's disks, so how many blocking calls run at once has a bound; it never starts a thread
on its own account and never adjusts the time it is given.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

Answer = TypeVar("Answer")

THREADS_MAX = 4
"""Commits and fsyncs of a worker's partitions share these: a worker has about one core, and one disk."""


class RealClock:
    """ports.Clock over asyncio and a thread pool of at most `threads_max`. Close it at the end; closing is idempotent.

    A call waits in the pool's queue when every thread is busy; the queue is as long as there are callers waiting, and
    every partition waits for its one call.
    """

    def __init__(self, threads_max: int = THREADS_MAX) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(threads_max, thread_name_prefix="fleet-twin")

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def in_thread(self, function: Callable[[], Answer]) -> Answer:
        """A cancelled caller is held until the function has ended, as no thread can be stopped: what comes after it (the
        closing of a store, say) never meets it. One that still waited for a thread is never begun."""
        job = self._threads.submit(function)
        answer = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if not job.cancel():
                await asyncio.wait((answer,))
                answer.exception()  # told to nobody; asyncio would call that a mistake
            raise

    def close(self) -> None:
        """Waits for the calls under way."""
        self._threads.shutdown(wait=True)

    def __enter__(self) -> RealClock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
