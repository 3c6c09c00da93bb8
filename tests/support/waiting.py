"""Waiting for a condition, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOK_AGAIN_S = 0.02


async def until(condition: Callable[[], object], what: str, seconds_max: float = 20.0) -> None:
    """Returns when the condition holds; fails the test with `what` when it doesn't in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds_max
    while True:
        if condition():
            return
        assert loop.time() < deadline, f"{what}: not within {seconds_max} s"
        await asyncio.sleep(LOOK_AGAIN_S)
