"""The faults of the control plane in memory: cuts, late news, lost replies. Virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from fleet_model import rules, twin_partition
from fleet_worker import errors
from fleet_worker.adapters import memory_control
from tests.contract import test_control as suite
from tests.support import virtual_time

PARTITION = suite.wanted()


def with_twins(count: int, status: twin_partition.Status) -> twin_partition.Status:
    return dataclasses.replace(status, twins=count)


def test_a_worker_that_is_cut_off_hears_and_reaches_nothing_until_it_is_mended() -> None:
    async def play() -> None:
        plane = memory_control.MemoryControl(virtual_time.VirtualClock())
        stored = await plane.create(PARTITION)
        owner, other = plane.ownership("worker-0"), plane.ownership("worker-1")
        states, kept = owner.assignments(), plane.follow_generations("worker-0")
        await anext(states)
        plane.cut("worker-0")
        assert owner.trouble
        assert not other.trouble
        following: list[asyncio.Future[Any]] = [asyncio.ensure_future(anext(items)) for items in (states, kept)]
        await plane.update_spec(suite.SHARD, dataclasses.replace(suite.SPEC, epoch=1), stored.resource_version)
        await plane.append_generation(lambda kept, late_ms: rules.RulesGeneration(), 0)
        with pytest.raises(errors.ControlPlaneUnavailableError, match="worker-0"):
            await owner.report(suite.SHARD, lambda status: with_twins(1, status))
        with pytest.raises(errors.ControlPlaneUnavailableError, match="worker-0"):
            await plane.heartbeat(suite.beat("worker-0"))
        await other.report(suite.SHARD, lambda status: with_twins(2, status))
        await asyncio.sleep(3_600)
        assert not any(task.done() for task in following)
        assert await plane.heartbeats() == {}
        plane.mend("worker-0")
        assert not owner.trouble
        state, generations = await asyncio.gather(*following)
        assert state[suite.SHARD].spec.epoch == 1
        assert generations == (rules.RulesGeneration(),)
        assert (await owner.report(suite.SHARD, lambda status: with_twins(status.twins + 1, status))).twins == 3

    virtual_time.run(play())


def test_late_news_tell_of_the_past_and_then_of_the_present() -> None:
    async def play() -> None:
        def late(call: memory_control.Call) -> memory_control.Fault:
            return memory_control.Fault(delay_s=30.0 if call.operation == "assignments" else 0.0)

        clock = virtual_time.VirtualClock()
        plane = memory_control.MemoryControl(clock, late)
        stored = await plane.create(PARTITION)
        states = plane.ownership("worker-0").assignments()
        first = asyncio.ensure_future(anext(states))
        await asyncio.sleep(1)
        await plane.update_spec(suite.SHARD, dataclasses.replace(suite.SPEC, epoch=1), stored.resource_version)
        assert await first == {suite.SHARD: stored}
        assert clock.monotonic() == 30.0
        assert (await anext(states))[suite.SHARD].spec.epoch == 1
        assert clock.monotonic() == 60.0

    virtual_time.run(play())


def test_a_report_whose_reply_is_lost_has_happened_and_one_that_failed_has_not() -> None:
    async def play() -> None:
        faults = {
            "worker-0": memory_control.Fault(lost_reply=True),
            "worker-1": memory_control.Fault(failure=True),
        }

        def plan(call: memory_control.Call) -> memory_control.Fault:
            is_hit = call.operation == "write_status"
            return faults[call.worker] if is_hit else memory_control.NO_FAULT

        plane = memory_control.MemoryControl(virtual_time.VirtualClock(), plan)
        await plane.create(PARTITION)
        for worker, twins in (("worker-0", 7), ("worker-1", 8)):
            with pytest.raises(errors.ControlPlaneUnavailableError, match="write_status"):
                await plane.ownership(worker).report(suite.SHARD, lambda status, twins=twins: with_twins(twins, status))  # type: ignore[misc]
        assert plane.state()[suite.SHARD].status.twins == 7

    virtual_time.run(play())


def test_a_run_with_the_same_plan_is_the_same_run() -> None:
    async def play() -> list[tuple[float, dict[str, twin_partition.TwinPartition]]]:
        def plan(call: memory_control.Call) -> memory_control.Fault:
            return memory_control.Fault(failure=call.number % 7 == 0, delay_s=call.number % 5 / 10)

        clock = virtual_time.VirtualClock()
        plane = memory_control.MemoryControl(clock, plan)
        seen = []

        async def follow() -> None:
            async for state in plane.ownership("worker-0").assignments():
                seen.append((clock.monotonic(), dict(state)))

        async def write(worker: str) -> None:
            for count in range(20):
                try:
                    await plane.ownership(worker).report(suite.SHARD, lambda status, to=count: with_twins(to, status))  # type: ignore[misc]
                except errors.ControlPlaneUnavailableError:
                    await clock.sleep(0.1)

        await plane.create(PARTITION)
        following = asyncio.create_task(follow())
        await asyncio.gather(write("worker-0"), write("worker-1"))
        await clock.sleep(5)
        following.cancel()
        return seen

    runs = [virtual_time.run(play()) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]) > 5
