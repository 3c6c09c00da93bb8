"""Takes the Kinesis Producer Library's aggregated records apart, and makes them.

The library packs many user records into one Kinesis record: four bytes of magic, an AggregatedRecord message, and the
MD5 of that message. A user record is known by its Kinesis record's sequence number and its own index in it.
Format: github.com/awslabs/amazon-kinesis-producer, aggregation-format.md. Nothing here looks into user records, and an
aggregate inside an aggregate stays a user record.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from google.protobuf import message
from numpy.typing import NDArray

from fleet_proto import kpl_pb2
from fleet_worker.core import records, refusal

MAGIC = b"\xf3\x89\x9a\xc2"
CHECKSUM_BYTES = 16
USER_RECORDS_MAX = 20_000
"""How many user records `chunks` lets into one batch."""
USER_RECORD_BYTES_MIN = 6
"""An aggregated user record is at least this long: its own tag and length, a partition key index, empty data."""


@dataclasses.dataclass(frozen=True, slots=True)
class UserRecords:
    """n user records in stream order. data: n. owner: (n,) index of each one's Kinesis record, None when every Kinesis
    record is its own user record. subsequence: (n,) uint32. broken: aggregates that can't be taken apart, by index."""

    data: list[bytes]
    owner: NDArray[np.intp] | None
    subsequence: NDArray[np.uint32]
    broken: dict[int, refusal.Refused]


def user_records(data: list[bytes], first_bytes: NDArray[np.uint8]) -> UserRecords:
    """The user records of one answer. first_bytes: (n,) of each record, so that the common case costs one comparison
    (anything for an empty record)."""
    if not (first_bytes == MAGIC[0]).any():
        return UserRecords(data, None, np.zeros(len(data), dtype=np.uint32), {})
    flat: list[bytes] = []
    counts = np.ones(len(data), dtype=np.intp)
    broken: dict[int, refusal.Refused] = {}
    for index, record in enumerate(data):
        if not record.startswith(MAGIC):
            flat.append(record)
            continue
        try:
            members = _members(record)
        except refusal.Refused as why:
            broken[len(flat)] = why
            flat.append(record)
            continue
        flat.extend(members)
        counts[index] = len(members)
    owner = np.repeat(np.arange(len(data)), counts)
    first = np.cumsum(counts) - counts
    return UserRecords(flat, owner, (np.arange(len(flat)) - first[owner]).astype(np.uint32), broken)


def aggregate(user: Sequence[tuple[str, bytes]]) -> bytes:
    """One Kinesis record out of (partition key, data) pairs, at least one. Its size is the caller's to bound."""
    if not user:
        raise ValueError("an aggregated record needs at least one user record")
    keys = {key: index for index, key in enumerate(dict.fromkeys(key for key, _ in user))}
    body = kpl_pb2.AggregatedRecord(
        partition_key_table=list(keys),
        records=[kpl_pb2.Record(partition_key_index=keys[key], data=data) for key, data in user],
    ).SerializeToString()
    return MAGIC + body + checksum(body)


def chunks(batch: records.ShardBatch, records_max: int = USER_RECORDS_MAX) -> Iterator[records.ShardBatch]:
    """Cuts a batch between Kinesis records so that no part holds more than `records_max` user records, unless a single
    Kinesis record does. The answer's size and the shard's end are told with the last part."""
    counts = _counts(batch.data, records_max)
    cut = 0
    inside = 0
    for index, count in enumerate(counts):
        if inside and inside + count > records_max:
            yield part(batch, cut, index)
            cut, inside = index, 0
        inside += count
    yield batch if cut == 0 else part(batch, cut, len(counts))


def part(batch: records.ShardBatch, start: int, end: int) -> records.ShardBatch:
    """The Kinesis records from index `start` to before `end`."""
    last = end == len(batch.data)
    return dataclasses.replace(
        batch,
        sequence_numbers=batch.sequence_numbers[start:end],
        arrival_ms=batch.arrival_ms[start:end],
        data=batch.data[start:end],
        shard_ended=last and batch.shard_ended,
        child_shards=batch.child_shards if last else (),
        size_bytes=batch.size_bytes if last else 0,
    )


def _members(record: bytes) -> list[bytes]:
    body = record[len(MAGIC) : -CHECKSUM_BYTES]
    if len(record) < len(MAGIC) + CHECKSUM_BYTES:
        raise refusal.Refused(records.Reason.UNDECODABLE, "aggregated record shorter than its frame")
    if checksum(body) != record[-CHECKSUM_BYTES:]:
        raise refusal.Refused(records.Reason.KPL_CHECKSUM, "aggregated record's MD5 doesn't match its body")
    try:
        members = [member.data for member in kpl_pb2.AggregatedRecord.FromString(body).records]
    except message.DecodeError as error:
        raise refusal.Refused(records.Reason.UNDECODABLE, f"aggregated record: {error}") from error
    if not members:
        raise refusal.Refused(records.Reason.UNDECODABLE, "aggregated record without user records")
    return members


def checksum(body: bytes) -> bytes:
    """The 16 bytes that follow an aggregate's body."""
    return hashlib.md5(body, usedforsecurity=False).digest()


def _counts(data: list[bytes], records_max: int) -> list[int]:
    """User records by Kinesis record. Counting parses the aggregates, so it is left out where they can't be too many."""
    aggregated = [index for index, record in enumerate(data) if record.startswith(MAGIC)]
    counts = [1] * len(data)
    if len(data) + sum(len(data[index]) for index in aggregated) // USER_RECORD_BYTES_MIN <= records_max:
        return counts
    for index in aggregated:
        try:
            body = kpl_pb2.AggregatedRecord.FromString(data[index][len(MAGIC) : -CHECKSUM_BYTES])
        except message.DecodeError:
            continue  # it will be one dead letter
        counts[index] = max(1, len(body.records))
    return counts
