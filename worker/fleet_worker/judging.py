"""Takes records and time to a partition's engine: by which rules, with which rows in the table, and how much at once.

Batches don't matter to the engine, so a large answer is judged in turns, and so is a scan that finds a whole fleet silent; between
two turns everything else has its time: commits, other partitions, a stop. It neither reads nor commits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from fleet_model import rules
from fleet_worker import pending, residency, surroundings, turns
from fleet_worker.core import deaggregate, decode, engine, records


class Judging:
    """`judge` what arrived, `scan` when time has passed. Both return False when the worker is to stop: what is left then is
    judged after the next start."""

    def __init__(
        self,
        around: surroundings.Surroundings,
        generations: Sequence[rules.RulesGeneration],
        twin_engine: engine.TwinEngine,
        rows: residency.Residency,
        waiting: pending.Pending,
        may_go_on: Callable[[], Awaitable[bool]],
    ) -> None:
        """may_go_on: asked between two turns; commits what is due."""
        self._around = around
        self._generations = tuple(generations)
        self._engine = twin_engine
        self._residency = rows
        self._pending = waiting
        self._may_go_on = may_go_on
        self._format = around.fleet.streams.telemetry.format
        self._turn_size = turns.TurnSize()

    def adopt(self, generations: Sequence[rules.RulesGeneration]) -> None:
        """The whole list of generations, from now on."""
        self._generations = tuple(generations)

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def judge(self, batch: records.ShardBatch, records_max: int) -> bool:
        """An answer's records, at least one. records_max: in one turn, at most."""
        await self._around.rules_known(int(batch.arrival_ms.max()))
        for number, part in enumerate(deaggregate.chunks(batch, min(self._turn_size.records, records_max))):
            if number and not await self._may_go_on():
                return False
            while part.data:
                judged = await self._judge_by_one_generation(part)
                if judged is None:
                    return False
                part = deaggregate.part(part, judged, len(part.data))
        return True

    async def _judge_by_one_generation(self, part: records.ShardBatch) -> int | None:
        """Judges the records up to where the next generation starts; how many Kinesis records that were. None: stop."""
        await self._rules()
        start_ms = self._engine.next_start_ms
        end = _arrived_before(part, start_ms, self._pending.state.high_arrival_ms)
        if start_ms is not None and end == 0:
            return 0 if await self.scan(start_ms) else None
        await self._around.turns.next()
        began = self._around.clock.monotonic()
        columns = self._decoded(deaggregate.part(part, 0, end))
        decode_s = self._around.clock.monotonic() - began
        await self._residency.bring_in(self._engine.missing(columns))
        await self._rules()
        if self._is_outdated(columns):
            return 0
        began = self._around.clock.monotonic()
        caused = self._engine.apply(columns)
        counts, self._engine.counts = self._engine.counts, engine.Counts()
        self._pending.note(columns, counts, caused)
        self._turn_size.took(len(columns), decode_s + self._around.clock.monotonic() - began)
        return end

    def _decoded(self, part: records.ShardBatch) -> records.Columns:
        high_arrival_ms, has_firmware = self._pending.state.high_arrival_ms, self._engine.table.firmware is not None
        return decode.decode(part, decode.Options(self._format, high_arrival_ms, with_firmware=has_firmware))

    def _is_outdated(self, columns: records.Columns) -> bool:
        """A generation came while rows were brought in: one that looks at firmware, which wasn't decoded, or one that starts
        among these records."""
        start_ms = self._engine.next_start_ms
        needs_firmware = columns.firmware is None and self._engine.table.firmware is not None
        return needs_firmware or (start_ms is not None and start_ms <= columns.high_arrival_ms)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def scan(self, time_ms: int) -> bool:
        """Moves the partition clock on: what is due is found, by each generation of the rules up to its end.

        A whole fleet that goes silent is an alert and a command for every device, and rows outside the table come in by
        portions; so the clock arrives only when all of it is found.
        """
        await self._around.rules_known(time_ms)
        after: tuple[int, str] | None = None
        are_all_in = False
        while True:
            if not are_all_in:
                after = await self._residency.bring_in_silent(self._until(time_ms), after)
                are_all_in = after is None
            await self._around.turns.next()
            await self._rules()
            until_ms = self._until(time_ms)
            caused = self._engine.scan(until_ms, turns.EFFECTS_A_TURN)
            self._pending.add_effects(caused)
            if are_all_in and len(caused) < turns.EFFECTS_A_TURN:
                if until_ms != self._engine.next_start_ms:
                    self._pending.change(clock_ms=max(self._pending.state.clock_ms, time_ms))
                    return True
                self._engine.start_next_generation()
                are_all_in = False
            if not await self._may_go_on():
                return False

    def _until(self, time_ms: int) -> int:
        """As far as the rules in force hold."""
        start_ms = self._engine.next_start_ms
        return time_ms if start_ms is None else min(time_ms, start_ms)

    async def _rules(self) -> None:
        """Takes up generations that have come. Called right before judging, with no wait in between."""
        await self._around.rules_settled.wait()
        while self._engine.table.firmware is None and engine.needs_firmware(self._generations):
            self._engine.start_firmware(await self._residency.firmware_of_all())
            await self._around.rules_settled.wait()
        self._engine.set_generations(self._generations)


def _arrived_before(part: records.ShardBatch, time_ms: int | None, high_arrival_ms: int) -> int:
    """How many of the records are judged before that time: arrival never falls. high_arrival_ms: of the records before."""
    if time_ms is None:
        return len(part.data)
    reached = np.flatnonzero(np.maximum(part.arrival_ms, high_arrival_ms) >= time_ms)
    return int(reached[0]) if len(reached) else len(part.data)
