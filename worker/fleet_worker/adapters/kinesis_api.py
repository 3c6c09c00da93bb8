"""The few Kinesis calls that Fleet Twin makes, as a narrow protocol with two implementations.

`kinesis_client` speaks to a real endpoint, `memory_kinesis` is one. The source and the sink stand on this protocol, so a
simulator runs their production code: pacing, retries and order are never reimplemented for it. Nothing here waits,
retries or decides; an implementation makes one call and tells what came of it.
"""

from __future__ import annotations

import dataclasses
import enum
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from fleet_model import partition
from fleet_worker.core import records

RECORDS_MAX = 10_000
"""A GetRecords call's largest Limit. Source of this and the limits below: Kinesis API reference and quotas."""
PUT_RECORDS_MAX = 500
PUT_BYTES_MAX = 5_000_000
"""Data and partition keys of a PutRecords call. Kinesis says 5 MB; taken as the smaller of its two readings."""
RECORD_BYTES_MAX = 2**20
"""Data and partition key of one record."""

Start: TypeAlias = str | int | None
"""Where an iterator begins: after a sequence number, at an arrival time in ms, or at the oldest record."""


class Trouble(enum.Enum):
    """Why a call or a record failed, by what can be done about it."""

    THROTTLED = "throttled"  # too much or too fast: back off
    TRANSIENT = "transient"  # connection, timeout, 5xx; it may have been done: try again
    EXPIRED_ITERATOR = "expired_iterator"  # get a new one
    NOT_FOUND = "not_found"  # no such stream or shard
    INVALID = "invalid"  # an argument that will never be taken
    DENIED = "denied"  # credentials, permissions, KMS keys: someone has to act


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """code: Kinesis' error code, or the exception's name where no answer came."""

    trouble: Trouble
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ApiError(Exception):
    """A call failed as a whole. date_ms: the answer's Date header, None when there was no answer."""

    def __init__(self, operation: str, failure: Failure, date_ms: int | None = None) -> None:
        super().__init__(f"{operation}: {failure}")
        self.operation = operation
        self.failure = failure
        self.date_ms = date_ms

    @property
    def trouble(self) -> Trouble:
        return self.failure.trouble


@dataclasses.dataclass(frozen=True, slots=True)
class IteratorAnswer:
    """iterator: None when a closed shard has nothing after the start. date_ms: the Date header."""

    iterator: str | None
    date_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class RecordsAnswer:
    """payload_bytes: of the records' data and partition keys, which is what a shard's read limit counts."""

    batch: records.ShardBatch
    next_iterator: str | None
    payload_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class ShardsPage:
    """next_token: None on the last page."""

    shards: list[partition.Shard]
    next_token: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class StreamSummary:
    """date_ms: the answer's Date header, in whole seconds."""

    retention_ms: int
    date_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class PutRecord:
    partition_key: str
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class PutOutcome:
    """What became of one record: failure None means that Kinesis has it, in this shard under this number."""

    shard_id: str = ""
    sequence_number: str = ""
    failure: Failure | None = None


class KinesisApi(Protocol):
    """One call each. `stream` is a name or an ARN. Every method raises ApiError and nothing else."""

    async def get_shard_iterator(self, stream: str, shard_id: str, start: Start) -> IteratorAnswer: ...

    async def get_records(self, stream: str, iterator: str) -> RecordsAnswer:
        """At most RECORDS_MAX records. Idempotent for as long as the iterator lives (5 minutes)."""

    async def list_shards(self, stream: str, token: str | None) -> ShardsPage:
        """One page; token None for the first."""

    async def describe_stream(self, stream: str) -> StreamSummary: ...

    async def put_records(self, stream: str, entries: Sequence[PutRecord]) -> list[PutOutcome]:
        """One outcome an entry, in their order. An error with Trouble.TRANSIENT may come after the work was done."""


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """A call, or some records of one, failed and will be tried again. where: the stream, or the stream and its shard."""

    operation: str
    where: str
    failure: Failure


OnRetry: TypeAlias = Callable[[Retry], None]


def ignore_retry(retry: Retry) -> None:
    """The OnRetry that nobody listens to."""


class Backoff:
    """Waits that double from first_s up to max_s, each cut by a random part of up to half, so that workers which
    failed together don't come back together."""

    def __init__(self, randomness: random.Random, first_s: float, max_s: float) -> None:
        self._randomness = randomness
        self._first_s = first_s
        self._max_s = max_s
        self._wait_s = first_s

    def next_s(self) -> float:
        wait_s = self._wait_s
        self._wait_s = min(self._max_s, wait_s * 2)
        return wait_s * self._randomness.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._wait_s = self._first_s
