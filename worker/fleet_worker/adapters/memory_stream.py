"""A stream of the in-memory Kinesis: shards, their records, splitting, merging and trimming. `memory_kinesis` serves it.

It takes the time as a parameter, knows nothing of calls, quotas or faults, and refuses what Kinesis refuses with
ValueError.
"""

from __future__ import annotations

import bisect
import dataclasses

from fleet_model import hashing, partition

FIRST_SEQUENCE_NUMBER = 49 * 10**54


@dataclasses.dataclass(frozen=True, slots=True)
class StoredRecord:
    sequence_number: int
    arrival_ms: int
    partition_key: str
    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data) + len(self.partition_key.encode())


@dataclasses.dataclass(slots=True)
class Shard:
    """records: what is retained. trimmed: how many no longer are, so that a record's index in the shard never moves.
    last_trimmed: sequence number of the last of them, 0 = none. closed_ms: None while open."""

    shard_id: str
    hash_key_range: hashing.HashKeyRange
    parents: tuple[str, ...] = ()
    closed_ms: int | None = None
    records: list[StoredRecord] = dataclasses.field(default_factory=list)
    trimmed: int = 0
    last_trimmed: int = 0

    @property
    def end(self) -> int:
        """The index after the last record."""
        return self.trimmed + len(self.records)

    def listed(self) -> partition.Shard:
        return partition.Shard(self.shard_id, self.hash_key_range, self.parents, self.closed_ms is not None)

    def from_index(self, index: int, count: int) -> list[StoredRecord]:
        first = max(0, index - self.trimmed)
        return self.records[first : first + count]

    def index_at(self, arrival_ms: int) -> int:
        """Of the first record that arrived at that time or later."""
        found = (index for index, record in enumerate(self.records) if record.arrival_ms >= arrival_ms)
        return self.trimmed + next(found, len(self.records))

    def index_after(self, sequence_number: int, *, refuses_trimmed: bool) -> int:
        """refuses_trimmed: ValueError when records after that one are trimmed, else the oldest that is left."""
        if sequence_number <= self.last_trimmed:
            if refuses_trimmed and sequence_number < self.last_trimmed:
                raise ValueError(f"sequence number {sequence_number} is trimmed")
            return self.trimmed
        after = bisect.bisect_right(self.records, sequence_number, key=lambda record: record.sequence_number)
        if after == 0 or self.records[after - 1].sequence_number != sequence_number:
            raise ValueError(f"sequence number {sequence_number} is not of shard {self.shard_id}")
        return self.trimmed + after

    def trim(self, horizon_ms: int) -> None:
        """Forgets the records at the front that arrived before the time."""
        count = 0
        while count < len(self.records) and self.records[count].arrival_ms < horizon_ms:
            count += 1
        if count:
            self.last_trimmed = self.records[count - 1].sequence_number
            self.trimmed += count
            del self.records[:count]


class Stream:
    """shards: every one that is still listed, by id."""

    def __init__(self, name: str, shards: int, retention_ms: int) -> None:
        self.name = name
        self.retention_ms = retention_ms
        self.shards: dict[str, Shard] = {}
        self._shards_made = 0
        self._sequence = FIRST_SEQUENCE_NUMBER
        bounds = [hashing.HASH_KEY_MAX * index // shards for index in range(shards + 1)]
        for index in range(shards):
            start = 0 if index == 0 else bounds[index] + 1
            self._add_shard(hashing.HashKeyRange(start, bounds[index + 1]), ())

    def split(self, shard_id: str, at_hash_key: int | None, now_ms: int) -> tuple[str, str]:
        parent = self._open(shard_id)
        whole = parent.hash_key_range
        second_start = whole.start + whole.size // 2 if at_hash_key is None else at_hash_key
        lower = hashing.HashKeyRange(whole.start, second_start - 1)
        upper = hashing.HashKeyRange(second_start, whole.end)
        parent.closed_ms = now_ms
        return self._add_shard(lower, (shard_id,)), self._add_shard(upper, (shard_id,))

    def merge(self, shard_id: str, adjacent_shard_id: str, now_ms: int) -> str:
        first, second = self._open(shard_id), self._open(adjacent_shard_id)
        lower, upper = sorted((first.hash_key_range, second.hash_key_range))
        if lower.end + 1 != upper.start:
            raise ValueError(f"{shard_id} and {adjacent_shard_id} are not adjacent")
        first.closed_ms = second.closed_ms = now_ms
        return self._add_shard(hashing.HashKeyRange(lower.start, upper.end), (shard_id, adjacent_shard_id))

    def children(self, shard_id: str) -> tuple[partition.Shard, ...]:
        """As an answer names them: without telling whether they are closed."""
        return tuple(
            partition.Shard(shard.shard_id, shard.hash_key_range, shard.parents)
            for shard in self.shards.values()
            if shard_id in shard.parents
        )

    def shard_for(self, hash_key: int) -> Shard:
        """The open shard that takes a record."""
        for shard in self.shards.values():
            if shard.closed_ms is None and hash_key in shard.hash_key_range:
                return shard
        raise AssertionError(f"stream {self.name}: no open shard for hash key {hash_key}")

    def store(self, shard: Shard, partition_key: str, data: bytes, arrival_ms: int) -> int:
        """Appends a record; its sequence number is above all others of the stream."""
        self._sequence += 16
        shard.records.append(StoredRecord(self._sequence, arrival_ms, partition_key, data))
        return self._sequence

    def trim(self, now_ms: int) -> None:
        """Forgets records, and emptied closed shards, that are older than the retention."""
        horizon_ms = now_ms - self.retention_ms
        for shard in list(self.shards.values()):
            shard.trim(horizon_ms)
            if shard.closed_ms is not None and shard.closed_ms < horizon_ms and not shard.records:
                del self.shards[shard.shard_id]

    def _open(self, shard_id: str) -> Shard:
        shard = self.shards[shard_id]
        if shard.closed_ms is not None:
            raise ValueError(f"{shard_id} is closed already")
        return shard

    def _add_shard(self, hash_key_range: hashing.HashKeyRange, parents: tuple[str, ...]) -> str:
        shard_id = f"shardId-{self._shards_made:012d}"
        self._shards_made += 1
        self.shards[shard_id] = Shard(shard_id, hash_key_range, parents)
        return shard_id
