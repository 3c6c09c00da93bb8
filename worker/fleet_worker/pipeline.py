"""One partition's loop, top to bottom: read → decode → judge → commit → publish.

    a partition reads its shard; each answer becomes columns; the engine judges them and moves the table;
    a commit makes twins, outbox and position durable together; only then the effects are published, and only when
    Kinesis has acknowledged them they leave the outbox, with the next commit.

What it refuses: to read on while a commit finds no room or the outbox is full, to publish what isn't committed, and to go on
after a pause longer than the stream retains records.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import math
from collections.abc import Awaitable, Callable, Sequence

from fleet_model import partition, rules
from fleet_worker import (
    errors,
    judging,
    pending,
    ports,
    publisher,
    questions,
    reading,
    residency,
    surroundings,
    syncing,
)
from fleet_worker.api import directory
from fleet_worker.core import clock, commits, engine, lifecycle, records

log = logging.getLogger(__name__)

COMMIT_IDLE_S = 5.0
"""Caught up, changed rows wait this long for a commit, unless effects wait with them."""
COMMIT_BEHIND_S = 5.0
"""Behind, effects wait as well: a row changed many times is written once."""
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
SILENT_S = 15.0
"""A read that takes longer is told as a trouble of the partition's; caught up, an answer comes every second."""
DRAIN_S = 6.0
"""A stopping partition waits this long for its outbox; what is left then is published after the next start."""


async def _at_once() -> None:
    """Nothing stands against publishing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stay:
    """What whoever runs a pipeline knows of the partition's stay here. life: its phase. may_publish: returns when effects may go out;
    before that, another owner may have them. may_go_on: whether they still may. drain_max_s: how long a partition that ends waits for its outbox; None: DRAIN_S when
    it is stopped, and as long as it takes when its shard ended."""

    life: lifecycle.Life = dataclasses.field(default_factory=lambda: lifecycle.Life(lifecycle.Phase.RESTORING))
    may_publish: Callable[[], Awaitable[None]] = _at_once
    drain_max_s: Callable[[], float | None] = lambda: None
    may_go_on: Callable[[], bool] = ports.always


class PartitionPipeline(questions.StoreQuestions):
    """A partition that this worker owns: `run` it. It is also what the API sees of it (directory.PartitionView)."""

    def __init__(
        self,
        around: surroundings.Surroundings,
        identity: partition.PartitionIdentity,
        store: ports.TwinStore,
        source: ports.ShardSource,
        generations: Sequence[rules.RulesGeneration],
        stay: Stay | None = None,
    ) -> None:
        super().__init__(store, around.clock)
        self._around = around
        self._identity = identity
        self._store = store
        self._stay = stay or Stay()
        streams = around.fleet.streams
        self._engine = engine.TwinEngine(
            engine.Settings(identity, streams.alerts.format, streams.commands.format, around.retention_ms),
            generations,
        )
        self.residency = residency.Residency(store, self._engine, around.clock)
        self._syncing = syncing.Syncing(store, around.clock, around.metrics, around.fleet.storage)
        may_publish, may_go_on = self._stay.may_publish, self._stay.may_go_on
        self._publisher = publisher.Publisher(around.sink, around.clock, around.metrics, may_publish, may_go_on)
        self._reader = reading.Reader(source, around.places)
        self._told = around.metrics.partition(identity.shard_id)
        self._no_room = ""  # why the last commit found none

        self._stop = asyncio.Event()
        self._pending = pending.Pending(
            identity, store.state, around.metrics, sends_dead_letters=streams.dead_letter is not None
        )
        self._judging = judging.Judging(
            around, generations, self._engine, self.residency, self._pending, self._may_go_on
        )
        self._lag_ms: int | None = None
        self._answered_ms = around.clock.wall_ms()  # the last answer: when it came,
        self._reached_ms = self.state.clock_ms  # and how far in the shard's time it reached
        self._publishing: asyncio.Task[None] | None = None
        self._committed_at = around.clock.monotonic()

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set or the shard ended and all of it is applied and published (`state.ended` tells which).

        Raises PositionExpiredError, StreamGoneError, StoreBrokenError.
        """
        self._stop = stop
        stopping = asyncio.create_task(stop.wait())
        try:
            if not self.state.ended:
                self._reader.begin()  # the first answer travels while the table fills; nothing is judged before it is full
            await self._restore()
            has_begun = self._stay.life.phase is lifecycle.Phase.RESTORING
            self._step(lifecycle.Event.RESTORED if has_begun else lifecycle.Event.TAKEN_BACK)
            self._publishing = asyncio.create_task(self._publisher.run())
            while not self.state.ended and await self._may_go_on():
                batch = await self._reader.answer(stopping)
                if batch is not None:
                    await self._take_in(batch)
                    self._reader.done()
            if not self.state.ended:
                self._step(lifecycle.Event.DRAIN)
            await self._drain()
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
        if batch.data and not await self._judging.judge(batch, self._records_a_commit_max):
            return
        high_arrival_ms = self.state.high_arrival_ms if batch.data else None
        clock_ms = clock.after_poll(
            self.state.clock_ms, high_arrival_ms, batch.poll_ms, batch.millis_behind, batch.shard_ended
        )
        # The clock moves by scans alone: one that no scan has seen must not be committed.
        is_due = clock_ms - self.state.clock_ms >= (SCAN_EVERY_MS if batch.data else 1) or batch.shard_ended
        if is_due and not await self._judging.scan(clock_ms):
            return
        if batch.shard_ended:
            self._pending.change(ended=True)

    def adopt(self, generations: Sequence[rules.RulesGeneration]) -> None:
        """The whole list of generations, from now on."""
        self._judging.adopt(generations)

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

    # ── commits ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _records_a_commit_max(self) -> int:
        """With a bounded table, changed rows must not fill it: they can't leave before a commit."""
        bound = self.residency.rows_max
        return min(RECORDS_A_COMMIT_MAX, max(bound // 2, 1_000)) if bound else RECORDS_A_COMMIT_MAX

    async def _commit_if_due(self) -> None:
        waited_s = self._around.clock.monotonic() - self._committed_at
        is_behind = self._reader.is_behind
        wants_effects = bool(self._pending.effects) and not is_behind
        has_changes = self._pending.has_changes or self._publisher.has_settled
        wait_s = COMMIT_BEHIND_S if is_behind else COMMIT_IDLE_S
        if (
            wants_effects
            or waited_s >= (wait_s if has_changes else COMMIT_CLOCK_S)
            or self._pending.records >= self._records_a_commit_max
            or len(self._pending.effects) >= EFFECTS_A_COMMIT_MAX
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
                self._reader.done()
                await self._around.clock.sleep(DISK_RETRY_S)
            else:
                if self._no_room:
                    log.warning("partition %s: there is room again, intake goes on", self._identity.shard_id)
                self._no_room = ""
                return

    async def _commit_once(self) -> None:
        settled = self._publisher.take_settled()
        self._pending.bury_refused(settled.refused)
        table = self._engine.table
        rows = table.take_dirty(self.state.commit_number + 1, self.residency.leaving())
        commit = self._pending.commit(rows, settled.removed)
        try:
            with self._around.metrics.commit.time():
                await self._around.clock.in_thread(functools.partial(self._store.commit, commit))
        except errors.DiskFullError:
            table.not_committed(commit)
            self._publisher.give_back(publisher.Settled(settled.removed, []))
            raise
        table.committed()
        self._pending.committed(commit)
        self._publisher.add(commit.outbox_added)
        self._committed_at = self._around.clock.monotonic()

    # ── start and end ────────────────────────────────────────────────────────────────────────────────────────────

    async def _restore(self) -> None:
        """Fills the table. Rows without room are indexed, durably, before the clock moves."""
        # A child has its first clock from the slowest of its parents and its highest arrival from the quickest: the scans at
        # generations' starts in between are still to come for some of its twins.
        has_begun = bool(self.state.position.sequence_number)
        self._engine.resume(max(self.state.clock_ms, self.state.high_arrival_ms if has_begun else 0))
        async for index_added in self.residency.restore():
            self._pending.index_added = index_added
            await self._commit()
        self._publisher.add(await self._around.clock.in_thread(self._store.outbox))

    async def _drain(self) -> None:
        """The last commits. What is left in the outbox when the time is up stays there, committed: for the next start, or the next
        owner."""
        began = self._around.clock.monotonic()
        await self._commit()
        while len(self._publisher):
            if self._around.clock.monotonic() - began >= self._drain_max_s:
                log.warning(
                    "partition %s: %d effects stay in the outbox for its next start or owner",
                    self._identity.shard_id,
                    len(self._publisher),
                )
                break
            await self._publisher.progress(OUTBOX_WAIT_S)
            self._check_helpers()
            if not len(self._publisher):
                await self._commit()  # which may bring dead letters of effects that were refused
        await self._commit()

    @property
    def _drain_max_s(self) -> float:
        allowed_s = self._stay.drain_max_s()
        if allowed_s is None:
            return DRAIN_S if self._stop.is_set() else math.inf
        return allowed_s

    def _step(self, event: lifecycle.Event) -> None:
        self._stay.life.step(event)
        self._told.set_phase(self._stay.life.phase.value)

    # ── what the API sees ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def identity(self) -> partition.PartitionIdentity:
        return self._identity

    @property
    def phase(self) -> str:
        return self._stay.life.phase.value

    @property
    def message(self) -> str:
        if self._no_room:
            return self._no_room
        if self._publisher.is_full:
            return f"{len(self._publisher)} effects wait for Kinesis to take them; reading waits for that"
        silent_s = self._reader.silent_s
        return f"no answer from Kinesis for {silent_s:.0f} s" if silent_s >= SILENT_S else ""

    @property
    def epoch(self) -> int:
        return self.state.epoch

    @property
    def state(self) -> commits.PartitionState:
        return self._pending.state

    @property
    def applied(self) -> int:
        """Records judged since it began."""
        return self._pending.applied

    @property
    def lag_ms(self) -> int | None:
        return self._lag_ms

    @property
    def outbox(self) -> directory.Outbox:
        waiting, oldest_ms = self._pending.effects, self._publisher.oldest_ms
        if oldest_ms is None and waiting:
            oldest_ms = waiting[0].effect.arrival_ms
        return directory.Outbox(len(self._publisher) + len(waiting), oldest_ms)

    @property
    def engine(self) -> engine.TwinEngine:
        return self._engine
