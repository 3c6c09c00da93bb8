"""The control plane in memory, for tests and for deterministic simulation: what control_folder keeps to, with faults by plan.

It draws no random number, so a run is repeated by repeating its plan. A worker can be cut off (and mended), what it is told may come
late and then tells of the past, a write may fail or happen and seem to fail. The control loop is the worker "".
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

from fleet_model import generations, partition, rules, twin_partition, twin_partition_document
from fleet_worker import control_plane, errors, ports
from fleet_worker.adapters import fleet_documents, local_folder

State = TypeVar("State")


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call or a delivery as the plan sees it. number: 1, 2, … over all. operation: a method's name, or "assignments" or
    "follow_generations" for a delivery to that worker."""

    number: int
    worker: str
    operation: str
    shard_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """failure: refused as out of reach, nothing done. lost_reply: done, then the same error. delay_s: before the work; of a delivery:
    until it arrives, with what was true when it set out (the other two don't concern deliveries)."""

    failure: bool = False
    lost_reply: bool = False
    delay_s: float = 0.0


NO_FAULT = Fault()


def no_faults(call: Call) -> Fault:
    """The plan in which all goes well."""
    return NO_FAULT


class MemoryControl:
    """control_plane.ControlPlane."""

    def __init__(self, clock: ports.Clock, plan: Callable[[Call], Fault] = no_faults) -> None:
        self.plan = plan
        self._clock = clock
        self._calls = 0
        self._version = 0
        self._partitions: dict[str, twin_partition.TwinPartition] = {}
        self._heartbeats: dict[str, control_plane.Heartbeat] = {}
        self._generations: tuple[rules.RulesGeneration, ...] = ()
        self._start: partition.Start | None = None
        self._cut: dict[str, int] = {}  # worker → since when
        self._given: dict[str, int] = {}  # worker → the newest rules generation that it has taken
        self._watchers: dict[asyncio.Event, None] = {}

    # ── what a test or the simulator does ────────────────────────────────────────────────────────────────────────

    def cut(self, worker: str) -> None:
        """From now on the worker reaches nothing, and hears nothing."""
        self._cut.setdefault(worker, self._clock.wall_ms())

    def mend(self, worker: str) -> None:
        self._cut.pop(worker, None)
        self._wake()

    def is_cut(self, worker: str) -> bool:
        return worker in self._cut

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def ownership(self, worker: str) -> MemoryOwnership:
        return MemoryOwnership(self, worker)

    async def heartbeat(self, beat: control_plane.Heartbeat) -> None:
        def keep() -> None:
            self._heartbeats[beat.name] = dataclasses.replace(beat, load=dict(beat.load))

        await self.called(beat.name, "heartbeat", keep)

    async def follow_generations(self, worker: str) -> AsyncIterator[tuple[rules.RulesGeneration, ...]]:
        async for kept in self.followed(worker, "follow_generations", lambda: self._generations):
            if kept:
                yield kept
                self._given[worker] = kept[-1].generation

    def rules_known_until_ms(self, worker: str) -> int:
        """A watch hears at once, as far as it can hear."""
        given = self._given.get(worker, 0)
        if not given:
            return 0
        known_ms = self._cut.get(worker, self._clock.wall_ms()) + generations.AHEAD_MS - control_plane.SKEW_MS_MAX
        return min([known_ms, *(entry.effective_ms - 1 for entry in self._generations if entry.generation > given)])

    async def start(self) -> partition.Start | None:
        return self._start

    async def settle_start(self, start: partition.Start) -> partition.Start:
        self._start = self._start or start
        return self._start

    # ── the control loop ─────────────────────────────────────────────────────────────────────────────────────────

    async def partitions(self) -> dict[str, twin_partition.TwinPartition]:
        return await self.called("", "partitions", self.state)

    async def create(self, wanted: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        def store() -> twin_partition.TwinPartition:
            if wanted.spec.shard_id in self._partitions:
                raise errors.PreconditionFailedError(
                    f"partition {wanted.spec.shard_id}: there is an object for it already"
                )
            return self._store(dataclasses.replace(wanted, uid=str(self._version + 1)))

        return await self.called("", "create", store, wanted.spec.shard_id)

    async def update_spec(
        self, shard_id: str, spec: twin_partition.Spec, resource_version: str
    ) -> twin_partition.TwinPartition:
        def update() -> twin_partition.TwinPartition:
            assert spec.shard_id == shard_id
            return self._store(dataclasses.replace(self._expected(shard_id, resource_version), spec=spec))

        return await self.called("", "update_spec", update, shard_id)

    async def delete(self, shard_id: str, resource_version: str) -> None:
        def remove() -> None:
            self._expected(shard_id, resource_version)
            del self._partitions[shard_id]
            self._wake()

        await self.called("", "delete", remove, shard_id)

    async def heartbeats(self) -> dict[str, control_plane.Heartbeat]:
        return await self.called("", "heartbeats", lambda: dict(sorted(self._heartbeats.items())))

    async def forget_worker(self, name: str) -> None:
        def forget() -> None:
            self._heartbeats.pop(name, None)

        await self.called("", "forget_worker", forget)

    async def generations(self) -> tuple[rules.RulesGeneration, ...]:
        return await self.called("", "generations", lambda: self._generations)

    async def append_generation(
        self, make: control_plane.Make, oldest_arrival_ms: int
    ) -> tuple[rules.RulesGeneration, ...]:
        def append() -> tuple[rules.RulesGeneration, ...]:
            generation = make(self._generations, 0)
            if generation is None:
                return self._generations
            self._generations = fleet_documents.with_next(
                self._generations, generation, oldest_arrival_ms, local_folder.GENERATIONS_MAX, "the control plane"
            )
            self._wake()
            return self._generations

        return await self.called("", "append_generation", append)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, twin_partition.TwinPartition]:
        """All objects by shard id, in order: what a judge looks at, whatever is cut."""
        return dict(sorted(self._partitions.items()))

    def stored(self, shard_id: str) -> twin_partition.TwinPartition:
        """Raises PartitionGoneError."""
        found = self._partitions.get(shard_id)
        if found is None:
            raise errors.PartitionGoneError(f"partition {shard_id}: there is no object for it")
        return found

    def put_status(
        self, shard_id: str, status: twin_partition.Status, resource_version: str
    ) -> twin_partition.TwinPartition:
        return self._store(dataclasses.replace(self._expected(shard_id, resource_version), status=status))

    async def called(self, worker: str, operation: str, work: Callable[[], State], shard_id: str = "") -> State:
        """Does the work of one call as the plan wants it."""
        fault = self._planned(worker, operation, shard_id)
        await self._clock.sleep(fault.delay_s)
        if fault.failure or worker in self._cut:
            raise _out_of_reach(worker, operation)
        done = work()
        if fault.lost_reply:
            raise _out_of_reach(worker, operation)
        return done

    async def followed(self, worker: str, operation: str, read: Callable[[], State]) -> AsyncIterator[State]:
        """The state at once, then each time it is another one when a delivery sets out; those in between are missed."""
        told: State | None = None
        changed = asyncio.Event()
        self._watchers[changed] = None
        try:
            while True:
                changed.clear()
                now = read()
                if now != told and worker not in self._cut:
                    await self._clock.sleep(self._planned(worker, operation).delay_s)
                    if worker not in self._cut:
                        told = now
                        yield now
                        continue
                await changed.wait()
        finally:
            del self._watchers[changed]

    def _planned(self, worker: str, operation: str, shard_id: str = "") -> Fault:
        self._calls += 1
        return self.plan(Call(self._calls, worker, operation, shard_id))

    def _expected(self, shard_id: str, resource_version: str) -> twin_partition.TwinPartition:
        stored = self.stored(shard_id)
        if stored.resource_version != resource_version:
            raise errors.PreconditionFailedError(
                f"partition {shard_id}: its object is at {stored.resource_version} by now, not {resource_version}"
            )
        return stored

    def _store(self, wanted: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        self._version += 1
        # By way of the document, so that nothing is kept that the other control planes couldn't.
        document = twin_partition_document.document(dataclasses.replace(wanted, resource_version=str(self._version)))
        stored = twin_partition_document.parse_document(document)
        self._partitions[wanted.spec.shard_id] = stored
        self._wake()
        return stored

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()


class MemoryOwnership:
    """ports.Ownership of one worker."""

    def __init__(self, control: MemoryControl, worker: str) -> None:
        self._control = control
        self._worker = worker

    @property
    def trouble(self) -> str:
        return str(_out_of_reach(self._worker, "assignments")) if self._control.is_cut(self._worker) else ""

    async def assignments(self) -> AsyncIterator[Mapping[str, twin_partition.TwinPartition]]:
        async for state in self._control.followed(self._worker, "assignments", self._control.state):
            yield state

    async def report(
        self, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
    ) -> twin_partition.Status:
        return await control_plane.report(self, shard_id, change)

    def look_again(self) -> None:
        """Changes are told at once here; what is under way can't be hurried."""

    async def read(self, shard_id: str) -> twin_partition.TwinPartition:
        """control_plane.Statuses."""
        return await self._control.called(self._worker, "read", lambda: self._control.stored(shard_id), shard_id)

    async def write_status(
        self, shard_id: str, status: twin_partition.Status, resource_version: str
    ) -> twin_partition.TwinPartition:
        """control_plane.Statuses."""

        def put() -> twin_partition.TwinPartition:
            return self._control.put_status(shard_id, status, resource_version)

        return await self._control.called(self._worker, "write_status", put, shard_id)


def _out_of_reach(worker: str, operation: str) -> errors.ControlPlaneUnavailableError:
    who = f"worker {worker}" if worker else "the control loop"
    return errors.ControlPlaneUnavailableError(f"{operation}: {who} doesn't reach the control plane")
