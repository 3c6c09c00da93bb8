"""A worker: the partitions that it owns, each with its pipeline, and the rules that all of them judge by.

Parents before children: a shard's partition starts once every parent that this fleet knows is read to its end; it inherits the
parents' twins by hash range. What earlier runs left of shards that the stream no longer lists counts as known. A partition that
fails tells why and tries again; the others go on. A bug ends the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fleet_model import hashing, parse, partition, rules, spec
from fleet_worker import errors, left_behind, pipeline, ports, rule_edits, surroundings
from fleet_worker.adapters import lmdb_store, local_folder
from fleet_worker.api import directory
from fleet_worker.core import commits, lifecycle

log = logging.getLogger(__name__)

SHARDS_EVERY_S = 5.0
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
PARTITION_ROWS_MIN = 1_000


class Held:
    """One shard in this worker's hands. closed: its partition was read to its end. has_begun: its twins are its own: it has
    inherited what there was. lost: why it can never be read to its end; "" when it can."""

    def __init__(self, shard: partition.Shard, lost: str = "") -> None:
        self.shard = shard
        self.lost = lost
        self.has_begun = False
        self.phase = lifecycle.Phase.PENDING
        self.message = ""
        self.pipeline: pipeline.PartitionPipeline | None = None
        self.closed = asyncio.Event()
        self.environment = asyncio.Lock()  # LMDB wants an environment open once in a process

    def step(self, event: lifecycle.Event, message: str = "") -> None:
        self.phase = lifecycle.after(self.phase, event)
        self.message = message


@dataclasses.dataclass(frozen=True, slots=True)
class Local:
    """What this worker works with. name: of the worker. start: the fleet's settled start."""

    name: str
    boot_id: str
    folder: local_folder.LocalFolder
    ownership: ports.Ownership
    stream: ports.Stream
    start: partition.Start


class Supervisor:
    """Runs the worker's partitions; it is also what the API sees of the worker (directory.WorkerView)."""

    def __init__(self, around: surroundings.Surroundings, local: Local) -> None:
        self._around = around
        self._local = local
        self._rules = rule_edits.RuleEdits(around, local.folder, self._reached_ms, self._hand_out)
        self._held: dict[str, Held] = {}
        self._shards_changed = asyncio.Event()
        self._not_listed = "the stream's shards aren't listed yet"
        self._is_stopping = False

    # ── shards ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and every partition has drained."""
        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                self._shards_changed.clear()
                shards = await self._listed(stop)
                if shards:
                    for held in await self._taken_up(shards):
                        tasks.create_task(self._keep(held, stop), name=held.shard.shard_id)
                    await self._clear_away({shard.shard_id for shard in shards})
                await _first_of(stop, self._shards_changed, timeout_s=SHARDS_EVERY_S)
            self._is_stopping = True

    async def _listed(self, stop: asyncio.Event) -> Sequence[partition.Shard]:
        """The stream's shards; none when they can't be listed, or when the worker is to stop first: asking may take long."""
        asking = asyncio.create_task(self._local.ownership.owned())
        try:
            await _first_of(stop, others=(asking,))
            if not asking.done():
                return []
            shards = asking.result()
        except errors.FleetTwinError as error:
            log.warning("the stream's shards can't be listed, those known go on: %s", error)
            self._not_listed = self._not_listed and f"the stream's shards can't be listed: {error}"
            return []
        finally:
            asking.cancel()
            await asyncio.wait((asking,))
        self._not_listed = ""
        return shards

    async def _taken_up(self, shards: Sequence[partition.Shard]) -> list[Held]:
        """New shards, and what earlier runs left of others. All of them are held before any starts: they wait for parents."""
        for shard in shards:
            if shard.shard_id in self._held:
                self._held[shard.shard_id].shard = shard  # it may be closed by now
        new = [Held(shard) for shard in shards if shard.shard_id not in self._held]
        if new:
            listed = {shard.shard_id for shard in shards}
            look = functools.partial(left_behind.found, self._local.folder, self._local.boot_id, listed)
            for left in await self._around.clock.in_thread(look):
                if left.shard_id not in self._held:
                    new += self._left(left, [held.shard for held in new])
        self._held |= {held.shard.shard_id: held for held in new}
        return new

    def _left(self, left: left_behind.LeftBehind, new: Sequence[partition.Shard]) -> list[Held]:
        """A shard that the stream no longer lists, of which an earlier run left a partition: to be closed, or in the way."""
        if left.ended:
            return [Held(partition.Shard(left.shard_id, left.key_range, closed=True))]
        heirs = [shard for shard in new if left.shard_id in shard.parents and shard.shard_id not in left.begun]
        if not heirs:
            log.warning("partition %s: %s; nothing needs it any more", left.shard_id, left.trouble)
            return []
        lost = f"{left.trouble}. {self._way_out(left.shard_id)}; its children then start without its twins"
        return [Held(partition.Shard(left.shard_id, hashing.spanning(shard.hash_key_range for shard in heirs)), lost)]

    async def _clear_away(self, listed: set[str]) -> None:
        """Partitions that are closed, whose shard the stream no longer lists, and whose twins live on in others: their folders
        would pile up with every split."""
        begun = [
            held.shard.hash_key_range for held in self._held.values() if held.has_begun and not held.closed.is_set()
        ]
        for shard_id, held in list(self._held.items()):
            if shard_id in listed or not held.closed.is_set() or not hashing.covers(begun, held.shard.hash_key_range):
                continue
            async with held.environment:
                remove = functools.partial(self._local.folder.remove_partition, shard_id)
                try:
                    await self._around.clock.in_thread(remove)
                except errors.DataFolderError as error:
                    log.warning("partition %s: %s", shard_id, error)
            del self._held[shard_id]
            self._around.metrics.forget_partition(shard_id)
            log.info("partition %s: its shard is gone and its twins live on in others; its folder is removed", shard_id)

    async def _keep(self, held: Held, stop: asyncio.Event) -> None:
        """A partition's whole stay here: after its parents, again after each failure, until it is closed or we stop."""
        shard_id = held.shard.shard_id
        retry_s = RETRY_FIRST_S
        if held.lost:
            self._fail(held, held.lost)
            log.error("partition %s: %s", shard_id, held.lost)
            return
        if not await self._every_parent_is_closed(held, stop):
            return
        held.step(lifecycle.Event.START)
        while not stop.is_set():
            started = self._around.clock.monotonic()
            try:
                await self._own(held, stop)
            except errors.FleetTwinError as error:
                self._fail(held, str(error))
                if stop.is_set():
                    log.warning("partition %s: its stop wasn't clean: %s", shard_id, error)
                    return
                retry_s = RETRY_FIRST_S if self._around.clock.monotonic() - started > RETRY_MAX_S else retry_s
                log.error("partition %s failed, next try in %g s: %s", shard_id, retry_s, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), retry_s)
                retry_s = min(RETRY_MAX_S, retry_s * 2)
                held.step(lifecycle.Event.RETRY)
                continue
            except Exception as error:  # a bug: it ends the worker, and should say where
                error.add_note(f"in partition {shard_id}")
                raise
            if held.closed.is_set():
                log.info("partition %s: the shard ended, all of it is applied", shard_id)
                self._shards_changed.set()
            return

    def _fail(self, held: Held, why: str) -> None:
        held.step(lifecycle.Event.FAIL, why)
        self._around.metrics.partition(held.shard.shard_id).set_phase(held.phase.value)

    async def _every_parent_is_closed(self, held: Held, stop: asyncio.Event) -> bool:
        """Waits for the parents that this fleet knows; False when the worker stops first."""
        for parent in self._known_parents(held.shard):
            held.message = f"waits for its parent {parent.shard.shard_id}"
            await _first_of(stop, parent.closed)
            if stop.is_set():
                return False
        held.message = ""
        return True

    def _known_parents(self, shard: partition.Shard) -> list[Held]:
        """A parent that neither the stream nor the data folder knows counts as absent: nothing of it is left to be read."""
        return [self._held[parent] for parent in sorted(shard.parents) if parent in self._held]

    # ── one partition ────────────────────────────────────────────────────────────────────────────────────────────

    async def _own(self, held: Held, stop: asyncio.Event) -> None:
        """Opens the partition's environment and runs its pipeline."""
        shard = held.shard
        held.has_begun = False
        async with held.environment, self._opened(held) as store:
            if store.discarded is not None:
                log.warning(
                    "partition %s: its environment can't be trusted (%s) and was moved aside; the twins are built again "
                    "from what the stream retains",
                    shard.shard_id,
                    store.discarded,
                )
            if store.state.ended and not held.closed.is_set() and not shard.closed:
                raise errors.StreamGoneError(
                    f"partition {shard.shard_id} was read to its end, but its shard is open: the stream isn't the one that it "
                    "was read from. Give the fleet a data folder of its own for this stream, or wait if the shard was closed just now"
                )
            if not store.state.ended:
                if store.state.commit_number == 0:
                    await self._inherit(held, store)
                held.has_begun = True
                self._check_age(shard, store.state)
                await self._pipe(held, store, stop)
            elif await self._around.clock.in_thread(store.outbox):
                # The worker died between the commit of the shard's end and the publishing of its last effects.
                await self._pipe(held, store, stop)
            if store.state.ended:
                held.step(lifecycle.Event.ENDED)
                held.closed.set()
                self._around.metrics.partition(shard.shard_id).set_phase(held.phase.value)

    async def _pipe(self, held: Held, store: lmdb_store.LmdbTwinStore, stop: asyncio.Event) -> None:
        position = store.state.position
        start = position if position.sequence_number else self._local.start.time_ms
        source = self._local.stream.open_shard(held.shard.shard_id, start)
        piped = pipeline.PartitionPipeline(self._around, self._identity(held.shard), store, source, self.generations)
        held.pipeline = piped
        self._share_memory()
        try:
            await piped.run(stop)
        except errors.PositionExpiredError as error:
            raise errors.PositionExpiredError(f"{error}. {self._way_out(held.shard.shard_id)}") from error
        finally:
            held.pipeline = None
            self._share_memory()

    @contextlib.asynccontextmanager
    async def _opened(self, held: Held) -> AsyncIterator[lmdb_store.LmdbTwinStore]:
        clock, local = self._around.clock, self._local
        shard_id = held.shard.shard_id
        folder = await clock.in_thread(functools.partial(local.folder.partition_folder, shard_id))
        store = await clock.in_thread(
            functools.partial(
                lmdb_store.LmdbTwinStore.open,
                folder,
                self._identity(held.shard),
                self._around.fleet.storage,
                local.boot_id,
            )
        )
        try:
            yield store
        finally:
            await clock.in_thread(store.close)

    async def _inherit(self, held: Held, store: lmdb_store.LmdbTwinStore) -> None:
        """A child's first twins: its hash range of every parent's, durable before it reads its first record."""
        parents = self._known_parents(held.shard)
        if not parents:
            return
        async with contextlib.AsyncExitStack() as stack:
            stores = []
            for parent in parents:  # in the order of their ids, so that two children never wait for each other
                await stack.enter_async_context(parent.environment)
                stores.append(await stack.enter_async_context(self._opened(parent)))
            states = [parent_store.state for parent_store in stores]
            state = commits.PartitionState(
                clock_ms=min(entry.clock_ms for entry in states),
                high_arrival_ms=max(entry.high_arrival_ms for entry in states),
                commit_number=max(entry.commit_number for entry in states) + 1,
            )
            await self._around.clock.in_thread(
                functools.partial(lmdb_store.copy_range, store, stores, held.shard.hash_key_range, state)
            )

    def _check_age(self, shard: partition.Shard, state: commits.PartitionState) -> None:
        """Records that left the stream before they were read are a loud failure, never a silent jump."""
        age_ms = self._around.clock.wall_ms() - state.clock_ms
        if state.clock_ms and age_ms > self._around.retention_ms:
            raise errors.PositionExpiredError(
                f"partition {shard.shard_id} stands {age_ms // 60_000} min back, the stream retains "
                f"{self._around.retention_ms // 60_000} min: records are lost. {self._way_out(shard.shard_id)}"
            )

    def _way_out(self, shard_id: str) -> str:
        return (
            "To go on with what the stream still holds, the twins begun anew, stop the worker and move "
            f"{self._local.folder.path}/partitions/{shard_id} away"
        )

    def _identity(self, shard: partition.Shard) -> partition.PartitionIdentity:
        fleet = self._around.fleet
        return partition.PartitionIdentity(
            fleet.namespace, fleet.name, fleet.streams.telemetry.stream_name, shard.shard_id, shard.hash_key_range
        )

    def _share_memory(self) -> None:
        """The bound on rows in memory is the worker's; its partitions get equal shares."""
        bound = self._around.fleet.storage.twins_in_memory_max
        piped = [held.pipeline for held in self._held.values() if held.pipeline is not None]
        for entry in piped:
            entry.residency.rows_max = max(PARTITION_ROWS_MIN, bound // len(piped)) if bound else 0

    # ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def follow_edits(self, edits: AsyncIterator[spec.FleetSpec | parse.InvalidFleetError]) -> None:
        """Takes up the fleet's edits until cancelled; one that isn't valid leaves the last good rules in force."""
        await self._rules.follow(edits)

    def _reached_ms(self) -> int:
        """The latest time that any partition has seen."""
        states = [held.pipeline.state for held in self._held.values() if held.pipeline is not None]
        return max((max(state.clock_ms, state.high_arrival_ms) for state in states), default=0)

    def _hand_out(self, known: Sequence[rules.RulesGeneration]) -> None:
        for held in self._held.values():
            if held.pipeline is not None:
                held.pipeline.adopt(known)

    # ── what the API sees ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def name(self) -> str:
        return self._local.name

    @property
    def fleet(self) -> str:
        return f"{self._around.fleet.namespace}/{self._around.fleet.name}"

    @property
    def rules_generation(self) -> int:
        return self.generations[-1].generation

    @property
    def generations(self) -> Sequence[rules.RulesGeneration]:
        return self._rules.generations

    @property
    def last_rule_error(self) -> str | None:
        return self._rules.last_error

    def partitions(self) -> Sequence[directory.PartitionView]:
        return [held.pipeline for held in self._held.values() if held.pipeline is not None]

    def elsewhere(self) -> Sequence[directory.Elsewhere]:
        return [
            directory.Elsewhere(shard_id, held.shard.hash_key_range, self.name, 0, held.phase.value, held.message)
            for shard_id, held in self._held.items()
            if held.pipeline is None
        ]

    def not_ready_because(self) -> Sequence[str]:
        if self._is_stopping:
            return ["the worker is stopping"]
        if self._not_listed:
            return [self._not_listed]
        return [
            f"partition {shard_id} is {held.phase.value}" + (f": {held.message}" if held.message else "")
            for shard_id, held in self._held.items()
            if held.pipeline is None and held.phase is not lifecycle.Phase.CLOSED
        ]


async def _first_of(
    *events: asyncio.Event, others: Sequence[asyncio.Task[Any]] = (), timeout_s: float | None = None
) -> None:
    """Returns when one of the events is set or one of the other tasks has ended, which it leaves alone."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait((*waiting, *others), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
