"""Plays the demo from its options to its exit code: stage → workers → devices → watch → end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import shutil
import tempfile
import time

import aiohttp
import click

from fleet_cli import console, loop
from fleet_cli.demonstration import controlled, crew, figures, processes, stage, view, watch
from fleet_model import spec
from fleet_worker import errors
from fleet_worker.adapters import fleet_file

READY_S = 30.0
SILENT_RUN_S = 60.0
"""A run this long without any alert is a failure."""
CHILD_END_S = 12.0


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """duration_s: None = until stopped. fleet_path: the user's own file. keep: a folder that stays."""

    devices: int
    rate: float
    port: int
    workers: int = 1
    duration_s: float | None = None
    fleet_path: pathlib.Path | None = None
    keep: pathlib.Path | None = None


def play(options: Options) -> int:
    """The exit code. Raises FleetTwinError and InvalidFleetError."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise errors.FleetTwinError(
            "The demo needs moto's server for its Kinesis and S3. Install it with: pip install 'fleet-twin[demo]'"
        )
    folder = _folder(options.keep)
    _forget_aws()
    try:
        return loop.run(_play(options, folder))
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _forget_aws() -> None:
    """The user's own keys and settings stay out of this; an emulator checks none, but a client wants some to sign with."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(
        AWS_ACCESS_KEY_ID="demo",
        AWS_SECRET_ACCESS_KEY="demo",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    )


def _folder(keep: pathlib.Path | None) -> pathlib.Path:
    if keep is None:
        return pathlib.Path(tempfile.mkdtemp(prefix="fleet-twin-demo-"))
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise errors.FleetTwinError(
                f"{keep} is not empty. The demo's streams begin anew each time, so its twins must, too: give a new folder."
            )
    except OSError as error:
        raise errors.FleetTwinError(f"The folder {keep} can't be made: {error.strerror}") from error
    return keep.resolve()


async def _play(options: Options, folder: pathlib.Path) -> int:
    stop = asyncio.Event()
    now = figures.Figures(workers_wanted=options.workers)
    with loop.stopped_by_signals(stop):
        async with contextlib.AsyncExitStack() as stack:
            scene, cast = await _set_up(options, folder, now, stack, stop)
            failure = await watch.watch(scene, cast, now, options.duration_s, stop)
            if cast.controlled is not None:
                await cast.controlled.end()  # first, or it would give the partitions of ending workers to others
            failure = failure or await cast.crew.end()
    click.echo("\n".join(view.summary(now)))
    if options.keep is not None:
        click.echo(f"kept:           {folder}")
    if failure is not None:
        raise failure
    if now.elapsed_s > SILENT_RUN_S and not now.fired:
        raise errors.FleetTwinError(f"No alert came in {now.elapsed_s:.0f} s: something in the pipeline does not work.")
    return console.EXIT_OK


async def _set_up(
    options: Options,
    folder: pathlib.Path,
    now: figures.Figures,
    stack: contextlib.AsyncExitStack,
    stop: asyncio.Event,
) -> tuple[view.Scene, watch.Cast]:
    """Children that are left when the stack unwinds are ended then; ending one twice does no harm."""
    path = options.fleet_path
    port = stage.emulator_port(fleet_file.load(path)) if path is not None else 0
    _tell("starting Kinesis and S3 …")
    arguments = ["fleet_cli.emulator", str(port)]
    emulator = await processes.start("Kinesis emulator", arguments, folder, {}, output=True)
    stack.push_async_callback(emulator.end, CHILD_END_S)
    endpoint = f"http://127.0.0.1:{await processes.read_port(emulator)}"
    if path is None:
        path = folder / "fleet.yaml"
        stage.write_fleet_file(path, endpoint)
    fleet = fleet_file.load(path)
    is_shared = fleet.checkpoint.bucket is not None
    if options.workers > 1 and not is_shared:
        raise errors.FleetTwinError(
            "Several workers hand partitions over through a bucket: name one in the fleet file's spec.checkpoint.bucket (the demo makes it)."
        )
    await stage.make_streams(fleet, endpoint, options.workers)
    region = fleet.aws.region or stage.REGION
    fleet = dataclasses.replace(fleet, aws=dataclasses.replace(fleet.aws, endpoint_url=endpoint, region=region))
    # A fleet file without endpoint or region finds the emulator by these.
    environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": region}

    _tell("starting the worker …" if options.workers == 1 else f"starting {options.workers} workers …")
    place = crew.Place(path, folder, folder / "control" if is_shared else None, options.port, environment)
    workers = crew.Crew(place, options.workers, lambda words: now.happen(words, time.monotonic()))
    stack.push_async_callback(workers.end)
    shared = None
    if place.control is not None:
        shared = controlled.Controlled(place.control, path, fleet, workers, now)
        await stack.enter_async_context(shared.running())
    await workers.start()
    url = f"http://127.0.0.1:{options.port}"
    await _ready(workers, shared, url, stop)

    _tell("starting the devices …")
    arguments = ["fleet_cli", "simulate", "--json", "--fleet", str(path), "--devices", str(options.devices)]
    arguments += ["--rate", str(options.rate), "--faults", stage.FAULTS, "--time-scale", str(stage.TIME_SCALE)]
    simulator = await processes.start("simulator", arguments, folder, environment, output=True)
    stack.push_async_callback(simulator.end, CHILD_END_S)
    scene = view.Scene(
        options.devices, options.rate, url, str(path), str(folder), _compressed(options, fleet), shared is not None
    )
    return scene, watch.Cast(emulator, simulator, workers, shared, fleet)


def _compressed(options: Options, fleet: spec.FleetSpec) -> str:
    """What is quicker here than in life."""
    offline_s = fleet.rules.offline.after_ms / 1000.0
    interval_s = options.devices / options.rate
    return (
        f"Time is compressed: a day takes {24 * 60 / stage.TIME_SCALE:.0f} min, each device speaks every {interval_s:.1f} s, "
        f"offline after {offline_s:.0f} s."
    )


def _tell(text: str) -> None:
    click.echo(click.style(text, dim=True), err=True)


async def _ready(workers: crew.Crew, shared: controlled.Controlled | None, url: str, stop: asyncio.Event) -> None:
    """Until every worker is ready and every partition runs, or we are to stop."""
    deadline = time.monotonic() + READY_S
    why = ""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
        while time.monotonic() < deadline and not stop.is_set():
            for child in workers.children.values():
                if child.has_ended:
                    raise child.ended_badly()
            if shared is not None:
                shared.raise_if_failed()
                why = shared.why_not_ready()
            if not why:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{url}/readyz") as answer:
                        if answer.status == 200:
                            return
            await asyncio.sleep(0.1)
    if not stop.is_set():
        logs = "\n".join(f"{name}:\n{child.tail()}" for name, child in workers.children.items())
        raise errors.FleetTwinError(
            f"Not ready within {READY_S:.0f} s{why and f' ({why})'}. The ends of the workers' logs:\n{logs}"
        )
