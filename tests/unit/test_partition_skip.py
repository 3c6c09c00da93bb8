"""`fleet-twin partitions skip`: which partition may be skipped, to when, and that the control loop's writes don't come in its way."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import time

import pytest
from click import testing

from fleet_cli import console, main, partition_skip
from fleet_model import hashing, twin_partition
from fleet_worker.adapters import clock, control_folder

SHARD = "shardId-000000000000"
LOST = "partition shardId-000000000000 stands 1560 min back, the stream retains 1440 min: records are lost"
NOW_MS = 1_800_000_000_000


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """With one partition, which is Failed."""
    path = tmp_path / "control"

    async def body() -> None:
        with clock.RealClock() as real:
            plane = control_folder.ControlFolder(path, real)
            await plane.prepare()
            spec = twin_partition.Spec("trucks", "telemetry", SHARD, hashing.HashKeyRange(), (), "worker-0", epoch=1)
            name = twin_partition.object_name("trucks", SHARD)
            await plane.create(twin_partition.TwinPartition("default", name, spec))

    asyncio.run(body())
    report(path, twin_partition.Phase.FAILED)
    return path


def report(path: pathlib.Path, phase: twin_partition.Phase) -> None:
    async def body() -> None:
        with clock.RealClock() as real:
            owner = control_folder.ControlFolder(path, real).ownership("worker-0")
            await owner.report(SHARD, lambda status: dataclasses.replace(status, phase=phase, message=LOST))

    asyncio.run(body())


def stored(path: pathlib.Path) -> twin_partition.TwinPartition:
    async def body() -> twin_partition.TwinPartition:
        with clock.RealClock() as real:
            return (await control_folder.ControlFolder(path, real).partitions())[SHARD]

    return asyncio.run(body())


def skip(path: pathlib.Path, *arguments: str, answer: str | None = None) -> testing.Result:
    command = ["partitions", "skip", *arguments, "--control", str(path)]
    return testing.CliRunner().invoke(main.main, command, prog_name="fleet-twin", input=answer)


def test_a_failed_partition_goes_on_from_the_time_that_is_given(folder: pathlib.Path) -> None:
    before_ms = time.time_ns() // 1_000_000
    result = skip(folder, SHARD, "--to", "23h", "--yes")
    assert result.exit_code == 0, result.output
    assert "records are lost" in result.stderr
    after = stored(folder)
    assert 0 <= after.spec.skip_to_ms - (before_ms - 23 * 3_600_000) < 60_000
    assert (after.spec.worker, after.spec.epoch, after.status.message) == ("worker-0", 1, LOST)
    shown = testing.CliRunner().invoke(main.main, ["partitions", "--control", str(folder)])
    assert SHARD in shown.output, "the list is still there"


def test_it_asks_before_records_are_given_up(folder: pathlib.Path) -> None:
    refused = skip(folder, SHARD, "--to", "2026-03-01T08:00:00Z", answer="n\n")
    assert refused.exit_code == console.EXIT_FAILED
    assert stored(folder).spec.skip_to_ms == 0
    assert skip(folder, SHARD, "--to", "2026-03-01T08:00:00Z", answer="y\n").exit_code == 0
    assert stored(folder).spec.skip_to_ms == 1_772_352_000_000


@pytest.mark.parametrize("phase", [phase for phase in twin_partition.Phase if phase is not twin_partition.Phase.FAILED])
def test_only_a_failed_partition_is_skipped(folder: pathlib.Path, phase: twin_partition.Phase) -> None:
    report(folder, phase)
    result = skip(folder, SHARD, "--to", "23h", "--yes")
    assert result.exit_code == console.EXIT_FAILED
    assert f"is {phase}" in result.stderr
    assert stored(folder).spec.skip_to_ms == 0


@pytest.mark.parametrize("text", ["yesterday", "2026-03-01T08:00:00", "23", "-1h"])
def test_a_time_needs_its_zone_and_a_span_its_unit(folder: pathlib.Path, text: str) -> None:
    result = skip(folder, SHARD, f"--to={text}", "--yes")
    assert result.exit_code == console.EXIT_USAGE
    assert "neither a time with its zone" in " ".join(result.stderr.split())


def test_the_future_and_unknown_partitions_are_refused(folder: pathlib.Path) -> None:
    assert "lies in the future" in skip(folder, SHARD, "--to", "2999-01-01T00:00:00Z", "--yes").stderr
    unknown = skip(folder, "shardId-9", "--to", "23h", "--yes")
    assert unknown.exit_code == console.EXIT_NOT_FOUND
    assert "has no partition shardId-9" in unknown.stderr


def test_a_write_of_the_control_loop_in_between_is_not_undone(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = control_folder.ControlFolder.update_spec
    others = 0

    async def overtaken(
        self: control_folder.ControlFolder, shard_id: str, spec: twin_partition.Spec, resource_version: str
    ) -> twin_partition.TwinPartition:
        nonlocal others
        if others == 0:
            others += 1
            current = (await self.partitions())[shard_id]
            await update(self, shard_id, dataclasses.replace(current.spec, epoch=2), current.resource_version)
        return await update(self, shard_id, spec, resource_version)

    monkeypatch.setattr(control_folder.ControlFolder, "update_spec", overtaken)
    assert skip(folder, SHARD, "--to", "23h", "--yes").exit_code == 0
    after = stored(folder)
    assert (after.spec.epoch, after.spec.skip_to_ms > 0) == (2, True)


def test_spans_and_times() -> None:
    assert partition_skip.time_ms("1h30m", NOW_MS) == NOW_MS - 5_400_000
    assert partition_skip.time_ms("2026-03-01T09:00:00+01:00", NOW_MS) == 1_772_352_000_000
