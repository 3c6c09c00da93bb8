"""Kinesis in memory: KinesisApi as the service behaves, for tests and for deterministic simulation.

It has a clock (ports.Clock, plus an offset: Kinesis' clock isn't ours) and a plan that says which calls go wrong, and draws
no random number, so a run is repeated by repeating its plan. What it keeps to: routing by MD5 or explicit hash key; shards
that split and merge, with the parents closed; iterators that expire; retention; quotas; answers cut at 10,000 records and
10 MB; the Date header in whole seconds. What it leaves out: enhanced fan-out, encryption, on-demand scaling, accounts.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from fleet_model import hashing
from fleet_worker import ports
from fleet_worker.adapters import kinesis_api, memory_stream
from fleet_worker.core import records

Answer = TypeVar("Answer")

ITERATOR_LIFE_MS = 300_000
ANSWER_BYTES_MAX = 10_000_000
SHARD_READS_PER_SECOND = 5
SHARD_READ_BYTES_PER_SECOND = 2_000_000
SHARD_WRITES_PER_SECOND = 1_000
SHARD_WRITE_BYTES_PER_SECOND = 1_000_000
RETENTION_MS = 86_400_000


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call as the plan sees it. number: 1, 2, … over all calls. size: records of a PutRecords, else 0."""

    number: int
    operation: str
    stream: str
    shard_id: str = ""
    size: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one call.

    failure: the call fails before anything is done. lost_reply: it is done, then the answer is lost. delay_s: before
    the work; with lost_reply, from the work until the loss is noticed. failed: by index, PutRecords entries that are not
    taken. reverse: PutRecords stores its entries in reverse, as no order is promised inside a call. empty:
    GetRecords answers nothing although there is something, as it may. arrival_shift_ms: added to the arrival time of
    PutRecords' entries (negative: arrival times go slightly back).
    """

    failure: kinesis_api.Failure | None = None
    lost_reply: bool = False
    delay_s: float = 0.0
    failed: frozenset[int] = frozenset()
    reverse: bool = False
    empty: bool = False
    arrival_shift_ms: int = 0


NO_FAULT = Fault()
Plan: TypeAlias = Callable[[Call], Fault]

THROTTLED = kinesis_api.Failure(kinesis_api.Trouble.THROTTLED, "ProvisionedThroughputExceededException", "too fast")
UNAVAILABLE = kinesis_api.Failure(kinesis_api.Trouble.TRANSIENT, "InternalFailure", "out of order")
LOST_REPLY = kinesis_api.Failure(kinesis_api.Trouble.TRANSIENT, "ReadTimeoutError", "no answer")


def no_faults(call: Call) -> Fault:
    """The plan in which all goes well."""
    return NO_FAULT


class MemoryKinesis:
    """One endpoint. Streams are made and changed by its own methods, which never fail by plan.

    enforce_quotas: reads and writes above a shard's limits are throttled. clock_offset_ms: Kinesis' clock minus ours.
    shards_page: shards on a page of ListShards. refuses_trimmed: an iterator after a trimmed sequence number is an
    invalid argument; False: it begins at the oldest record, silently. Readers have to live with either.
    """

    def __init__(
        self,
        clock: ports.Clock,
        plan: Plan = no_faults,
        *,
        enforce_quotas: bool = True,
        clock_offset_ms: int = 0,
        shards_page: int = 1_000,
        refuses_trimmed: bool = True,
    ) -> None:
        self.plan = plan
        self.clock_offset_ms = clock_offset_ms
        self._clock = clock
        self._quotas = _Quotas(clock) if enforce_quotas else None
        self._shards_page = shards_page
        self._refuses_trimmed = refuses_trimmed
        self._streams: dict[str, memory_stream.Stream] = {}
        self._calls = 0

    # What a test or an operator does to the streams.

    def create_stream(self, name: str, shards: int = 1, retention_ms: int = RETENTION_MS) -> None:
        self._streams[name] = memory_stream.Stream(name, shards, retention_ms)

    def delete_stream(self, name: str) -> None:
        del self._streams[name]

    def split_shard(self, name: str, shard_id: str, at_hash_key: int | None = None) -> tuple[str, str]:
        """Closes the shard and opens its two children; at_hash_key begins the second, by default the middle."""
        return self._streams[name].split(shard_id, at_hash_key, self.now_ms())

    def merge_shards(self, name: str, shard_id: str, adjacent_shard_id: str) -> str:
        return self._streams[name].merge(shard_id, adjacent_shard_id, self.now_ms())

    def put(self, name: str, partition_key: str, data: bytes, explicit_hash_key: int | None = None) -> str:
        """One record, without quotas and faults; its sequence number."""
        hash_key = hashing.hash_key(partition_key) if explicit_hash_key is None else explicit_hash_key
        stream = self._streams[name]
        return str(stream.store(stream.shard_for(hash_key), partition_key, data, self.now_ms()))

    def records_of(self, name: str) -> list[memory_stream.StoredRecord]:
        """Every retained record of a stream, shard by shard, each shard in its order."""
        return [record for shard in self._streams[name].shards.values() for record in shard.records]

    def shards(self, name: str) -> list[memory_stream.Shard]:
        """Every listed shard of a stream, parents before their children."""
        return list(self._streams[name].shards.values())

    def shard(self, name: str, shard_id: str) -> memory_stream.Shard:
        return self._streams[name].shards[shard_id]

    def now_ms(self) -> int:
        """Kinesis' clock."""
        return self._clock.wall_ms() + self.clock_offset_ms

    # KinesisApi

    async def get_shard_iterator(
        self, stream: str, shard_id: str, start: kinesis_api.Start
    ) -> kinesis_api.IteratorAnswer:
        operation = "GetShardIterator"
        fault = await self._begin(operation, stream, shard_id)
        index = self._index(operation, self._shard(operation, stream, shard_id), start)
        iterator = f"{_name(stream)}/{shard_id}/{index}/{self.now_ms()}"
        return await self._end(operation, fault, kinesis_api.IteratorAnswer(iterator, self._date_ms()))

    async def get_records(self, stream: str, iterator: str) -> kinesis_api.RecordsAnswer:
        operation = "GetRecords"
        name, shard_id, index_text, issued_text = iterator.split("/")
        fault = await self._begin(operation, name, shard_id)
        shard = self._shard(operation, name, shard_id)
        if self.now_ms() - int(issued_text) > ITERATOR_LIFE_MS:
            trouble = kinesis_api.Trouble.EXPIRED_ITERATOR
            raise self._error(operation, trouble, "ExpiredIteratorException", "the iterator is too old")
        if self._quotas and not self._quotas.admits_read(f"{name}/{shard_id}"):
            raise kinesis_api.ApiError(operation, THROTTLED, self._date_ms())
        index = max(int(index_text), shard.trimmed)
        found = [] if fault.empty else _cut(shard.from_index(index, kinesis_api.RECORDS_MAX))
        index += len(found)
        ended = shard.closed_ms is not None and index == shard.end
        payload = sum(record.size_bytes for record in found)
        if self._quotas:
            self._quotas.was_read(f"{name}/{shard_id}", payload)
        batch = records.ShardBatch(
            sequence_numbers=[str(record.sequence_number) for record in found],
            arrival_ms=np.array([record.arrival_ms for record in found], dtype=np.int64),
            data=[record.data for record in found],
            millis_behind=self._millis_behind(shard, index),
            poll_ms=self._date_ms(),
            shard_ended=ended,
            child_shards=self._streams[name].children(shard_id) if ended else (),
            size_bytes=payload * 4 // 3,
        )
        following = None if ended else f"{name}/{shard_id}/{index}/{self.now_ms()}"
        return await self._end(operation, fault, kinesis_api.RecordsAnswer(batch, following, payload))

    async def list_shards(self, stream: str, token: str | None) -> kinesis_api.ShardsPage:
        operation = "ListShards"
        fault = await self._begin(operation, stream)
        found = self._stream(operation, stream)
        first = int(token or 0)
        beyond = first + self._shards_page
        listed = [shard.listed() for shard in found.shards.values()]
        following = str(beyond) if beyond < len(listed) else None
        return await self._end(operation, fault, kinesis_api.ShardsPage(listed[first:beyond], following))

    async def describe_stream(self, stream: str) -> kinesis_api.StreamSummary:
        operation = "DescribeStreamSummary"
        fault = await self._begin(operation, stream)
        retention_ms = self._stream(operation, stream).retention_ms
        return await self._end(operation, fault, kinesis_api.StreamSummary(retention_ms, self._date_ms()))

    async def put_records(self, stream: str, entries: Sequence[kinesis_api.PutRecord]) -> list[kinesis_api.PutOutcome]:
        operation = "PutRecords"
        fault = await self._begin(operation, stream, size=len(entries))
        found = self._stream(operation, stream)
        self._check_put(operation, entries)
        outcomes = [kinesis_api.PutOutcome() for _ in entries]
        order = range(len(entries))
        for index in reversed(order) if fault.reverse else order:
            entry = entries[index]
            shard = found.shard_for(hashing.hash_key(entry.partition_key))
            if index in fault.failed or (
                self._quotas and not self._quotas.admits_write(f"{found.name}/{shard.shard_id}", _size_bytes(entry))
            ):
                outcomes[index] = kinesis_api.PutOutcome(failure=THROTTLED)
            else:
                arrival_ms = self.now_ms() + fault.arrival_shift_ms
                number = found.store(shard, entry.partition_key, entry.data, arrival_ms)
                outcomes[index] = kinesis_api.PutOutcome(shard.shard_id, str(number))
        return await self._end(operation, fault, outcomes)

    # The inside

    async def _begin(self, operation: str, stream: str, shard_id: str = "", size: int = 0) -> Fault:
        self._calls += 1
        fault = self.plan(Call(self._calls, operation, _name(stream), shard_id, size))
        if fault.delay_s and not fault.lost_reply:
            await self._clock.sleep(fault.delay_s)
        if fault.failure is not None:
            raise kinesis_api.ApiError(operation, fault.failure, self._date_ms())
        return fault

    async def _end(self, operation: str, fault: Fault, answer: Answer) -> Answer:
        if fault.lost_reply:
            await self._clock.sleep(fault.delay_s)
            raise kinesis_api.ApiError(operation, LOST_REPLY)
        return answer

    def _date_ms(self) -> int:
        return self.now_ms() // 1000 * 1000

    def _error(self, operation: str, trouble: kinesis_api.Trouble, code: str, why: str) -> kinesis_api.ApiError:
        return kinesis_api.ApiError(operation, kinesis_api.Failure(trouble, code, why), self._date_ms())

    def _invalid(self, operation: str, why: str) -> kinesis_api.ApiError:
        return self._error(operation, kinesis_api.Trouble.INVALID, "InvalidArgumentException", why)

    def _missing(self, operation: str, what: str) -> kinesis_api.ApiError:
        return self._error(operation, kinesis_api.Trouble.NOT_FOUND, "ResourceNotFoundException", f"no {what}")

    def _stream(self, operation: str, stream: str) -> memory_stream.Stream:
        found = self._streams.get(_name(stream))
        if found is None:
            raise self._missing(operation, f"stream {stream}")
        found.trim(self.now_ms())
        return found

    def _shard(self, operation: str, stream: str, shard_id: str) -> memory_stream.Shard:
        shard = self._stream(operation, stream).shards.get(shard_id)
        if shard is None:
            raise self._missing(operation, f"shard {shard_id}")
        return shard

    def _index(self, operation: str, shard: memory_stream.Shard, start: kinesis_api.Start) -> int:
        if start is None:
            return shard.trimmed
        if isinstance(start, int):
            if start > self.now_ms():
                raise self._invalid(operation, "the time lies ahead")
            return shard.index_at(start)
        try:
            return shard.index_after(int(start), refuses_trimmed=self._refuses_trimmed)
        except ValueError as error:
            raise self._invalid(operation, str(error)) from error

    def _millis_behind(self, shard: memory_stream.Shard, index: int) -> int:
        """0 at the tip; else the age of the next record, at least 1."""
        following = shard.from_index(index, 1)
        return max(1, self.now_ms() - following[0].arrival_ms) if following else 0

    def _check_put(self, operation: str, entries: Sequence[kinesis_api.PutRecord]) -> None:
        sizes = [_size_bytes(entry) for entry in entries]
        if not 0 < len(entries) <= kinesis_api.PUT_RECORDS_MAX or sum(sizes) > kinesis_api.PUT_BYTES_MAX:
            raise self._invalid(operation, f"{len(entries)} records, {sum(sizes)} bytes")
        for entry, size in zip(entries, sizes, strict=True):
            if size > kinesis_api.RECORD_BYTES_MAX or not 0 < len(entry.partition_key) <= 256:
                raise self._invalid(operation, f"a record of {size} bytes under {entry.partition_key[:300]!r}")


@dataclasses.dataclass(slots=True)
class _Window:
    """What a shard did in the last second: times and bytes."""

    seen: collections.deque[tuple[float, int]] = dataclasses.field(default_factory=collections.deque)
    total_bytes: int = 0

    def admits(self, now_s: float, size: int, count_max: int, bytes_max: int) -> bool:
        while self.seen and self.seen[0][0] <= now_s - 1.0:
            self.total_bytes -= self.seen.popleft()[1]
        if len(self.seen) >= count_max or self.total_bytes + size > bytes_max:
            return False
        self.seen.append((now_s, size))
        self.total_bytes += size
        return True


@dataclasses.dataclass(slots=True)
class _ShardQuota:
    reads: _Window = dataclasses.field(default_factory=_Window)
    writes: _Window = dataclasses.field(default_factory=_Window)
    read_again_at_s: float = 0.0


class _Quotas:
    """Shards' limits, by stream and shard. A read may return more than a second's bytes; reads then wait until it is made up for."""

    def __init__(self, clock: ports.Clock) -> None:
        self._clock = clock
        self._shards: dict[str, _ShardQuota] = {}

    def _of(self, shard: str) -> _ShardQuota:
        return self._shards.setdefault(shard, _ShardQuota())

    def admits_read(self, shard: str) -> bool:
        quota, now_s = self._of(shard), self._clock.monotonic()
        return now_s >= quota.read_again_at_s and quota.reads.admits(now_s, 0, SHARD_READS_PER_SECOND, 0)

    def was_read(self, shard: str, size: int) -> None:
        self._of(shard).read_again_at_s = self._clock.monotonic() + size / SHARD_READ_BYTES_PER_SECOND

    def admits_write(self, shard: str, size: int) -> bool:
        return self._of(shard).writes.admits(
            self._clock.monotonic(), size, SHARD_WRITES_PER_SECOND, SHARD_WRITE_BYTES_PER_SECOND
        )


def _name(stream: str) -> str:
    return stream.rpartition("/")[2] if stream.startswith("arn:") else stream


def _size_bytes(entry: kinesis_api.PutRecord) -> int:
    return len(entry.data) + len(entry.partition_key.encode())


def _cut(found: list[memory_stream.StoredRecord]) -> list[memory_stream.StoredRecord]:
    """What one answer holds of them."""
    taken: list[memory_stream.StoredRecord] = []
    room = ANSWER_BYTES_MAX
    for record in found:
        room -= record.size_bytes
        if room < 0 and taken:
            break
        taken.append(record)
    return taken
