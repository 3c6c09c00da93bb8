"""A partition's pipeline for tests in virtual time: the production loop over Kinesis in memory and any store.

    async def body() -> None:
        async with piped.running() as partition:
            partition.put(piped.sample("device-7", 75.0))
            await partition.until(lambda: partition.alerts())

    virtual_time.run(body())

What a test looks at is written down as it happens: every commit with its time, every acknowledgement. A commit can be held
back, a read can be told to be behind, an adapter's other troubles come from the in-memory adapters' own plans.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from fleet_model import hashing, parse, partition, rules
from fleet_proto import fleet_pb2
from fleet_worker import metrics, pipeline, ports, surroundings
from fleet_worker.adapters import kinesis, kinesis_source, memory_kinesis, memory_store
from fleet_worker.core import commits, effects, records
from tests.support import fleets, virtual_time

Answer = TypeVar("Answer")

TELEMETRY, ALERTS, COMMANDS, DEAD_LETTERS = "telemetry", "alerts", "commands", "dead-letters"
SHARD_ID = "shardId-000000000000"
LOOK_AGAIN_S = 0.05
"""Of virtual time."""
UNTIL_S_MAX = 7_200.0


def identity(shard_id: str = SHARD_ID, key_range: hashing.HashKeyRange | None = None) -> partition.PartitionIdentity:
    return partition.PartitionIdentity("default", "trucks", TELEMETRY, shard_id, key_range or hashing.HashKeyRange())


def sample(device_id: str, temperature_c: float = 20.0, timestamp_ms: int = 0, **more: Any) -> tuple[str, bytes]:
    """(partition key, data). Without a timestamp its arrival time stands in."""
    message = fleet_pb2.Telemetry(
        device_id=device_id, timestamp=timestamp_ms, temperature_c=temperature_c, battery_pct=80, cpu_load=0.5, **more
    )
    return device_id, message.SerializeToString()


def spike(device_id: str) -> list[tuple[str, bytes]]:
    """Three hot samples: with the default rules an alert and a command. Their device times are those of long ago, in order."""
    return [sample(device_id, 75.0, timestamp_ms=1_000_000 + number) for number in range(3)]


class Clock(virtual_time.VirtualClock):
    """Lets a test hold commits and fsyncs back while `may_commit` or `may_sync` is cleared."""

    def __init__(self) -> None:
        self.may_commit, self.may_sync = asyncio.Event(), asyncio.Event()
        self.may_commit.set()
        self.may_sync.set()

    async def in_thread(self, function: Callable[[], Answer]) -> Answer:
        called = getattr(getattr(function, "func", function), "__name__", "")
        if called == "commit":
            await self.may_commit.wait()
        if called == "sync":
            await self.may_sync.wait()
        return await super().in_thread(function)


@dataclasses.dataclass(frozen=True, slots=True)
class Committed:
    at_s: float
    commit: commits.Commit


class WatchedStore:
    """A TwinStore that writes down each successful commit, and calls `on_commit` then."""

    def __init__(self, store: Any, now_s: Callable[[], float]) -> None:
        self.inner = store
        self.committed: list[Committed] = []
        self.on_commit: Callable[[], None] = lambda: None
        self._now_s = now_s

    def commit(self, commit: commits.Commit) -> None:
        self.inner.commit(commit)
        self.committed.append(Committed(self._now_s(), commit))
        self.on_commit()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class WatchedSource:
    """A ShardSource that writes down when it answered, and may claim to be behind."""

    def __init__(self, source: ports.ShardSource, now_s: Callable[[], float]) -> None:
        self._source = source
        self._now_s = now_s
        self.behind_ms: int | None = None
        self.answered_s: list[float] = []

    async def read(self) -> records.ShardBatch:
        batch = await self._source.read()
        self.answered_s.append(self._now_s())
        return batch if self.behind_ms is None else dataclasses.replace(batch, millis_behind=self.behind_ms)


class WatchedSink:
    """An EffectSink that writes down what was given to it and what came of it; `refuses` says why an effect is refused, `stuck`
    names a stream whose calls never return."""

    def __init__(self, sink: ports.EffectSink) -> None:
        self._sink = sink
        self.given: set[int] = set()
        self.settled: set[int] = set()
        self.refuses: Callable[[effects.Effect], str | None] = lambda effect: None
        self.breaks: Exception | None = None
        self.stuck: effects.Target | None = None

    async def publish(
        self, entries: Sequence[effects.OutboxEntry], may_go_on: Callable[[], bool] = ports.always
    ) -> ports.PublishResult:
        if self.breaks is not None:
            raise self.breaks
        if any(entry.effect.target is self.stuck for entry in entries):
            await asyncio.Event().wait()
        self.given |= {entry.number for entry in entries}
        refused = [(entry.number, why) for entry in entries if (why := self.refuses(entry.effect)) is not None]
        unfit = {number for number, _ in refused}
        result = await self._sink.publish([entry for entry in entries if entry.number not in unfit], may_go_on)
        self.settled |= unfit | set(result.acknowledged) | {number for number, _ in result.refused}
        return Settled(list(result.acknowledged), [*refused, *result.refused])


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    acknowledged: Sequence[int]
    refused: Sequence[tuple[int, str]]


@dataclasses.dataclass
class Piped:
    """A running partition and everything around it."""

    clock: Clock
    kinesis: memory_kinesis.MemoryKinesis
    store: WatchedStore
    source: WatchedSource
    sink: WatchedSink
    around: surroundings.Surroundings
    pipeline: pipeline.PartitionPipeline
    stop: asyncio.Event
    task: asyncio.Task[None]

    def put(self, *sent: tuple[str, bytes]) -> None:
        for key, data in sent:
            self.kinesis.put(TELEMETRY, key, data)

    def alerts(self) -> list[fleet_pb2.DeviceAlert]:
        return [fleet_pb2.DeviceAlert.FromString(record.data) for record in self.kinesis.records_of(ALERTS)]

    def commands(self) -> list[fleet_pb2.DeviceCommand]:
        return [fleet_pb2.DeviceCommand.FromString(record.data) for record in self.kinesis.records_of(COMMANDS)]

    def applied(self) -> int:
        """Records so far."""
        return int(self.around.metrics.records.labels(SHARD_ID)._value.get())

    def row(self, device_id: str) -> Any:
        """The twin as the table has it; None when it hasn't."""
        snapshot = self.pipeline.engine.table.snapshot(device_id)
        return None if snapshot is None else snapshot.row

    async def pass_time(self, seconds: float) -> None:
        """Of virtual time, which costs none. The partition has to be alive at the end of it."""
        await self.clock.sleep(seconds)
        self.check_alive()

    async def until(self, condition: Callable[[], object], seconds_max: float = UNTIL_S_MAX) -> None:
        """Until the condition holds, to LOOK_AGAIN_S of virtual time."""
        deadline = self.clock.monotonic() + seconds_max
        while not condition():
            self.check_alive()
            assert self.clock.monotonic() < deadline, f"not within {seconds_max} s of virtual time"
            await self.clock.sleep(LOOK_AGAIN_S)

    def check_alive(self) -> None:
        """Raises what ended the partition, if something did."""
        if self.task.done():
            self.task.result()

    async def end(self) -> None:
        """A clean stop."""
        self.stop.set()
        await self.task


@dataclasses.dataclass
class Setting:
    """How a partition is to run. None: a new one, everything by default."""

    kinesis: memory_kinesis.MemoryKinesis | None = None
    store: Any = None
    generations: Sequence[rules.RulesGeneration] = (rules.RulesGeneration(),)
    rows_max: int = 0
    start: partition.Position | int | None = None
    source: ports.ShardSource | None = None
    spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_dead_letter_stream: bool = True
    retention_ms: int = memory_kinesis.RETENTION_MS


def new_kinesis(clock: ports.Clock) -> memory_kinesis.MemoryKinesis:
    made = memory_kinesis.MemoryKinesis(clock)
    for name in (TELEMETRY, ALERTS, COMMANDS, DEAD_LETTERS):
        made.create_stream(name)
    return made


@contextlib.asynccontextmanager
async def running(setting: Setting | None = None) -> AsyncIterator[Piped]:
    """At the end the partition is stopped, if it still runs; what ended it before is the test's to look at."""
    setting = setting or Setting()
    clock = Clock()
    memory = setting.kinesis or new_kinesis(clock)
    document = fleets.smallest()
    document["spec"] |= setting.spec
    if setting.has_dead_letter_stream:
        document["spec"]["streams"]["deadLetter"] = {"name": DEAD_LETTERS}
    fleet = parse.parse(document)
    connection = kinesis.KinesisConnection(memory, random.Random(1))
    store = WatchedStore(setting.store or memory_store.MemoryTwinStore(identity()), clock.monotonic)
    stream: kinesis_source.KinesisStream = connection.stream(TELEMETRY, clock)
    position = store.state.position
    start = position if position.sequence_number else setting.start
    source = WatchedSource(setting.source or stream.open_shard(SHARD_ID, start), clock.monotonic)
    sink = WatchedSink(connection.sink(fleet.streams, clock))
    around = surroundings.Surroundings(
        clock=clock,
        sink=sink,
        metrics=metrics.Metrics(),
        fleet=fleet,
        retention_ms=setting.retention_ms,
        rules_settled=asyncio.Event(),
    )
    around.rules_settled.set()
    piped = pipeline.PartitionPipeline(around, store.identity, store, source, setting.generations)
    piped.residency.rows_max = setting.rows_max
    stop = asyncio.Event()
    task = asyncio.create_task(piped.run(stop))
    running_one = Piped(clock, memory, store, source, sink, around, piped, stop, task)
    try:
        yield running_one
    finally:
        stop.set()
        clock.may_commit.set()
        clock.may_sync.set()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # looked at, whoever did before


def failing(operation: str, fault: memory_kinesis.Fault, stream: str = "") -> memory_kinesis.Plan:
    """Every such call goes wrong."""
    return lambda call: (
        fault if call.operation == operation and stream in ("", call.stream) else memory_kinesis.NO_FAULT
    )


UNAVAILABLE = memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE)
THROTTLED = memory_kinesis.Fault(failure=memory_kinesis.THROTTLED)
