"""`fleet-twin partitions skip`: the way out for a partition whose position the stream no longer holds. What was lost stays lost.

It says only from when on to read; the partition's owner does the rest when it begins anew: it lifts every device's last arrival to that
time, so that nobody is called offline for what nobody could read. A partition that runs is refused, since it has nothing to skip.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import time
from typing import TYPE_CHECKING

import click

from fleet_cli import console, loop, show

if TYPE_CHECKING:
    from fleet_model import twin_partition
    from fleet_worker.adapters import control_folder as adapter

WRITES_MAX = 10
"""The control loop may change the object in between."""

control_option = click.option(
    "--control",
    "control_folder",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    envvar="FLEET_TWIN_CONTROL",
    show_envvar=True,
    metavar="DIR",
    help="The control folder.  [default: the running demo's]",
)


@click.command(name="skip", epilog=console.EXIT_CODES)
@click.argument("shard")
@click.option(
    "--to",
    "to_text",
    required=True,
    metavar="TIME",
    help="Read on from records that arrived then: 2026-03-01T08:00:00Z, or 23h for so long ago.",
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@control_option
def command(shard: str, to_text: str, yes: bool, control_folder: pathlib.Path | None) -> None:
    """Let a Failed partition go on from TIME: records between its position and TIME count as never sent.

    Only for a partition that says "records are lost". Its twins, open alerts and limits stay; alerts that the lost
    records would have raised are never raised. Take the oldest time that the stream still holds: with a retention of
    24 hours, 23h.

    \b
    Examples:
      fleet-twin partitions skip shardId-000000000000 --to 23h
      fleet-twin partitions skip shardId-000000000000 --to 2026-03-01T08:00:00Z --yes --control ./control
    """
    from fleet_cli import running

    now_ms = time.time_ns() // 1_000_000
    to_ms = time_ms(to_text, now_ms)
    if to_ms > now_ms:
        raise click.BadParameter("lies in the future", param_hint="--to")
    with console.told_plainly():
        folder = control_folder or running.find().control
        loop.run(_skip(folder, shard, to_ms, yes=yes))
    click.echo(f"{shard} goes on from {show.moment(to_ms)} when its owner next tries, within a minute.")


def time_ms(text: str, now_ms: int) -> int:
    """Milliseconds of a time with its zone, or of a span before now. Raises click.BadParameter."""
    from fleet_model import durations

    try:
        return now_ms - durations.parse_ms(text)
    except ValueError:
        pass  # then it is a time
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter(
            f"{text!r} is neither a time with its zone (2026-03-01T08:00:00Z) nor a span (23h)", param_hint="--to"
        )
    return round(moment.timestamp() * 1000)


async def _skip(folder: pathlib.Path, shard_id: str, to_ms: int, *, yes: bool) -> None:
    from fleet_worker import errors
    from fleet_worker.adapters import clock
    from fleet_worker.adapters import control_folder as adapter

    with clock.RealClock() as real:
        plane = adapter.ControlFolder(folder, real)
        entry = await _failed(plane, folder, shard_id)
        click.echo(f"{shard_id} says: {entry.status.message}", err=True)
        if not yes:
            click.confirm(f"Give up its unread records before {show.moment(to_ms)}?", abort=True, err=True)
        for _ in range(WRITES_MAX):
            wanted = dataclasses.replace(entry.spec, skip_to_ms=to_ms)
            try:
                await plane.update_spec(shard_id, wanted, entry.resource_version)
                return
            except errors.PreconditionFailedError:
                entry = await _failed(plane, folder, shard_id)
        console.fail(f"{shard_id} changed each time before it could be written; try again.")


async def _failed(plane: adapter.ControlFolder, folder: pathlib.Path, shard_id: str) -> twin_partition.TwinPartition:
    """The partition's object, if it is one that can't go on. Ends the command otherwise."""
    from fleet_model import twin_partition

    known = await plane.partitions()
    entry = known.get(shard_id)
    if entry is None:
        console.fail(
            f"{folder} has no partition {shard_id}; `fleet-twin partitions` lists them.", console.EXIT_NOT_FOUND
        )
    if entry.status.phase is not twin_partition.Phase.FAILED:
        console.fail(f"{shard_id} is {entry.status.phase}: only a Failed partition whose records are lost is skipped.")
    return entry
