"""Takes up edits of the fleet's rules while the worker runs: each becomes a generation, stamped once, kept, then handed out.

No partition judges while one is being stamped, so none can pass its start before it holds. It doesn't look at what the rules
say, and an edit that isn't valid or can't be kept leaves the last good ones in force.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from fleet_model import generations, parse, rules, spec
from fleet_worker import errors, surroundings
from fleet_worker.adapters import local_folder

log = logging.getLogger(__name__)


def upcoming(kept: Sequence[rules.RulesGeneration], fleet: spec.FleetSpec, now_ms: int) -> rules.RulesGeneration | None:
    """The generation to be kept next, the first one or what an edit makes; None when the rules are those in force. now_ms: the
    latest time that any partition may have seen."""
    if not kept:
        return generations.first_generation(fleet)
    return generations.next_generation(kept[-1], fleet, now_ms + generations.AHEAD_MS)


class Judges(Protocol):
    """The worker whose partitions judge by the rules."""

    last_rule_error: str | None
    """Why the last edit wasn't taken up; None when it was."""

    def reached_ms(self) -> int:
        """The latest time that any partition has seen."""

    def adopt(self, generations: Sequence[rules.RulesGeneration]) -> None:
        """The whole list of generations, from now on."""


class RuleEdits:
    """Of a worker that is alone. The folder keeps the generations."""

    def __init__(self, around: surroundings.Surroundings, folder: local_folder.LocalFolder, judges: Judges) -> None:
        self._around = around
        self._folder = folder
        self._judges = judges

    async def follow(self, edits: AsyncIterator[spec.FleetSpec | parse.InvalidFleetError]) -> None:
        """Until cancelled. Raises DataFolderError when it is unknown what was kept."""
        async for edit in edits:
            if isinstance(edit, parse.InvalidFleetError):
                self._refuse(str(edit))
                continue
            ignored = generations.settings_changed(self._around.fleet, edit)
            if ignored:
                log.warning("spec.%s changed: that holds from the next start only", ", spec.".join(ignored))
            try:
                await self._take_up(edit)
            except (errors.DiskFullError, errors.TooManyGenerationsError) as error:
                self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        self._judges.last_rule_error = why
        self._around.metrics.rules_reload_failures.inc()
        log.error("the fleet's edit is refused, the last good rules stay in force: %s", why)

    async def _take_up(self, edit: spec.FleetSpec) -> None:
        self._around.rules_settled.clear()
        try:
            wall_ms = self._around.clock.wall_ms()
            generation = upcoming(self._folder.generations, edit, max(wall_ms, self._judges.reached_ms()))
            self._judges.last_rule_error = None
            if generation is None:
                return
            oldest_ms = wall_ms - self._around.retention_ms
            keep = functools.partial(self._folder.append_generation, generation, oldest_ms)
            await self._around.clock.in_thread(keep)
            self._judges.adopt(self._folder.generations)
            log.info("rules generation %d holds from %d on", generation.generation, generation.effective_ms)
        finally:
            self._around.rules_settled.set()
