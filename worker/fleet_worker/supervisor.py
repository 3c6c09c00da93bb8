"""A worker: the partitions that the control plane names it for, and the rules that all of them judge by.

It follows the assignments: each partition that concerns this worker is held in a task of its own (`holding`). A partition that
fails tells why and tries again; the others go on. While the control plane is away, everything goes on as last told. A bug ends the worker.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence

from fleet_model import hashing, partition, rules, twin_partition
from fleet_worker import (
    claimed,
    environments,
    errors,
    holding,
    ports,
    reading,
    reporting,
    surroundings,
    telling,
    tenure,
)
from fleet_worker.api import directory

log = logging.getLogger(__name__)

PARTITION_ROWS_MIN = 1_000
FLUSH_S_MAX = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Local:
    """What this worker works with. name: of the worker. start: the fleet's settled start. checkpoints: None without a bucket: then
    this worker owns all of the stream, and the disk is the truth. barred: why it may own nothing; "" = it may."""

    name: str
    disk: ports.Disk
    ownership: ports.Ownership
    stream: ports.Stream
    start: partition.Start
    checkpoints: claimed.Checkpoints | None = None
    barred: str = ""


class Supervisor:
    """Runs the worker's partitions; it is also what the API sees of the worker (directory.WorkerView)."""

    def __init__(
        self, around: surroundings.Surroundings, local: Local, generations: Sequence[rules.RulesGeneration]
    ) -> None:
        self.generations = tuple(generations)
        self.last_rule_error: str | None = None
        self.load: Mapping[str, float] = {}
        around.metrics.rules_generation.set(self.generations[-1].generation)
        self._around = around
        self._local = local
        self._environments = environments.Environments(local.disk, around.clock)
        self._reporter = reporting.Reporter(local.ownership, around.clock, around.metrics, self._status)
        self._known: Mapping[str, twin_partition.TwinPartition] = {}
        self._held: dict[str, holding.Holding] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._has_listed = False
        self._is_stopping = False
        self._stop = asyncio.Event()

    # ── assignments ──────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and every partition has drained."""
        self._stop = stop
        async with asyncio.TaskGroup() as tasks:
            reporting_task = tasks.create_task(self._reporter.run())
            following = tasks.create_task(self._follow(tasks))
            await stop.wait()
            self._is_stopping = True
            following.cancel()
            for held in self._held.values():
                held.kick()
            if self._tasks:
                await asyncio.wait(self._tasks.values())
            reporting_task.cancel()
            try:
                async with asyncio.timeout(FLUSH_S_MAX):
                    await self._reporter.flush()
            except TimeoutError:
                log.warning("the control plane couldn't be told of the stop")

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        on_disk = await self._environments.shards()
        async for known in self._local.ownership.assignments():
            self._known = known
            self._has_listed = True
            if self._local.checkpoints is not None:
                on_disk = await self._remove_former(on_disk)
            else:
                await self._hold_what_was_left(tasks)
            for shard_id, wanted in known.items():
                self._hold(tasks, shard_id, wanted)
            await self._clear_away()

    def check_stop(self) -> None:
        """After `run`. Raises UncleanStopError."""
        unclean = {shard_id: held.unclean for shard_id, held in self._held.items() if held.unclean}
        if unclean:
            told = "; ".join(f"partition {shard_id}: {why}" for shard_id, why in sorted(unclean.items()))
            raise errors.UncleanStopError(
                f"{told}. The worker has stopped; what isn't on the disk is read again at its next start, once there is room"
            )

    def _hold(self, tasks: asyncio.TaskGroup, shard_id: str, wanted: twin_partition.TwinPartition) -> None:
        """A partition that concerns us gets a task, if it hasn't one."""
        held = self._held.get(shard_id)
        if held is None:
            held = holding.Holding(self._crew(), wanted)
            is_closed = wanted.status.phase is twin_partition.Phase.CLOSED and self._local.checkpoints is not None
            if held.role is holding.Role.NONE or is_closed:
                return
            self._held[shard_id] = held
        held.want(wanted)
        self._start(tasks, held)

    def _start(self, tasks: asyncio.TaskGroup, held: holding.Holding) -> None:
        is_over = held.role is holding.Role.NONE or held.closed.is_set() or self._stop.is_set()
        if held.shard_id not in self._tasks and not is_over and not (held.lost and held.life.message):
            task = tasks.create_task(held.keep(), name=held.shard_id)
            self._tasks[held.shard_id] = task
            task.add_done_callback(functools.partial(self._kept, tasks, held))

    def _kept(self, tasks: asyncio.TaskGroup, held: holding.Holding, task: asyncio.Task[None]) -> None:
        """Its task has ended. It may be wanted again since."""
        self._tasks.pop(held.shard_id, None)
        if task.cancelled() or task.exception() is not None or self._stop.is_set():
            return
        self._start(tasks, held)
        self._local.ownership.look_again()  # what is to be cleared away is seen then

    async def _hold_what_was_left(self, tasks: asyncio.TaskGroup) -> None:
        """What earlier runs left of shards that the stream no longer lists: parents to inherit from, or in the way."""
        if all(shard_id in self._held for shard_id in self._known):
            return
        for left in await self._environments.left(self._known.keys()):
            if left.shard_id in self._held:
                continue
            heirs = [
                wanted.spec
                for wanted in self._known.values()
                if left.shard_id in wanted.spec.parents and wanted.spec.shard_id not in left.begun
            ]
            if left.ended:
                self._held[left.shard_id] = held = holding.Holding(
                    self._crew(), self._object(left.shard_id, left.key_range)
                )
            elif heirs:
                spanned = hashing.spanning(spec.hash_key_range for spec in heirs)
                way_out = tenure.way_out(self._local.disk.where(left.shard_id))
                lost = f"{left.trouble}. {way_out}; its children then start without its twins"
                self._held[left.shard_id] = held = holding.Holding(
                    self._crew(), self._object(left.shard_id, spanned), lost
                )
            else:
                log.warning("partition %s: %s; nothing needs it any more", left.shard_id, left.trouble)
                continue
            self._start(tasks, held)

    def _object(self, shard_id: str, key_range: hashing.HashKeyRange) -> twin_partition.TwinPartition:
        """Of a shard that only this disk knows."""
        fleet = self._around.fleet
        spec = twin_partition.Spec(
            fleet.name, fleet.streams.telemetry.stream_name, shard_id, key_range, worker=self._local.name, epoch=1
        )
        return twin_partition.TwinPartition(fleet.namespace, twin_partition.object_name(fleet.name, shard_id), spec)

    async def _clear_away(self) -> None:
        """Environments that nothing needs any more would pile up: of partitions that another worker has claimed by now, and of those
        that are closed and whose twins live on in others."""
        for shard_id, held in list(self._held.items()):
            if shard_id in self._tasks or not self._is_done_with(held):
                continue
            try:
                await self._environments.remove(shard_id)
            except errors.DataFolderError as error:
                log.warning("partition %s: %s", shard_id, error)
            del self._held[shard_id]
            if shard_id in self._known:
                self._around.metrics.hand_over_partition(shard_id)
            else:
                self._around.metrics.forget_partition(shard_id)
            log.info("partition %s: it lives on elsewhere, its folder is removed", shard_id)

    async def _remove_former(self, on_disk: list[str]) -> list[str]:
        """Environments of an earlier run's partitions that are closed, or that others have claimed since. Returns those that may be
        needed yet."""
        left = []
        for shard_id in on_disk:
            wanted = self._known.get(shard_id)
            if shard_id in self._held:
                continue
            is_closed = wanted is not None and wanted.status.phase is twin_partition.Phase.CLOSED
            is_anothers = wanted is not None and self._has_successor(wanted)
            if not is_closed and (not is_anothers or wanted is None or self._local.name in wanted.spec.standby):
                left.append(shard_id)
                continue
            try:
                await self._environments.remove(shard_id)
            except errors.DataFolderError as error:
                log.warning("partition %s: %s", shard_id, error)
            else:
                log.info("partition %s: it lives on elsewhere, its folder is removed", shard_id)
        return left

    def _has_successor(self, wanted: twin_partition.TwinPartition) -> bool:
        """Whether another worker has claimed it."""
        has_claimed = (wanted.status.worker, wanted.status.epoch) == (wanted.spec.worker, wanted.spec.epoch)
        return has_claimed and wanted.spec.worker != self._local.name

    def _is_done_with(self, held: holding.Holding) -> bool:
        wanted = self._known.get(held.shard_id)
        if self._local.checkpoints is None:
            begun = [
                other.wanted.spec.hash_key_range
                for other in self._held.values()
                if other.has_begun and not other.closed.is_set()
            ]
            covered = hashing.covers(begun, held.wanted.spec.hash_key_range)
            return wanted is None and held.closed.is_set() and covered
        if wanted is None:
            return True
        if held.closed.is_set():
            return wanted.status.phase is twin_partition.Phase.CLOSED
        return held.role is holding.Role.NONE and self._has_successor(wanted)

    # ── what holdings share ──────────────────────────────────────────────────────────────────────────────────────

    def _crew(self) -> holding.Crew:
        return holding.Crew(
            around=self._around,
            name=self._local.name,
            environments=self._environments,
            stream=self._local.stream,
            checkpoints=self._local.checkpoints,
            new_tenure=self._tenure,
            generations=lambda: self.generations,
            changed=self._changed,
            tell=self._reporter.tell,
            stop=self._stop,
        )

    def _tenure(self, held: holding.Holding, place: environments.Place) -> tenure.Tenure:
        local = self._local
        if local.checkpoints is None:
            parents = functools.partial(self._parents, held)
            return tenure.LocalTenure(self._around, place, self._environments, local.stream, local.start, parents)

        async def ask() -> twin_partition.Status:
            return await local.ownership.report(held.shard_id, lambda status: status)

        tell = functools.partial(self._reporter.tell, held.shard_id)
        outlook = claimed.Outlook(local.name, self._known_one, ask, tell, self._is_behind)
        return claimed.ClaimedTenure(self._around, local.checkpoints, place, local.start, outlook)

    def _known_one(self, shard_id: str) -> twin_partition.TwinPartition | None:
        return self._known.get(shard_id)

    def _is_behind(self) -> bool:
        lags_ms = [held.pipeline.lag_ms for held in self._held.values() if held.pipeline is not None]
        return any(lag_ms is None or lag_ms > reading.CAUGHT_UP_MS for lag_ms in lags_ms)

    def _parents(self, held: holding.Holding) -> list[tuple[partition.PartitionIdentity, bool]]:
        """Without checkpoints. A parent that neither the stream nor the disk knows counts as absent."""
        known = [self._held[parent] for parent in held.wanted.spec.parents if parent in self._held]
        return [(parent.identity, parent.closed.is_set()) for parent in known]

    def _changed(self, held: holding.Holding) -> None:
        """A pipeline began or ended, or a partition closed: others may wait for that."""
        bound = self._around.fleet.storage.twins_in_memory_max
        piped = [other.pipeline for other in self._held.values() if other.pipeline is not None]
        for entry in piped:
            entry.residency.rows_max = max(PARTITION_ROWS_MIN, bound // len(piped)) if bound else 0
        if held.closed.is_set():
            for other in self._held.values():
                other.kick()
            self._local.ownership.look_again()

    # ── status ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _status(self, shard_id: str) -> reporting.Change | None:
        held = self._held.get(shard_id)
        return None if held is None else functools.partial(telling.told, held, self._local.name)

    # ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────

    def reached_ms(self) -> int:
        """The latest time that any partition has seen."""
        states = [held.pipeline.state for held in self._held.values() if held.pipeline is not None]
        return max((max(state.clock_ms, state.high_arrival_ms) for state in states), default=0)

    def applied(self) -> dict[str, int]:
        """Records judged since each running partition began here, by shard id."""
        return {shard_id: held.pipeline.applied for shard_id, held in self._held.items() if held.pipeline is not None}

    @property
    def can_take_partitions(self) -> bool:
        return self._has_listed and not self._is_stopping and not self._local.barred

    @property
    def control_trouble(self) -> str:
        return self._local.ownership.trouble or self._reporter.trouble

    def adopt(self, generations: Sequence[rules.RulesGeneration]) -> None:
        """The whole list of generations, from now on."""
        self.generations = tuple(generations)
        self._around.metrics.rules_generation.set(self.generations[-1].generation)
        for held in self._held.values():
            if held.pipeline is not None:
                held.pipeline.adopt(generations)

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

    def partitions(self) -> Sequence[directory.PartitionView]:
        return [held.pipeline for held in self._held.values() if held.pipeline is not None]

    def elsewhere(self) -> Sequence[directory.Elsewhere]:
        here = {shard_id for shard_id, held in self._held.items() if held.pipeline is not None}
        told = {shard_id: self._by_us(held) for shard_id, held in self._held.items() if held.role is holding.Role.OWNER}
        by_others = {shard_id: _by_others(wanted) for shard_id, wanted in self._known.items()}
        return [entry for shard_id, entry in (by_others | told).items() if shard_id not in here]

    def _by_us(self, held: holding.Holding) -> directory.Elsewhere:
        spec, life = held.wanted.spec, held.life
        return directory.Elsewhere(
            held.shard_id, spec.hash_key_range, self.name, spec.epoch, life.phase.value, life.message
        )

    def not_ready_because(self) -> Sequence[str]:
        if self._is_stopping:
            return ["the worker is stopping"]
        if self._local.barred:
            return [self._local.barred]
        if not self._has_listed:
            return [self._local.ownership.trouble or "nothing is heard of the partitions yet"]
        return [
            f"partition {shard_id} is {held.life.phase.value}" + (f": {held.life.message}" if held.life.message else "")
            for shard_id, held in self._held.items()
            if held.role is holding.Role.OWNER and held.pipeline is None and not held.closed.is_set()
        ]


def _by_others(wanted: twin_partition.TwinPartition) -> directory.Elsewhere:
    spec, status = wanted.spec, wanted.status
    return directory.Elsewhere(
        spec.shard_id, spec.hash_key_range, spec.worker, spec.epoch, status.phase.value, status.message
    )
