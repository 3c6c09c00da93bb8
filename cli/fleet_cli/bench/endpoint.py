"""A Kinesis endpoint that replays tapes: a process of its own beside the measured worker.

`python -m fleet_cli.bench.endpoint FOLDER`, then one line of JSON on standard output with its port. Answers are cut from bytes made
beforehand, so it is never the bottleneck. It is faithful in what the worker's time depends on: records appear at their
arrival time, at most 10,000 an answer; MillisBehindLatest and the Date header are true; PutRecords is acknowledged. It refuses
nothing, loses nothing and throttles nobody, and it ends with its standard input.
"""

from __future__ import annotations

import asyncio
import binascii
import collections
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import orjson
from aiohttp import web
from numpy.typing import NDArray

from fleet_cli.bench import tape as tapes
from fleet_proto import fleet_pb2

ANSWER_RECORDS_MAX = 10_000
ALERTS_STREAM = "device-alerts"
_HEAD = '{"SequenceNumber":"'
_ARRIVAL_AT = len(_HEAD) + 56 + len('","ApproximateArrivalTimestamp":')
_ARRIVAL_DIGITS = 10
_BLANK_ARRIVAL = "0000000000.000"
_CONTENT_TYPE = {"Content-Type": "application/x-amz-json-1.1"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Shard:
    """One tape as the pieces of GetRecords answers. arrival_ms is the tape's until `begin` moves it."""

    def __init__(self, tape: tapes.Tape) -> None:
        self.tape = tape
        self.arrival_ms = np.array(tape.arrival_ms)
        self.served = 0
        pieces = []
        for first in range(0, len(tape), ANSWER_RECORDS_MAX):
            last = min(first + ANSWER_RECORDS_MAX, len(tape))
            numbers = tape.sequence_numbers(first, last)
            pieces += [_piece(*record) for record in zip(numbers, tape.slice(first, last), strict=True)]
        self._ends = np.cumsum(np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)))
        self._text = np.frombuffer(bytearray().join(pieces), dtype=np.uint8)

    def begin(self, shift_ms: int) -> None:
        """Writes the arrival times into the pieces: the tape's, shift_ms later."""
        self.arrival_ms = np.array(self.tape.arrival_ms) + shift_ms
        if not len(self.arrival_ms):
            return
        place = np.concatenate(([0], self._ends[:-1])) + _ARRIVAL_AT
        seconds, thousandths = np.divmod(self.arrival_ms, 1000)
        _write_digits(self._text, place, seconds, _ARRIVAL_DIGITS)
        _write_digits(self._text, place + _ARRIVAL_DIGITS + 1, thousandths, 3)

    def available(self, at_ms: int) -> int:
        """How many records have arrived by then."""
        return int(np.searchsorted(self.arrival_ms, at_ms, side="right"))

    def behind_ms(self, at_ms: int) -> int:
        """How long the oldest record that nobody has read yet lies there."""
        return max(at_ms - int(self.arrival_ms[self.served]), 0) if self.served < len(self.arrival_ms) else 0

    def answer(self, first: int, at_ms: int) -> tuple[bytes, int]:
        """A GetRecords answer from record `first` on, and the record after its last."""
        available = self.available(at_ms)
        last = min(first + ANSWER_RECORDS_MAX, max(available, first))
        behind_ms = at_ms - int(self.arrival_ms[last - 1]) if last < available else 0
        start = int(self._ends[first - 1]) if first else 0
        end = int(self._ends[last - 1]) if last else 0
        # Each piece ends with a comma, and the list may not.
        records = self._text[start : max(end - 1, start)].data
        name = tapes.shard_id(self.tape.number)
        tail = f'],"NextShardIterator":"{name}:{last}","MillisBehindLatest":{max(behind_ms, 0)}}}'
        self.served = max(self.served, last)
        return b"".join([b'{"Records":[', records, tail.encode()]), last


def _piece(sequence_number: str, data: bytes) -> bytes:
    device_id = data[2 : 2 + data[1]].decode()
    text = binascii.b2a_base64(data, newline=False).decode()
    return (
        f'{_HEAD}{sequence_number}","ApproximateArrivalTimestamp":{_BLANK_ARRIVAL},"Data":"{text}",'
        f'"PartitionKey":"{device_id}"}},'
    ).encode()


def _write_digits(text: NDArray[np.uint8], place: NDArray[np.int64], number: NDArray[np.int64], digits: int) -> None:
    for digit in range(digits - 1, -1, -1):
        number, rest = np.divmod(number, 10)
        text[place + digit] = rest + ord("0")


class Endpoint:
    """The stream, the acknowledgements, and what was seen since the last mark."""

    def __init__(self, shards: list[Shard]) -> None:
        self._shards = {tapes.shard_id(shard.tape.number): shard for shard in shards}
        self._actions = {
            "GetRecords": self._get_records,
            "GetShardIterator": self._get_shard_iterator,
            "ListShards": self._list_shards,
            "DescribeStreamSummary": self._describe,
            "PutRecords": self._put_records,
        }
        self._put = 0
        self._mark()

    def _mark(self) -> None:
        self._latency_ms: dict[str, list[int]] = collections.defaultdict(list)
        self._calls: collections.Counter[str] = collections.Counter()
        self._effects: collections.Counter[str] = collections.Counter()
        self._first_read_ms: dict[str, int] = {}  # by shard
        # By shard, for who wants to see hands change (`handing`): answers with records, and iterators asked for.
        self._reads: dict[str, list[tuple[int, int, int]]] = collections.defaultdict(list)
        self._begun: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        self._marked_ms = now_ms()

    async def kinesis(self, request: web.Request) -> web.Response:
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        if action not in self._actions:
            told = {"__type": "UnknownOperationException", "message": f"{action} isn't replayed here"}
            return web.Response(status=400, body=orjson.dumps(told), headers=_CONTENT_TYPE)
        self._calls[action] += 1
        body = self._actions[action](orjson.loads(await request.read()))
        return web.Response(body=body, headers=_CONTENT_TYPE)

    async def control(self, request: web.Request) -> web.Response:
        """The bench's own: begin (where the tape's time is moved to), mark, report; reads: who began and read where since the mark."""
        what = request.match_info["what"]
        if what == "begin":
            shift_ms = int(request.query["shift_ms"])
            for shard in self._shards.values():
                shard.begin(shift_ms)
        elif what == "mark":
            self._mark()
        elif what == "reads":
            return web.json_response({"reads": self._reads, "begun": self._begun})
        return web.json_response(self._report())

    def _report(self) -> dict[str, Any]:
        at_ms, first_read_ms = now_ms(), self._first_read_ms
        return {
            "at_ms": at_ms,
            "marked_ms": self._marked_ms,
            "served": sum(shard.served for shard in self._shards.values()),
            "available": sum(shard.available(at_ms) for shard in self._shards.values()),
            "behind_ms": max(shard.behind_ms(at_ms) for shard in self._shards.values()),
            # When the last shard of all was asked for the first time; None before.
            "first_read_ms": max(first_read_ms.values()) if len(first_read_ms) == len(self._shards) else None,
            "calls": dict(self._calls),
            "effects": dict(self._effects),
            "latency_ms": dict(self._latency_ms),
        }

    def _get_records(self, asked: dict[str, Any]) -> bytes:
        at_ms = now_ms()
        name, _, first = asked["ShardIterator"].rpartition(":")
        self._first_read_ms.setdefault(name, at_ms)
        body, last = self._shards[name].answer(int(first), at_ms)
        if last > int(first):
            self._reads[name].append((at_ms, int(first), last))
        return body

    def _get_shard_iterator(self, asked: dict[str, Any]) -> bytes:
        shard = self._shards[asked["ShardId"]]
        match asked["ShardIteratorType"]:
            case "TRIM_HORIZON":
                first = 0
            case "AT_TIMESTAMP":
                first = int(np.searchsorted(shard.arrival_ms, round(float(asked["Timestamp"]) * 1000), side="left"))
            case "LATEST":
                first = shard.available(now_ms())
            case kind:
                first = int(asked["StartingSequenceNumber"]) - tapes.SEQUENCE_BASE
                first += kind == "AFTER_SEQUENCE_NUMBER"
        self._begun[asked["ShardId"]].append((now_ms(), first))
        return orjson.dumps({"ShardIterator": f"{asked['ShardId']}:{first}"})

    def _list_shards(self, asked: dict[str, Any]) -> bytes:
        return orjson.dumps(
            {
                "Shards": [
                    {
                        "ShardId": name,
                        "HashKeyRange": {
                            "StartingHashKey": str(shard.tape.hash_key_range.start),
                            "EndingHashKey": str(shard.tape.hash_key_range.end),
                        },
                        "SequenceNumberRange": {"StartingSequenceNumber": str(tapes.SEQUENCE_BASE)},
                    }
                    for name, shard in self._shards.items()
                ]
            }
        )

    def _describe(self, asked: dict[str, Any]) -> bytes:
        name = asked.get("StreamName") or asked["StreamARN"].rpartition("/")[2]
        summary = {
            "StreamName": name,
            "StreamARN": f"arn:aws:kinesis:us-east-1:123456789012:stream/{name}",
            "StreamStatus": "ACTIVE",
            "RetentionPeriodHours": 24,
            "StreamCreationTimestamp": 1.0,
            "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
            "OpenShardCount": len(self._shards),
        }
        return orjson.dumps({"StreamDescriptionSummary": summary})

    def _put_records(self, asked: dict[str, Any]) -> bytes:
        stream = asked.get("StreamName") or asked["StreamARN"].rpartition("/")[2]
        records = asked["Records"]
        first = self._put
        self._put += len(records)
        acknowledged = [
            {"ShardId": tapes.shard_id(0), "SequenceNumber": str(tapes.SEQUENCE_BASE + first + index)}
            for index in range(len(records))
        ]
        answer = orjson.dumps({"FailedRecordCount": 0, "Records": acknowledged})
        self._effects[stream] += len(records)
        if stream == ALERTS_STREAM:
            at_ms = now_ms()
            for record in records:
                alert = fleet_pb2.DeviceAlert.FromString(binascii.a2b_base64(record["Data"]))
                self._latency_ms[alert.trigger].append(at_ms - alert.timestamp)
        return answer


async def serve(folder: pathlib.Path) -> None:
    endpoint = Endpoint([Shard(tape) for tape in tapes.read(folder)])
    application = web.Application(client_max_size=16 * 2**20)
    application.router.add_post("/", endpoint.kinesis)
    application.router.add_post("/bench/{what}", endpoint.control)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(pathlib.Path(sys.argv[1])))
