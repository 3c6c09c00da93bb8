"""The first start: whoever is first settles it, for all and for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fleet_model import partition, spec
from fleet_worker import errors, fleet_start
from fleet_worker.adapters import clock, local_folder, memory_control, memory_objects
from tests.support import virtual_time

LATEST = spec.TelemetryStream("telemetry")


class Stream:
    """Of ports.Stream what settling needs. Its clock goes on with every look."""

    def __init__(self) -> None:
        self.looks = 0

    async def now_ms(self) -> int:
        self.looks += 1
        await asyncio.sleep(0)
        return 1_000 * self.looks

    async def list_shards(self) -> list[partition.Shard]:
        raise AssertionError

    async def retention_ms(self) -> int:
        raise AssertionError

    def open_shard(self, shard_id: str, start: object) -> object:
        raise AssertionError


async def settled(keeper: fleet_start.Keeper, telemetry: spec.TelemetryStream, stream: Stream) -> partition.Start:
    return await fleet_start.settled(keeper, telemetry, stream)  # type: ignore[arg-type]


def test_latest_is_a_time_of_kinesis_and_stays_it() -> None:
    async def play() -> None:
        stream = Stream()
        plane = memory_control.MemoryControl(virtual_time.VirtualClock())
        assert await settled(plane, LATEST, stream) == partition.Start("telemetry", 1_000)
        assert await settled(plane, LATEST, stream) == partition.Start("telemetry", 1_000)
        later = spec.TelemetryStream("telemetry", start_position=spec.StartPosition.TRIM_HORIZON)
        assert await settled(plane, later, stream) == partition.Start("telemetry", 1_000)
        assert stream.looks == 1

    virtual_time.run(play())


@pytest.mark.parametrize(
    ("telemetry", "time_ms"),
    [
        (spec.TelemetryStream("telemetry", start_position=spec.StartPosition.TRIM_HORIZON), None),
        (
            spec.TelemetryStream("telemetry", start_position=spec.StartPosition.AT_TIMESTAMP, start_time_ms=77),
            77,
        ),
    ],
)
def test_other_starts_ask_nobody(telemetry: spec.TelemetryStream, time_ms: int | None) -> None:
    async def play() -> None:
        stream = Stream()
        plane = memory_control.MemoryControl(virtual_time.VirtualClock())
        assert await settled(plane, telemetry, stream) == partition.Start("telemetry", time_ms)
        assert stream.looks == 0

    virtual_time.run(play())


def test_workers_that_begin_at_once_agree_through_the_bucket_also_when_replies_are_lost() -> None:
    async def play() -> None:
        time = virtual_time.VirtualClock()
        bucket = memory_objects.Bucket(time)

        def lossy(call: memory_objects.Call) -> memory_objects.Fault:
            return memory_objects.Fault(lost_reply=call.operation == "PutObject", delay_s=0.1)

        plans = [memory_objects.no_faults, lossy, memory_objects.no_faults, lossy]
        keepers = [fleet_start.InBucket(memory_objects.MemoryObjects(bucket, time, plan)) for plan in plans]
        stream = Stream()
        starts = await asyncio.gather(*(settled(keeper, LATEST, stream) for keeper in keepers), return_exceptions=True)
        told = {start for start in starts if isinstance(start, partition.Start)}
        assert len(told) == 1
        assert all(isinstance(start, (partition.Start, errors.ObjectStoreUnavailableError)) for start in starts)
        late = fleet_start.InBucket(memory_objects.MemoryObjects(bucket, time))
        assert {await settled(late, LATEST, stream)} == told
        assert list(bucket.contents()) == [fleet_start.KEY]

    virtual_time.run(play())


def test_what_stands_in_the_bucket_and_is_no_start_is_refused() -> None:
    async def play() -> None:
        time = virtual_time.VirtualClock()
        bucket = memory_objects.Bucket(time)
        bucket.put(fleet_start.KEY, b'{"format": 2}', None)
        keeper = fleet_start.InBucket(memory_objects.MemoryObjects(bucket, time))
        with pytest.raises(errors.CheckpointBrokenError, match=r"start\.json.*format"):
            await settled(keeper, LATEST, Stream())

    virtual_time.run(play())


async def test_a_fleet_that_was_started_on_another_stream_is_refused(tmp_path: Path) -> None:
    with local_folder.LocalFolder(tmp_path, "default", "trucks") as folder, clock.RealClock() as real:
        keeper = fleet_start.InDataFolder(folder, real)
        await settled(keeper, LATEST, Stream())
        with pytest.raises(errors.FleetTwinError, match="started on the stream telemetry, not on other"):
            await settled(keeper, spec.TelemetryStream("other"), Stream())
