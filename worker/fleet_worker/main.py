"""A worker outside Kubernetes, from its options to its exit code: startup → run → shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

from fleet_model import generations, partition, spec
from fleet_worker import errors, metrics, ports, retries, rule_edits, supervisor, surroundings
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import fleet_file, kinesis, local_folder, local_ownership
from fleet_worker.api import app

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
OPEN_FILES = 16_384


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """fleet_path: the DeviceFleet YAML. data_folder: this worker's own. port 0: one that is free."""

    fleet_path: Path
    data_folder: Path
    host: str = app.HOST_DEFAULT
    port: int = app.PORT_DEFAULT


async def run(options: Options) -> int:
    """Runs a worker that owns every shard of the stream until SIGTERM or SIGINT; 0 after a clean stop. A second signal ends
    the process at once, which loses nothing that was committed.

    Raises InvalidFleetError and FleetTwinError for what the user can mend.
    """
    allow_open_files()
    stop, has_started = asyncio.Event(), asyncio.Event()
    with _stopped_by_signals(stop):
        working = asyncio.create_task(_work(options, stop, has_started))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not has_started.is_set():
                working.cancel()  # Kinesis may be out of reach; there is nothing yet that would have to end well
            await asyncio.wait((working,))
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.wait((working, stopping))
        if not working.cancelled():
            working.result()
    log.info("stopped")
    return 0


async def _work(options: Options, stop: asyncio.Event, has_started: asyncio.Event) -> None:
    """Startup, run, shutdown. has_started is set once partitions may have begun."""
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
        on_retry = retries.Retries(clock, measured)
        connection = await stack.enter_async_context(kinesis.KinesisConnection.open(fleet.aws, on_retry=on_retry))
        telemetry = fleet.streams.telemetry
        stream = connection.stream(telemetry.arn or telemetry.stream_name, clock)
        start = await settle_start(folder, fleet, stream, clock)
        retention_ms = await stream.retention_ms()
        await settle_rules(folder, fleet, await stream.now_ms(), retention_ms, clock)
        around = surroundings.Surroundings(
            clock=clock,
            sink=connection.sink(fleet.streams, clock),
            metrics=measured,
            fleet=fleet,
            retention_ms=retention_ms,
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
        has_started.set()
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


@contextlib.contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        log.info("stopping; once more to end at once")
        stop.set()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


def allow_open_files() -> None:
    """Raises the soft limit on open files as far as needed and allowed: a partition takes four, and the usual limit of 1,024
    ends at about two hundred partitions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
    folder: local_folder.LocalFolder, fleet: spec.FleetSpec, now_ms: int, retention_ms: int, clock: ports.Clock
) -> None:
    """The first generation, or what was edited while no worker ran; by the same stamp as a live edit. now_ms: Kinesis' clock."""
    oldest_ms = 0
    if not folder.generations:
        generation = generations.first_generation(fleet)
    else:
        start_ms = max(clock.wall_ms(), now_ms) + rule_edits.RULES_AHEAD_MS
        edited = generations.next_generation(folder.generations[-1], fleet, start_ms)
        if edited is None:
            return
        generation, oldest_ms = edited, now_ms - retention_ms
    await clock.in_thread(functools.partial(folder.append_generation, generation, oldest_ms))
