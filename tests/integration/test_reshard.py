"""Shards split and merged under a worker that runs, is down, or is killed in the middle: nothing lost, nothing early.

The reference takes the same way: a parent to its end, then its children with its twins. So a record applied too early, an
override or an open alert that wasn't inherited, or an effect left behind shows as a difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_proto import fleet_pb2
from tests.reference import raw
from tests.reference.words import OFFLINE, Control
from tests.support import (
    catching_up,
    edits,
    field,
    left_behind,
    live_fleet,
    live_judge,
    proxy,
    streams,
    waiting,
    worker_process,
)

FIRST = "shardId-000000000000"
TICKS = 40
TICK_S = 0.1
PICKED_UP_S_MAX = 60.0
MANY_DEVICES = 8_000
"""So that inheriting them takes long enough to be killed in it."""
AGGREGATE_MEMBERS = 200

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(300)]


async def test_split_and_merged_under_load(tmp_path: Path, kinesis_url: str, kinesis: streams.Streams) -> None:
    """Once live: split, split again, merged. Children are found, and never run beside their parent."""
    async with live_fleet.made(tmp_path, kinesis, kinesis_url) as fleet, fleet.worker() as worker:
        traffic = Traffic(fleet, seed=1)
        await traffic.begin()
        worker.start()
        await worker.ready()
        flowing = asyncio.create_task(traffic.flow())
        stream = fleet.stream(live_fleet.TELEMETRY)
        beside = asyncio.create_task(children_beside_their_parents(fleet, worker))
        await kinesis.split(stream, FIRST)
        await serving(worker, {"shardId-000000000001", "shardId-000000000002"})
        fleet.edit(*edits.draw(random.Random("an edit")))
        await kinesis.split(stream, "shardId-000000000001")
        await kinesis.merge(stream, "shardId-000000000004", "shardId-000000000002")
        await serving(worker, {"shardId-000000000003", "shardId-000000000005"})
        await flowing
        await catching_up.caught_up(fleet, worker)
        assert not beside.done(), "a child ran beside its parent"
        beside.cancel()
        assert await worker.stop() < worker_process.STOP_S_MAX
        await right(fleet)


async def test_resharded_while_the_worker_is_down(tmp_path: Path, kinesis_url: str, kinesis: streams.Streams) -> None:
    """It finds parents and children at once, with records on each, and reads them in the order of their birth."""
    async with live_fleet.made(tmp_path, kinesis, kinesis_url, shards=2) as fleet, fleet.worker() as worker:
        traffic = Traffic(fleet, seed=2)
        await traffic.begin()
        worker.start()
        await worker.ready()
        await traffic.flow(10)
        worker.kill()
        stream = fleet.stream(live_fleet.TELEMETRY)
        await traffic.flow(10)
        await kinesis.split(stream, FIRST)
        await traffic.flow(10)
        await kinesis.merge(stream, "shardId-000000000003", "shardId-000000000001")
        await traffic.flow(10)
        await kinesis.split(stream, "shardId-000000000004")
        await traffic.flow(10)
        worker.start()
        beside = asyncio.create_task(children_beside_their_parents(fleet, worker))
        await catching_up.caught_up(fleet, worker)
        assert not beside.done(), "a child ran beside its parent"
        beside.cancel()
        await worker.stop()
        await right(fleet)


async def test_children_go_on_with_open_alerts_and_overrides(
    tmp_path: Path, kinesis_url: str, kinesis: streams.Streams
) -> None:
    """Told by the API, and by what the next records bring about."""
    async with live_fleet.made(tmp_path, kinesis, kinesis_url) as fleet, fleet.worker() as worker:
        stream = fleet.stream(live_fleet.TELEMETRY)
        devices = [f"device-{number}" for number in range(6)]
        now_ms = time.time_ns() // 1_000_000
        for step in range(3):
            await kinesis.put(stream, [(device, sample(device, now_ms + step, 75.0)) for device in devices])
        override = Control("update_threshold", now_ms, OFFLINE, 600.0)
        await kinesis.put(
            stream, [(device, raw.control_message(device, override).SerializeToString()) for device in devices]
        )
        worker.start()
        await catching_up.caught_up(fleet, worker)
        await kinesis.split(stream, FIRST)
        await serving(worker, {"shardId-000000000001", "shardId-000000000002"})
        told = (await worker.get("/v1/alerts"))["alerts"]
        assert sorted(alert["device_id"] for alert in told) == devices
        told = (await worker.get("/v1/twins"))["twins"]
        assert {twin["device_id"] for twin in told} == set(devices)
        assert all(twin["overrides"]["offline"]["threshold"] == 600.0 for twin in told)
        await kinesis.put(stream, [(device, sample(device, now_ms + 10, 20.0)) for device in devices])
        await catching_up.caught_up(fleet, worker)
        assert (await worker.get("/v1/alerts"))["alerts"] == []
        await worker.stop()
        await right(fleet)


@pytest.mark.parametrize("seed", range(2))
async def test_killed_while_children_inherit(
    seed: int, tmp_path: Path, kinesis_url: str, kinesis: streams.Streams, capsys: pytest.CaptureFixture[str]
) -> None:
    """Again and again, until every child has its twins; then the two are merged, with kills as well."""
    dice = random.Random(seed)
    async with live_fleet.made(tmp_path, kinesis, kinesis_url) as fleet, fleet.worker() as worker:
        stream = fleet.stream(live_fleet.TELEMETRY)
        now_ms = time.time_ns() // 1_000_000
        for first in range(0, MANY_DEVICES, AGGREGATE_MEMBERS * 10):
            await kinesis.put(stream, [aggregate(start, now_ms) for start in range(first, first + 2_000, 200)])
        worker.start()
        await catching_up.caught_up(fleet, worker)
        await kinesis.split(stream, FIRST)
        kills = await kill_while_inheriting(fleet, worker, {"shardId-000000000001", "shardId-000000000002"}, dice)
        await kinesis.put(stream, [aggregate(start, now_ms + 1_000) for start in range(0, 1_000, 200)])
        await catching_up.caught_up(fleet, worker)
        await kinesis.merge(stream, "shardId-000000000001", "shardId-000000000002")
        kills += await kill_while_inheriting(fleet, worker, {"shardId-000000000003"}, dice)
        await kinesis.put(stream, [aggregate(start, now_ms + 2_000) for start in range(0, 1_000, 200)])
        await catching_up.caught_up(fleet, worker)
        await worker.stop()
        await right(fleet)
    with capsys.disabled():
        print(f"\nkilled {len(kills)} times while children inherited: {', '.join(kills)}", end="")
    assert kills, "no kill hit an inheritance"


async def test_killed_between_a_shards_end_and_its_last_effects(
    tmp_path: Path, kinesis_url: str, kinesis: streams.Streams
) -> None:
    """What the last records of a shard brought about is published all the same: alerts and commands, records put again
    that belong to nobody's range, dead letters that name no device."""
    async with contextlib.AsyncExitStack() as stack:
        slow = await stack.enter_async_context(proxy.FaultProxy(kinesis_url))
        fleet = await stack.enter_async_context(live_fleet.made(tmp_path, kinesis, slow.endpoint_url, shards=2))
        async with fleet.worker() as worker:
            worker.start()
            await worker.ready()
            slow.add(proxy.Rule("PutRecords", times=1_000, delay_s=600.0))
            stream = fleet.stream(live_fleet.TELEMETRY)
            now_ms = time.time_ns() // 1_000_000
            for step in range(3):
                await kinesis.put(stream, [(f"d-{n}", sample(f"d-{n}", now_ms + step, 75.0)) for n in range(8)])
            await kinesis.put(stream, [("elsewhere", sample(f"stray-{n}", now_ms, 20.0)) for n in range(8)])
            await kinesis.put(stream, [(f"poison-{n}", b"\xff") for n in range(8)])
            for shard_id, new in ((FIRST, "shardId-000000000002"), ("shardId-000000000001", "shardId-000000000004")):
                await kinesis.split(stream, shard_id)
                assert new in {shard.shard_id for shard in await kinesis.shards(stream)}
            await worker.until(
                lambda status: status["totals"]["outbox_effects"] > 20 and status["totals"]["running"] == 2,
                "no effects wait",
                PICKED_UP_S_MAX,
            )
            await waiting.until(lambda: ended(fleet, 2), "the shards' ends aren't committed", PICKED_UP_S_MAX)
            worker.kill()
            slow.clear()
            worker.start()
            await serving(worker, {f"shardId-{number:012}" for number in (2, 3, 4, 5)})
            await catching_up.caught_up(fleet, worker)
            await worker.stop()
            await right(fleet)


# What the tests look at


async def right(fleet: live_fleet.LiveFleet) -> live_judge.Judgement:
    judgement = await live_judge.judged(fleet)
    assert not judgement.problems, "\n".join(judgement.problems[:40])
    return judgement


async def serving(worker: worker_process.WorkerProcess, shard_ids: set[str]) -> None:
    """These partitions run, and none else."""

    def is_so(status: dict[str, Any]) -> bool:
        return status["ready"] and {entry["shard_id"] for entry in status["partitions"]} == shard_ids

    await worker.until(is_so, f"{sorted(shard_ids)} don't run alone", PICKED_UP_S_MAX)


async def children_beside_their_parents(fleet: live_fleet.LiveFleet, worker: worker_process.WorkerProcess) -> None:
    """Looks for as long as it isn't cancelled; returns when a child runs beside one of its parents."""
    while True:
        status = await worker.status()
        if status is not None:
            running = {entry["shard_id"] for entry in status["partitions"]}
            shards = await fleet.streams.shards(fleet.stream(live_fleet.TELEMETRY))
            if any(shard.shard_id in running and running & set(shard.parents) for shard in shards):
                return
        await asyncio.sleep(0.05)


async def kill_while_inheriting(
    fleet: live_fleet.LiveFleet, worker: worker_process.WorkerProcess, children: set[str], dice: random.Random
) -> list[str]:
    """Kills the worker once a child: some milliseconds after its environment was begun, or as soon as it has a state, which
    has to be the end of its inheriting. Which ones it hit."""
    kills = []
    for child in sorted(children):
        data = fleet.partitions_folder / child / "environment" / "data.mdb"
        if dice.randrange(2):
            await begun(data.exists, worker)
            await asyncio.sleep(dice.choice((0.0, 0.005, 0.02, 0.05)))
        else:
            await begun(lambda child=child: child in left_behind.states(fleet), worker)  # type: ignore[misc]
        worker.kill()
        kills.append(f"{child} {data.stat().st_blocks * 512 // 1024} kB")
        worker.start()
    await serving(worker, children)
    return kills


async def begun(condition: Callable[[], bool], worker: worker_process.WorkerProcess) -> None:
    deadline = asyncio.get_running_loop().time() + PICKED_UP_S_MAX
    while True:
        if condition():
            return
        assert asyncio.get_running_loop().time() < deadline, f"no child was begun:\n{worker.log()}"
        await asyncio.sleep(0.001)


def ended(fleet: live_fleet.LiveFleet, shards: int) -> bool:
    """Whether so many partitions' stores say that their shard ended, as another process sees them."""
    return sum(state.ended for state in left_behind.states(fleet).values()) == shards


class Traffic:
    """A field of devices on a fleet's stream, tick by tick, with offline limits of seconds for some."""

    def __init__(self, fleet: live_fleet.LiveFleet, seed: int) -> None:
        self._fleet = fleet
        self._field = field.Field(random.Random(f"{seed} field"), 30, TICKS, now_ms())
        self._tick = 0

    async def begin(self) -> None:
        self._fleet.edit(*edits.draw(random.Random("the first")))
        stream = self._fleet.stream(live_fleet.TELEMETRY)
        await self._fleet.streams.put(stream, self._field.first(now_ms()))
        await self._fleet.streams.put(stream, self._field.overrides(now_ms()))

    async def flow(self, ticks: int = TICKS) -> None:
        stream = self._fleet.stream(live_fleet.TELEMETRY)
        for _ in range(ticks):
            await self._fleet.streams.put(stream, self._field.tick(self._tick, now_ms(), ()))
            self._tick += 1
            await asyncio.sleep(TICK_S)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def sample(device_id: str, timestamp_ms: int, temperature_c: float) -> bytes:
    return fleet_pb2.Telemetry(
        device_id=device_id, timestamp=timestamp_ms, temperature_c=temperature_c, battery_pct=80, cpu_load=0.5
    ).SerializeToString()


def aggregate(first: int, at_ms: int) -> tuple[str, bytes]:
    """Samples of many devices in one record."""
    members = [(f"many-{n}", sample(f"many-{n}", at_ms, 20.0)) for n in range(first, first + AGGREGATE_MEMBERS)]
    return f"many-{first}", raw.aggregated(members)
