"""How many workers the demo is to have: a file in its folder that another terminal writes, and keys on its own.

`fleet-twin demo scale N` writes the file, then watches the control folder until it has come true.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping

import click

from fleet_cli import running
from fleet_cli.control import moves, watching
from fleet_cli.demonstration import crew
from fleet_model import twin_partition
from fleet_model.twin_partition import Phase
from fleet_worker import control_plane, errors
from fleet_worker.adapters import control_files

STEADY_S = 2.0
"""All is as it should be for so long: the control loop has looked at it, and wants nothing else."""
SETTLED_S_MAX = 180.0
POLL_S = 0.1


def write_wanted(path: pathlib.Path, count: int) -> None:
    """Raises FleetTwinError."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        draft.write_text(json.dumps({"workers": count}))
        draft.replace(path)
    except OSError as error:
        raise errors.FleetTwinError(f"The demo can't be told: {path}: {error.strerror}") from error


def read_wanted(path: pathlib.Path) -> int | None:
    """None when nobody has asked for anything."""
    try:
        count = json.loads(path.read_text())["workers"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return count if isinstance(count, int) else None


async def scale(demo: running.Demo, count: int, wait: bool) -> None:
    """Tells the demo, and each move as it ends; returns when the workers that are wanted own everything.

    Raises FleetTwinError when that takes too long.
    """
    files = control_files.ControlFiles(demo.control)
    watch = watching.Watching(files, lambda move: click.echo(_line(move)))
    looking = asyncio.create_task(watch.run())
    try:
        await asyncio.sleep(2 * watching.LOOK_S)  # who owned what before
        write_wanted(demo.scale_path, count)
        click.echo(f"{count} {'worker' if count == 1 else 'workers'} wanted", err=True)
        if wait:
            await _settled(demo, watch, count, looking)
    finally:
        looking.cancel()
        await asyncio.wait([looking])


async def _settled(demo: running.Demo, watch: watching.Watching, count: int, looking: asyncio.Task[None]) -> None:
    deadline = time.monotonic() + SETTLED_S_MAX
    steady_since = time.monotonic()
    while time.monotonic() - steady_since < STEADY_S:
        if looking.done():
            looking.result()
        unsettled = why_unsettled(watch.partitions, watch.heartbeats, count)
        if watch.trouble:
            raise errors.FleetTwinError(f"The demo has ended: {watch.trouble}")
        if unsettled:
            steady_since = time.monotonic()
        if time.monotonic() > deadline:
            raise errors.FleetTwinError(
                f"It is not done after {SETTLED_S_MAX:.0f} s: {unsettled}. See fleet-twin partitions, and the logs in {demo.folder}"
            )
        await asyncio.sleep(POLL_S)
    owned = ", ".join(
        f"{name} {sum(entry.spec.worker == name for entry in _open(watch.partitions))}" for name in watch.heartbeats
    )
    click.echo(f"done: partitions of {owned}")


def why_unsettled(
    partitions: Mapping[str, twin_partition.TwinPartition],
    heartbeats: Mapping[str, control_plane.Heartbeat],
    count: int,
) -> str:
    """Why the fleet isn't yet what `count` workers make of it; "" when it is."""
    names = {crew.name_of(ordinal) for ordinal in range(count)}
    if set(heartbeats) - names:
        return f"{', '.join(sorted(set(heartbeats) - names))} has not left"
    for name in sorted(names):
        if name not in heartbeats or not heartbeats[name].ready:
            return f"{name} is not ready"
    standbys_min = min((len(entry.spec.standby) for entry in _open(partitions)), default=0)
    for entry in _open(partitions):
        spec, status = entry.spec, entry.status
        # Whoever has one more than the others is about to move.
        if spec.worker not in names or len(spec.standby) > standbys_min:
            return f"{spec.shard_id} is to leave {spec.worker or 'nobody'}"
        if (status.phase, status.worker, status.epoch) != (Phase.RUNNING, spec.worker, spec.epoch):
            return f"{spec.shard_id} is {status.phase}" + (f" ({status.message})" if status.message else "")
    busy = {entry.spec.worker for entry in _open(partitions)}
    if len(busy) < min(count, len(list(_open(partitions)))):
        return f"{', '.join(sorted(names - busy))} owns nothing yet"
    return ""


def _open(partitions: Mapping[str, twin_partition.TwinPartition]) -> Iterator[twin_partition.TwinPartition]:
    return (entry for entry in partitions.values() if entry.status.phase is not Phase.CLOSED)


def _line(move: moves.Move) -> str:
    return f"move: {move.words}"


@contextlib.contextmanager
def keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Hears each key at once, without echo, while the input is a terminal; Ctrl-C stays what it is. Inside a running event loop."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        typed = os.read(descriptor, 64)
        if not typed:
            loop.remove_reader(descriptor)
        for key in typed.decode(errors="replace"):
            on_key(key)

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
