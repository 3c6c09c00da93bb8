"""A worker, from its options to its exit code: startup → run → shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import resource
import secrets
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

from fleet_model import spec
from fleet_worker import (
    claimed,
    custody,
    errors,
    fleet_start,
    holding,
    metrics,
    orders,
    pod_orders,
    retries,
    supervisor,
    surroundings,
    waits,
)
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import (
    control_folder,
    fleet_file,
    kinesis,
    kubernetes_api,
    kubernetes_control,
    lmdb_disk,
    local_folder,
    pod_token,
)
from fleet_worker.api import app

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
OPEN_FILES = 16_384
POD_VARIABLES = ("FLEET_NAME", "POD_NAMESPACE", "POD_NAME")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """fleet_path: the DeviceFleet YAML. data_folder: this worker's own. port 0: one that is free. control_folder: of the control plane
    that this worker shares with others, under this name; None: it is alone. pod: of a worker in Kubernetes, which has neither of both.
    token_folder: where the pod's token is; None: only a clean end lets a disk be used by another boot."""

    fleet_path: Path | None
    data_folder: Path
    host: str = app.HOST_DEFAULT
    port: int = app.PORT_DEFAULT
    control_folder: Path | None = None
    name: str = orders.ALONE
    pod: Pod | None = None
    token_folder: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Pod:
    """Of which fleet, and how it reaches the API server."""

    fleet: kubernetes_control.Fleet
    access: kubernetes_api.Access


def in_pod(options: Options, environment: Mapping[str, str]) -> Options:
    """Of a worker in one of the operator's pods. Raises FleetTwinError for what the environment lacks."""
    missing = [name for name in POD_VARIABLES if not environment.get(name)]
    if missing:
        raise errors.FleetTwinError(
            f"{', '.join(missing)} must be set for --kubernetes: the operator's pods have them; outside Kubernetes give --fleet FILE"
        )
    fleet, namespace, name = (environment[variable] for variable in POD_VARIABLES)
    access = kubernetes_api.Access.in_cluster(environment)
    return dataclasses.replace(options, name=name, pod=Pod(kubernetes_control.Fleet(namespace, fleet), access))


async def run(options: Options) -> int:
    """Runs a worker until SIGTERM or SIGINT; 0 after a clean stop. A second signal ends
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
    async with contextlib.AsyncExitStack() as serving, contextlib.AsyncExitStack() as stack:
        clock = stack.enter_context(clocks.RealClock())
        measured = metrics.Metrics()
        startup = waits.Waits(clock)
        api = app.Api(None, measured, clock, lambda: startup.now)
        # Before anything is asked for that may be away for long: who waits is alive.
        host, port = await _served(serving, api, options)
        log.info("starting; http://%s:%d/readyz tells what it waits for", host, port)
        startup.step("its fleet")
        fleet, folder, ordered = await _orders(stack, options, measured, clock, startup)
        on_retry = retries.Retries(clock, measured)
        connection = await stack.enter_async_context(kinesis.KinesisConnection.open(fleet.aws, on_retry=on_retry))
        telemetry = fleet.streams.telemetry
        stream = connection.stream(telemetry.arn or telemetry.stream_name, clock)
        startup.step("the bucket")
        checkpoints, probing = await _checkpoints(stack, fleet, folder, clock, measured)
        keeper = ordered.keeper if checkpoints is None else fleet_start.InBucket(checkpoints.objects)
        startup.step(f"Kinesis, and the start of the stream {telemetry.stream_name}")
        start = await fleet_start.settled(keeper, telemetry, stream)
        retention_ms = await stream.retention_ms()
        startup.step("the fleet's rules")
        generations = await ordered.generations(stream, retention_ms)
        around = surroundings.Surroundings(
            clock=clock,
            sink=connection.sink(fleet.streams, clock),
            metrics=measured,
            fleet=fleet,
            retention_ms=retention_ms,
            rules_settled=asyncio.Event(),
            rules_known=ordered.rules_known,
        )
        around.rules_settled.set()
        boot_id = await clock.in_thread(functools.partial(_boot_id, options.token_folder))
        local = supervisor.Local(
            name=ordered.name,
            disk=lmdb_disk.LmdbDisk(folder, fleet.storage, boot_id),
            ownership=ordered.ownership(stream),
            stream=stream,
            start=start,
            checkpoints=checkpoints,
            barred=_barred(options, fleet),
        )
        worker = supervisor.Supervisor(around, local, generations)
        api.worker = worker
        log.info("fleet %s: twins at http://%s:%d/v1/twins", worker.fleet, host, port)
        has_started.set()
        ordering = ordered.follow(around, worker, f"http://{host}:{port}")
        following = asyncio.create_task(holding.accompanied(ordering, [probing()]))
        working = asyncio.create_task(worker.run(stop))
        try:
            await asyncio.wait((following, working), return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
            await working
            worker.check_stop()
        finally:
            stop.set()
            following.cancel()
            await asyncio.wait((following, working))
            await serving.aclose()  # before the folder is let go: whoever takes that needs the port


async def _served(stack: contextlib.AsyncExitStack, api: app.Api, options: Options) -> tuple[str, int]:
    """Until the stack ends. The address. Raises FleetTwinError."""
    try:
        return await stack.enter_async_context(app.serve(api, options.host, options.port))
    except OSError as error:
        raise errors.FleetTwinError(
            f"port {options.port} on {options.host} can't be used ({error.strerror}); give another with --port"
        ) from error


async def _orders(
    stack: contextlib.AsyncExitStack,
    options: Options,
    measured: metrics.Metrics,
    clock: clocks.RealClock,
    startup: waits.Waits,
) -> tuple[spec.FleetSpec, local_folder.LocalFolder, orders.Orders]:
    """The fleet, its folder here, and whom this worker listens to."""
    if options.pod is not None:
        opening = kubernetes_control.KubernetesControl.open(options.pod.access, options.pod.fleet, clock, startup)
        control = await stack.enter_async_context(opening)
        fleet = await control.spec()
        folder = stack.enter_context(await clock.in_thread(functools.partial(_folder, options, fleet)))
        keeper = fleet_start.InDataFolder(folder, clock)
        return fleet, folder, pod_orders.PodOrders(control, options.name, keeper, measured, clock)
    assert options.fleet_path is not None
    watched = fleet_file.FleetFile(options.fleet_path, clock)
    fleet = await clock.in_thread(watched.load)
    folder = stack.enter_context(await clock.in_thread(functools.partial(_folder, options, fleet)))
    if options.control_folder is None:
        return fleet, folder, orders.Alone(fleet, watched.edits(), folder, clock)
    if fleet.checkpoint.bucket is None:
        raise errors.FleetTwinError(
            "spec.checkpoint.bucket: workers that share a fleet hand partitions over through a bucket; name one, or run a single worker "
            "without --control"
        )
    shared = control_folder.ControlFolder(options.control_folder, clock)
    return fleet, folder, orders.Controlled(shared, options.name, clock)


def _folder(options: Options, fleet: spec.FleetSpec) -> local_folder.LocalFolder:
    return local_folder.LocalFolder(options.data_folder, fleet.namespace, fleet.name)


def _boot_id(token_folder: Path | None) -> str:
    """What this start trusts its disk by. Blocks on the disk. Raises DataFolderError."""
    token = pod_token.read_or_make(token_folder) if token_folder is not None else ""
    return pod_token.boot_id(BOOT_ID.read_text().strip(), token)


def _barred(options: Options, fleet: spec.FleetSpec) -> str:
    """Without a bucket the disk is the truth, and only one worker's can be. That one may go on when others come."""
    if options.pod is None or fleet.checkpoint.bucket is not None or options.name == f"{fleet.name}-0":
        return ""
    return f"without spec.checkpoint.bucket only {fleet.name}-0 can own partitions; name a bucket, or set spec.replicas to 1"


async def _checkpoints(
    stack: contextlib.AsyncExitStack,
    fleet: spec.FleetSpec,
    folder: local_folder.LocalFolder,
    clock: clocks.RealClock,
    measured: metrics.Metrics,
) -> tuple[claimed.Checkpoints | None, Callable[[], Coroutine[Any, Any, None]]]:
    """None without a bucket; and what is left of the probe, to be run beside the partitions. Raises ObjectStoreRefusedError when the
    store doesn't honour conditional writes."""
    if fleet.checkpoint.bucket is None:
        return None, _nothing
    # The S3 client takes a while to import, which a worker without a bucket needn't wait for.
    from fleet_worker import probe
    from fleet_worker.adapters import probed, s3

    fleet_name = (fleet.namespace, fleet.name)
    opening = s3.open_store(
        fleet.aws, fleet.checkpoint, fleet_name, clock, on_retry=retries.ObjectRetries(clock, measured)
    )
    objects = await stack.enter_async_context(opening)
    passed = probed.Probed(folder.path, fleet.aws, fleet.checkpoint)
    left: Callable[[], Coroutine[Any, Any, None]] = _nothing
    if await clock.in_thread(passed.has_passed):
        left = functools.partial(probe.check_beside, objects, _new_nonce, clock, passed.forget)
    else:
        await probe.check(objects, _new_nonce())
        await clock.in_thread(passed.note)
    checkpoints = claimed.Checkpoints(
        objects=objects,
        manifests=custody.Manifests(objects),
        interval_s=fleet.checkpoint.interval_ms / 1000,
        one_at_a_time=asyncio.Semaphore(1),
        new_nonce=_new_nonce,
    )
    return checkpoints, left


def _new_nonce() -> str:
    return secrets.token_hex(8)


async def _nothing() -> None:
    """There is nothing to probe any more."""


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
