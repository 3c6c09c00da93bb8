"""A worker that others command: by which rules it may judge, and what it does while nobody answers."""

from __future__ import annotations

import asyncio

from fleet_model import generations, rules
from fleet_worker import control_plane, orders
from fleet_worker.adapters import memory_control
from tests.support import virtual_time

WORKER = "worker-0"


def generation(number: int, effective_ms: int) -> rules.RulesGeneration:
    return rules.RulesGeneration(number, effective_ms, rules.Rules(rules.TemperatureRule(threshold=50.0 + number)))


class Follower:
    """Takes the generations up as a worker does."""

    def __init__(self, plane: memory_control.MemoryControl) -> None:
        self.taken: tuple[rules.RulesGeneration, ...] = ()
        self.task = asyncio.create_task(self._follow(plane))

    async def _follow(self, plane: memory_control.MemoryControl) -> None:
        async for kept in plane.follow_generations(WORKER):
            self.taken = kept


def test_a_record_is_judged_once_every_rule_up_to_its_arrival_is_known() -> None:
    async def body() -> None:
        clock = virtual_time.VirtualClock()
        plane = memory_control.MemoryControl(clock)
        ordered = orders.Controlled(plane, WORKER, clock)
        await plane.append_generation(lambda kept, late_ms: generation(1, 0), 0)
        follower = Follower(plane)
        await clock.sleep(1.0)
        now_ms = clock.wall_ms()
        await ordered.rules_known(now_ms)
        assert clock.wall_ms() == now_ms, "nothing to wait for"
        slow = memory_control.Fault(delay_s=3.0)  # its word travels slowly
        plane.plan = lambda call: slow if call.operation == "follow_generations" else memory_control.Fault()
        effective_ms = now_ms + generations.AHEAD_MS
        await plane.append_generation(lambda kept, late_ms: generation(2, effective_ms), 0)
        await clock.sleep(1.5)
        await ordered.rules_known(effective_ms - 1)
        assert clock.wall_ms() == now_ms + 1_500, "the new ones don't judge it"
        assert len(follower.taken) == 1
        await ordered.rules_known(effective_ms)
        assert len(follower.taken) == 2, "it waited until they were known"
        follower.task.cancel()

    virtual_time.run(body())


def test_while_nobody_answers_it_goes_on_by_what_it_knows() -> None:
    async def body() -> None:
        clock = virtual_time.VirtualClock()
        plane = memory_control.MemoryControl(clock)
        ordered = orders.Controlled(plane, WORKER, clock)
        await plane.append_generation(lambda kept, late_ms: generation(1, 0), 0)
        follower = Follower(plane)
        await clock.sleep(1.0)
        plane.cut(WORKER)
        await clock.sleep(10.0)
        began = clock.monotonic()
        await ordered.rules_known(clock.wall_ms())
        assert orders.RULES_WAIT_S <= clock.monotonic() - began < orders.RULES_WAIT_S + 1.0
        began = clock.monotonic()
        await ordered.rules_known(clock.wall_ms())
        assert clock.monotonic() == began, "it waits once, not at every answer"
        plane.mend(WORKER)
        await clock.sleep(1.0)
        await ordered.rules_known(clock.wall_ms())
        plane.cut(WORKER)
        await clock.sleep(10.0)
        began = clock.monotonic()
        await ordered.rules_known(clock.wall_ms())
        assert clock.monotonic() > began, "and again when it was cut off again"
        follower.task.cancel()

    virtual_time.run(body())


def test_the_margin_covers_clocks_that_differ() -> None:
    assert 0 < control_plane.SKEW_MS_MAX < generations.AHEAD_MS // 2
