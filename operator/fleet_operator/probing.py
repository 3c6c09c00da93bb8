"""Asks workers how they are: GET /v1/status of each pod that runs, and the lease of the node of one that doesn't answer.

What it learns is in memory, by pod: who just began knows nothing, and nobody is silent before it has looked for long enough
(`observed.Look.watching_since_ms`). A probe that fails is no sign of death; it only leaves the last answer where it was.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from fleet_operator import clock, errors, kinds, pod_template, workers
from fleet_operator.cache import Cache
from fleet_operator.kinds import FleetKey

log = logging.getLogger(__name__)

EVERY_S = 4.0
BUSY_EVERY_S = 1.0
"""While something is under way in the fleet: a move, a new rules generation."""
AT_ONCE_MAX = 32
QUIET_S = 5.0
"""A worker that didn't answer for so long has its node looked at."""
NODES_AT_ONCE_MAX = 20
NODE_EVERY_S = 3.0
LOOK_S = 0.25
"""Between two looks at what is due."""
FORBIDDEN_S = 300.0
NODE_NAMESPACE = "kube-node-lease"
LOAD_MAX = 1e12
"""Records/s of a shard; whoever says more says nothing. JSON has whole numbers that no float can be."""


class Ask(Protocol):
    async def status(self, address: str) -> Mapping[str, Any] | None:
        """The worker's /v1/status; None when none came. Raises nothing."""


@dataclasses.dataclass(slots=True)
class _Worker:
    answer: workers.Answer = workers.Answer()
    due_s: float = 0.0


@dataclasses.dataclass(slots=True)
class _Node:
    renewed: str = ""
    heard_ms: int = 0
    asked_s: float = float("-inf")


class Probing:
    """`run` on the event loop, the rest from any thread."""

    def __init__(
        self,
        cache: Cache,
        ask: Ask,
        leases: Callable[[str], Mapping[str, Any]],
        now: clock.Clock,
        wake: Callable[[FleetKey], None],
    ) -> None:
        """leases: blocking; the lease of a node. Raises OperatorError."""
        self._cache, self._ask, self._leases, self._clock, self._wake = cache, ask, leases, now, wake
        self._workers: dict[str, _Worker] = {}
        self._nodes: dict[str, _Node] = {}
        self._busy: set[FleetKey] = set()
        self._forbidden_until_s = float("-inf")
        self._quiet: list[str] = []

    def answers(self, pods: Iterable[workers.Pod]) -> dict[str, workers.Answer]:
        """By worker. Of a pod that was made anew, there is none yet."""
        kept = {pod.name: self._workers.get(pod.uid) for pod in pods}
        return {name: found.answer for name, found in kept.items() if found is not None and found.answer.time_ms}

    def nodes_ms(self, pods: Iterable[workers.Pod]) -> dict[str, int]:
        kept = {pod.node: self._nodes.get(pod.node) for pod in pods}
        return {name: found.heard_ms for name, found in kept.items() if found is not None and found.heard_ms}

    def busy(self, fleet: FleetKey, is_busy: bool) -> None:
        if is_busy:
            self._busy.add(fleet)
        else:
            self._busy.discard(fleet)

    async def run(self, fleets: Callable[[], Iterable[FleetKey]]) -> None:
        """Until cancelled. fleets: whose workers are to be asked."""
        limit = asyncio.Semaphore(AT_ONCE_MAX)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_at_nodes(), name="nodes of silent workers")
            while True:
                await self._round(list(fleets()), limit)
                await asyncio.sleep(LOOK_S)

    async def _round(self, fleets: list[FleetKey], limit: asyncio.Semaphore) -> None:
        now_s, now_ms = self._clock.monotonic(), self._clock.now_ms()
        known, asked, quiet = set[str](), [], dict[str, None]()
        for fleet in fleets:
            for found in self._cache.of_fleet(kinds.POD, fleet):
                pod = workers.pod(found, fleet[1], 0)
                if pod is None:
                    continue
                known.add(pod.uid)
                worker = self._workers.setdefault(pod.uid, _Worker())
                address = (found.get("status") or {}).get("podIP")
                if pod.running and now_ms - worker.answer.time_ms > QUIET_S * 1000 and pod.node:
                    quiet[pod.node] = None
                if pod.running and address and now_s >= worker.due_s:
                    worker.due_s = now_s + (BUSY_EVERY_S if fleet in self._busy else EVERY_S)
                    asked.append(self._probe(fleet, worker, address, limit))
        for uid in self._workers.keys() - known:
            del self._workers[uid]
        self._quiet = list(quiet)
        await asyncio.gather(*asked)

    async def _probe(self, fleet: FleetKey, worker: _Worker, address: str, limit: asyncio.Semaphore) -> None:
        async with limit:
            told = await self._ask.status(f"http://{_bracketed(address)}:{pod_template.API_PORT}")
        if told is None:
            return
        before, worker.answer = worker.answer, read(told, self._clock.now_ms())
        changed = (before.can_take, before.generation) != (worker.answer.can_take, worker.answer.generation)
        if changed or not before.time_ms:
            self._wake(fleet)

    async def _look_at_nodes(self) -> None:
        while True:
            for name in self._quiet[:NODES_AT_ONCE_MAX]:
                node, now_s = self._nodes.setdefault(name, _Node()), self._clock.monotonic()
                if now_s >= self._forbidden_until_s and now_s - node.asked_s >= NODE_EVERY_S:
                    node.asked_s = now_s
                    await self._look_at(name, node)
            if not self._quiet:
                self._nodes.clear()
            await asyncio.sleep(LOOK_S)

    async def _look_at(self, name: str, node: _Node) -> None:
        try:
            lease = await asyncio.to_thread(self._leases, name)
        except errors.RefusedError as error:
            log.info("nodes can't be looked at, so pods' own states have to do: %s", error)
            self._forbidden_until_s = self._clock.monotonic() + FORBIDDEN_S
            self._nodes.clear()
        except errors.OperatorError as error:
            log.debug("node %s: %s", name, error)
        else:
            self._heard(node, str((lease.get("spec") or {}).get("renewTime") or ""))

    def _heard(self, node: _Node, renewed: str) -> None:
        """By our own clock, since when it changes; the node's own time only at the first look."""
        now_ms = self._clock.now_ms()
        if not renewed or renewed == node.renewed:
            return
        node.heard_ms = now_ms if node.renewed else min(now_ms, _time_ms(renewed, now_ms))
        node.renewed = renewed


def read(told: Mapping[str, Any], now_ms: int) -> workers.Answer:
    """A worker's /v1/status. What isn't there, or isn't what it should be, counts as not said."""
    rules, load = told.get("rules"), told.get("load")
    generation = rules.get("generation") if isinstance(rules, Mapping) else 0
    return workers.Answer(
        time_ms=now_ms,
        can_take=bool(told.get("can_take_partitions", told.get("ready", False))),
        generation=generation if isinstance(generation, int) else 0,
        load={
            str(shard): float(rate)
            for shard, rate in (load.items() if isinstance(load, Mapping) else ())
            if isinstance(rate, int | float) and 0 <= rate <= LOAD_MAX
        },
    )


def _time_ms(text: str, otherwise_ms: int) -> int:
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        return otherwise_ms


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
