"""Workers and nodes are asked each on its own: who is slow holds up nobody, and what has grown stale isn't told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from fleet_operator import cache, errors, kinds, naming, probing, workers
from fleet_operator.kinds import FleetKey
from tests.support.set_clock import SetClock

FLEET: FleetKey = ("depot", "trucks")
WAIT_S = 20.0


class Scene:
    """silent: numbers of workers that take their whole time to say nothing."""

    def __init__(self, count: int, clock: Any, silent: frozenset[int] = frozenset()) -> None:
        self.cache, self.clock, self.silent = cache.Cache(), clock, silent
        self.asked: dict[int, int] = {}
        self.nodes_asked: dict[str, int] = {}
        self.renewed = "2026-01-01T00:00:00.000000Z"
        self.fails: errors.OperatorError | None = None
        self.under_way = self.most = 0
        self.pods = [self._pod(number) for number in range(count)]
        self.probing = probing.Probing(self.cache, self, self._lease, clock, lambda fleet: None)

    def _pod(self, number: int) -> workers.Pod:
        found: dict[str, Any] = {
            "metadata": {
                "name": f"trucks-{number}",
                "namespace": "depot",
                "uid": f"uid-{number}",
                "resourceVersion": "20",
                "labels": {naming.FLEET: "trucks"},
            },
            "spec": {"nodeName": f"node-{number}"},
            "status": {
                "podIP": f"10.0.0.{number}",
                "containerStatuses": [{"name": "worker", "state": {"running": {}}}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        self.cache.event(kinds.POD, None, found)
        pod = workers.pod(found, "trucks", 0)
        assert pod is not None
        return pod

    async def status(self, address: str) -> Mapping[str, Any] | None:
        number = int(address.split(":")[1].rpartition(".")[2])
        self.asked[number] = self.asked.get(number, 0) + 1
        if number not in self.silent:
            return {"ready": True}
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(2.0)
        finally:
            self.under_way -= 1
        return None

    def _lease(self, node: str) -> dict[str, Any]:
        self.nodes_asked[node] = self.nodes_asked.get(node, 0) + 1
        if self.fails is not None:
            raise self.fails
        return {"spec": {"renewTime": self.renewed}}

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        async def both() -> None:
            asking = asyncio.create_task(self.probing.run(lambda: [FLEET]))
            try:
                await body()
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

        asyncio.run(both())

    async def until(self, is_so: Callable[[], bool]) -> float:
        began_s = time.monotonic()
        while not is_so():
            assert time.monotonic() < began_s + WAIT_S, "it never came"
            await asyncio.sleep(0.02)
        return time.monotonic() - began_s


class Clock:
    """The process' own, with a wall clock that somebody sets."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return int(time.time() * 1000) + self.ahead_ms

    def monotonic(self) -> float:
        return time.monotonic()


def test_workers_that_answer_dont_wait_for_those_that_dont(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "EVERY_S", 0.2)
    scene = Scene(3, Clock(), frozenset({0}))

    async def body() -> None:
        await scene.until(lambda: scene.asked.get(1, 0) >= 4 and scene.asked.get(2, 0) >= 4)
        assert scene.asked[0] == 1

    scene.run(body)


def test_silent_workers_leave_room_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "EVERY_S", 0.2)
    monkeypatch.setattr(probing, "AT_ONCE_MAX", 4)
    monkeypatch.setattr(probing, "SILENT_AT_ONCE_MAX", 2)
    scene = Scene(9, Clock(), frozenset(range(8)))

    async def body() -> None:
        await scene.until(lambda: len(scene.asked) == 9)
        before = scene.asked[8]
        assert await scene.until(lambda: scene.asked[8] >= before + 4) < 4.0
        assert scene.most <= 4

    scene.run(body)


def test_an_answer_is_as_old_as_it_is_whoever_sets_the_clock() -> None:
    clock = Clock()
    scene = Scene(1, clock)

    async def body() -> None:
        await scene.until(lambda: bool(scene.probing.answers(scene.pods)))
        clock.ahead_ms = 60_000
        answer = scene.probing.answers(scene.pods)["trucks-0"]
        assert clock.now_ms() - answer.time_ms < 5_000

    scene.run(body)


def test_the_node_of_every_quiet_worker_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "QUIET_S", 0.1)
    scene = Scene(50, Clock(), frozenset(range(50)))

    async def body() -> None:
        await scene.until(lambda: len(scene.probing.nodes_ms(scene.pods)) == 50)

    scene.run(body)


def test_what_was_heard_of_a_node_long_ago_isnt_told() -> None:
    clock = SetClock()
    scene = Scene(1, clock, frozenset({0}))

    async def body() -> None:
        await scene.until(lambda: scene.probing._workers != {})
        clock.s += probing.QUIET_S + 1
        await scene.until(lambda: bool(scene.probing.nodes_ms(scene.pods)))
        scene.fails = errors.ApiUnavailableError("throttled")
        clock.s += probing.NODE_S_MAX + 1
        assert scene.probing.nodes_ms(scene.pods) == {}

    scene.run(body)


def test_a_node_that_nobody_asked_for_meanwhile_is_believed_by_its_own_time() -> None:
    """Its lease may have been renewed for the last time long before we looked again."""
    clock = SetClock(1_767_225_600.0)
    scene = Scene(1, clock, frozenset({0}))

    async def body() -> None:
        await scene.until(lambda: scene.probing._workers != {})
        clock.s += probing.QUIET_S + 1
        await scene.until(lambda: bool(scene.probing.nodes_ms(scene.pods)))
        scene.silent = frozenset()
        clock.s += 10
        await scene.until(lambda: scene.probing._nodes == {})
        clock.s += 60
        scene.silent, scene.renewed = frozenset({0}), "2026-01-01T00:00:30.000000Z"
        await scene.until(lambda: bool(scene.probing.nodes_ms(scene.pods)))
        assert scene.probing.nodes_ms(scene.pods) == {"node-0": 1_767_225_630_000}

    scene.run(body)
