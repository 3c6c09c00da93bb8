"""Stamps edits of the fleet's rules for all workers: each becomes a generation, kept before anybody judges by it.

As a worker that is alone does it, and by the same code (fleet_worker.rule_edits.upcoming); here there are no partitions to hold
meanwhile, since a generation takes effect a second after its edit and workers hear of it in a fraction of one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator

from fleet_model import generations, parse, rules, spec
from fleet_worker import control_plane, errors, ports, rule_edits

log = logging.getLogger(__name__)

TRY_AGAIN_S = 1.0


class Stamping:
    """error: why the last edit wasn't taken up; "" when it was."""

    def __init__(
        self, plane: control_plane.ForTheLoop, stream: ports.Stream, fleet: spec.FleetSpec, clock: ports.Clock
    ) -> None:
        self.error = ""
        self._plane = plane
        self._stream = stream
        self._fleet = fleet
        self._clock = clock

    async def run(self, edits: AsyncIterator[spec.FleetSpec | parse.InvalidFleetError]) -> None:
        """First what the fleet says now, or was edited to while nobody looked, then each edit. Raises DataFolderError when it is unknown
        what was kept."""
        await self._take_up(self._fleet)
        async for edit in edits:
            if isinstance(edit, parse.InvalidFleetError):
                self._refuse(str(edit))
                continue
            ignored = generations.settings_changed(self._fleet, edit)
            if ignored:
                log.warning("spec.%s changed: that holds from the next start only", ", spec.".join(ignored))
            await self._take_up(edit)

    async def _take_up(self, fleet: spec.FleetSpec) -> None:
        """Until it is kept, or refused for good."""
        while True:
            try:
                # Both clocks: arrival times are Kinesis', and what is late by either may be judged by two generations.
                ahead_ms = max(0, await self._stream.now_ms() - self._clock.wall_ms())
                kept = await self._plane.generations()
                oldest_ms = self._clock.wall_ms() - await self._stream.retention_ms() if kept else 0
                now = await self._plane.append_generation(functools.partial(self._made, fleet, ahead_ms), oldest_ms)
                if now[-1:] != kept[-1:]:
                    log.info("rules generation %d holds from %d on", now[-1].generation, now[-1].effective_ms)
                self.error = ""
                return
            except (errors.DiskFullError, errors.TooManyGenerationsError) as error:
                self._refuse(str(error))
                return
            except (
                errors.ControlPlaneUnavailableError,
                errors.StreamUnavailableError,
                errors.StreamGoneError,
            ) as error:
                if self.error != str(error):
                    log.warning("the fleet's rules can't be stamped just now, trying again: %s", error)
                self.error = str(error)
            await self._clock.sleep(TRY_AGAIN_S)

    def _made(
        self, fleet: spec.FleetSpec, ahead_ms: int, kept: tuple[rules.RulesGeneration, ...], late_ms: int
    ) -> rules.RulesGeneration | None:
        """control_plane.Make. ahead_ms: Kinesis' clock before ours."""
        return rule_edits.upcoming(kept, fleet, self._clock.wall_ms() + ahead_ms + late_ms)

    def _refuse(self, why: str) -> None:
        self.error = why
        log.error("the fleet's edit is refused, the last good rules stay in force: %s", why)
