"""What a simulated process has of the world: its clock, and its ways to Kinesis, S3 and the control plane.

All of it is production code over the in-memory adapters. What is added here: calls go wrong by the weather, a process can be cut off from
each of the three, and what it has sent arrives even if it is killed or stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from fleet_model import partition, rules, twin_partition
from fleet_worker import control_plane, ports
from fleet_worker.adapters import kinesis_api, memory_control, memory_kinesis, memory_objects
from tests.sim import processes, schedule, watch
from tests.support import virtual_time

Answer = TypeVar("Answer")

CUT_NOTICED_S = 2.0
"""A call that gets no answer is given up after this long."""
SLOW_S = (0.3, 1.0, 4.0)
LATE_S = (0.5, 6.0, 35.0)


class Clock(virtual_time.VirtualClock):
    """Ends what is left of a killed process, when the run is over."""

    async def sleep(self, seconds: float) -> None:
        processes.check_alive()
        await super().sleep(seconds)

    async def in_thread(self, function: Callable[[], Answer]) -> Answer:
        processes.check_alive()
        return await super().in_thread(function)


class Sky:
    """The weather of the moment, and what came of it. storms: how many rage. effects_away: as many reasons why PutRecords fails."""

    def __init__(self, seed: int, weather: schedule.Weather) -> None:
        self.dice = random.Random(f"weather {seed}")
        self.storms = 0
        self.effects_away = 0
        self.is_clear = False
        self.seen: collections.Counter[str] = collections.Counter()
        self._usual = weather

    @property
    def now(self) -> schedule.Weather:
        if self.is_clear:
            return schedule.Weather()
        return schedule.STORM if self.storms else self._usual

    def strikes(self, percent: float, what: str) -> bool:
        """Whether it hits this call; counted when it does."""
        if percent and self.dice.random() * 100 < percent:
            self.seen[what] += 1
            return True
        return False

    def kinesis(self, call: memory_kinesis.Call) -> memory_kinesis.Fault:
        weather, dice = self.now, self.dice
        if call.operation == "PutRecords" and self.effects_away:
            self.seen["PutRecords throttled"] += 1
            return memory_kinesis.Fault(failure=memory_kinesis.THROTTLED)
        if self.strikes(weather.refused, f"{call.operation} throttled"):
            return memory_kinesis.Fault(failure=dice.choice((memory_kinesis.THROTTLED, memory_kinesis.UNAVAILABLE)))
        if self.strikes(weather.lost, f"{call.operation} reply lost"):
            return memory_kinesis.Fault(lost_reply=True, delay_s=dice.choice(SLOW_S))
        delay_s = dice.choice(SLOW_S) if self.strikes(weather.slow, f"{call.operation} slow") else 0.0
        failed: frozenset[int] = frozenset()
        if call.operation == "PutRecords":
            shift_ms = -dice.choice((1, 40, 900)) if dice.random() < 0.2 else 0
            if self.strikes(weather.partial, "PutRecords partly taken"):
                failed = frozenset(place for place in range(call.size) if dice.random() < 0.6)
            return memory_kinesis.Fault(
                delay_s=delay_s, failed=failed, reverse=dice.random() < 0.5, arrival_shift_ms=shift_ms
            )
        if call.operation == "GetRecords":
            if self.strikes(weather.expired, "iterator expired"):
                trouble = kinesis_api.Trouble.EXPIRED_ITERATOR
                return memory_kinesis.Fault(failure=kinesis_api.Failure(trouble, "ExpiredIteratorException", "too old"))
            return memory_kinesis.Fault(delay_s=delay_s, empty=self.strikes(weather.empty, "GetRecords empty"))
        return memory_kinesis.Fault(delay_s=delay_s)

    def objects(self, call: memory_objects.Call) -> memory_objects.Fault:
        weather, dice = self.now, self.dice
        if self.strikes(weather.refused, f"{call.operation} 503"):
            return memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        is_write = call.operation in ("PutObject", "DeleteObject")
        if call.operation == "PutObject" and self.strikes(weather.conflict, "PutObject 409"):
            return memory_objects.Fault(failure=memory_objects.CONFLICT)
        if is_write and self.strikes(weather.late, f"{call.operation} carried out late"):
            return memory_objects.Fault(late_s=dice.choice(LATE_S))
        if self.strikes(weather.lost, f"{call.operation} reply lost"):
            return memory_objects.Fault(lost_reply=True, delay_s=dice.choice(SLOW_S))
        delay_s = dice.choice(SLOW_S) if self.strikes(weather.slow, f"{call.operation} slow") else 0.0
        return memory_objects.Fault(delay_s=delay_s)

    def control(self, call: memory_control.Call) -> memory_control.Fault:
        weather, dice = self.now, self.dice
        if call.operation == "append_generation":
            return memory_control.NO_FAULT  # the world does that, not the control loop
        if call.operation in ("assignments", "follow_generations"):
            is_slow = self.strikes(weather.slow, f"control plane: {call.operation} delivered slowly")
            return memory_control.Fault(delay_s=dice.choice(SLOW_S) if is_slow else 0.0)
        if self.strikes(weather.refused, f"control plane: {call.operation} refused"):
            return memory_control.Fault(failure=True)
        if self.strikes(weather.lost, f"control plane: {call.operation} reply lost"):
            return memory_control.Fault(lost_reply=True)
        delay_s = dice.choice(SLOW_S) if self.strikes(weather.slow, f"control plane: {call.operation} slow") else 0.0
        return memory_control.Fault(delay_s=delay_s)


@dataclasses.dataclass(slots=True)
class Network:
    """What a process doesn't reach. Each is a count, as cuts may overlap."""

    objects: int = 0
    kinesis: int = 0
    control: int = 0


class Kinesis:
    """kinesis_api.KinesisApi of one process."""

    def __init__(
        self,
        shared: memory_kinesis.MemoryKinesis,
        process: processes.Process,
        network: Network,
        watching: watch.Watch,
        committed: Callable[[], set[bytes]] = set,
    ) -> None:
        """committed: what the process' disk has in its outboxes."""
        self._shared = shared
        self._process = process
        self._network = network
        self._watch = watching
        self._committed = committed

    async def get_shard_iterator(
        self, stream: str, shard_id: str, start: kinesis_api.Start
    ) -> kinesis_api.IteratorAnswer:
        await self._reach("GetShardIterator")
        return await self._shared.get_shard_iterator(stream, shard_id, start)

    async def get_records(self, stream: str, iterator: str) -> kinesis_api.RecordsAnswer:
        await self._reach("GetRecords")
        return await self._shared.get_records(stream, iterator)

    async def list_shards(self, stream: str, token: str | None) -> kinesis_api.ShardsPage:
        await self._reach("ListShards")
        return await self._shared.list_shards(stream, token)

    async def describe_stream(self, stream: str) -> kinesis_api.StreamSummary:
        await self._reach("DescribeStreamSummary")
        return await self._shared.describe_stream(stream)

    async def put_records(self, stream: str, entries: Sequence[kinesis_api.PutRecord]) -> list[kinesis_api.PutOutcome]:
        await self._reach("PutRecords")
        sent_at_s = asyncio.get_running_loop().time()
        committed = self._committed()
        for entry in entries:
            if entry.data not in committed:
                self._watch.problem(
                    f"{self._process} publishes to {stream} what it hasn't committed, of {entry.partition_key}"
                )
        return await processes.in_the_world(self._put(stream, entries, sent_at_s))

    async def _put(
        self, stream: str, entries: Sequence[kinesis_api.PutRecord], sent_at_s: float
    ) -> list[kinesis_api.PutOutcome]:
        if stream == "alerts":
            self._watch.published(self._process, sent_at_s, [entry.data for entry in entries])
        outcomes = await self._shared.put_records(stream, entries)
        self._watch.note(
            f"{self._process} puts {len(entries)} to {stream}: {[str(outcome.failure) for outcome in outcomes]}"
        )
        return outcomes

    async def _reach(self, operation: str) -> None:
        processes.check_alive()
        if self._network.kinesis:
            await asyncio.sleep(CUT_NOTICED_S)
            raise kinesis_api.ApiError(operation, memory_kinesis.LOST_REPLY)


class Bucket(memory_objects.Bucket):
    """Knows who wrote what, also when it is carried out late."""

    def __init__(self, clock: ports.Clock, watching: watch.Watch, **settings: float) -> None:
        super().__init__(clock, **settings)  # type: ignore[arg-type]
        self._watch = watching
        self.on_change = lambda key, before, after: watching.written(key, before, after, self._stored)

    def put_late(self, after_s: float, key: str, data: bytes, if_match: str | None) -> None:
        as_sender = processes.as_running()
        self.do_late(after_s, lambda: as_sender(lambda: self._put(key, data, if_match)))

    def delete(self, key: str) -> None:
        super().delete(key)
        self._watch.deleted(key)

    def delete_late(self, after_s: float, key: str) -> None:
        super().delete_late(after_s, key)
        self.do_late(after_s, lambda: self._watch.deleted(key))


def objects(bucket: Bucket, clock: ports.Clock, sky: Sky, network: Network, seed: str) -> memory_objects.MemoryObjects:
    """One process' way to the bucket."""

    def plan(call: memory_objects.Call) -> memory_objects.Fault:
        processes.check_alive()
        if network.objects:
            return memory_objects.Fault(failure=memory_objects.LOST_REPLY, delay_s=CUT_NOTICED_S)
        return sky.objects(call)

    return memory_objects.MemoryObjects(bucket, clock, plan, randomness=random.Random(seed))


class Control(memory_control.MemoryControl):
    """The control plane of all. Its clients are processes, so that two under one name are told apart."""

    def __init__(self, clock: ports.Clock, sky: Sky, watching: watch.Watch) -> None:
        super().__init__(clock, sky.control)
        self._watch = watching

    async def beat(self, process: processes.Process, beat: control_plane.Heartbeat) -> None:
        def keep() -> None:
            self._heartbeats[beat.name] = dataclasses.replace(beat, load=dict(beat.load), pid=process.number)

        await self.called(str(process), "heartbeat", keep)

    def forget(self, worker: str) -> None:
        """Its pod is gone for good."""
        self._heartbeats.pop(worker, None)

    def known_generations(self) -> tuple[rules.RulesGeneration, ...]:
        return self._generations

    def has_heard(self, worker: str) -> bool:
        """Of the newest rules. One that was cut off before they were stamped counts as well: there were none while it was."""
        return self.is_cut(worker) or self._given.get(worker, 0) == self._generations[-1].generation

    async def called(self, worker: str, operation: str, work: Callable[[], Answer], shard_id: str = "") -> Answer:
        processes.check_alive()
        return await super().called(worker, operation, work, shard_id)

    def _store(self, wanted: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        before = self._partitions.get(wanted.spec.shard_id)
        stored = super()._store(wanted)
        self._watch.told(before, stored)
        return stored


class Plane:
    """control_plane.ForWorkers of one process."""

    def __init__(self, shared: Control, process: processes.Process) -> None:
        self._shared = shared
        self._process = process

    def ownership(self, worker: str) -> ports.Ownership:
        return self._shared.ownership(str(self._process))

    async def heartbeat(self, beat: control_plane.Heartbeat) -> None:
        await self._shared.beat(self._process, beat)

    def follow_generations(self, worker: str) -> AsyncIterator[tuple[rules.RulesGeneration, ...]]:
        return self._shared.follow_generations(str(self._process))

    def rules_known_until_ms(self, worker: str) -> int:
        return self._shared.rules_known_until_ms(str(self._process))

    async def start(self) -> partition.Start | None:
        return await self._shared.start()

    async def settle_start(self, start: partition.Start) -> partition.Start:
        return await self._shared.settle_start(start)
