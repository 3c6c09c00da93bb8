"""Whom a worker in a pod takes its orders from: the fleet's objects on the API server.

While the API server is away it goes on with what it knows, says so, and never ends because of it. It decides nothing about partitions or rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from fleet_model import rules
from fleet_worker import errors, fleet_start, loads, metrics, ports, supervisor, surroundings
from fleet_worker.adapters import kubernetes_control, kubernetes_watch

log = logging.getLogger(__name__)

RULES_WAIT_S = 5.0
"""So long a record waits until it is known which rules judge it. Normally that is one question, a few milliseconds."""


class PodOrders:
    """orders.Orders."""

    def __init__(
        self,
        control: kubernetes_control.KubernetesControl,
        name: str,
        keeper: fleet_start.Keeper,
        measured: metrics.Metrics,
        clock: ports.Clock,
    ) -> None:
        """keeper: where a fleet without a bucket keeps its start."""
        self.name = name
        self.keeper = keeper
        self._control = control
        self._measured = measured
        self._clock = clock
        self._ownership: ports.Ownership | None = None
        self._out_of_reach = False
        self._is_owed = asyncio.Event()
        measured.control_plane_silent.set_function(self._silent_s)
        measured.rules_late.set_function(lambda: control.rules.late)

    async def generations(self, stream: ports.Stream, retention_ms: int) -> Sequence[rules.RulesGeneration]:
        """Waits for the operator to have stamped the first."""
        async with contextlib.aclosing(self._control.rules.follow()) as following:
            first = asyncio.ensure_future(anext(following))
            try:
                while not (await asyncio.wait((first,), timeout=1.0))[0]:
                    trouble = self._control.rules.trouble
                    self._control.waits.tell(trouble or "the fleet's first rules generation, which the operator stamps")
                return first.result()
            finally:
                first.cancel()
                await asyncio.wait((first,))

    def ownership(self, stream: ports.Stream) -> ports.Ownership:
        self._ownership = self._control.ownership(self.name)
        return self._ownership

    async def rules_known(self, arrival_ms: int) -> None:
        """Surroundings.rules_known."""
        known = self._control.rules
        if self._out_of_reach:
            known.note(arrival_ms)
            return
        try:
            async with asyncio.timeout(RULES_WAIT_S):
                await self._asked(arrival_ms)
        except TimeoutError:
            self._out_of_reach = True
            self._measured.rules_unconfirmed.inc()
            log.warning(
                "the API server can't be asked for rules; judging goes on by those known last: %s",
                known.unanswered or known.trouble or "no answer",
            )
        finally:
            if self._out_of_reach or known.unanswered:  # also of a partition that leaves with its question open
                self._is_owed.set()

    async def follow(self, around: surroundings.Surroundings, worker: supervisor.Supervisor, address: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_rules(worker))
            group.create_task(loads.look(worker, self._clock))
            group.create_task(self._come_back())

    def _silent_s(self) -> float:
        has_trouble = self._out_of_reach or (self._ownership is not None and self._ownership.trouble)
        return self._control.silent_s() if has_trouble else 0.0

    async def _asked(self, arrival_ms: int) -> None:
        """As often as it takes."""
        backoff = kubernetes_watch.Backoff()
        while True:
            try:
                await self._control.rules.known(arrival_ms)
                return
            except errors.ControlPlaneUnavailableError as error:
                log.debug("the API server can't be asked for rules now: %s", error)
            await self._clock.sleep(backoff.next_s())

    async def _come_back(self) -> None:
        """Asks until it is answered again; records don't wait for that meanwhile."""
        while True:
            await self._is_owed.wait()
            await self._asked(self._control.rules.reached_ms())
            self._is_owed.clear()
            if self._out_of_reach:
                self._out_of_reach = False
                log.info("the API server can be asked for rules again")

    async def _follow_rules(self, worker: supervisor.Supervisor) -> None:
        async with contextlib.aclosing(self._control.rules.follow()) as following:
            async for generations in following:
                if generations[-1].generation > worker.generations[-1].generation:
                    worker.adopt(generations)
                    newest = generations[-1]
                    log.info("rules generation %d holds from %d on", newest.generation, newest.effective_ms)
