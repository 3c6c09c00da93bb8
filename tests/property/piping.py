"""Takes a partition's whole pipeline through a history (see `histories`), in virtual time and over a store: answers cut in any
way, commits that find no room, a bounded table, restarts clean and sudden. What comes out is held against the reference.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random

import numpy as np

from fleet_worker import errors, ports
from fleet_worker.adapters import memory_store
from fleet_worker.core import clock, effects, records, table, twins
from tests.property import driving, histories
from tests.reference import raw
from tests.support import piped, virtual_time

ANSWER_RECORDS_MAX = 12
Store = memory_store.MemoryTwinStore


@dataclasses.dataclass(frozen=True, slots=True)
class Manner:
    """How a history is gone through. rows_max: the table's bound, 0 = none. restarts: how often the partition is stopped or dies
    on the way. full_percent: of the commits find no room. records_max: of an answer."""

    dice: random.Random
    rows_max: int = 0
    restarts: int = 0
    full_percent: int = 0
    records_max: int = ANSWER_RECORDS_MAX


class ToldSource:
    """A ShardSource that tells a history's steps, some at a time. Idle steps are answers without records, from which the
    pipeline takes exactly their clock. `done`: all told, the last of it an answer at the final clock, again and again."""

    def __init__(self, history: histories.History, first: int, manner: Manner, clock_of: ports.Clock) -> None:
        self._history = history
        self._at = first
        self._dice = manner.dice
        self._records_max = manner.records_max
        self._clock = clock_of
        self.done = False

    async def read(self) -> records.ShardBatch:
        await self._clock.sleep(self._dice.choice((0.0, 0.1, 0.5, 2.0, 6.0)))
        steps = self._history.steps
        if self._at == len(steps):
            self.done = True
            return self._idle(self._history.final_clock_ms)
        step = steps[self._at]
        if isinstance(step, histories.Idle):
            self._at += 1
            return self._idle(step.clock_ms)
        told: list[raw.RawRecord] = []
        wanted = self._dice.randint(1, self._records_max)
        while self._at < len(steps) and len(told) < wanted:
            step = steps[self._at]
            if isinstance(step, histories.Idle):
                break
            told.append(step)
            self._at += 1
        return records.ShardBatch(
            sequence_numbers=[record.sequence_number for record in told],
            arrival_ms=np.array([record.arrival_ms for record in told], dtype=np.int64),
            data=[record.data for record in told],
            millis_behind=self._dice.choice((0, 0, 60_000)),
            poll_ms=told[-1].arrival_ms,
        )

    def _idle(self, clock_ms: int) -> records.ShardBatch:
        return records.ShardBatch([], np.zeros(0, dtype=np.int64), [], 0, clock_ms + clock.ON_THEIR_WAY_MS)


@dataclasses.dataclass
class Run:
    """store: as it is on disk. committed: every effect, in the order of commits. rows_at_most: in the table, after a commit.
    rows_outside: twins that only the store had, at most. starts: of the partition."""

    history: histories.History
    manner: Manner
    store: Store
    committed: list[effects.Effect] = dataclasses.field(default_factory=list)
    rows_at_most: int = 0
    rows_outside: int = 0
    starts: int = 0
    outcome: driving.Outcome | None = None


def run(history: histories.History, manner: Manner) -> Run:
    going = Run(history, manner, Store(history.identity))
    virtual_time.run(_go(going))
    return going


def disagreements(history: histories.History, manner: Manner) -> list[str]:
    """Everything in which the pipeline's outcome differs from the reference's, in words. Empty: they agree."""
    outcome = run(history, manner).outcome
    assert outcome is not None
    return driving.disagreements(history, outcome)


async def _go(going: Run) -> None:
    for _ in range(going.manner.restarts):
        await _stay(going, is_last=False)
    await _stay(going, is_last=True)


async def _stay(going: Run, is_last: bool) -> None:
    """From a start to a stop, a death, or the end of the history."""
    history, dice = going.history, going.manner.dice
    going.starts += 1
    full = frozenset(number for number in range(1, 200) if dice.randrange(100) < going.manner.full_percent)
    going.store = Store(history.identity, memory_store.FaultPlan(full_commits=full), going.store._contents.copy())
    source = ToldSource(history, _next_step(history, going.store), going.manner, virtual_time.VirtualClock())
    setting = piped.Setting(
        store=going.store,
        generations=history.generations,
        rows_max=going.manner.rows_max,
        source=source,
        retention_ms=history.retention_ms,
    )
    async with piped.running(setting) as partition:
        table = partition.pipeline.engine.table
        partition.store.on_commit = lambda: _look(going, table)
        if not is_last:
            await partition.pass_time(dice.choice((0.0, 0.3, 2.0, 7.0, 15.0, 30.0)))
            if dice.randrange(2):
                with contextlib.suppress(errors.DiskFullError):
                    await partition.end()
            else:
                partition.task.cancel()
                await asyncio.wait((partition.task,))
        else:
            await partition.until(lambda: partition.pipeline.state.clock_ms >= history.final_clock_ms and source.done)
            await _ended(partition)
            going.outcome = driving.Outcome(
                going.committed, _stored(going.store), partition.pipeline.engine, _second_hops(going.store)
            )
        going.committed += [
            entry.effect for committed in partition.store.committed for entry in committed.commit.outbox_added
        ]


async def _ended(partition: piped.Piped) -> None:
    """A stop in a full disk's moment leaves the last commit out; here all of it is wanted."""
    partition.store.inner._faults = memory_store.FaultPlan()
    await partition.end()


def _look(going: Run, twin_table: table.TwinTable) -> None:
    going.rows_at_most = max(going.rows_at_most, len(twin_table))
    going.rows_outside = max(going.rows_outside, twin_table.stored_elsewhere)


def _next_step(history: histories.History, store: Store) -> int:
    """After the last record that is committed."""
    position = store.state.position.sequence_number
    places = [
        at
        for at, step in enumerate(history.steps)
        if not isinstance(step, histories.Idle) and step.sequence_number == position
    ]
    return places[-1] + 1 if places else 0


def _stored(store: Store) -> dict[str, driving.TwinParts]:
    return {
        device_id: (
            np.frombuffer(twin.row, dtype=twins.TWIN_DTYPE)[0],
            None if twin.extra is None else np.frombuffer(twin.extra, dtype=twins.EXTRA_DTYPE)[0],
            twin.telemetry,
        )
        for (_, device_id), twin in store._contents.twins.items()
    }


def _second_hops(store: Store) -> list[records.DeadLetter]:
    """Those refused by the engine; a hop too many that decoding sees is refused there."""
    return [letter for letter in store._contents.letters if "misrouted here as well" in letter.detail]
