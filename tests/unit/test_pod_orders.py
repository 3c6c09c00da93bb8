"""A worker in a pod whose API server doesn't answer, or refuses: what it says of that, and when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, cast

import aiohttp
import pytest

from fleet_model import packed_generations, rules
from fleet_worker import metrics, pod_orders, ports, supervisor
from fleet_worker.adapters import clock as real_clock
from fleet_worker.adapters import kubernetes_api, kubernetes_control, kubernetes_rules
from tests.support import virtual_time

RULES = (rules.RulesGeneration(),)
FORBIDDEN = "GET devicefleets: the API server answered 403: forbidden"


class Api(kubernetes_api.KubernetesApi):
    """Lists and watches the fleet; its questions are refused while `refusal` says so."""

    def __init__(self, clock: ports.Clock, generations: Sequence[rules.RulesGeneration] = RULES) -> None:
        access = kubernetes_api.Access("http://unused", cast(Any, None))
        super().__init__(access, cast(aiohttp.ClientSession, None), clock)
        self.refusal = ""
        self.fleet = {
            "metadata": {"name": "trucks", "uid": "1", "resourceVersion": "7"},
            "status": {"rules": {"generations": packed_generations.pack(generations)}},
        }

    async def get(
        self, path: str, query: Mapping[str, str] | None = None, accept: str = "application/json"
    ) -> kubernetes_api.Json:
        if query is not None:
            return {"metadata": {"resourceVersion": "7"}, "items": [self.fleet]}
        if self.refusal:
            raise kubernetes_api.RefusedError(self.refusal, 403)
        return self.fleet

    async def watch(
        self, path: str, query: Mapping[str, str], resource_version: str
    ) -> AsyncGenerator[kubernetes_api.Json, None]:
        await asyncio.Event().wait()
        yield {}


class Worker:
    """As much of a supervisor as the orders touch."""

    generations = RULES
    load: Mapping[str, float] = types.MappingProxyType({})

    def applied(self) -> Mapping[str, int]:
        return {}


class Pod:
    def __init__(self) -> None:
        clock = virtual_time.VirtualClock()
        self.api = Api(clock)
        self.control = kubernetes_control.KubernetesControl(
            self.api, kubernetes_control.Fleet("garage", "trucks"), clock
        )
        self.measured = metrics.Metrics()
        self.orders = pod_orders.PodOrders(self.control, "worker-0", cast(Any, None), self.measured, clock)
        self.ownership = self.orders.ownership(cast(Any, None))

    def silent_s(self) -> float:
        return next(iter(self.measured.control_plane_silent.collect())).samples[0].value

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncGenerator[None, None]:
        worker = cast(supervisor.Supervisor, Worker())
        task = asyncio.create_task(self.orders.follow(cast(Any, None), worker, ""))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            await self.control.rules.close()


def test_questions_that_are_refused_are_told_and_count_as_silence_until_one_is_answered() -> None:
    async def main() -> None:
        pod = Pod()
        async with pod.following():
            await pod.orders.rules_known(1_000_000)
            assert (pod.ownership.trouble, pod.silent_s()) == ("", 0.0)
            pod.api.refusal = FORBIDDEN
            for second in range(100):
                await asyncio.sleep(1.0)
                await pod.orders.rules_known(1_000_000 + second * 1_000)
            assert pod.ownership.trouble == FORBIDDEN
            assert pod.silent_s() > 60, "the alert's threshold"
            pod.api.refusal = ""
            await asyncio.sleep(10.0)
            assert (pod.ownership.trouble, pod.silent_s()) == ("", 0.0)

    virtual_time.run(main())


def test_a_partition_that_leaves_with_its_question_open_leaves_no_trouble_behind() -> None:
    async def main() -> None:
        pod = Pod()
        async with pod.following():
            await pod.orders.rules_known(1_000_000)
            pod.api.refusal = FORBIDDEN
            asking = asyncio.create_task(pod.orders.rules_known(2_000_000))
            await asyncio.sleep(2.0)
            asking.cancel()
            await asyncio.wait((asking,))
            assert pod.ownership.trouble == FORBIDDEN
            pod.api.refusal = ""
            await asyncio.sleep(10.0)
            assert pod.ownership.trouble == ""

    virtual_time.run(main())


@pytest.mark.parametrize(("starts_ms", "late"), [(1_000_801, 0), (1_000_800, 1), (999_000, 1)])
def test_a_generation_that_starts_where_all_was_taken_to_be_known_is_told_as_late(starts_ms: int, late: int) -> None:
    async def main() -> None:
        pod = Pod()
        async with pod.following():
            await pod.orders.rules_known(1_000_000)
            kept = (*RULES, rules.RulesGeneration(2, starts_ms))
            pod.api.fleet = {
                "metadata": {"name": "trucks", "uid": "1", "resourceVersion": "8"},
                "status": {"rules": {"generations": packed_generations.pack(kept)}},
            }
            await pod.orders.rules_known(1_002_000)
            assert next(iter(pod.measured.rules_late.collect())).samples[0].value == late

    virtual_time.run(main())


class Starved(real_clock.RealClock):
    """Every thread is in a slow fsync."""

    async def in_thread(self, function: Callable[[], real_clock.Answer]) -> real_clock.Answer:
        await asyncio.Event().wait()
        raise AssertionError("waits for good")


async def test_a_long_list_of_generations_is_read_without_the_threads_that_commits_need() -> None:
    many = tuple(rules.RulesGeneration(number, number * 1_000) for number in range(1, 101))
    with Starved() as starved:
        followed = kubernetes_rules.FleetRules(Api(starved, many), "/devicefleets", "trucks", starved)
        async with contextlib.aclosing(followed.follow()) as following, asyncio.timeout(20.0):
            assert await anext(following) == many
        await followed.close()
