"""The ports: what the pipeline and the supervisor need from the world, as small Protocols.

Each has a real adapter and an in-memory one in `adapters`, and both pass the same contract suite (tests/contract).
Errors an adapter raises are those of `errors`; anything else is a bug.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from fleet_model import hashing, partition, twin_partition
from fleet_worker.core import commits, effects, records

Answer = TypeVar("Answer")


class Clock(Protocol):
    """Time and threads. The simulator brings virtual ones."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch, by this machine. For stamps and metrics, never for deciding offline."""

    def monotonic(self) -> float:
        """Seconds, never going back: for intervals."""

    async def sleep(self, seconds: float) -> None: ...

    async def in_thread(self, function: Callable[[], Answer]) -> Answer:
        """Runs a blocking function without stopping the event loop."""


class ShardSource(Protocol):
    """Reads one shard, in order, from a position on."""

    async def read(self) -> records.ShardBatch:
        """The next answer, at most 10,000 records, after the wait that pacing asks for: at once while behind, a second
        after the last poll when caught up, never above 5 calls/s or 2 MB/s a shard. Throttling and lost replies are
        waited out with jittered back-off; an expired iterator is renewed from the last record returned. Cancelling a
        read loses nothing: the next one returns the same records. After an answer with shard_ended it isn't called.

        Raises PositionExpiredError when the stream no longer holds the position; StreamGoneError.
        """


class Stream(Protocol):
    """The telemetry stream: its shards and a source for each."""

    async def list_shards(self) -> list[partition.Shard]:
        """Every shard the stream still retains, closed ones too, with parents that it may no longer list."""

    async def now_ms(self) -> int:
        """Kinesis' clock, by an answer's Date header."""

    async def retention_ms(self) -> int:
        """How long the stream keeps records."""

    def open_shard(self, shard_id: str, start: partition.Position | int | None) -> ShardSource:
        """start: a position (reading begins after it), an arrival time in ms, or None for the shard's beginning."""


class Ownership(Protocol):
    """Which partitions are this worker's, and what it says of them."""

    def assignments(self) -> AsyncIterator[Mapping[str, twin_partition.TwinPartition]]:
        """Every partition of the fleet by shard id: at once, then whenever something changed. Only the newest state counts: a slow
        reader misses what was in between. While the control plane is out of reach nothing comes, and the reader goes on with what it
        knows; it never ends by itself.
        """

    async def report(
        self, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
    ) -> twin_partition.Status:
        """Writes the status that `change` makes of the stored one (it is called again when another write came between), unless that is
        the same; returns what is stored then. Raises ControlPlaneUnavailableError: the reporter goes on and reports again later (seldom, if it is
        a ControlPlaneRefusedError); PartitionGoneError.
        """

    @property
    def trouble(self) -> str:
        """Why nothing new comes just now; "" when all is well."""

    def look_again(self) -> None:
        """A hint that something may have changed (a shard ended): the next state comes soon."""


def always() -> bool:
    """Nothing stands against it."""
    return True


class EffectSink(Protocol):
    """Publishes effects with PutRecords."""

    async def publish(
        self, entries: Sequence[effects.OutboxEntry], may_go_on: Callable[[], bool] = always
    ) -> PublishResult:
        """Publishes entries of one partition, keeping each device's order per stream: a call carries at most one effect
        of a device, at most 500 records and 5 MB, and an effect goes only after the one before it was acknowledged.
        Exactly the failed ones are tried again, with jittered back-off, for at most 30 s; what is neither acknowledged
        nor refused by then is in neither list and may be given again. A lost reply may publish an effect twice (same id).
        may_go_on: asked right before each call; once it says no, none is made any more, and what is left is in neither list.
        """


class PublishResult(Protocol):
    """acknowledged: outbox numbers Kinesis has. refused: (number, why) that it will never take."""

    @property
    def acknowledged(self) -> Sequence[int]: ...

    @property
    def refused(self) -> Sequence[tuple[int, str]]: ...


class TwinStore(Protocol):
    """A partition's durable twins, outbox and state. Methods block: call them through Clock.in_thread. One writer."""

    @property
    def state(self) -> commits.PartitionState:
        """As of the last successful commit."""

    def scan(self, key_range: hashing.HashKeyRange | None = None) -> Iterator[commits.TwinRows]:
        """Every twin in key order, in chunks of at most 50,000, telemetry left out (all None)."""

    def first(self, key_range: hashing.HashKeyRange) -> tuple[commits.TwinRows, bool]:
        """The first chunk of a scan of the range, and whether that is all of it."""

    def count(self) -> int: ...

    def fetch(self, device_ids: Sequence[str]) -> commits.TwinRows:
        """Those of the ids that are stored, in ascending key order, telemetry left out."""

    def telemetry(self, device_ids: Sequence[str]) -> dict[str, bytes]:
        """The last raw Telemetry of those of the ids that have one."""

    def outbox(self) -> list[effects.OutboxEntry]:
        """Unacknowledged effects, by number."""

    def dead_letters(self, limit: int) -> list[records.DeadLetter]:
        """The newest kept dead letters, newest first."""

    def index_before(
        self, last_arrival_ms: int, limit: int, after: tuple[int, str] | None = None
    ) -> list[tuple[int, str]]:
        """The offline index's entries older than the time, oldest first, at most `limit`; those after the entry `after`."""

    def commit(self, commit: commits.Commit) -> None:
        """All of it, or nothing and an error. Survives the death of the process on return; of the machine after sync.

        Raises DiskFullError (nothing changed; try again when there is room) or StoreBrokenError (the environment is
        not to be used any more).
        """

    def sync(self) -> None:
        """fsync. Raises StoreBrokenError when it fails: the environment is then thrown away."""

    def close(self) -> None:
        """Syncs and leaves the clean-close mark. Idempotent."""

    def append(self, rows: commits.TwinRows) -> None:
        """Adds twins whose keys are all beyond those that are stored, for restoring: an empty store (state and all) is filled in
        transactions of bounded size, and counts as begun only with the commit of a state. Raises as commit does."""

    def clear(self) -> None:
        """Drops everything but the state and the identity: what an interrupted restore left."""

    def snapshot(self) -> contextlib.AbstractContextManager[StoreSnapshot]:
        """One consistent view of everything, for a checkpoint. To be held as short as can be: the file may grow meanwhile."""


class Disk(Protocol):
    """The worker's own volume: an environment for each partition. Methods block. One environment is open once at a time."""

    def open(self, identity: partition.PartitionIdentity) -> OpenedStore:
        """Opens the partition's environment, or makes it. Raises StoreBrokenError, DiskFullError."""

    def shards(self) -> list[str]:
        """That have an environment, in order."""

    def where(self, shard_id: str) -> str:
        """Where a partition's environment is, for whoever has to move it away by hand."""

    def remove(self, shard_id: str) -> None:
        """Removes a partition's environment, if there is one; it mustn't be open. Raises DataFolderError."""

    def inherit(
        self,
        child: TwinStore,
        parents: Sequence[TwinStore],
        key_range: hashing.HashKeyRange,
        state: commits.PartitionState,
    ) -> None:
        """Fills a child's empty store from its parents' stores on the same disk: twins and unacknowledged effects of its range,
        the state last."""

    def left(self, listed: Collection[str]) -> list[LeftBehind]:
        """What earlier runs left of shards that aren't listed, by shard id."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedStore:
    """discarded: why what was found there was moved aside; None when it wasn't, or nothing was there."""

    store: TwinStore
    discarded: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class LeftBehind:
    """A partition that an earlier run left. ended: read to its end; then key_range is its. trouble: what is wrong with it otherwise.
    begun: the listed shards whose partitions have begun, and so have inherited already."""

    shard_id: str
    key_range: hashing.HashKeyRange
    ended: bool
    trouble: str
    begun: frozenset[str]


class StoreSnapshot(Protocol):
    """What one moment's commit left. Methods block."""

    @property
    def state(self) -> commits.PartitionState: ...

    def count(self) -> int: ...

    def scan(
        self,
        key_range: hashing.HashKeyRange | None = None,
        *,
        with_telemetry: bool = False,
        changed_after: int | None = None,
    ) -> Iterator[commits.TwinRows]:
        """Every twin of the range in key order, in chunks. changed_after: of each chunk only the rows whose commit number is above it,
        which may be none: a chunk is a bounded piece of work, whatever it finds."""

    def outbox(self) -> list[effects.OutboxEntry]: ...

    def dead_letters(self, limit: int) -> list[records.DeadLetter]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
    """What a get found. etag: opaque, for a conditional put."""

    data: bytes
    etag: str


class ObjectStore(Protocol):
    """S3, or what speaks like it. Keys are below the fleet's prefix. An answer may be lost: a put that raised
    ObjectStoreUnavailableError may have happened.

    Every method raises ObjectStoreUnavailableError after bounded, jittered tries, and ObjectStoreRefusedError when trying again is no
    use (no such bucket, no right).
    """

    async def get(self, key: str) -> Object | None:
        """The whole object; None when there is none."""

    async def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes start..stop-1, fewer at the end. Raises ObjectMissingError."""

    async def put_new(self, key: str, data: bytes) -> str:
        """If-None-Match: *. The new etag. Raises PreconditionFailedError when the object exists: perhaps by our own try whose reply was
        lost, or that was tried again inside."""

    async def put_over(self, key: str, data: bytes, etag: str) -> str:
        """If-Match. Raises PreconditionFailedError when the object is another one by now (or by our own lost try) or gone."""

    async def list(self, prefix: str) -> list[ObjectInfo]:
        """Every object below the prefix, by key."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Missing ones count as deleted."""


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectInfo:
    """modified_ms: by the store's clock."""

    key: str
    size: int
    modified_ms: int
