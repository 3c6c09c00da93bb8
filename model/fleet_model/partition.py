"""A partition (one Kinesis shard's twins) and its position in the shard."""

from __future__ import annotations

import dataclasses

from fleet_model import hashing


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """The last *applied* user record. sequence_number: Kinesis' decimal string, at most 56 digits, "" = none yet.

    subsequence_number: its index inside a KPL-aggregated record, 0 for a plain one.
    """

    sequence_number: str = ""
    subsequence_number: int = 0

    def key(self) -> tuple[int, int]:
        """For comparing two positions of one shard."""
        return (int(self.sequence_number or -1), self.subsequence_number)


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """One shard as ListShards tells it. parents: none, one (split) or two (merge) shard ids."""

    shard_id: str
    hash_key_range: hashing.HashKeyRange
    parents: tuple[str, ...] = ()
    closed: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Where a fleet's very first reading began, settled once for all its partitions before the first poll.

    stream: the telemetry stream it was settled for. time_ms: the arrival time from which partitions without a parent of
    ours read; None = each shard's beginning.
    """

    stream: str
    time_ms: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionIdentity:
    """Names a partition for good: what its effect ids and its files carry."""

    namespace: str
    fleet: str
    stream: str
    shard_id: str
    hash_key_range: hashing.HashKeyRange = hashing.HashKeyRange()
