"""The control plane outside Kubernetes, as its two sides see it: workers and the control loop.

What both adapters of it (a folder, memory) must keep to, and what they share. It decides nothing: who owns what is `fleet_model`'s
business, and a worker's answer to it is the supervisor's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol, TypeAlias

from fleet_model import partition, rules, twin_partition, twin_partition_document
from fleet_worker import errors, ports

HEARTBEAT_EVERY_S = 2.0
SKEW_MS_MAX = 200
"""Between the control loop's clock and Kinesis', by which records arrive."""
SILENT_AFTER_MS = 20_000
"""A worker whose heartbeat is older than this has stopped answering."""

REPORT_TRIES_MAX = 20
"""Of one report, each after another write came between."""


STAMP_LATE_MS = 100
"""From the stamping of a generation to the moment when workers can see it. With SKEW_MS_MAX it leaves them most of RULES_AHEAD_MS."""

STAMP_TRIES_MAX = 8

Make: TypeAlias = Callable[[tuple[rules.RulesGeneration, ...], int], rules.RulesGeneration | None]
"""(what is kept, late_ms) → the generation to be kept next, None = none. It looks at the clock itself, at the last moment, and in a thread;
late_ms: how much later than its look, besides, workers may see it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker's word that it lives. address: of its HTTP API, "http://host:port". ready: it may be given partitions. time_ms: by its
    own clock, which on one machine is the control loop's, too. load: records/s by shard id. pid: of its process; another one under
    the same name is another start."""

    name: str
    address: str
    ready: bool
    time_ms: int
    pid: int
    load: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def is_silent(self, now_ms: int) -> bool:
        return now_ms - self.time_ms > SILENT_AFTER_MS


class ForWorkers(Protocol):
    """What a worker needs. Every method raises ControlPlaneUnavailableError while the control plane can't be reached: the worker goes on
    with what it knows and tries again."""

    def ownership(self, worker: str) -> ports.Ownership:
        """The worker's own view; `assignments` may be followed more than once."""

    async def heartbeat(self, beat: Heartbeat) -> None:
        """Replaces the worker's last one. Every HEARTBEAT_EVERY_S, and at once when `ready` changes."""

    def follow_generations(self, worker: str) -> AsyncIterator[tuple[rules.RulesGeneration, ...]]:
        """All rules generations that are kept, by effective_ms: as soon as there is one, then whenever there are others. Like
        assignments: only the newest state, nothing while out of reach, never ends."""

    def rules_known_until_ms(self, worker: str) -> int:
        """Every generation that starts at or before this time (the control loop's clock) has been given to whoever follows them; 0
        before the first. It rises while the control plane answers."""

    async def start(self) -> partition.Start | None:
        """The fleet's settled start, None before it is settled."""

    async def settle_start(self, start: partition.Start) -> partition.Start:
        """Keeps the start unless there is one; returns the one that holds for good."""


class ForTheLoop(Protocol):
    """What the control loop needs besides. It alone calls these. Raises as ForWorkers."""

    async def partitions(self) -> dict[str, twin_partition.TwinPartition]:
        """Every object as it is now, by shard id."""

    async def create(self, wanted: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        """Stores a new object. Raises PreconditionFailedError when there is one for the shard."""

    async def update_spec(
        self, shard_id: str, spec: twin_partition.Spec, resource_version: str
    ) -> twin_partition.TwinPartition:
        """Replaces the spec, and leaves the status. Raises PreconditionFailedError when the object has changed since it was read with
        that resourceVersion; PartitionGoneError."""

    async def delete(self, shard_id: str, resource_version: str) -> None:
        """Raises as update_spec."""

    async def heartbeats(self) -> dict[str, Heartbeat]:
        """The last of each worker, by name, silent ones too."""

    async def forget_worker(self, name: str) -> None:
        """A worker that has left for good. Idempotent."""

    async def generations(self) -> tuple[rules.RulesGeneration, ...]:
        """Those that are kept, by effective_ms; empty before the first."""

    async def append_generation(self, make: Make, oldest_arrival_ms: int) -> tuple[rules.RulesGeneration, ...]:
        """Keeps the generation that `make` makes, for good when this returns; those go that judge no record which arrived at
        oldest_arrival_ms or later. Workers can see it from at most STAMP_LATE_MS after that call of `make` + its late_ms on: a `make`
        that took longer to be kept is called again. Returns what is kept. Raises DiskFullError, TooManyGenerationsError
        (nothing changed), DataFolderError."""


class ControlPlane(ForWorkers, ForTheLoop, Protocol):
    """Both sides."""


class Statuses(Protocol):
    """What `report` needs of an adapter."""

    async def read(self, shard_id: str) -> twin_partition.TwinPartition:
        """Raises PartitionGoneError, ControlPlaneUnavailableError."""

    async def write_status(
        self, shard_id: str, status: twin_partition.Status, resource_version: str
    ) -> twin_partition.TwinPartition:
        """Raises PreconditionFailedError too."""


async def report(
    statuses: Statuses, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
) -> twin_partition.Status:
    """ports.Ownership.report over reads and conditional writes."""
    for _ in range(REPORT_TRIES_MAX):
        stored = await statuses.read(shard_id)
        wanted = change(stored.status)
        if twin_partition_document.status_document(wanted) == twin_partition_document.status_document(stored.status):
            return stored.status
        try:
            return (await statuses.write_status(shard_id, wanted, stored.resource_version)).status
        except errors.PreconditionFailedError:
            continue
    raise errors.ControlPlaneUnavailableError(
        f"partition {shard_id}: its object changed {REPORT_TRIES_MAX} times while a status was to be written; trying again later"
    )
