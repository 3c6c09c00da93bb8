"""Puts records on the telemetry stream: full calls, several in flight, exactly the failed records again.

Records of one device go through one lane, and a lane has one call in flight and moves on only when all of that call's
records were acknowledged, so a device's samples arrive in order. Every queue and every retry has an end: a full lane
makes `put` wait, and a record that was refused for RETRY_S is counted as lost, never silently.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random

from fleet_cli import kinesis
from fleet_cli.simulator import encoding
from fleet_worker.adapters import kinesis_api

RETRY_S = 30.0
DRAIN_S = 10.0
"""Time for what is queued at the end."""
_CHUNKS_WAITING_MAX = 20
_RECORDS_PER_LANE_AND_S = 2_500
_LANES_MAX = 16


@dataclasses.dataclass(slots=True)
class Counts:
    """What happened so far. put: acknowledged records. again: records sent once more. lost: given up. calls: PutRecords."""

    put: int = 0
    again: int = 0
    lost: int = 0
    calls: int = 0
    waiting: int = 0


def lanes_for(rate: float) -> int:
    """Calls in flight that a rate in records/s needs."""
    return max(1, min(_LANES_MAX, round(rate / _RECORDS_PER_LANE_AND_S)))


class Producer:
    """One stream's producer. Use as `async with`; leaving it sends what is queued, for at most DRAIN_S."""

    def __init__(self, api: kinesis_api.KinesisApi, stream: str, rate: float) -> None:
        self.counts = Counts()
        self._api = api
        self._randomness = random.Random()
        self._stream = stream
        self._queues: list[asyncio.Queue[list[encoding.Record]]] = [
            asyncio.Queue(_CHUNKS_WAITING_MAX) for _ in range(lanes_for(rate))
        ]
        self._lanes: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Producer:
        self._lanes = [asyncio.create_task(self._lane(queue)) for queue in self._queues]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self._drained()
        for lane in self._lanes:
            lane.cancel()
        results = await asyncio.gather(*self._lanes, return_exceptions=True)
        self.counts.lost += self.counts.waiting
        self.counts.waiting = 0
        broken = [result for result in results if isinstance(result, Exception)]
        if kind is None and broken:
            raise broken[0]

    async def _drained(self) -> None:
        """Until the queues are empty, a lane broke, or DRAIN_S are over."""
        joining = [asyncio.create_task(queue.join()) for queue in self._queues]
        everything = asyncio.create_task(_all(joining))
        await asyncio.wait([everything, *self._lanes], timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for task in (everything, *joining):
            task.cancel()

    async def put(self, records: list[encoding.Record]) -> None:
        """Queues the records; waits while a lane is full. Raises what ended a lane."""
        lanes: list[list[encoding.Record]] = [[] for _ in self._queues]
        for record in records:
            lanes[hash(record[0]) % len(lanes)].append(record)
        for queue, task, chunk in zip(self._queues, self._lanes, lanes, strict=True):
            if not chunk:
                continue
            self.counts.waiting += len(chunk)
            if not task.done() and not queue.full():
                queue.put_nowait(chunk)
                continue
            putting = asyncio.ensure_future(queue.put(chunk))
            await asyncio.wait([putting, task], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                putting.cancel()
                task.result()

    async def _lane(self, queue: asyncio.Queue[list[encoding.Record]]) -> None:
        while True:
            chunks = [await queue.get()]
            while not queue.empty() and sum(map(len, chunks)) < kinesis_api.PUT_RECORDS_MAX:
                chunks.append(queue.get_nowait())
            records = [record for chunk in chunks for record in chunk]
            for call in _calls(records):
                await self._acknowledged(call)
            for _ in chunks:
                queue.task_done()

    async def _acknowledged(self, records: list[encoding.Record]) -> None:
        """Sends until all are acknowledged, or RETRY_S are over."""
        entries = [kinesis_api.PutRecord(key, data) for key, data in records]
        loop = asyncio.get_running_loop()
        give_up = loop.time() + RETRY_S
        backoff = kinesis_api.Backoff(self._randomness, 0.1, 2.0)
        while True:
            failed = await self._call(entries)
            self.counts.put += len(entries) - len(failed)
            self.counts.waiting -= len(entries) - len(failed)
            if not failed:
                return
            if loop.time() > give_up:
                self.counts.lost += len(failed)
                self.counts.waiting -= len(failed)
                return
            entries = failed
            self.counts.again += len(entries)
            await asyncio.sleep(backoff.next_s())

    async def _call(self, entries: list[kinesis_api.PutRecord]) -> list[kinesis_api.PutRecord]:
        """One PutRecords. Returns the entries that failed. Raises StreamGoneError when trying again is useless."""
        self.counts.calls += 1
        try:
            outcomes = await self._api.put_records(self._stream, entries)
        except kinesis_api.ApiError as error:
            if error.trouble in kinesis.PASSING:
                return entries
            raise kinesis.gone(self._stream, error) from error
        return [entry for entry, outcome in zip(entries, outcomes, strict=True) if outcome.failure is not None]


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


def _calls(records: list[encoding.Record]) -> list[list[encoding.Record]]:
    """Cut where a call would be too long or too large, or before a second, different record of a device: Kinesis promises no
    order inside a call, and a part of it may fail."""
    calls: list[list[encoding.Record]] = [[]]
    sent: dict[str, bytes] = {}
    size = 0
    for key, data in records:
        record_size = len(key.encode()) + len(data)
        is_full = len(calls[-1]) == kinesis_api.PUT_RECORDS_MAX or size + record_size > kinesis_api.PUT_BYTES_MAX
        if is_full or sent.get(key, data) != data:
            calls.append([])
            sent.clear()
            size = 0
        calls[-1].append((key, data))
        sent[key] = data
        size += record_size
    return calls
