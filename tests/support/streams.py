"""Kinesis streams as a test sees them from the outside: made, written, read back whole, split, merged, deleted.

Over plain aiobotocore, so that what is judged isn't read by the adapter that is under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiobotocore import config as aio_config
from aiobotocore import session as aio_session

from fleet_model import hashing, partition
from tests.support import aws_env

ACTIVE_S_MAX = 20.0
PUT_RECORDS_MAX = 500
EMPTY_ANSWERS_MAX = 3
"""An open shard is read to its end when so many answers in a row bring nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """As GetRecords gives it."""

    sequence_number: str
    arrival_ms: int
    partition_key: str
    data: bytes


class Streams:
    """Needs aws_env.apply()."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, endpoint_url: str) -> AsyncIterator[Streams]:
        context = aio_session.get_session().create_client(
            "kinesis",
            region_name=aws_env.REGION,
            endpoint_url=endpoint_url,
            config=aio_config.AioConfig(max_pool_connections=32),
        )
        async with context as client:
            yield cls(client)

    async def create(self, name: str, shards: int = 1) -> None:
        await self._client.create_stream(StreamName=name, ShardCount=shards)
        await self._active(name)

    async def delete(self, name: str) -> None:
        await self._client.delete_stream(StreamName=name)

    async def split(self, name: str, shard_id: str, at_hash_key: int | None = None) -> None:
        """In the middle, if not told where."""
        if at_hash_key is None:
            (key_range,) = [shard.hash_key_range for shard in await self.shards(name) if shard.shard_id == shard_id]
            at_hash_key = key_range.start + key_range.size // 2
        await self._client.split_shard(StreamName=name, ShardToSplit=shard_id, NewStartingHashKey=str(at_hash_key))
        await self._active(name)

    async def merge(self, name: str, shard_id: str, adjacent_shard_id: str) -> None:
        await self._client.merge_shards(StreamName=name, ShardToMerge=shard_id, AdjacentShardToMerge=adjacent_shard_id)
        await self._active(name)

    async def shards(self, name: str) -> list[partition.Shard]:
        """Parents before their children."""
        told = await self._client.list_shards(StreamName=name, MaxResults=1000)
        found = {entry["ShardId"]: _shard(entry) for entry in told["Shards"]}
        ordered: dict[str, partition.Shard] = {}
        while len(ordered) < len(found):
            ordered |= {
                shard_id: shard
                for shard_id, shard in found.items()
                if all(parent in ordered or parent not in found for parent in shard.parents)
            }
        return list(ordered.values())

    async def put(self, name: str, records: Sequence[tuple[str, bytes]]) -> None:
        """(partition key, data) each. One call after another; a test's records are all taken, or it fails."""
        for first in range(0, len(records), PUT_RECORDS_MAX):
            entries = [{"PartitionKey": key, "Data": data} for key, data in records[first : first + PUT_RECORDS_MAX]]
            told = await self._client.put_records(StreamName=name, Records=entries)
            assert told["FailedRecordCount"] == 0, told

    async def read(self, name: str) -> dict[str, list[Record]]:
        """Everything that every shard holds, by shard id."""
        found = {}
        for shard in await self.shards(name):
            reader = Reader(self, name, shard.shard_id)
            found[shard.shard_id] = await reader.rest()
        return found

    async def read_all(self, name: str) -> list[Record]:
        """Of a stream with one shard, or where shards don't matter."""
        return [record for records in (await self.read(name)).values() for record in records]

    async def iterator(self, name: str, shard_id: str) -> str:
        told = await self._client.get_shard_iterator(
            StreamName=name, ShardId=shard_id, ShardIteratorType="TRIM_HORIZON"
        )
        return str(told["ShardIterator"])

    async def get(self, iterator: str) -> tuple[list[Record], str | None]:
        told = await self._client.get_records(ShardIterator=iterator, Limit=10_000)
        return [_record(entry) for entry in told["Records"]], told.get("NextShardIterator")

    async def _active(self, name: str) -> None:
        async with asyncio.timeout(ACTIVE_S_MAX):
            while True:
                told = await self._client.describe_stream_summary(StreamName=name)
                if told["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
                    return
                await asyncio.sleep(0.02)


class Reader:
    """Follows a shard from its beginning."""

    def __init__(self, streams: Streams, name: str, shard_id: str) -> None:
        self._streams = streams
        self._name, self._shard_id = name, shard_id
        self._iterator: str | None = None
        self.ended = False

    async def more(self) -> list[Record]:
        """What has come since, at most one answer of it."""
        if self.ended:
            return []
        iterator = self._iterator or await self._streams.iterator(self._name, self._shard_id)
        records, self._iterator = await self._streams.get(iterator)
        self.ended = self._iterator is None
        return records

    async def rest(self) -> list[Record]:
        """All until several answers brought nothing."""
        found: list[Record] = []
        empty = 0
        while empty < EMPTY_ANSWERS_MAX and not self.ended:
            records = await self.more()
            found += records
            empty = 0 if records else empty + 1
        return found


def _shard(entry: dict[str, Any]) -> partition.Shard:
    parents = (entry.get("ParentShardId"), entry.get("AdjacentParentShardId"))
    key_range = entry["HashKeyRange"]
    return partition.Shard(
        entry["ShardId"],
        hashing.HashKeyRange(int(key_range["StartingHashKey"]), int(key_range["EndingHashKey"])),
        tuple(parent for parent in parents if parent),
        "EndingSequenceNumber" in entry["SequenceNumberRange"],
    )


def _record(entry: dict[str, Any]) -> Record:
    return Record(
        entry["SequenceNumber"],
        round(entry["ApproximateArrivalTimestamp"].timestamp() * 1000),
        entry["PartitionKey"],
        entry["Data"],
    )
