"""KPL aggregates: taking apart, putting together, and cutting batches between Kinesis records."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fleet_model import hashing, partition
from fleet_proto import kpl_pb2
from fleet_worker.core import deaggregate, records


def user_records(data: list[bytes]) -> deaggregate.UserRecords:
    return deaggregate.user_records(data, np.array([record[0] if record else 0 for record in data], dtype=np.uint8))


def members(*data: bytes) -> list[bytes]:
    return user_records(list(data)).data


def test_the_format_byte_by_byte() -> None:
    """Written out by hand from the format's description, so that encoder and decoder can't err together."""
    body = (
        b"\x0a\x01k"  # partition_key_table: "k"
        b"\x1a\x07\x08\x00\x1a\x03one"  # records: key 0, data "one"
        b"\x1a\x07\x08\x00\x1a\x03two"
    )
    record = b"\xf3\x89\x9a\xc2" + body + hashlib.md5(body, usedforsecurity=False).digest()
    assert members(record) == [b"one", b"two"]
    assert deaggregate.aggregate([("k", b"one"), ("k", b"two")]) == record


def test_hash_keys_and_tags_are_no_obstacle() -> None:
    body = kpl_pb2.AggregatedRecord(
        partition_key_table=["k"],
        explicit_hash_key_table=["17"],
        records=[
            kpl_pb2.Record(
                partition_key_index=0,
                explicit_hash_key_index=0,
                data=b"one",
                tags=[kpl_pb2.Tag(key="colour", value="blue")],
            )
        ],
    ).SerializeToString()
    assert members(deaggregate.MAGIC + body + deaggregate.checksum(body)) == [b"one"]


def test_plain_records_pass_untouched() -> None:
    data = [b"a", b"", b"\xf3\x89\x9a", b"xx\xf3\x89\x9a\xc2"]
    users = user_records(data)
    assert users.data == data
    assert users.subsequence.tolist() == [0, 0, 0, 0]
    assert users.broken == {}


def test_keys_are_kept_once() -> None:
    record = deaggregate.aggregate([("a", b"1"), ("b", b"2"), ("a", b"3")])
    body = kpl_pb2.AggregatedRecord.FromString(record[4:-16])
    assert list(body.partition_key_table) == ["a", "b"]
    assert [entry.partition_key_index for entry in body.records] == [0, 1, 0]


def test_an_aggregate_of_nothing_is_not_made() -> None:
    with pytest.raises(ValueError, match="at least one"):
        deaggregate.aggregate([])


# --- chunks --------------------------------------------------------------------------------------------------------


def batch_of(data: list[bytes]) -> records.ShardBatch:
    return records.ShardBatch(
        sequence_numbers=[str(index + 1) for index in range(len(data))],
        arrival_ms=np.arange(len(data), dtype=np.int64),
        data=data,
        millis_behind=5,
        poll_ms=9,
        shard_ended=True,
        child_shards=(partition.Shard("child", hashing.HashKeyRange()),),
        size_bytes=1000,
    )


def big(count: int) -> bytes:
    return deaggregate.aggregate([("k", b"x" * 20)] * count)


def test_a_batch_that_fits_is_not_cut() -> None:
    batch = batch_of([b"a"] * 10)
    assert [part is batch for part in deaggregate.chunks(batch, 10)] == [True]


def test_an_empty_batch_is_one_part() -> None:
    batch = batch_of([])
    assert list(deaggregate.chunks(batch, 10)) == [batch]


def test_cuts_fall_between_kinesis_records() -> None:
    data = [b"a", big(6), b"b", big(3), big(30), b"c", deaggregate.MAGIC + b"broken" + bytes(16), big(9)]
    batch = batch_of(data)
    parts = list(deaggregate.chunks(batch, 10))
    assert [part.data for part in parts] == [data[0:3], data[3:4], data[4:5], data[5:7], data[7:8]]
    assert [number for part in parts for number in part.sequence_numbers] == batch.sequence_numbers
    assert [arrival for part in parts for arrival in part.arrival_ms.tolist()] == batch.arrival_ms.tolist()
    assert [part.shard_ended for part in parts] == [False] * 4 + [True]
    assert [part.child_shards for part in parts] == [()] * 4 + [batch.child_shards]
    assert sum(part.size_bytes for part in parts) == 1000
    assert {(part.millis_behind, part.poll_ms) for part in parts} == {(5, 9)}


def test_plain_records_are_cut_too() -> None:
    parts = list(deaggregate.chunks(batch_of([b"a"] * 25), 10))
    assert [len(part.data) for part in parts] == [10, 10, 5]
