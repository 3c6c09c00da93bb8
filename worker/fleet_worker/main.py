"""A worker outside Kubernetes, from its options to its exit code: startup → run → shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import signal
from pathlib import Path

from fleet_model import generations, partition, spec
from fleet_worker import errors, metrics, ports, rule_edits, supervisor, surroundings
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import fleet_file, kinesis, local_folder, local_ownership
from fleet_worker.api import app

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """fleet_path: the DeviceFleet YAML. data_folder: this worker's own. port 0: one that is free."""

    fleet_path: Path
    data_folder: Path
    host: str = app.HOST_DEFAULT
    port: int = app.PORT_DEFAULT


async def run(options: Options) -> int:
    """Runs a worker that owns every shard of the stream until SIGTERM or SIGINT; 0 after a clean stop.

    Raises InvalidFleetError and FleetTwinError for what the user can mend.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        clock = stack.enter_context(clocks.RealClock())
        watched = fleet_file.FleetFile(options.fleet_path, clock)
        fleet = await clock.in_thread(watched.load)
        folder = stack.enter_context(
            await clock.in_thread(
                functools.partial(local_folder.LocalFolder, options.data_folder, fleet.namespace, fleet.name)
            )
        )
        measured = metrics.Metrics()
        connection = await stack.enter_async_context(kinesis.KinesisConnection.open(fleet.aws))
        telemetry = fleet.streams.telemetry
        stream = connection.stream(telemetry.arn or telemetry.stream_name, clock)
        start = await settle_start(folder, fleet, stream, clock)
        await settle_rules(folder, fleet, stream, clock)
        around = surroundings.Surroundings(
            clock=clock,
            sink=connection.sink(fleet.streams, clock),
            metrics=measured,
            fleet=fleet,
            retention_ms=await stream.retention_ms(),
            rules_settled=asyncio.Event(),
        )
        around.rules_settled.set()
        local = supervisor.Local(
            name="local",
            boot_id=(await clock.in_thread(BOOT_ID.read_text)).strip(),
            folder=folder,
            ownership=local_ownership.EveryShard(stream),
            stream=stream,
            start=start,
        )
        worker = supervisor.Supervisor(around, local)
        api = app.Api(worker, measured, clock)
        try:
            host, port = await stack.enter_async_context(app.serve(api, options.host, options.port))
        except OSError as error:
            raise errors.FleetTwinError(
                f"port {options.port} on {options.host} can't be used ({error.strerror}); give another with --port"
            ) from error
        log.info("fleet %s: twins at http://%s:%d/v1/twins", worker.fleet, host, port)
        editing = asyncio.create_task(worker.follow_edits(watched.edits()))
        working = asyncio.create_task(worker.run(stop))
        try:
            await asyncio.wait((editing, working), return_when=asyncio.FIRST_COMPLETED)
            if editing.done():
                editing.result()
            await working
        finally:
            stop.set()
            editing.cancel()
            await asyncio.wait((editing, working))
    log.info("stopped")
    return 0


async def settle_start(
    folder: local_folder.LocalFolder, fleet: spec.FleetSpec, stream: ports.Stream, clock: ports.Clock
) -> partition.Start:
    """The fleet's first start, once and for all: `Latest` becomes a time by Kinesis' clock, before the first poll."""
    telemetry = fleet.streams.telemetry
    if folder.start is None:
        match telemetry.start_position:
            case spec.StartPosition.LATEST:
                time_ms: int | None = await stream.now_ms()
            case spec.StartPosition.AT_TIMESTAMP:
                time_ms = telemetry.start_time_ms
            case spec.StartPosition.TRIM_HORIZON:
                time_ms = None
        chosen = partition.Start(telemetry.stream_name, time_ms)
        await clock.in_thread(functools.partial(folder.settle_start, chosen))
    start = folder.start
    assert start is not None
    if start.stream != telemetry.stream_name:
        raise errors.FleetTwinError(
            f"spec.streams.telemetry: this data folder belongs to the stream {start.stream}, not to {telemetry.stream_name}; "
            "give the fleet another name or data folder"
        )
    return start


async def settle_rules(
    folder: local_folder.LocalFolder, fleet: spec.FleetSpec, stream: ports.Stream, clock: ports.Clock
) -> None:
    """The first generation, or what was edited while no worker ran; by the same stamp as a live edit."""
    if not folder.generations:
        generation = generations.first_generation(fleet)
    else:
        now_ms = max(clock.wall_ms(), await stream.now_ms())
        edited = generations.next_generation(folder.generations[-1], fleet, now_ms + rule_edits.RULES_AHEAD_MS)
        if edited is None:
            return
        generation = edited
    await clock.in_thread(functools.partial(folder.append_generation, generation))
