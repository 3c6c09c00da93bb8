"""One partition's loop, top to bottom: read → decode → judge → commit → publish.

    a partition reads its shard; each answer becomes columns; the engine judges them and moves the table;
    a commit makes twins, outbox and position durable together; only then the effects are published, and only when
    Kinesis has acknowledged them they leave the outbox, with the next commit.

What it refuses: to read on while a commit finds no room or the outbox is full, and to publish what isn't committed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Sequence

from fleet_model import partition, rules, spec
from fleet_worker import errors, metrics, ports, publisher, questions, residency, syncing
from fleet_worker.api import directory
from fleet_worker.core import (
    clock,
    commits,
    dead_letters,
    deaggregate,
    decode,
    effects,
    engine,
    lifecycle,
    records,
)

log = logging.getLogger(__name__)

COMMIT_IDLE_S = 5.0
"""Caught up, changed rows wait this long for a commit, unless effects wait with them."""
COMMIT_BEHIND_S = 1.0
CAUGHT_UP_MS = 2_000
"""A partition this close to its shard's end counts as caught up: its alerts don't wait for company."""
COMMIT_CLOCK_S = 30.0
"""With nothing else to commit, the partition clock is."""
RECORDS_A_COMMIT_MAX = 200_000
EFFECTS_A_COMMIT_MAX = 20_000
SCAN_EVERY_MS = 1_000
DISK_RETRY_S = 1.0
OUTBOX_WAIT_S = 1.0
READ_WAIT_S = 1.0
"""How long the loop waits for an answer before it looks at its other duties."""
DRAIN_S = 6.0
"""A stopping partition waits this long for its outbox; what is left then is published after the next start."""


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What the partitions of a worker share. rules_settled: cleared while a new generation is being stamped and kept, so
    that no record is judged past its start before it holds."""

    clock: ports.Clock
    sink: ports.EffectSink
    metrics: metrics.Metrics
    fleet: spec.FleetSpec
    retention_ms: int
    rules_settled: asyncio.Event


class PartitionPipeline(questions.StoreQuestions):
    """A partition that this worker owns: `run` it. It is also what the API sees of it (directory.PartitionView)."""

    def __init__(
        self,
        around: Surroundings,
        identity: partition.PartitionIdentity,
        store: ports.TwinStore,
        source: ports.ShardSource,
        generations: Sequence[rules.RulesGeneration],
    ) -> None:
        super().__init__(store, around.clock)
        self._around = around
        self._identity = identity
        self._store = store
        self._source = source
        self._generations = tuple(generations)
        streams = around.fleet.streams
        self._format = streams.telemetry.format
        self._engine = engine.TwinEngine(
            engine.Settings(identity, streams.alerts.format, streams.commands.format, around.retention_ms),
            generations,
        )
        self.residency = residency.Residency(store, self._engine, around.clock)
        self._syncing = syncing.Syncing(store, around.clock, around.metrics, around.fleet.storage)
        self._publisher = publisher.Publisher(around.sink, around.clock, around.metrics, store.outbox())
        self._told = around.metrics.partition(identity.shard_id)
        self._phase = lifecycle.Phase.RESTORING
        self.message = ""

        self._stop = asyncio.Event()
        self._state = store.state
        self._effects: list[effects.OutboxEntry] = []
        self._dead_letters: list[records.DeadLetter] = []
        self._index_added: list[tuple[int, str]] = []
        self._reading: asyncio.Task[records.ShardBatch] | None = None
        self._lag_ms: int | None = None
        self._is_behind = True
        self._records_since_commit = 0
        self._scanned_ms = 0
        self._committed_at = around.clock.monotonic()

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set or the shard ended and all of it is applied and published (`state.ended` tells which).

        Raises PositionExpiredError, StreamGoneError, StoreBrokenError.
        """
        self._stop = stop
        await self._restore()
        self._step(lifecycle.Event.RESTORED)
        publishing = asyncio.create_task(self._publisher.run())
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set() and not self._state.ended:
                batch = await self._answer(stopping)
                if batch is not None:
                    await self._take_in(batch)
                await self._commit_if_due()
                while self._publisher.is_full and not stop.is_set():
                    await self._publisher.progress(OUTBOX_WAIT_S)
                    _raise_from(publishing)
                _raise_from(publishing)
                self._syncing.check()
            if not self._state.ended:
                self._step(lifecycle.Event.DRAIN)
            await self._drain(stop, publishing)
            self._step(lifecycle.Event.ENDED if self._state.ended else lifecycle.Event.DRAINED)
        finally:
            for task in (publishing, stopping, self._reading):
                await _ended(task)
            await self._syncing.ended()

    async def _answer(self, stopping: asyncio.Task[bool]) -> records.ShardBatch | None:
        """The shard's next answer; None when it is time to look at something else. The read goes on meanwhile."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._source.read())
        await asyncio.wait((self._reading, stopping), timeout=READ_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        batch = reading.result()
        self._lag_ms = batch.millis_behind
        self._told.set_lag(batch.millis_behind)
        self._told.intake_bytes.inc(batch.size_bytes)
        self._is_behind = batch.millis_behind > CAUGHT_UP_MS
        if not batch.shard_ended:
            self._reading = asyncio.create_task(self._source.read())  # the next answer travels while this one is judged
        return batch

    async def _take_in(self, batch: records.ShardBatch) -> None:
        """Judges an answer's records, and moves the partition clock as far as it tells."""
        if batch.data:
            for part in deaggregate.chunks(batch):
                await self._judge(part)
                if self._records_since_commit >= self._records_a_commit_max:
                    await self._commit()
        arrival_ms = self._state.high_arrival_ms if batch.data else None
        clock_ms = clock.after_poll(
            self._state.clock_ms, arrival_ms, batch.poll_ms, batch.millis_behind, batch.shard_ended
        )
        self._state = dataclasses.replace(self._state, clock_ms=clock_ms)
        # Records take the engine past generations' starts by themselves. An empty answer's time must not be committed before
        # a scan has: after a restart nobody would know that the one at a start, by the old rules, is still to come.
        is_ahead = clock_ms > self._scanned_ms if not batch.data else clock_ms - self._scanned_ms >= SCAN_EVERY_MS
        if is_ahead or batch.shard_ended:
            await self._scan(clock_ms)
        if batch.shard_ended:
            self._state = dataclasses.replace(self._state, ended=True)

    async def _judge(self, part: records.ShardBatch) -> None:
        options = decode.Options(
            self._format, self._state.high_arrival_ms, with_firmware=self._engine.table.firmware is not None
        )
        columns = decode.decode(part, options)
        await self._residency_for(columns)
        await self._rules()
        self._note(columns, self._engine.apply(columns))
        await self._around.clock.sleep(0)  # other partitions have their turn

    async def _residency_for(self, columns: records.Columns) -> None:
        if self._engine.table.stored_elsewhere:
            await self.residency.bring_in_silent(columns.high_arrival_ms)
            await self.residency.bring_in(self._engine.missing(columns))

    async def _scan(self, clock_ms: int) -> None:
        await self.residency.bring_in_silent(clock_ms)
        await self._rules()
        self._add_effects(self._engine.advance(clock_ms))
        self._scanned_ms = clock_ms

    async def _rules(self) -> None:
        """Takes up generations that have come. Whoever judges calls it right before, with no wait in between."""
        await self._around.rules_settled.wait()
        while self._engine.table.firmware is None and engine.needs_firmware(self._generations):
            self._engine.start_firmware(await self.residency.firmware_of_all())
            await self._around.rules_settled.wait()
        self._engine.set_generations(self._generations)

    def adopt(self, generations: Sequence[rules.RulesGeneration]) -> None:
        """The whole list of generations, from now on."""
        self._generations = tuple(generations)

    # ── what a batch leaves behind ───────────────────────────────────────────────────────────────────────────────

    def _note(self, columns: records.Columns, caused: Sequence[effects.Effect]) -> None:
        counts, self._engine.counts = self._engine.counts, engine.Counts()
        self._told.records.inc(len(columns))
        self._around.metrics.batch_records.observe(len(columns))
        self._told.late.inc(counts.late)
        self._told.misrouted.inc(counts.misrouted)
        self._told.skewed.inc(columns.skewed)
        self._records_since_commit += len(columns)
        self._state = dataclasses.replace(
            self._state,
            position=columns.position or self._state.position,
            high_arrival_ms=columns.high_arrival_ms,
        )
        self._add_effects(caused)
        for letter in (*columns.dead_letters, *counts.second_hops):
            self._bury(letter)

    def _add_effects(self, caused: Sequence[effects.Effect]) -> None:
        number = self._state.outbox_next
        self._effects += [effects.OutboxEntry(number + index, effect) for index, effect in enumerate(caused)]
        self._state = dataclasses.replace(self._state, outbox_next=number + len(caused))

    def _bury(self, letter: records.DeadLetter, refused: effects.Effect | None = None) -> None:
        """Keeps a dead letter, and sends it on where the fleet has a stream for them. refused: the effect it is about."""
        self._around.metrics.dead_letters.labels(letter.reason.value).inc()
        self._dead_letters.append(letter)
        if self._around.fleet.streams.dead_letter is not None:
            self._add_effects([dead_letters.envelope(self._identity, letter, refused)])

    def _bury_refused(self, refused: Sequence[tuple[effects.Effect, str]]) -> None:
        """A refused dead letter was kept when it came up: sending it on again would never end."""
        for effect, why in refused:
            if effect.target is effects.Target.DEAD_LETTER:
                log.error("partition %s: the dead-letter stream refuses a record: %s", self._identity.shard_id, why)
            else:
                self._bury(dead_letters.of_refused(effect, why), effect)

    # ── commits ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _records_a_commit_max(self) -> int:
        """With a bounded table, changed rows must not fill it: they can't leave before a commit."""
        bound = self.residency.rows_max
        return min(RECORDS_A_COMMIT_MAX, max(bound // 2, 1_000)) if bound else RECORDS_A_COMMIT_MAX

    async def _commit_if_due(self) -> None:
        waited_s = self._around.clock.monotonic() - self._committed_at
        wants_effects = bool(self._effects) and not self._is_behind
        has_changes = bool(self._records_since_commit or self._effects or self._dead_letters or self._index_added)
        wait_s = COMMIT_BEHIND_S if self._is_behind else COMMIT_IDLE_S
        if (
            wants_effects
            or self._state.ended
            or (waited_s >= (wait_s if has_changes else COMMIT_CLOCK_S))
            or self._records_since_commit >= self._records_a_commit_max
            or len(self._effects) >= EFFECTS_A_COMMIT_MAX
        ):
            await self._commit()
        self._syncing.if_due()

    async def _commit(self) -> None:
        """Makes everything so far durable, waiting for room on the disk as long as it takes; a stopping worker doesn't
        wait: what isn't committed wasn't acknowledged either, and is read again."""
        while True:
            try:
                await self._commit_once()
            except errors.DiskFullError as error:
                if not self.message:
                    self._told.disk_full_stops.inc()
                    log.error("partition %s: intake stops: %s", self._identity.shard_id, error)
                self.message = str(error)
                if self._stop.is_set():
                    raise
                await self._around.clock.sleep(DISK_RETRY_S)
            else:
                if self.message:
                    log.warning("partition %s: there is room again, intake goes on", self._identity.shard_id)
                self.message = ""
                return

    async def _commit_once(self) -> None:
        settled = self._publisher.take_settled()
        self._bury_refused(settled.refused)
        table = self._engine.table
        number = self._state.commit_number + 1
        rows = table.take_dirty(number, self.residency.leaving())
        state = dataclasses.replace(self._state, commit_number=number)
        commit = dataclasses.replace(
            rows,
            state=state,
            outbox_added=self._effects,
            outbox_removed=settled.removed,
            dead_letters=self._dead_letters,
            index_added=[*self._index_added, *rows.index_added],
        )
        try:
            with self._around.metrics.commit.time():
                await self._around.clock.in_thread(functools.partial(self._store.commit, commit))
        except errors.DiskFullError:
            table.not_committed(commit)
            self._publisher.give_back(publisher.Settled(settled.removed, []))
            raise
        table.committed()
        self._state = state
        self._publisher.add(self._effects)
        self._effects, self._dead_letters, self._index_added = [], [], []
        self._records_since_commit = 0
        self._committed_at = self._around.clock.monotonic()

    # ── start and end ────────────────────────────────────────────────────────────────────────────────────────────

    async def _restore(self) -> None:
        """Fills the table. Rows without room are indexed, durably, before the clock moves."""
        # A child has its first clock from the slowest of its parents and its highest arrival from the quickest: the scans at
        # generations' starts in between are still to come for some of its twins.
        has_begun = bool(self._state.position.sequence_number)
        self._engine.resume(max(self._state.clock_ms, self._state.high_arrival_ms if has_begun else 0))
        self._index_added = await self.residency.restore()
        if self._index_added:
            await self._commit()

    async def _drain(self, stop: asyncio.Event, publishing: asyncio.Task[None]) -> None:
        """The last commits. A shard that ended waits for its outbox as long as it takes; a stopping worker, DRAIN_S."""
        deadline = self._around.clock.monotonic() + DRAIN_S
        await self._commit()
        while len(self._publisher):
            if stop.is_set() and self._around.clock.monotonic() >= deadline:
                log.warning(
                    "partition %s: %d effects stay in the outbox until the next start",
                    self._identity.shard_id,
                    len(self._publisher),
                )
                break
            await self._publisher.progress(OUTBOX_WAIT_S)
            _raise_from(publishing)
            if not len(self._publisher):
                await self._commit()  # which may bring dead letters of effects that were refused
        await self._commit()

    def _step(self, event: lifecycle.Event) -> None:
        self._phase = lifecycle.after(self._phase, event)
        self._told.set_phase(self._phase.value)

    # ── what the API sees ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def identity(self) -> partition.PartitionIdentity:
        return self._identity

    @property
    def phase(self) -> str:
        return self._phase.value

    @property
    def epoch(self) -> int:
        return self._state.epoch

    @property
    def state(self) -> commits.PartitionState:
        return self._state

    @property
    def lag_ms(self) -> int | None:
        return self._lag_ms

    @property
    def outbox(self) -> directory.Outbox:
        waiting = len(self._publisher) + len(self._effects)
        oldest_ms = self._publisher.oldest_ms
        if oldest_ms is None and self._effects:
            oldest_ms = self._effects[0].effect.arrival_ms
        return directory.Outbox(waiting, oldest_ms)

    @property
    def engine(self) -> engine.TwinEngine:
        return self._engine


def _raise_from(task: asyncio.Task[None]) -> None:
    """A helper task that ended did so by an error: it ends the partition."""
    if task.done() and not task.cancelled():
        task.result()


async def _ended(task: asyncio.Task[object] | asyncio.Task[bool] | asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
    if task is not None:
        await asyncio.wait((task,))
