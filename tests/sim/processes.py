"""Processes that share one virtual time: each can be paused as a whole, and killed as `kill -9` does it.

What runs belongs to the process in whose context it was started: its tasks, the timers they set, the callbacks that wake them. While a
process is paused none of that runs, and time goes on; all of it runs, late and in order, when it goes on. A killed process stays paused
for good: no `finally` of it runs, nothing is closed. What it asked of the network goes on by itself (`in_the_world`): a request that
has left arrives, whatever becomes of its sender.

Everything goes the same way each time: tasks hash by a number, so sets of them have one order.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.support import virtual_time

Answer = TypeVar("Answer")


class Process:
    """name: of the worker. number: of the start, so that two starts under one name are told apart."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.is_paused = False
        self.is_dead = False
        self.paused_at_s = 0.0
        self.parked: list[asyncio.Handle] = []
        self.main: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        return f"{self.name}#{self.number}"

    def start(self, main: Coroutine[Any, Any, Any]) -> None:
        """Everything that `main` starts belongs to this process."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.processes.append(self)
        context = contextvars.copy_context()
        context.run(_RUNNING.set, self)
        self.main = loop.create_task(main, name=f"{self}", context=context)

    def pause(self) -> None:
        if not self.is_paused:
            self.is_paused = True
            self.paused_at_s = asyncio.get_running_loop().time()

    def go_on(self) -> None:
        """What was due meanwhile runs now."""
        if self.is_paused and not self.is_dead:
            self.is_paused = False
            parked, self.parked = self.parked, []
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Loop)
            loop.run_again(parked)

    def kill(self) -> None:
        self.pause()
        self.is_dead = True


_RUNNING: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def running() -> Process | None:
    """The process whose code runs just now; None: the world's own."""
    return _RUNNING.get()


def as_running() -> Callable[[Callable[[], Answer]], Answer]:
    """Runs a function later as if the process that runs now still did."""
    context = contextvars.copy_context()
    return lambda function: context.copy().run(function)


def check_alive() -> None:
    """To be called by whatever a process uses of the world. When a run is over, what is left of a killed process ends by it."""
    process = _RUNNING.get()
    if process is not None and process.is_dead:
        raise asyncio.CancelledError


async def in_the_world(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Does the work outside of the process that asks for it: it goes on when that one is paused, killed, or waits no longer."""
    try:
        check_alive()
    except asyncio.CancelledError:
        work.close()
        raise
    context = contextvars.copy_context()
    context.run(_RUNNING.set, None)
    return await asyncio.shield(asyncio.get_running_loop().create_task(work, context=context))


class _Handle(asyncio.Handle):
    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_RUNNING)  # type: ignore[attr-defined]
        if process is not None and process.is_paused:
            process.parked.append(self)
        else:
            super()._run()


class _Timer(asyncio.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_RUNNING)  # type: ignore[attr-defined]
        if process is not None and process.is_paused:
            process.parked.append(self)
        else:
            super()._run()


class _Task(asyncio.Task[Any]):
    """Hashes by its number, not by where it lies in memory."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._number = next(_numbers)
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self._number


_numbers = itertools.count()


class Loop(virtual_time.VirtualLoop):
    """Knows whose every callback is."""

    _ready: collections.deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.set_task_factory(_new_task)  # type: ignore[arg-type]

    def end(self) -> None:
        """The run is over and judged: those that were killed may be cleared away."""
        for process in self.processes:
            process.is_paused = False
            self.run_again(process.parked)

    def run_again(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *arguments: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, arguments, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *arguments: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, arguments, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer


def _new_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **named: Any) -> asyncio.Task[Any]:
    return _Task(work, loop=loop, **named)


def run(main: Coroutine[Any, Any, Answer]) -> Answer:
    """asyncio.run() on a Loop of its own."""
    global _numbers
    _numbers = itertools.count()

    async def to_the_end() -> Answer:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        try:
            return await main
        finally:
            loop.end()

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(to_the_end())
