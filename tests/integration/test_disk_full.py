"""A real worker whose disk fills up while telemetry flows: intake stops and says why, nothing is published that isn't
committed, and once there is room it goes on by itself. In the end twins and effects equal the reference's.

The disk is a small tmpfs, mounted by the test. Where mounting is refused the tests are skipped: nothing else makes a real
LMDB see ENOSPC at a moment of one's choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import lmdb
import pytest

from fleet_cli import console
from fleet_proto import fleet_pb2
from fleet_worker.adapters import lmdb_codec
from tests.support import (
    catching_up,
    live_fleet,
    live_judge,
    small_disk,
    streams,
    worker_process,
)

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(300)]

DISK_BYTES = 24 * 2**20
SHARDS = 2
TICK_S = 0.1
DEVICES_A_TICK = 20
NOTICED_S_MAX = 60.0


class Traffic:
    """New devices all the time, so that twins need new pages; each becomes hot and causes an alert and a command."""

    def __init__(self, fleet: live_fleet.LiveFleet) -> None:
        self._fleet = fleet
        self.ticks = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.tick()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), TICK_S)

    async def tick(self) -> None:
        self.ticks += 1
        devices = [f"device-{self.ticks}-{number}" for number in range(DEVICES_A_TICK)]
        for sample in range(3):
            puts = [(device, _hot(device, 1_000_000 + sample)) for device in devices]
            await self._fleet.streams.put(self._fleet.stream(live_fleet.TELEMETRY), puts)


def _hot(device_id: str, timestamp_ms: int) -> bytes:
    return fleet_pb2.Telemetry(
        device_id=device_id, timestamp=timestamp_ms, temperature_c=75, battery_pct=50, cpu_load=0.5, location="x" * 400
    ).SerializeToString()


@contextlib.asynccontextmanager
async def fleet_on_a_small_disk(
    folder: Path, kinesis_url: str, kinesis: streams.Streams
) -> AsyncIterator[tuple[live_fleet.LiveFleet, small_disk.SmallDisk]]:
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk.mounted(folder / "fleet" / "data", DISK_BYTES))
        except small_disk.MountRefusedError as error:
            pytest.skip(f"a small disk can't be mounted here (it takes root and CAP_SYS_ADMIN): {error}")
        async with live_fleet.made(folder / "fleet", kinesis, kinesis_url, shards=SHARDS) as fleet:
            fleet.edit({})
            yield fleet, disk


async def is_stopped_for_room(worker: worker_process.WorkerProcess) -> None:
    status = await worker.until(
        lambda status: (
            len(status["partitions"]) == SHARDS
            and all("no room" in (entry["message"] or "") for entry in status["partitions"])
        ),
        "not every partition tells that there is no room",
        NOTICED_S_MAX,
    )
    assert status["totals"]["running"] == SHARDS, "it still answers questions"


async def counted(worker: worker_process.WorkerProcess, name: str) -> float:
    """A counter of /metrics, all shards together."""
    text = await worker.text("/metrics")
    return sum(float(value) for value in re.findall(rf"^{name}_total(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def committed_positions(fleet: live_fleet.LiveFleet) -> dict[str, int]:
    """By shard: the last applied record that is on disk, read beside the worker."""
    found = {}
    for folder in fleet.data_folder.glob("*/*/partitions/*"):
        with (
            lmdb.open(str(folder / "environment"), readonly=True, max_dbs=5) as environment,
            environment.begin() as transaction,
        ):
            meta = environment.open_db(b"meta", txn=transaction, create=False)
            state = lmdb_codec.decode_state(transaction.get(b"state", db=meta) or b"")
            found[folder.name] = int(state.position.sequence_number or 0)
    return found


async def test_intake_stops_on_a_full_disk_and_goes_on_by_itself(
    tmp_path: Path, kinesis_url: str, kinesis: streams.Streams
) -> None:
    async with fleet_on_a_small_disk(tmp_path, kinesis_url, kinesis) as (fleet, disk), fleet.worker() as worker:
        traffic, enough = Traffic(fleet), asyncio.Event()
        worker.start()
        await worker.ready()
        flowing = asyncio.create_task(traffic.run(enough))
        await worker.until(lambda status: status["totals"]["twins"] > 200, "no twins come", NOTICED_S_MAX)

        disk.fill()
        await is_stopped_for_room(worker)
        applied = await counted(worker, "fleet_twin_records")
        put_before = traffic.ticks
        await worker.until(lambda status: traffic.ticks >= put_before + 20, "no traffic", NOTICED_S_MAX)
        await is_stopped_for_room(worker)
        assert await counted(worker, "fleet_twin_records") == applied, "intake stops"
        assert await counted(worker, "fleet_twin_disk_full_stops") == SHARDS

        twin = await worker.get("/v1/twins/device-1-0")
        assert twin["counters"]["samples"] == 3

        positions = committed_positions(fleet)
        alerts = await fleet.streams.read_all(fleet.stream(live_fleet.ALERTS))
        for record in alerts:
            alert = fleet_pb2.DeviceAlert.FromString(record.data)
            assert int(alert.sequence_number) <= positions[alert.shard_id], "published before its commit"
        assert alerts

        disk.make_room()
        await worker.until(
            lambda status: all(entry["message"] is None for entry in status["partitions"]),
            "it doesn't go on by itself",
            NOTICED_S_MAX,
        )
        enough.set()
        await flowing
        await catching_up.caught_up(fleet, worker)
        assert await counted(worker, "fleet_twin_records") > applied
        assert await worker.stop() < worker_process.STOP_S_MAX
        judgement = await live_judge.judged(fleet)
        assert judgement.problems == []
        assert judgement.repeated == 0, "nobody died, so nothing is published twice"
        assert judgement.effects == 2 * DEVICES_A_TICK * traffic.ticks


async def test_a_stop_on_a_full_disk_and_starts_with_and_without_room(
    tmp_path: Path, kinesis_url: str, kinesis: streams.Streams
) -> None:
    async with fleet_on_a_small_disk(tmp_path, kinesis_url, kinesis) as (fleet, disk), fleet.worker() as worker:
        traffic, enough = Traffic(fleet), asyncio.Event()
        worker.start()
        await worker.ready()
        flowing = asyncio.create_task(traffic.run(enough))
        await worker.until(lambda status: status["totals"]["twins"] > 200, "no twins come", NOTICED_S_MAX)
        disk.fill()
        await is_stopped_for_room(worker)
        stop_s = await worker.stop(exit_code=console.EXIT_FAILED)
        assert stop_s < worker_process.STOP_S_MAX
        assert "no room" in worker.log()
        assert "is read again at its next start" in worker.log()
        assert "Traceback" not in worker.log()

        disk.fill()  # whatever the stop gave back
        worker.start()
        await is_stopped_for_room(worker)
        worker.kill()

        disk.fill()
        worker.start()
        await is_stopped_for_room(worker)
        disk.make_room()
        enough.set()
        await flowing
        await catching_up.caught_up(fleet, worker)
        assert await worker.stop() < worker_process.STOP_S_MAX
        judgement = await live_judge.judged(fleet)
        assert judgement.problems == []
        assert judgement.effects == 2 * DEVICES_A_TICK * traffic.ticks


async def test_an_edit_that_finds_no_room_is_told_and_leaves_the_old_rules_in_force(
    tmp_path: Path, kinesis_url: str, kinesis: streams.Streams
) -> None:
    async with fleet_on_a_small_disk(tmp_path, kinesis_url, kinesis) as (fleet, disk), fleet.worker() as worker:
        worker.start()
        await worker.ready()
        disk.fill()
        fleet.edit({"temperature": {"threshold": 40.0}})
        status = await worker.until(
            lambda status: status["rules"]["last_error"] is not None, "the edit's fate isn't told", NOTICED_S_MAX
        )
        assert "no room" in status["rules"]["last_error"]
        assert status["rules"]["generation"] == 1
        disk.make_room()
        fleet.edit({"temperature": {"threshold": 41.0}})
        status = await worker.until(
            lambda status: status["rules"]["generation"] == 2, "the next edit fails, too", NOTICED_S_MAX
        )
        assert status["rules"]["last_error"] is None
        assert await worker.stop() < worker_process.STOP_S_MAX
