"""RealClock: time goes on, and blocking functions run beside the event loop, a bounded number at once."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fleet_worker.adapters import clock


async def test_a_blocking_function_leaves_the_loop_free_and_its_answer_comes_back() -> None:
    with clock.RealClock() as real:
        released = threading.Event()
        blocked = asyncio.ensure_future(real.in_thread(lambda: released.wait(10)))
        await real.sleep(0)
        released.set()
        assert await blocked is True


async def test_an_error_in_a_thread_is_the_callers() -> None:
    with clock.RealClock() as real, pytest.raises(ZeroDivisionError):
        await real.in_thread(lambda: 1 // 0)


async def test_no_more_threads_than_asked_for() -> None:
    with clock.RealClock(threads_max=2) as real:
        running: list[str] = []
        release = threading.Event()

        def work() -> str:
            running.append(threading.current_thread().name)
            release.wait(10)
            return threading.current_thread().name

        jobs = [asyncio.ensure_future(real.in_thread(work)) for _ in range(6)]
        async with asyncio.timeout(10):
            while True:
                await real.sleep(0.001)
                if len(running) == 2:
                    break
        release.set()
        assert len(set(await asyncio.gather(*jobs))) == 2


async def test_a_cancelled_caller_outlasts_its_function() -> None:
    """Else a store could be closed while its commit or fsync is still under way."""
    with clock.RealClock() as real:
        started, release, ended = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            release.wait(10)
            ended.set()
            raise OSError("nobody hears of it")

        caller = asyncio.ensure_future(real.in_thread(work))
        while not started.is_set():
            await real.sleep(0.001)
        caller.cancel()
        for _ in range(5):
            await real.sleep(0)
        assert not caller.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended.is_set()


async def test_a_cancelled_callers_function_that_waits_for_a_thread_is_never_begun() -> None:
    with clock.RealClock(threads_max=1) as real:
        release, begun = threading.Event(), threading.Event()
        first = asyncio.ensure_future(real.in_thread(lambda: release.wait(10)))
        second = asyncio.ensure_future(real.in_thread(begun.set))
        await real.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        await first
    assert not begun.is_set()


def test_wall_and_monotonic_time() -> None:
    with clock.RealClock() as real:
        assert abs(real.wall_ms() - time.time() * 1000) < 1000
        assert real.monotonic() <= real.monotonic()
