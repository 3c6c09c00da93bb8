"""The control loop in the test's process, as the demo runs it, but quicker to call a worker silent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fleet_cli.control import loop
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import control_folder, fleet_file, kinesis


async def run(
    fleet_path: Path, control: Path, endpoint_url: str, is_leaving: Callable[[str], bool], silent_after_ms: int
) -> None:
    """Until cancelled. endpoint_url: of Kinesis, for the loop itself."""
    with clocks.RealClock() as clock:
        watched = fleet_file.FleetFile(fleet_path, clock)
        fleet = await clock.in_thread(watched.load)
        plane = control_folder.ControlFolder(control, clock)
        await plane.prepare()
        async with kinesis.KinesisConnection.open(dataclasses.replace(fleet.aws, endpoint_url=endpoint_url)) as opened:
            stream = opened.stream(fleet.streams.telemetry.stream_name, clock)
            await loop.ControlLoop(plane, stream, fleet, clock, is_leaving, silent_after_ms).run(watched.edits())
