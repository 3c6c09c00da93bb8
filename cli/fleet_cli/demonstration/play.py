"""Plays the demo from its options to its exit code: stage → children → watch → end."""

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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import click

from fleet_cli import console, kinesis, loop
from fleet_cli.demonstration import figures, processes, stage, view
from fleet_model import spec
from fleet_worker import errors
from fleet_worker.adapters import fleet_file

WATCH_S = 1.0
LINE_S = 5.0
READY_S = 30.0
SILENT_RUN_S = 60.0
"""A run this long without any alert is a failure."""
WORKER_END_S = 15.0
WORK_OFF_S = 5.0
CHILD_END_S = 12.0


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """duration_s: None = until stopped. fleet_path: the user's own file. keep: a folder that stays."""

    devices: int
    rate: float
    port: int
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


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """The children, and the fleet with the endpoint that it has here."""

    emulator: processes.Child
    worker: processes.Child
    simulator: processes.Child
    fleet: spec.FleetSpec

    def ended(self) -> processes.Child | None:
        """A child that ended by itself."""
        return next((child for child in (self.emulator, self.worker, self.simulator) if child.has_ended), None)


async def _play(options: Options, folder: pathlib.Path) -> int:
    stop = asyncio.Event()
    now = figures.Figures()
    with loop.stopped_by_signals(stop):
        async with contextlib.AsyncExitStack() as stack:
            scene, cast = await _set_up(options, folder, stack, stop)
            failure = await _watch(options, scene, cast, now, stop)
            code = await cast.worker.end(WORKER_END_S)
            if failure is None and code != 0:
                failure = cast.worker.ended_badly()
    click.echo("\n".join(view.summary(now)))
    if options.keep is not None:
        click.echo(f"kept:           {folder}")
    if failure is not None:
        raise failure
    if now.elapsed_s > SILENT_RUN_S and not now.fired:
        raise errors.FleetTwinError(f"No alert came in {now.elapsed_s:.0f} s: something in the pipeline does not work.")
    return console.EXIT_OK


async def _set_up(
    options: Options, folder: pathlib.Path, stack: contextlib.AsyncExitStack, stop: asyncio.Event
) -> tuple[view.Scene, Cast]:
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
    await stage.make_streams(fleet, endpoint)
    region = fleet.aws.region or stage.REGION
    fleet = dataclasses.replace(fleet, aws=dataclasses.replace(fleet.aws, endpoint_url=endpoint, region=region))
    # A fleet file without endpoint or region finds the emulator by these.
    environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": region}

    _tell("starting the worker …")
    arguments = ["fleet_cli", "worker", "--fleet", str(path), "--data", str(folder / "data")]
    arguments += ["--port", str(options.port)]
    worker = await processes.start("worker", arguments, folder, environment)
    stack.push_async_callback(worker.end, WORKER_END_S)
    url = f"http://127.0.0.1:{options.port}"
    await _ready(worker, url, stop)

    _tell("starting the devices …")
    arguments = ["fleet_cli", "simulate", "--json", "--fleet", str(path), "--devices", str(options.devices)]
    arguments += ["--rate", str(options.rate), "--faults", stage.FAULTS, "--time-scale", str(stage.TIME_SCALE)]
    simulator = await processes.start("simulator", arguments, folder, environment, output=True)
    stack.push_async_callback(simulator.end, CHILD_END_S)
    scene = view.Scene(options.devices, options.rate, url, str(path), str(folder), _compressed(options, fleet))
    return scene, Cast(emulator, worker, simulator, fleet)


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


async def _ready(worker: processes.Child, url: str, stop: asyncio.Event) -> None:
    """Until the worker says that it is, or we are to stop."""
    deadline = time.monotonic() + READY_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
        while time.monotonic() < deadline and not stop.is_set():
            if worker.has_ended:
                raise worker.ended_badly()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
    if not stop.is_set():
        raise errors.FleetTwinError(
            f"The worker was not ready within {READY_S:.0f} s. The end of its log:\n{worker.tail()}"
        )


async def _watch(
    options: Options, scene: view.Scene, cast: Cast, now: figures.Figures, stop: asyncio.Event
) -> errors.FleetTwinError | None:
    """Shows figures until stopped, the duration is over, or a child ended, which it then returns as an error. Ends the
    simulator, and waits for what is on its way, so that the last figures agree with each other."""
    started = time.monotonic()
    deadline = started + options.duration_s if options.duration_s is not None else float("inf")
    streams = cast.fleet.streams
    async with kinesis.open_api(cast.fleet.aws) as api, contextlib.AsyncExitStack() as stack:
        followers = [
            await stack.enter_async_context(_beside(work))
            for work in (
                kinesis.follow(api, streams.alerts.name, now.take_alerts, WATCH_S / 2),
                kinesis.follow(api, streams.commands.name, now.take_commands, WATCH_S / 2),
            )
        ]
        await stack.enter_async_context(_beside(_read_simulator(cast.simulator, now)))
        with _screen(scene, now) as show:
            while time.monotonic() < deadline and not stop.is_set():
                ended = cast.ended()
                if ended is not None:
                    return ended.ended_badly()
                for task in followers:
                    if task.done():
                        task.result()
                now.note = f"devices are {now.late_s:.0f} s behind their schedule" if now.late_s >= 3.0 else ""
                if not await _ask(scene.url, now, started):
                    now.note = "the worker does not answer"
                show()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), min(WATCH_S, max(0.0, deadline - time.monotonic())))
        _tell("ending: devices, worker, streams …")
        await cast.simulator.end(CHILD_END_S)
        work_off_until = time.monotonic() + WORK_OFF_S
        while await _ask(scene.url, now, started) and not now.is_settled:
            if time.monotonic() > work_off_until:
                break
            await asyncio.sleep(WATCH_S / 4)
    return None


async def _ask(url: str, now: figures.Figures, started: float) -> bool:
    """Takes the worker's figures; False when it does not answer."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
            async with session.get(f"{url}/metrics") as answer:
                answer.raise_for_status()
                now.take_metrics(await answer.text(), time.monotonic() - started)
            async with session.get(f"{url}/v1/status") as answer:
                answer.raise_for_status()
                now.rules_error = (await answer.json())["rules"]["last_error"] or ""
    except (aiohttp.ClientError, TimeoutError):
        return False
    return True


async def _read_simulator(simulator: processes.Child, now: figures.Figures) -> None:
    assert simulator.process.stdout is not None
    async for line in simulator.process.stdout:
        now.take_simulator(line)


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """The work as a task, cancelled at the end."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.contextmanager
def _screen(scene: view.Scene, now: figures.Figures) -> Iterator[Callable[[], None]]:
    """A function that shows the figures: the live page on a terminal, else a line every LINE_S."""
    if not console.is_terminal():
        click.echo(f"api={scene.url}/v1/twins fleet_file={scene.fleet_path} folder={scene.folder}")
        click.echo(scene.compressed)
        next_line = 0.0

        def show_line() -> None:
            nonlocal next_line
            if now.elapsed_s >= next_line:
                next_line = now.elapsed_s + LINE_S
                click.echo(view.line(now))

        yield show_line
        return
    from rich import console as rich_console
    from rich import live

    terminal = rich_console.Console()
    with live.Live(console=terminal, screen=True, auto_refresh=False) as page:
        yield lambda: page.update(view.page(scene, now, terminal.width, terminal.height), refresh=True)
