"""Asks workers how they are: GET /v1/status of each pod that runs, and the lease of the node of one that doesn't answer.

What it learns is in memory, by pod: who just began knows nothing, and nobody is silent before it has looked for long enough
(`observed.Look.watching_since_ms`). A probe that fails is no sign of death; it only leaves the last answer where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
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
AT_ONCE_MAX = 96
"""Below what the HTTP session opens at once."""
SILENT_AT_ONCE_MAX = 64
"""Of workers that didn't answer last: they take their whole time, and the others mustn't wait for them."""
PROBE_S_MAX = 3.0
QUIET_S = 5.0
"""A worker that didn't answer for so long has its node looked at."""
NODES_AT_ONCE_MAX = 4
NODE_EVERY_S = 3.0
NODE_S_MAX = 10.0
"""What the API server said of a node counts for so long. Then its pods' own states have to do: Kubernetes' word is late, but not stale."""
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
    """found, pod: what was last read of its pod. since_s, answered_s: monotonic; first seen, last heard, None = never. is_silent: it didn't
    answer last."""

    fleet: FleetKey
    found: Mapping[str, Any]
    pod: workers.Pod
    since_s: float
    answer: workers.Answer = workers.Answer()
    answered_s: float | None = None
    due_s: float = 0.0
    is_asked: bool = False
    is_silent: bool = False

    @property
    def address(self) -> str:
        return (self.found.get("status") or {}).get("podIP") or ""

    def is_quiet(self, now_s: float) -> bool:
        return now_s - (self.since_s if self.answered_s is None else self.answered_s) > QUIET_S

    def is_to_be_asked(self, now_s: float) -> bool:
        return self.pod.running and bool(self.address) and not self.is_asked and now_s >= self.due_s


@dataclasses.dataclass(slots=True)
class _Node:
    """Moments are monotonic. heard_s: of its last sign of life; answered_s: when the API server last said anything of it."""

    renewed: str = ""
    heard_s: float = float("-inf")
    asked_s: float = float("-inf")
    answered_s: float = float("-inf")


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

    def answers(self, pods: Iterable[workers.Pod]) -> dict[str, workers.Answer]:
        """By worker. Of a pod that was made anew, there is none yet."""
        kept = {pod.name: self._workers.get(pod.uid) for pod in pods}
        return {
            name: dataclasses.replace(found.answer, time_ms=clock.wall_ms(self._clock, found.answered_s))
            for name, found in kept.items()
            if found is not None and found.answered_s is not None
        }

    def nodes_ms(self, pods: Iterable[workers.Pod]) -> dict[str, int]:
        """Without those of which the API server has said nothing for a while."""
        kept, now_s = {pod.node: self._nodes.get(pod.node) for pod in pods}, self._clock.monotonic()
        return {
            name: clock.wall_ms(self._clock, found.heard_s)
            for name, found in kept.items()
            if found is not None and now_s - found.answered_s <= NODE_S_MAX
        }

    def busy(self, fleet: FleetKey, is_busy: bool) -> None:
        if is_busy:
            self._busy.add(fleet)
        else:
            self._busy.discard(fleet)

    async def run(self, fleets: Callable[[], Iterable[FleetKey]]) -> None:
        """Until cancelled. fleets: whose workers are to be asked."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(NODES_AT_ONCE_MAX):
                tasks.create_task(self._look_at_nodes(), name="nodes of silent workers")
            while True:
                self._look_at_pods(fleets())
                for worker in self._due():
                    worker.is_asked = True
                    tasks.create_task(self._probe(worker), name=f"probe of {worker.pod.name}")
                await asyncio.sleep(LOOK_S)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _look_at_pods(self, fleets: Iterable[FleetKey]) -> None:
        known, now_s = dict[str, _Worker](), self._clock.monotonic()
        for fleet in fleets:
            for found in self._cache.of_fleet(kinds.POD, fleet):
                worker = self._workers.get(found["metadata"]["uid"])
                if worker is None or worker.found is not found:
                    pod = workers.pod(found, fleet[1], 0)
                    if pod is None:
                        continue
                    worker = worker or _Worker(fleet, found, pod, now_s)
                    worker.found, worker.pod = found, pod
                known[worker.pod.uid] = worker
        self._workers = known
        quiet = {each.pod.node for each in known.values() if each.pod.running and each.is_quiet(now_s)} - {""}
        self._nodes = {name: self._nodes.get(name) or _Node() for name in quiet}

    def _due(self) -> list[_Worker]:
        """Longest due first, as many as there is room for."""
        now_s = self._clock.monotonic()
        asked = [each for each in self._workers.values() if each.is_asked]
        room, silent_room = AT_ONCE_MAX - len(asked), SILENT_AT_ONCE_MAX - sum(each.is_silent for each in asked)
        due = [each for each in self._workers.values() if each.is_to_be_asked(now_s)]
        chosen: list[_Worker] = []
        for worker in sorted(due, key=lambda each: each.due_s):
            if len(chosen) < room and (not worker.is_silent or silent_room > 0):
                silent_room -= worker.is_silent
                chosen.append(worker)
        return chosen

    async def _probe(self, worker: _Worker) -> None:
        worker.due_s = self._clock.monotonic() + (BUSY_EVERY_S if worker.fleet in self._busy else EVERY_S)
        told = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S_MAX):
                    told = await self._ask.status(f"http://{_bracketed(worker.address)}:{pod_template.API_PORT}")
        finally:
            worker.is_asked = False
        worker.is_silent = told is None
        if told is None:
            return
        before, worker.answer = worker.answer, read(told, self._clock.now_ms())
        is_first, worker.answered_s = worker.answered_s is None, self._clock.monotonic()
        changed = (before.can_take, before.generation) != (worker.answer.can_take, worker.answer.generation)
        if changed or is_first:
            self._wake(worker.fleet)

    # ── their nodes ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _look_at_nodes(self) -> None:
        """One after the other, longest unasked first."""
        while True:
            now_s = self._clock.monotonic()
            due = [(node.asked_s, name) for name, node in self._nodes.items() if now_s - node.asked_s >= NODE_EVERY_S]
            if due and now_s >= self._forbidden_until_s:
                name = min(due)[1]
                self._nodes[name].asked_s = now_s
                await self._look_at(name, self._nodes[name])
            else:
                await asyncio.sleep(LOOK_S)

    async def _look_at(self, name: str, node: _Node) -> None:
        try:
            lease = await asyncio.to_thread(self._leases, name)
        except errors.RefusedError as error:
            log.info("nodes can't be looked at, so pods' own states have to do: %s", error)
            self._forbidden_until_s = self._clock.monotonic() + FORBIDDEN_S
            self._nodes = {}
        except errors.OperatorError as error:
            log.debug("node %s: %s", name, error)
        else:
            self._heard(node, str((lease.get("spec") or {}).get("renewTime") or ""))

    def _heard(self, node: _Node, renewed: str) -> None:
        """By our own clock, since when it changes; the node's own time only at the first look."""
        if not renewed:
            return
        now_s, now_ms = self._clock.monotonic(), self._clock.now_ms()
        if renewed != node.renewed:
            age_ms = 0 if node.renewed else max(0, now_ms - _time_ms(renewed, now_ms))
            node.renewed, node.heard_s = renewed, now_s - age_ms / 1000
        node.answered_s = now_s


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
        return clock.time_ms(text)
    except ValueError:
        return otherwise_ms


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
