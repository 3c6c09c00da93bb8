"""Processes in virtual time: what stands still while one is paused, and what goes on."""

from __future__ import annotations

import asyncio
import contextlib

from tests.sim import processes


def test_a_paused_process_does_nothing_and_then_everything_late() -> None:
    seen: list[tuple[str, float]] = []

    async def ticking(name: str) -> None:
        for _ in range(4):
            await asyncio.sleep(1)
            seen.append((name, asyncio.get_running_loop().time()))

    async def world() -> None:
        first, second = processes.Process("a", 1), processes.Process("b", 1)
        first.start(ticking("a"))
        second.start(ticking("b"))
        await asyncio.sleep(1.5)
        first.pause()
        await asyncio.sleep(10)
        first.go_on()
        await asyncio.sleep(10)

    processes.run(world())
    assert [at for name, at in seen if name == "b"] == [1, 2, 3, 4]
    assert [at for name, at in seen if name == "a"] == [1, 11.5, 12.5, 13.5]


def test_a_pause_outlasts_the_deadlines_that_fell_into_it() -> None:
    outcome: list[str] = []

    async def waiting(event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(5):
                await event.wait()
            outcome.append("heard")
        except TimeoutError:
            outcome.append("too late")

    async def world() -> None:
        process, event = processes.Process("a", 1), asyncio.Event()
        process.start(waiting(event))
        await asyncio.sleep(1)
        process.pause()
        await asyncio.sleep(30)
        event.set()
        await asyncio.sleep(1)
        assert outcome == []
        process.go_on()
        await asyncio.sleep(1)

    processes.run(world())
    assert outcome == ["too late"]


def test_a_killed_process_runs_nothing_more_not_even_its_finally() -> None:
    seen: list[str] = []

    async def main() -> None:
        try:
            await asyncio.sleep(5)
            seen.append("went on")
        finally:
            seen.append("cleaned up")

    async def world() -> None:
        process = processes.Process("a", 1)
        process.start(main())
        await asyncio.sleep(1)
        process.kill()
        process.go_on()
        assert process.main is not None
        process.main.cancel()
        await asyncio.sleep(60)
        assert seen == []

    processes.run(world())
    assert seen == ["cleaned up"], "when all is over, so that nothing of it is left"


def test_what_has_left_a_process_arrives_whatever_becomes_of_it() -> None:
    arrived: list[float] = []
    answered: list[str] = []

    async def request() -> str:
        await asyncio.sleep(2)
        arrived.append(asyncio.get_running_loop().time())
        assert processes.running() is None
        return "done"

    async def main() -> None:
        answered.append(await processes.in_the_world(request()))

    async def giving_up() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await processes.in_the_world(request())

    async def world() -> None:
        paused, killed, impatient = (processes.Process(name, 1) for name in "abc")
        paused.start(main())
        killed.start(main())
        impatient.start(giving_up())
        await asyncio.sleep(1)
        paused.pause()
        killed.kill()
        await asyncio.sleep(10)
        assert arrived == [2, 2, 2]
        assert answered == []
        paused.go_on()
        await asyncio.sleep(1)
        assert answered == ["done"]

    processes.run(world())


def test_children_belong_to_the_process_that_started_them() -> None:
    names: list[str] = []

    async def child() -> None:
        await asyncio.sleep(1)
        names.append(str(processes.running()))

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child())
            tasks.create_task(child())
        names.append(str(processes.running()))

    async def world() -> None:
        process = processes.Process("worker-0", 3)
        process.start(main())
        assert process.main is not None
        await process.main
        assert processes.running() is None

    processes.run(world())
    assert names == ["worker-0#3"] * 3


def test_sets_of_tasks_have_one_order() -> None:
    async def nothing() -> None:
        await asyncio.sleep(1)

    async def world() -> list[str]:
        tasks = {asyncio.get_running_loop().create_task(nothing(), name=str(number)) for number in range(50)}
        await asyncio.wait(tasks)
        return [task.get_name() for task in tasks]

    assert processes.run(world()) == processes.run(world())
