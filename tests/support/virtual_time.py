"""An event loop on which time passes only when nothing else is left to do, and ports.Clock on it.

A test of an hour's back-off takes milliseconds and goes the same way each time. Everything of asyncio that waits by
the loop's own clock works on it. It refuses real I/O: waiting for a socket that nothing will wake is a deadlock, and is
told as one.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")

EPOCH_MS = 1_700_000_000_000


class DeadlockError(Exception):
    """Everything waits and nothing is due."""


class _TimeSelector(selectors.DefaultSelector):
    """Instead of waiting, moves the time on by what the wait would have taken."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout is None or timeout <= 0:
            if not ready and timeout is None:
                raise DeadlockError("every task waits, and for nothing that time will bring")
            return ready
        self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _TimeSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def stand_still(self, seconds: float) -> None:
        self._virtual.now_s += seconds


class VirtualClock:
    """ports.Clock by the running loop's time. Threads are not used: a blocking function runs at once, on the spot."""

    def wall_ms(self) -> int:
        return EPOCH_MS + round(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def in_thread(self, function: Callable[[], Answer]) -> Answer:
        await asyncio.sleep(0)
        return function()


def stand_still(seconds: float) -> None:
    """As if the process, or the thread of its loop, had been stopped for so long: time passes, and nothing else happens."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.stand_still(seconds)


def run(main: Coroutine[Any, Any, Answer]) -> Answer:
    """asyncio.run() on a VirtualLoop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
