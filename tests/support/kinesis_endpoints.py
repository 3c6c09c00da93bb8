"""The endpoints that the Kinesis contract is checked on: in memory, moto's server, kinesis-local.

An Endpoint has what a test needs beside the calls under test: streams made, shards split and merged. How an emulator
differs from the service is told by its flags, and explained in the contract suite's table.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any, Protocol

from aiobotocore import session as aio_session

from fleet_model import spec
from fleet_worker import ports
from fleet_worker.adapters import clock, kinesis, kinesis_api, kinesis_sink, kinesis_source, memory_kinesis
from tests.support import aws_env, memory_kinesis_server

QUICK = kinesis_source.Pacing(idle_s=0.02, calls_per_second=100.0, bytes_per_second=1e9)
ACTIVE_S_MAX = 20.0


class Admin(Protocol):
    """What changes streams. Returns when the change is done."""

    async def create_stream(self, name: str, shards: int) -> None: ...

    async def delete_stream(self, name: str) -> None: ...

    async def split_shard(self, name: str, shard_id: str, at_hash_key: int) -> None: ...

    async def merge_shards(self, name: str, shard_id: str, adjacent_shard_id: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """Where endpoints differ; see the table of tests/contract/test_kinesis.py."""

    ends_closed_shards: bool = True
    moves_records_when_merging: bool = False
    refuses_unknown_positions: str = "expired"  # "expired" | "gone" | "no"
    refuses_future_times: bool = True
    refused_calls_store_nothing: bool = True
    arn: str | None = None
    takes_ten_thousand_quickly: bool = True


@dataclasses.dataclass
class Endpoint:
    connection: kinesis.KinesisConnection
    admin: Admin
    clock: ports.Clock
    behaviour: Behaviour

    @property
    def api(self) -> kinesis_api.KinesisApi:
        return self.connection.api

    def stream(self, name: str) -> kinesis_source.KinesisStream:
        return self.connection.stream(name, self.clock, QUICK)

    def sink(self, streams: spec.Streams) -> kinesis_sink.KinesisSink:
        return self.connection.sink(streams, self.clock)


_numbers = itertools.count(1)


def unused_name() -> str:
    """A stream name that no test of this process has used: they share an emulator."""
    return f"stream-{next(_numbers)}"


class _MemoryAdmin:
    def __init__(self, memory: memory_kinesis.MemoryKinesis) -> None:
        self._memory = memory

    async def create_stream(self, name: str, shards: int) -> None:
        self._memory.create_stream(name, shards)

    async def delete_stream(self, name: str) -> None:
        self._memory.delete_stream(name)

    async def split_shard(self, name: str, shard_id: str, at_hash_key: int) -> None:
        self._memory.split_shard(name, shard_id, at_hash_key)

    async def merge_shards(self, name: str, shard_id: str, adjacent_shard_id: str) -> None:
        self._memory.merge_shards(name, shard_id, adjacent_shard_id)


class ClientAdmin:
    """Over plain aiobotocore, so that the adapter under test doesn't prepare its own tests."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def create_stream(self, name: str, shards: int) -> None:
        await self._client.create_stream(StreamName=name, ShardCount=shards)
        await self._active(name)

    async def delete_stream(self, name: str) -> None:
        await self._client.delete_stream(StreamName=name)

    async def split_shard(self, name: str, shard_id: str, at_hash_key: int) -> None:
        await self._client.split_shard(StreamName=name, ShardToSplit=shard_id, NewStartingHashKey=str(at_hash_key))
        await self._active(name)

    async def merge_shards(self, name: str, shard_id: str, adjacent_shard_id: str) -> None:
        await self._client.merge_shards(StreamName=name, ShardToMerge=shard_id, AdjacentShardToMerge=adjacent_shard_id)
        await self._active(name)

    async def _active(self, name: str) -> None:
        async with asyncio.timeout(ACTIVE_S_MAX):
            while True:
                told = await self._client.describe_stream_summary(StreamName=name)
                if told["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
                    return
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def memory() -> AsyncIterator[Endpoint]:
    with clock.RealClock() as real:
        api = memory_kinesis.MemoryKinesis(real, enforce_quotas=False)
        connection = kinesis.KinesisConnection(api, random.Random(1))
        yield Endpoint(connection, _MemoryAdmin(api), real, Behaviour(arn="arn:aws:kinesis:us-east-1:1:stream/"))


@contextlib.asynccontextmanager
async def at(endpoint_url: str, behaviour: Behaviour) -> AsyncIterator[Endpoint]:
    """Needs aws_env.apply()."""
    aws = spec.Aws(region=aws_env.REGION, endpoint_url=endpoint_url)
    plain = aio_session.get_session().create_client("kinesis", region_name=aws_env.REGION, endpoint_url=endpoint_url)
    with clock.RealClock() as real:
        async with kinesis.KinesisConnection.open(aws, random.Random(1)) as connection, plain as client:
            yield Endpoint(connection, ClientAdmin(client), real, behaviour)


MEMORY_OVER_HTTP = Behaviour(arn=memory_kinesis_server.ARN)
MOTO = Behaviour(
    ends_closed_shards=False,
    moves_records_when_merging=True,
    refuses_unknown_positions="no",
    refuses_future_times=False,
    refused_calls_store_nothing=False,
    takes_ten_thousand_quickly=False,
    arn="arn:aws:kinesis:us-east-1:123456789012:stream/",
)
KINESIS_LOCAL = Behaviour(
    refuses_unknown_positions="gone",
    arn="arn:aws:kinesis:us-east-1:000000000000:stream/",
    takes_ten_thousand_quickly=False,
)
