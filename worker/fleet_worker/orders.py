"""Whom a worker outside Kubernetes takes its orders from: nobody but its fleet file, or a control plane that it shares with others.

Orders are which partitions are its own, where the fleet started, and which rules judge. It decides nothing about any of them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from fleet_model import parse, rules, spec
from fleet_worker import (
    control_plane,
    errors,
    fleet_start,
    holding,
    loads,
    ports,
    rule_edits,
    supervisor,
    surroundings,
)
from fleet_worker.adapters import local_folder, local_ownership

log = logging.getLogger(__name__)

READY_LOOK_S = 0.2
"""A worker that has just become ready says so at once."""
RULES_WAIT_S = 5.0
"""So long a record waits until it is known which rules judge it. Normally it doesn't: the control plane is asked often enough."""
RULES_LOOK_S = 0.05
ALONE = "local"
"""The name of a worker that is alone."""


class Orders(Protocol):
    """One worker's."""

    name: str
    """Of the worker."""

    @property
    def keeper(self) -> fleet_start.Keeper:
        """Of the settled start, where there is no bucket."""

    async def generations(self, stream: ports.Stream, retention_ms: int) -> Sequence[rules.RulesGeneration]:
        """The rules to begin with."""

    def ownership(self, stream: ports.Stream) -> ports.Ownership: ...

    async def rules_known(self, arrival_ms: int) -> None:
        """Surroundings.rules_known."""

    async def follow(self, around: surroundings.Surroundings, worker: supervisor.Supervisor, address: str) -> None:
        """Edits of the rules, and whatever else comes, until cancelled. address: of the worker's API."""


class Alone:
    """Every shard of the stream, by the rules in the fleet file."""

    name = ALONE

    def __init__(
        self,
        fleet: spec.FleetSpec,
        edits: AsyncIterator[spec.FleetSpec | parse.InvalidFleetError],
        folder: local_folder.LocalFolder,
        clock: ports.Clock,
    ) -> None:
        self._fleet = fleet
        self._edits = edits
        self._folder = folder
        self._clock = clock

    @property
    def keeper(self) -> fleet_start.Keeper:
        return fleet_start.InDataFolder(self._folder, self._clock)

    async def generations(self, stream: ports.Stream, retention_ms: int) -> Sequence[rules.RulesGeneration]:
        """What was edited while no worker ran is stamped as a live edit is."""
        await self.settle_rules(await stream.now_ms(), retention_ms)
        return self._folder.generations

    async def settle_rules(self, now_ms: int, retention_ms: int) -> None:
        """now_ms: Kinesis' clock."""
        reached_ms = max(self._clock.wall_ms(), now_ms)
        generation = rule_edits.upcoming(self._folder.generations, self._fleet, reached_ms)
        if generation is not None:
            oldest_ms = now_ms - retention_ms if self._folder.generations else 0
            await self._clock.in_thread(functools.partial(self._folder.append_generation, generation, oldest_ms))

    def ownership(self, stream: ports.Stream) -> ports.Ownership:
        return local_ownership.EveryShard(stream, self._fleet.namespace, self._fleet.name, self.name)

    async def rules_known(self, arrival_ms: int) -> None:
        """It stamps them itself."""

    async def follow(self, around: surroundings.Surroundings, worker: supervisor.Supervisor, address: str) -> None:
        looking = loads.look(worker, self._clock)
        await holding.accompanied(rule_edits.RuleEdits(around, self._folder, worker).follow(self._edits), [looking])


class Controlled:
    """As the control plane says."""

    def __init__(self, plane: control_plane.ForWorkers, name: str, clock: ports.Clock) -> None:
        self.name = name
        self._plane = plane
        self._clock = clock
        self._is_out_of_reach = False

    @property
    def keeper(self) -> fleet_start.Keeper:
        return self._plane

    async def generations(self, stream: ports.Stream, retention_ms: int) -> Sequence[rules.RulesGeneration]:
        """Waits for the control plane to have stamped the first."""
        return await anext(aiter(self._plane.follow_generations(self.name)))

    def ownership(self, stream: ports.Stream) -> ports.Ownership:
        return self._plane.ownership(self.name)

    async def follow(self, around: surroundings.Surroundings, worker: supervisor.Supervisor, address: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_rules(worker))
            group.create_task(self._beat(worker, address))

    async def rules_known(self, arrival_ms: int) -> None:
        """While the control plane can't be asked, the worker goes on by the rules that it knows."""
        give_up_at = self._clock.monotonic() + RULES_WAIT_S
        while self._plane.rules_known_until_ms(self.name) < arrival_ms:
            if self._is_out_of_reach:
                return
            if self._clock.monotonic() >= give_up_at:
                self._is_out_of_reach = True
                log.warning("the control plane can't be asked for rules; judging goes on by generation known last")
                return
            await self._clock.sleep(RULES_LOOK_S)
        if self._is_out_of_reach:
            self._is_out_of_reach = False
            log.info("the control plane answers again")

    async def _follow_rules(self, worker: supervisor.Supervisor) -> None:
        async for generations in self._plane.follow_generations(self.name):
            if generations[-1].generation > worker.generations[-1].generation:
                worker.adopt(generations)
                log.info(
                    "rules generation %d holds from %d on", generations[-1].generation, generations[-1].effective_ms
                )

    async def _beat(self, worker: supervisor.Supervisor, address: str) -> None:
        seen = loads.Loads()
        while True:
            worker.load = seen.see(worker.applied(), self._clock.monotonic())
            beat = control_plane.Heartbeat(
                self.name, address, worker.can_take_partitions, self._clock.wall_ms(), os.getpid(), worker.load
            )
            try:
                await self._plane.heartbeat(beat)
            except errors.ControlPlaneUnavailableError as error:
                log.warning("the control plane can't be told that this worker lives: %s", error)
            await self._clock.sleep(control_plane.HEARTBEAT_EVERY_S if worker.can_take_partitions else READY_LOOK_S)
