"""Watches the demo play: asks the workers, reads the output streams, shows figures, until it is time to end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import click

from fleet_cli import console, kinesis
from fleet_cli.demonstration import controlled, crew, figures, processes, scaling, view
from fleet_model import spec
from fleet_worker import errors

WATCH_S = 1.0
TEND_S = 0.2
LINE_S = 5.0
WORK_OFF_S = 5.0
CHILD_END_S = 12.0


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """Who plays, and the fleet with the endpoint that it has here. controlled: None when there is one worker that is alone."""

    emulator: processes.Child
    simulator: processes.Child
    crew: crew.Crew
    controlled: controlled.Controlled | None
    fleet: spec.FleetSpec

    def ended(self) -> processes.Child | None:
        """A child that ended by itself, and that nobody starts again."""
        return next((child for child in (self.emulator, self.simulator) if child.has_ended), None)

    async def tend(self) -> None:
        """Raises FleetTwinError when a worker, or the control loop, can't go on."""
        if self.controlled is not None:
            await self.controlled.tend()
        else:
            await self.crew.tend({}, _nothing, _nothing_to_say)


def _nothing(name: str) -> None:
    """A worker that is alone: its death ends the demo."""


async def _nothing_to_say(name: str) -> None:
    """It never leaves."""


async def watch(
    scene: view.Scene, cast: Cast, now: figures.Figures, duration_s: float | None, stop: asyncio.Event
) -> errors.FleetTwinError | None:
    """Shows figures until stopped, the duration is over, or a child ended for good, which it then returns as an error. Ends the
    simulator, and waits for what is on its way, so that the last figures agree with each other."""
    started = now.started_s = time.monotonic()
    deadline = started + duration_s if duration_s is not None else float("inf")
    streams = cast.fleet.streams
    async with kinesis.open_api(cast.fleet.aws) as api, contextlib.AsyncExitStack() as stack:
        followers = [
            await stack.enter_async_context(_beside(work))
            for work in (
                kinesis.follow(api, streams.alerts.name, now.take_alerts, WATCH_S / 2),
                kinesis.follow(api, streams.commands.name, now.take_commands, WATCH_S / 2),
                _tend(cast, now),
            )
        ]
        await stack.enter_async_context(_beside(_read_simulator(cast.simulator, now)))
        with _screen(scene, now) as show, scaling.keys(lambda key: _on_key(cast, key)):
            while time.monotonic() < deadline and not stop.is_set():
                ended = cast.ended()
                if ended is not None:
                    return ended.ended_badly()
                for task in followers:
                    if task.done():
                        try:
                            task.result()
                        except errors.FleetTwinError as error:
                            return error
                now.note = f"devices are {now.late_s:.0f} s behind their schedule" if now.late_s >= 3.0 else ""
                if not await _ask(scene, cast, now, started):
                    now.note = "no worker answers"
                show()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), min(WATCH_S, max(0.0, deadline - time.monotonic())))
        click.echo(click.style("ending: devices, workers, streams …", dim=True), err=True)
        await cast.simulator.end(CHILD_END_S)
        work_off_until = time.monotonic() + WORK_OFF_S
        while await _ask(scene, cast, now, started) and not now.is_settled:
            if time.monotonic() > work_off_until:
                break
            await asyncio.sleep(WATCH_S / 4)
    return None


async def _tend(cast: Cast, now: figures.Figures) -> None:
    while True:
        await cast.tend()
        now.workers_wanted, now.worker_deaths = cast.crew.wanted, cast.crew.deaths
        await asyncio.sleep(TEND_S)


def _on_key(cast: Cast, key: str) -> None:
    if cast.controlled is not None and key in "+-":
        cast.crew.want(cast.crew.wanted + (1 if key == "+" else -1))


async def _ask(scene: view.Scene, cast: Cast, now: figures.Figures, started: float) -> bool:
    """Takes every worker's figures; False when none answers."""
    addresses = {"worker": scene.url}
    if cast.controlled is not None:
        cast.controlled.show()
        addresses = cast.controlled.addresses()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
        answers = await asyncio.gather(*(_metrics(session, url) for url in addresses.values()))
        texts = {name: text for name, text in zip(addresses, answers, strict=True) if text is not None}
        if not texts:
            return False
        now.take_metrics(texts, time.monotonic() - started)
        if cast.controlled is not None:
            now.rules_error = cast.controlled.rules_error
            return True
        try:
            async with session.get(f"{scene.url}/v1/status") as answer:
                answer.raise_for_status()
                now.rules_error = (await answer.json())["rules"]["last_error"] or ""
        except (aiohttp.ClientError, TimeoutError):
            return False
    return True


async def _metrics(session: aiohttp.ClientSession, url: str) -> str | None:
    try:
        async with session.get(f"{url}/metrics") as answer:
            answer.raise_for_status()
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError):
        return None


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
    """A function that shows the figures: the live page on a terminal, else a line every LINE_S, and one for what happened."""
    if not console.is_terminal():
        click.echo(f"api={scene.url}/v1/twins fleet_file={scene.fleet_path} folder={scene.folder}")
        click.echo(scene.compressed)
        next_line, told = 0.0, 0

        def show_line() -> None:
            nonlocal next_line, told
            for elapsed_s, words in now.happened_since(told):
                click.echo(f"time={elapsed_s:.0f}s {words}")
            told = now.happened_count
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
