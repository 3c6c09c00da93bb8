"""The in-memory Kinesis behind HTTP, as a process of a test: faithful and quick, for load that emulators can't take.

It closes split shards, names their children, ends their iterators and tells MillisBehindLatest, and passes the contract suite beside the
emulators. It took the scenarios' 2,000 records/s; kinesis-local falls below 500 when a fleet reads what it keeps. Quotas are off: a test looks on through
the same shards as the fleet.

python -m tests.support.memory_kinesis_server ADDRESS PORT
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import orjson
from aiohttp import web

from fleet_model import partition
from fleet_worker.adapters import clock, kinesis_api, memory_kinesis
from tests.support import aws_env, server_process

ROOT = Path(__file__).parents[2]
ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/"
HEALTH = "/healthcheck"
BODY_BYTES_MAX = 16 * 2**20
_CONTENT_TYPE = {"Content-Type": "application/x-amz-json-1.1"}
Json: TypeAlias = dict[str, Any]


class Server:
    """The calls of the service's JSON protocol that a fleet, a test and the AWS CLI make of it."""

    def __init__(self, memory: memory_kinesis.MemoryKinesis) -> None:
        self._memory = memory
        self._actions: dict[str, Callable[[Json], Awaitable[Json]]] = {
            "CreateStream": self._create,
            "DeleteStream": self._delete,
            "DescribeStreamSummary": self._describe,
            "GetRecords": self._get_records,
            "GetShardIterator": self._get_shard_iterator,
            "ListShards": self._list_shards,
            "MergeShards": self._merge,
            "PutRecords": self._put_records,
            "SplitShard": self._split,
        }

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_post("/", self.serve)
        application.router.add_get(HEALTH, self.health)
        return application

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(text="alive")

    async def serve(self, request: web.Request) -> web.Response:
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        if action not in self._actions:
            return _refused(400, "UnknownOperationException", f"{action} isn't served here")
        try:
            answer = await self._actions[action](orjson.loads(await request.read()))
        except kinesis_api.ApiError as error:
            status = 500 if error.trouble is kinesis_api.Trouble.TRANSIENT else 400
            return _refused(status, error.failure.code, error.failure.message)
        except ValueError as error:
            return _refused(400, "InvalidArgumentException", str(error))
        return web.Response(body=orjson.dumps(answer), headers=_CONTENT_TYPE)

    async def _create(self, asked: Json) -> Json:
        self._memory.create_stream(asked["StreamName"], asked.get("ShardCount", 1))
        return {}

    async def _delete(self, asked: Json) -> Json:
        await self._memory.describe_stream(_stream(asked))  # says that it isn't there, if so
        self._memory.delete_stream(_name(asked))
        return {}

    async def _split(self, asked: Json) -> Json:
        self._memory.split_shard(_name(asked), asked["ShardToSplit"], int(asked["NewStartingHashKey"]))
        return {}

    async def _merge(self, asked: Json) -> Json:
        self._memory.merge_shards(_name(asked), asked["ShardToMerge"], asked["AdjacentShardToMerge"])
        return {}

    async def _describe(self, asked: Json) -> Json:
        summary = await self._memory.describe_stream(_stream(asked))
        shards = self._memory.shards(_name(asked))
        told = {
            "StreamName": _name(asked),
            "StreamARN": ARN + _name(asked),
            "StreamStatus": "ACTIVE",
            "RetentionPeriodHours": summary.retention_ms // 3_600_000,
            "StreamCreationTimestamp": 1.0,
            "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
            "OpenShardCount": sum(shard.closed_ms is None for shard in shards),
        }
        return {"StreamDescriptionSummary": told}

    async def _list_shards(self, asked: Json) -> Json:
        token = asked.get("NextToken")
        stream, _, page = token.rpartition("/") if token else (_stream(asked), "", None)
        found = await self._memory.list_shards(stream, page or None)
        following = {"NextToken": f"{stream}/{found.next_token}"} if found.next_token else {}
        return {"Shards": [_listed(shard) for shard in found.shards]} | following

    async def _get_shard_iterator(self, asked: Json) -> Json:
        start: kinesis_api.Start
        match asked["ShardIteratorType"]:
            case "TRIM_HORIZON":
                start = None
            case "AFTER_SEQUENCE_NUMBER":
                start = asked["StartingSequenceNumber"]
            case "AT_TIMESTAMP":
                start = round(float(asked["Timestamp"]) * 1000)
            case "LATEST":
                start = self._memory.now_ms()
            case kind:
                raise ValueError(f"ShardIteratorType {kind} isn't served here")
        answer = await self._memory.get_shard_iterator(_stream(asked), asked["ShardId"], start)
        return {"ShardIterator": answer.iterator}

    async def _get_records(self, asked: Json) -> Json:
        answer = await self._memory.get_records("", asked["ShardIterator"])
        batch = answer.batch
        name, shard_id, first, _ = asked["ShardIterator"].split("/")
        # The worker has no use for partition keys, so a batch doesn't tell them.
        stored = self._memory.shard(name, shard_id).from_index(int(first), len(batch.data))
        found = [
            {
                "SequenceNumber": str(record.sequence_number),
                "ApproximateArrivalTimestamp": record.arrival_ms / 1000,
                "Data": base64.b64encode(record.data).decode(),
                "PartitionKey": record.partition_key,
            }
            for record in stored
        ]
        told: Json = {"Records": found, "MillisBehindLatest": batch.millis_behind}
        if answer.next_iterator is not None:
            return told | {"NextShardIterator": answer.next_iterator}
        children = [
            {"ShardId": child.shard_id, "ParentShards": list(child.parents), "HashKeyRange": _range(child)}
            for child in batch.child_shards
        ]
        return told | {"ChildShards": children}

    async def _put_records(self, asked: Json) -> Json:
        entries = [
            kinesis_api.PutRecord(entry["PartitionKey"], base64.b64decode(entry["Data"])) for entry in asked["Records"]
        ]
        outcomes = await self._memory.put_records(_stream(asked), entries)
        told = [
            {"ShardId": outcome.shard_id, "SequenceNumber": outcome.sequence_number}
            if outcome.failure is None
            else {"ErrorCode": outcome.failure.code, "ErrorMessage": outcome.failure.message}
            for outcome in outcomes
        ]
        return {"FailedRecordCount": sum(outcome.failure is not None for outcome in outcomes), "Records": told}


def _stream(asked: Json) -> str:
    return str(asked.get("StreamName") or asked["StreamARN"])


def _name(asked: Json) -> str:
    return _stream(asked).rpartition("/")[2]


def _range(shard: partition.Shard) -> Json:
    return {"StartingHashKey": str(shard.hash_key_range.start), "EndingHashKey": str(shard.hash_key_range.end)}


def _listed(shard: partition.Shard) -> Json:
    parents = dict(zip(("ParentShardId", "AdjacentParentShardId"), shard.parents, strict=False))
    numbers = {"StartingSequenceNumber": "1"} | ({"EndingSequenceNumber": "2"} if shard.closed else {})
    return {"ShardId": shard.shard_id, "HashKeyRange": _range(shard), "SequenceNumberRange": numbers} | parents


def _refused(status: int, code: str, why: str) -> web.Response:
    return web.Response(status=status, body=orjson.dumps({"__type": code, "message": why}), headers=_CONTENT_TYPE)


async def _serve(address: str, port: int) -> None:
    with clock.RealClock() as real:
        server = Server(memory_kinesis.MemoryKinesis(real, enforce_quotas=False))
        runner = web.AppRunner(server.application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, address, port).start()
        await asyncio.Event().wait()


@contextlib.contextmanager
def running(address: str = "127.0.0.1") -> Iterator[str]:
    """An empty one; its endpoint URL, at this address of the machine."""

    def start(port: int) -> server_process.ServerProcess:
        command = [sys.executable, "-m", __name__, address, str(port)]
        return server_process.ServerProcess(command, aws_env.environment(PYTHONPATH=str(ROOT)))

    with server_process.at_a_port(start, HEALTH, address) as port:
        yield f"http://{address}:{port}"


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
