"""What the API needs from the worker, as Protocols, and who answers for a hash key.

A partition answers only while it is Running here: only then is its table the twin's truth, and only then may a missing device be
called unknown. Everything else is told as not available, with the owner's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from fleet_model import hashing, partition
from fleet_worker.core import commits, engine, lifecycle, records

SERVING_PHASE = lifecycle.Phase.RUNNING.value
ENDED_PHASES = (lifecycle.Phase.CLOSED.value, lifecycle.Phase.RELEASED.value)
"""Phases in which a partition has left its hash range to others for good."""

ROWS_A_READ_MAX = 50_000
"""Rows a PartitionView gives at once, at most; ids that it is asked for at once, too."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredRows:
    """The first rows that the store holds of a hash range. complete: there are no more in it."""

    rows: commits.TwinRows
    complete: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Outbox:
    """effects: committed and not yet acknowledged. oldest_ms: arrival_ms of the oldest, None when there is none."""

    effects: int
    oldest_ms: int | None


class PartitionView(Protocol):
    """A partition that this worker has. Properties are read on the event loop and cost nothing; the async ones read the
    store in a thread. They raise StoreBrokenError when it can't be read."""

    @property
    def identity(self) -> partition.PartitionIdentity: ...

    @property
    def phase(self) -> str:
        """A lifecycle.Phase's value."""

    @property
    def message(self) -> str:
        """Why the partition isn't Running, or what troubles it; "" when all is well."""

    @property
    def epoch(self) -> int: ...

    @property
    def state(self) -> commits.PartitionState:
        """As of the last applied batch: position and clock_ms are those of the table."""

    @property
    def lag_ms(self) -> int | None:
        """MillisBehindLatest of the last answer; None before the first."""

    @property
    def outbox(self) -> Outbox: ...

    @property
    def engine(self) -> engine.TwinEngine:
        """Its table is the hot copy. Only while the phase is Running are its rows complete."""

    async def telemetry(self, device_ids: Sequence[str]) -> dict[str, bytes]:
        """The last raw Telemetry that the store has of these devices."""

    async def fetch(self, device_ids: Sequence[str]) -> commits.TwinRows:
        """Those of the ids that are stored (TwinStore.fetch)."""

    async def stored(self, key_range: hashing.HashKeyRange) -> StoredRows:
        """The range's first rows in key order, at most ROWS_A_READ_MAX, telemetry left out."""

    async def dead_letters(self, limit: int) -> list[records.DeadLetter]:
        """The newest kept ones, newest first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Elsewhere:
    """A partition that this worker knows of and another one has (or nobody: worker "")."""

    shard_id: str
    hash_key_range: hashing.HashKeyRange
    worker: str
    epoch: int
    phase: str
    message: str = ""


class WorkerView(Protocol):
    """The worker, as the API sees it."""

    @property
    def name(self) -> str: ...

    @property
    def fleet(self) -> str:
        """ "namespace/name"."""

    @property
    def rules_generation(self) -> int:
        """The newest that this worker has taken up; partitions reach it by their own time."""

    @property
    def last_rule_error(self) -> str | None:
        """Why the last edit of the fleet could not be read; None when it could."""

    @property
    def can_take_partitions(self) -> bool:
        """Whether the control plane may name it for more."""

    @property
    def load(self) -> Mapping[str, float]:
        """Records/s of late, by shard id."""

    @property
    def control_trouble(self) -> str:
        """Why nothing new is heard of partitions or rules, so that it goes on with what it knows, or why what it says of partitions isn't
        taken; "" when all is well."""

    def partitions(self) -> Sequence[PartitionView]: ...

    def elsewhere(self) -> Sequence[Elsewhere]: ...

    def not_ready_because(self) -> Sequence[str]:
        """Reasons of the worker itself (shards not listed yet, stopping); partitions tell their own by their phase."""


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """Who has a hash range that isn't served here, as far as this worker knows. worker "": nobody it knows of."""

    shard_id: str = ""
    worker: str = ""
    epoch: int = 0
    phase: str = ""
    message: str = ""


def serving(worker: WorkerView) -> list[PartitionView]:
    """The partitions that answer, in hash-key order."""
    running = [entry for entry in worker.partitions() if entry.phase == SERVING_PHASE]
    return sorted(running, key=lambda entry: entry.identity.hash_key_range)


def serving_partition(worker: WorkerView, hash_key: int) -> PartitionView | None:
    """The partition that answers for a hash key, None when none does here."""
    for entry in worker.partitions():
        if entry.phase == SERVING_PHASE and hash_key in entry.identity.hash_key_range:
            return entry
    return None


def same_owners_until(worker: WorkerView, hash_key: int) -> int:
    """The last hash key, from this one on, before which no known partition begins or ends."""
    known = [entry.identity.hash_key_range for entry in worker.partitions()]
    known += [entry.hash_key_range for entry in worker.elsewhere()]
    borders = [entry.start - 1 for entry in known if entry.start > hash_key]
    borders += [entry.end for entry in known if entry.end >= hash_key]
    return min(borders, default=hashing.HASH_KEY_MAX)


def owners(worker: WorkerView, key_range: hashing.HashKeyRange) -> list[Owner]:
    """Who has the range instead, those that still hold it first; one Owner with nothing in it when nobody is known."""
    known = [
        Owner(entry.identity.shard_id, worker.name, entry.epoch, entry.phase, entry.message)
        for entry in worker.partitions()
        if entry.phase != SERVING_PHASE and entry.identity.hash_key_range.overlaps(key_range)
    ]
    known += [
        Owner(entry.shard_id, entry.worker, entry.epoch, entry.phase, entry.message)
        for entry in worker.elsewhere()
        if entry.hash_key_range.overlaps(key_range)
    ]
    known.sort(key=lambda owner: (owner.phase in ENDED_PHASES, -owner.epoch, owner.shard_id))
    return known or [Owner()]
