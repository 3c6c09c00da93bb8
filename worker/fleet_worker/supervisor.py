"""A worker: the partitions that it owns, each with its pipeline, and the rules that all of them judge by.

Parents before children: a shard's partition starts once every parent that this fleet knows is read to its end; it inherits the
parents' twins by hash range. A partition that fails tells why and tries again; the others go on. A bug ends the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Sequence

from fleet_model import generations, parse, partition, rules, spec
from fleet_worker import errors, pipeline, ports, surroundings
from fleet_worker.adapters import lmdb_store, local_folder
from fleet_worker.api import directory
from fleet_worker.core import commits, lifecycle

log = logging.getLogger(__name__)

SHARDS_EVERY_S = 5.0
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
RULES_AHEAD_MS = 1_000
"""An edit takes effect this long after it was seen: every partition hears of it before its time comes."""
PARTITION_ROWS_MIN = 1_000


class Held:
    """One shard in this worker's hands. closed: its partition was read to its end."""

    def __init__(self, shard: partition.Shard) -> None:
        self.shard = shard
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
        self._generations = local.folder.generations
        self._held: dict[str, Held] = {}
        self._shards_changed = asyncio.Event()
        self._was_listed = False
        self._is_stopping = False
        self._last_rule_error: str | None = None
        around.metrics.rules_generation.set(self._generations[-1].generation)

    # ── shards ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and every partition has drained."""
        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                self._shards_changed.clear()
                try:
                    shards = await self._local.ownership.owned()
                except errors.FleetTwinError as error:
                    log.warning("the stream's shards can't be listed, those known go on: %s", error)
                    shards = []
                new = [Held(shard) for shard in shards if shard.shard_id not in self._held]
                self._held |= {
                    held.shard.shard_id: held for held in new
                }  # all of them first: they wait for their parents
                for held in new:
                    tasks.create_task(self._keep(held, stop), name=held.shard.shard_id)
                self._was_listed = self._was_listed or bool(shards)
                await self._shards_may_have_changed(stop)
            self._is_stopping = True

    async def _shards_may_have_changed(self, stop: asyncio.Event) -> None:
        waiting = [asyncio.create_task(event.wait()) for event in (stop, self._shards_changed)]
        await asyncio.wait(waiting, timeout=SHARDS_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    async def _keep(self, held: Held, stop: asyncio.Event) -> None:
        """A partition's whole stay here: after its parents, again after each failure, until it is closed or we stop."""
        shard_id = held.shard.shard_id
        retry_s = RETRY_FIRST_S
        if not await self._every_parent_is_closed(held, stop):
            return
        held.step(lifecycle.Event.START)
        while not stop.is_set():
            started = self._around.clock.monotonic()
            try:
                await self._own(held, stop)
            except errors.FleetTwinError as error:
                held.step(lifecycle.Event.FAIL, str(error))
                self._around.metrics.partition(shard_id).set_phase(held.phase.value)
                if stop.is_set():
                    log.warning("partition %s: stopped without its last commit: %s", shard_id, error)
                    return
                retry_s = RETRY_FIRST_S if self._around.clock.monotonic() - started > RETRY_MAX_S else retry_s
                log.error("partition %s failed, next try in %g s: %s", shard_id, retry_s, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), retry_s)
                retry_s = min(RETRY_MAX_S, retry_s * 2)
                held.step(lifecycle.Event.RETRY)
                continue
            if held.closed.is_set():
                log.info("partition %s: the shard ended, all of it is applied", shard_id)
                self._shards_changed.set()
            return

    async def _every_parent_is_closed(self, held: Held, stop: asyncio.Event) -> bool:
        """Waits for the parents that this fleet knows; False when the worker stops first."""
        for parent in self._known_parents(held.shard):
            held.message = f"waits for its parent {parent.shard.shard_id}"
            waiting = [asyncio.create_task(event.wait()) for event in (stop, parent.closed)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if stop.is_set():
                return False
        held.message = ""
        return True

    def _known_parents(self, shard: partition.Shard) -> list[Held]:
        """A parent that the stream no longer lists counts as absent: nothing of it is left to be read."""
        return [self._held[parent] for parent in sorted(shard.parents) if parent in self._held]

    # ── one partition ────────────────────────────────────────────────────────────────────────────────────────────

    async def _own(self, held: Held, stop: asyncio.Event) -> None:
        """Opens the partition's environment and runs its pipeline."""
        shard = held.shard
        async with held.environment, self._opened(held) as store:
            if store.discarded is not None:
                log.warning(
                    "partition %s: its environment can't be trusted (%s) and was moved aside; the twins are built again "
                    "from what the stream retains",
                    shard.shard_id,
                    store.discarded,
                )
            if not store.state.ended:
                if store.state.commit_number == 0:
                    await self._inherit(held, store)
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
        piped = pipeline.PartitionPipeline(self._around, self._identity(held.shard), store, source, self._generations)
        held.pipeline = piped
        self._share_memory()
        try:
            await piped.run(stop)
        finally:
            held.pipeline = None

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
                f"{self._around.retention_ms // 60_000} min: records are lost. To go on with what the stream still holds, its "
                f"twins begun anew, stop the worker and move {self._local.folder.path}/partitions/{shard.shard_id} away"
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
        async for edit in edits:
            if isinstance(edit, parse.InvalidFleetError):
                self._refuse_edit(str(edit))
                continue
            ignored = generations.settings_changed(self._around.fleet, edit)
            if ignored:
                log.warning("spec.%s changed: that holds from the next start only", ", spec.".join(ignored))
            try:
                await self._take_up(edit)
            except (errors.DiskFullError, errors.TooManyGenerationsError) as error:
                self._refuse_edit(str(error))

    def _refuse_edit(self, why: str) -> None:
        self._last_rule_error = why
        self._around.metrics.rules_reload_failures.inc()
        log.error("the fleet's edit is refused, the last good rules stay in force: %s", why)

    async def _take_up(self, edit: spec.FleetSpec) -> None:
        """Stamps, keeps and hands out a generation. No partition judges meanwhile, so none can pass its start before."""
        self._around.rules_settled.clear()
        try:
            wall_ms = self._around.clock.wall_ms()
            reached = [
                max(held.pipeline.state.clock_ms, held.pipeline.state.high_arrival_ms)
                for held in self._held.values()
                if held.pipeline is not None
            ]
            generation = generations.next_generation(
                self._generations[-1], edit, max([wall_ms, *reached]) + RULES_AHEAD_MS
            )
            self._last_rule_error = None
            if generation is None:
                return
            await self._around.clock.in_thread(
                functools.partial(self._local.folder.append_generation, generation, wall_ms - self._around.retention_ms)
            )
            self._generations = self._local.folder.generations
            for held in self._held.values():
                if held.pipeline is not None:
                    held.pipeline.adopt(self._generations)
            self._around.metrics.rules_generation.set(generation.generation)
            log.info("rules generation %d holds from %d on", generation.generation, generation.effective_ms)
        finally:
            self._around.rules_settled.set()

    # ── what the API sees ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def name(self) -> str:
        return self._local.name

    @property
    def fleet(self) -> str:
        return f"{self._around.fleet.namespace}/{self._around.fleet.name}"

    @property
    def rules_generation(self) -> int:
        return self._generations[-1].generation

    @property
    def generations(self) -> Sequence[rules.RulesGeneration]:
        return self._generations

    @property
    def last_rule_error(self) -> str | None:
        return self._last_rule_error

    def partitions(self) -> Sequence[directory.PartitionView]:
        return [held.pipeline for held in self._held.values() if held.pipeline is not None]

    def elsewhere(self) -> Sequence[directory.Elsewhere]:
        return [
            directory.Elsewhere(shard_id, held.shard.hash_key_range, self.name, 0, held.phase.value)
            for shard_id, held in self._held.items()
            if held.pipeline is None
        ]

    def not_ready_because(self) -> Sequence[str]:
        if self._is_stopping:
            return ["the worker is stopping"]
        if not self._was_listed:
            return ["the stream's shards aren't listed yet"]
        return [
            f"partition {shard_id} is {held.phase.value}" + (f": {held.message}" if held.message else "")
            for shard_id, held in self._held.items()
            if held.pipeline is None and held.phase is not lifecycle.Phase.CLOSED
        ]
