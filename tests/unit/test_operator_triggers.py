"""When fleets are reconciled, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

from fleet_operator import triggers
from fleet_operator.kinds import FleetKey
from fleet_operator.triggers import Outcome
from tests.support import virtual_time

ONE: FleetKey = ("depot", "trucks")


class Scene:
    """Runs take `takes_s` and end with what `outcomes` says, the last one again and again."""

    def __init__(self, *outcomes: Outcome, takes_s: float = 0.1) -> None:
        self.outcomes, self.takes_s = list(outcomes), takes_s
        self.begun: list[tuple[float, FleetKey]] = []
        self.at_once = self.most_at_once = 0
        self.queue = triggers.Triggers(self._run, lambda: asyncio.get_running_loop().time(), random.Random(1))

    async def _run(self, fleet: FleetKey) -> Outcome:
        self.begun.append((asyncio.get_running_loop().time(), fleet))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.takes_s)
        self.at_once -= 1
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    def times(self, fleet: FleetKey = ONE) -> list[float]:
        return [moment for moment, key in self.begun if key == fleet]


def play(scene: Scene, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        loop = asyncio.create_task(scene.queue.run())
        await story()
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop

    virtual_time.run(body())


def test_a_fleet_is_looked_at_again_after_a_while_without_any_event() -> None:
    scene = Scene(Outcome(5.0))

    async def story() -> None:
        scene.queue.wake(ONE)
        await asyncio.sleep(31)

    play(scene, story)
    waits = [after - before for before, after in zip(scene.times(), scene.times()[1:], strict=False)]
    assert len(scene.times()) in (6, 7)
    assert all(4.5 <= wait <= 5.2 for wait in waits)


def test_a_storm_of_events_is_a_few_runs() -> None:
    scene = Scene(Outcome(60.0))

    async def story() -> None:
        for _ in range(2_000):
            scene.queue.wake(ONE)
            await asyncio.sleep(0.001)

    play(scene, story)
    assert len(scene.times()) <= 2.0 / triggers.BETWEEN_S + 1
    assert scene.most_at_once == 1


def test_an_event_in_the_middle_of_a_run_makes_another_one() -> None:
    scene = Scene(Outcome(60.0), takes_s=1.0)

    async def story() -> None:
        scene.queue.wake(ONE)
        await asyncio.sleep(0.5)
        scene.queue.wake(ONE)
        await asyncio.sleep(5)

    play(scene, story)
    assert len(scene.times()) == 2


def test_a_failing_fleet_waits_longer_and_longer_and_its_own_events_dont_drive_it() -> None:
    scene = Scene(Outcome(0.0, failed=True))

    async def story() -> None:
        scene.queue.wake(ONE)
        for _ in range(6_000):
            await asyncio.sleep(0.1)
            scene.queue.wake(ONE)

    play(scene, story)
    waits = [after - before for before, after in zip(scene.times(), scene.times()[1:], strict=False)]
    assert len(scene.times()) < 25
    assert max(waits) <= triggers.FAILED_MAX_S + 1
    assert waits[-1] >= triggers.FAILED_MAX_S / 2


def test_an_edit_ends_the_wait_of_a_failing_fleet() -> None:
    scene = Scene(*[Outcome(0.0, failed=True)] * 9, Outcome(60.0))

    async def story() -> None:
        scene.queue.wake(ONE)
        await asyncio.sleep(200)
        before = len(scene.times())
        scene.queue.wake(ONE, is_edited=True)
        await asyncio.sleep(0.3)
        assert len(scene.times()) == before + 1

    play(scene, story)


def test_success_forgets_failures() -> None:
    scene = Scene(*[Outcome(0.0, failed=True)] * 5, Outcome(60.0), Outcome(0.0, failed=True))

    async def story() -> None:
        scene.queue.wake(ONE)
        await asyncio.sleep(100)

    play(scene, story)
    after_success = scene.times()[6:]
    assert after_success[1] - after_success[0] <= triggers.FAILED_FIRST_S + 0.2


def test_a_thousand_fleets_at_the_start_are_taken_a_few_at_once() -> None:
    scene = Scene(Outcome(3_600.0))
    fleets = [("depot", f"fleet-{number}") for number in range(1_000)]

    async def story() -> None:
        for fleet in fleets:
            scene.queue.wake(fleet)
        await asyncio.sleep(60)

    play(scene, story)
    assert scene.most_at_once == triggers.AT_ONCE_MAX
    assert sorted(key for _, key in scene.begun) == sorted(fleets)


def test_a_slow_fleet_doesnt_hold_up_the_others() -> None:
    scene = Scene(Outcome(60.0), takes_s=30.0)
    other: FleetKey = ("depot", "vans")

    async def story() -> None:
        scene.queue.wake(ONE)
        await asyncio.sleep(1)
        scene.queue.wake(other)
        await asyncio.sleep(1)
        assert scene.times(other)
        assert scene.queue.oldest_run_s() > 1.5

    play(scene, story)


def test_a_fleet_that_is_gone_is_forgotten_unless_it_came_back() -> None:
    scene = Scene(Outcome(0.0), takes_s=1.0)

    async def story() -> None:
        scene.queue.wake(ONE)
        await asyncio.sleep(0.5)
        scene.queue.wake(ONE)
        await asyncio.sleep(1)
        assert len(scene.times()) == 2
        await asyncio.sleep(2)
        assert scene.queue.known() == []

    play(scene, story)


def test_the_end_waits_for_what_was_begun() -> None:
    scene = Scene(Outcome(5.0), takes_s=3.0)

    async def story() -> None:
        scene.queue.wake(ONE)
        await asyncio.sleep(0.5)

    play(scene, story)
    assert scene.at_once == 0
