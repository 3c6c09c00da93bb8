"""One partition's loop, top to bottom: read → decode → judge → commit → publish.

    a partition reads its shard; each answer becomes columns; the engine judges them and moves the table;
    a commit makes twins, outbox and position durable together; only then the effects are published, and only when
    Kinesis has acknowledged them they leave the outbox, with the next commit.

Batches don't matter to the engine, so a large answer, and a scan that finds a whole fleet silent, are judged in turns; between
two of them everything else has its time: commits, other partitions, a stop.

What it refuses: to read on while a commit finds no room or the outbox is full, to publish what isn't committed, and to go on
after a pause longer than the stream retains records.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Sequence

import numpy as np

from fleet_model import partition, rules, spec
from fleet_worker import errors, metrics, ports, publisher, questions, reading, residency, syncing, turns
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
COMMIT_CLOCK_S = 30.0
"""With nothing else to commit, the partition clock is."""
RECORDS_A_COMMIT_MAX = 200_000
EFFECTS_A_COMMIT_MAX = 20_000
SCAN_EVERY_MS = 1_000
DISK_RETRY_S = 1.0
OUTBOX_WAIT_S = 1.0
PAUSE_MS = 600_000
"""Between two answers, by this machine's clock: after a longer one it is asked whether records are lost. While reading goes
on none are, however far behind."""
DRAIN_S = 6.0
"""A stopping partition waits this long for its outbox; what is left then is published after the next start."""


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What the partitions of a worker share. rules_settled: cleared while a new generation is being stamped and kept, so
    that no record is judged past its start before it holds. turns, places: time on the event loop and memory for answers."""

    clock: ports.Clock
    sink: ports.EffectSink
    metrics: metrics.Metrics
    fleet: spec.FleetSpec
    retention_ms: int
    rules_settled: asyncio.Event
    turns: turns.Turns = dataclasses.field(default_factory=turns.Turns)
    places: reading.Places = dataclasses.field(default_factory=reading.Places)


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
        self._generations = tuple(generations)
        streams = around.fleet.streams
        self._format = streams.telemetry.format
        self._engine = engine.TwinEngine(
            engine.Settings(identity, streams.alerts.format, streams.commands.format, around.retention_ms),
            generations,
        )
        self.residency = residency.Residency(store, self._engine, around.clock)
        self._syncing = syncing.Syncing(store, around.clock, around.metrics, around.fleet.storage)
        self._publisher = publisher.Publisher(around.sink, around.clock, around.metrics)
        self._reader = reading.Reader(source, around.places)
        self._turn_size = turns.TurnSize()
        self._told = around.metrics.partition(identity.shard_id)
        self._phase = lifecycle.Phase.RESTORING
        self._no_room = ""  # why the last commit found none

        self._stop = asyncio.Event()
        self._state = store.state
        self._effects: list[effects.OutboxEntry] = []
        self._dead_letters: list[records.DeadLetter] = []
        self._index_added: list[tuple[int, str]] = []
        self._lag_ms: int | None = None
        self._answered_ms = (
            around.clock.wall_ms()
        )  # when the last answer came, and the time in the shard that it reached
        self._reached_ms = self._state.clock_ms
        self._records_since_commit = 0
        self._publishing: asyncio.Task[None] | None = None
        self._committed_at = around.clock.monotonic()

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set or the shard ended and all of it is applied and published (`state.ended` tells which).

        Raises PositionExpiredError, StreamGoneError, StoreBrokenError.
        """
        self._stop = stop
        await self._restore()
        self._step(lifecycle.Event.RESTORED)
        self._publishing = asyncio.create_task(self._publisher.run())
        stopping = asyncio.create_task(stop.wait())
        try:
            while not self._state.ended and await self._may_go_on():
                batch = await self._reader.answer(stopping)
                if batch is not None:
                    await self._take_in(batch)
                    self._reader.done()
            if not self._state.ended:
                self._step(lifecycle.Event.DRAIN)
            await self._drain()
            self._step(lifecycle.Event.ENDED if self._state.ended else lifecycle.Event.DRAINED)
        finally:
            await reading.ended(self._publishing)
            await reading.ended(stopping)
            await self._reader.ended()
            await self._syncing.ended()

    async def _may_go_on(self) -> bool:
        """Between two turns: commits what is due, and waits while the outbox is full. False: stop."""
        while True:
            await self._commit_if_due()
            self._check_helpers()
            if self._stop.is_set() or not self._publisher.is_full:
                return not self._stop.is_set()
            self._reader.done()
            await self._publisher.progress(OUTBOX_WAIT_S)

    def _check_helpers(self) -> None:
        """A helper task that ended did so by an error: it ends the partition."""
        assert self._publishing is not None
        if self._publishing.done():
            self._publishing.result()
        self._syncing.check()

    async def _take_in(self, batch: records.ShardBatch) -> None:
        """Judges an answer's records, and moves the partition clock as far as it tells. What a stop leaves is read again."""
        self._note_answer(batch)
        if batch.data:
            for number, part in enumerate(deaggregate.chunks(batch, self._turn_size.records)):
                if number and not await self._may_go_on():
                    return
                if not await self._judge(part):
                    return
        arrival_ms = self._state.high_arrival_ms if batch.data else None
        clock_ms = clock.after_poll(
            self._state.clock_ms, arrival_ms, batch.poll_ms, batch.millis_behind, batch.shard_ended
        )
        # The clock moves by scans alone: a clock that no scan has seen must not be committed.
        ahead_ms = clock_ms - self._state.clock_ms
        if (
            ahead_ms >= SCAN_EVERY_MS or (ahead_ms > 0 and not batch.data) or batch.shard_ended
        ) and not await self._scan(clock_ms):
            return
        if batch.shard_ended:
            self._state = dataclasses.replace(self._state, ended=True)

    async def _judge(self, part: records.ShardBatch) -> bool:
        """Judges a part of an answer, cut where a generation of the rules starts, as each start has its scan. False: stop."""
        now = self._around.clock.monotonic
        while part.data:
            await self._rules()
            start_ms = self._engine.next_start_ms
            end = _arrived_before(part, start_ms, self._state.high_arrival_ms)
            if start_ms is not None and end == 0:
                if not await self._scan(start_ms):
                    return False
                continue
            await self._around.turns.next()
            began = now()
            columns = self._decoded(deaggregate.part(part, 0, end))
            decode_s = now() - began
            await self.residency.bring_in(self._engine.missing(columns))
            await self._rules()
            start_ms = self._engine.next_start_ms
            if self._must_decode_again(columns) or (start_ms is not None and start_ms <= columns.high_arrival_ms):
                continue  # a generation that came meanwhile matters to these records
            began = now()
            self._note(columns, self._engine.apply(columns))
            self._turn_size.took(len(columns), decode_s + now() - began)
            part = deaggregate.part(part, end, len(part.data))
        return True

    async def _scan(self, time_ms: int) -> bool:
        """Moves the partition's time on: finds what is due, by each generation of the rules up to its end. False: stop.

        In turns: when a whole fleet goes silent, that is an alert and a command for every device, and rows outside the table come
        in by portions.
        """
        after: tuple[int, str] | None = None
        are_all_in = is_all_found = False
        while True:
            if not are_all_in:
                after = await self.residency.bring_in_silent(self._scan_until(time_ms), after)
                are_all_in = after is None
            await self._around.turns.next()
            await self._rules()
            until_ms = self._scan_until(time_ms)
            caused = self._engine.scan(until_ms, turns.EFFECTS_A_TURN)
            self._add_effects(caused)
            is_all_found = len(caused) < turns.EFFECTS_A_TURN
            if is_all_found and are_all_in:
                if until_ms != self._engine.next_start_ms:
                    self._state = dataclasses.replace(self._state, clock_ms=max(self._state.clock_ms, time_ms))
                    return True
                self._engine.start_next_generation()
                are_all_in = False
            if not await self._may_go_on():
                return False

    def _scan_until(self, time_ms: int) -> int:
        """Up to where the rules in force hold."""
        start_ms = self._engine.next_start_ms
        return time_ms if start_ms is None else min(time_ms, start_ms)

    def _decoded(self, part: records.ShardBatch) -> records.Columns:
        has_firmware = self._engine.table.firmware is not None
        return decode.decode(
            part, decode.Options(self._format, self._state.high_arrival_ms, with_firmware=has_firmware)
        )

    def _must_decode_again(self, columns: records.Columns) -> bool:
        """The rules have begun to look at firmware, which wasn't decoded."""
        return columns.firmware is None and self._engine.table.firmware is not None

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

    # ── what an answer leaves behind ─────────────────────────────────────────────────────────────────────────────

    def _note_answer(self, batch: records.ShardBatch) -> None:
        """Raises PositionExpiredError after a pause in which records may have left the stream unread."""
        age_ms = batch.poll_ms - self._reached_ms
        retention_ms = self._around.retention_ms
        now_ms = self._around.clock.wall_ms()
        if self._reached_ms and now_ms - self._answered_ms > PAUSE_MS and age_ms > retention_ms:
            raise errors.PositionExpiredError(
                f"partition {self._identity.shard_id} could not read for so long that it stands {age_ms // 60_000} min back; the "
                f"stream retains {retention_ms // 60_000} min: records are lost"
            )
        self._answered_ms, self._reached_ms = now_ms, batch.poll_ms - batch.millis_behind
        self._lag_ms = batch.millis_behind
        self._told.set_lag(batch.millis_behind)
        self._told.intake_bytes.inc(batch.size_bytes)

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
        is_behind = self._reader.is_behind
        wants_effects = bool(self._effects) and not is_behind
        has_changes = bool(self._records_since_commit or self._effects or self._dead_letters)
        wait_s = COMMIT_BEHIND_S if is_behind else COMMIT_IDLE_S
        if (
            wants_effects
            or waited_s >= (wait_s if has_changes or self._publisher.has_settled else COMMIT_CLOCK_S)
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
                if not self._no_room:
                    self._told.disk_full_stops.inc()
                    log.error("partition %s: intake stops: %s", self._identity.shard_id, error)
                self._no_room = str(error)
                if self._stop.is_set():
                    raise
                await self._around.clock.sleep(DISK_RETRY_S)
            else:
                if self._no_room:
                    log.warning("partition %s: there is room again, intake goes on", self._identity.shard_id)
                self._no_room = ""
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
        async for index_added in self.residency.restore():
            self._index_added = index_added
            await self._commit()
        self._publisher.add(await self._around.clock.in_thread(self._store.outbox))

    async def _drain(self) -> None:
        """The last commits. A shard that ended waits for its outbox as long as it takes; a stopping worker, DRAIN_S."""
        deadline = self._around.clock.monotonic() + DRAIN_S
        await self._commit()
        while len(self._publisher):
            if self._stop.is_set() and self._around.clock.monotonic() >= deadline:
                log.warning(
                    "partition %s: %d effects stay in the outbox until the next start",
                    self._identity.shard_id,
                    len(self._publisher),
                )
                break
            await self._publisher.progress(OUTBOX_WAIT_S)
            self._check_helpers()
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
    def message(self) -> str:
        if self._no_room or not self._publisher.is_full:
            return self._no_room
        return f"{len(self._publisher)} effects wait for Kinesis to take them; reading waits for that"

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


def _arrived_before(part: records.ShardBatch, time_ms: int | None, high_arrival_ms: int) -> int:
    """How many of the records are judged before that time: arrival never falls. high_arrival_ms: of the records before."""
    if time_ms is None:
        return len(part.data)
    reached = np.flatnonzero(np.maximum(part.arrival_ms, high_arrival_ms) >= time_ms)
    return int(reached[0]) if len(reached) else len(part.data)
