"""`fleet-twin partitions`: who has which partition, as the control folder tells it."""

from __future__ import annotations

import json
import pathlib
import time
from typing import TYPE_CHECKING

import click

from fleet_cli import console, partition_skip, show

if TYPE_CHECKING:
    from fleet_model import twin_partition
    from fleet_worker import control_plane

PHASE_COLOURS = {"Running": "green", "Failed": "red", "Draining": "yellow", "Restoring": "yellow", "Released": "yellow"}


@click.group(name="partitions", invoke_without_command=True, epilog=console.EXIT_CODES)
@partition_skip.control_option
@click.option("--json", "as_json", is_flag=True, help="The TwinPartition objects as JSON.")
@click.pass_context
def command(context: click.Context, control_folder: pathlib.Path | None, as_json: bool) -> None:
    """Show every partition: its worker, phase, epoch, twins, the age of its last checkpoint.

    "worker-0 → worker-1" is a partition on its way, "worker-0 (worker-1)" one of which worker-1 keeps a warm copy.

    \b
    Examples:
      fleet-twin partitions
      fleet-twin partitions --control ./control --json
      fleet-twin partitions skip shardId-000000000000 --to 23h
    """
    if context.invoked_subcommand is not None:
        return
    from fleet_cli import running
    from fleet_model import twin_partition_document
    from fleet_worker.adapters import control_files

    with console.told_plainly():
        files = control_files.ControlFiles(control_folder or running.find().control)
        partitions = control_files.Look(files).partitions()
        heartbeats = files.heartbeats()
    if as_json:
        documents = [twin_partition_document.document(entry) for entry in partitions.values()]
        click.echo(json.dumps(documents, indent=2, ensure_ascii=False))
        return
    now_ms = time.time_ns() // 1_000_000
    if partitions:
        heads = ("partition", "worker", "phase", "epoch", "twins", "checkpoint", "message")
        show.table(heads, [row(entry, now_ms) for entry in partitions.values()])
    else:
        click.echo("No partitions yet.")
    click.echo()
    if heartbeats:
        show.table(("worker", "state", "partitions", "records/s", "API"), _workers(partitions, heartbeats, now_ms))
    else:
        click.echo("No workers.")


command.add_command(partition_skip.command)


def row(entry: twin_partition.TwinPartition, now_ms: int) -> tuple[str, ...]:
    """One line of the table."""
    status = entry.status
    checkpoint = show.DASH
    if status.checkpoint is not None:
        checkpoint = show.age(now_ms - status.checkpoint.time_ms)
        if status.checkpoint_stale:
            checkpoint = click.style(f"{checkpoint}, stale", fg="yellow")
    return (
        entry.spec.shard_id,
        whose(entry),
        click.style(status.phase, fg=PHASE_COLOURS.get(status.phase)),
        str(entry.spec.epoch),
        f"{status.twins:,}",
        checkpoint,
        status.message,
    )


def whose(entry: twin_partition.TwinPartition) -> str:
    """Its worker, and where it is on its way to."""
    spec, status = entry.spec, entry.status
    owner = spec.worker or show.DASH
    if status.worker and status.worker != spec.worker:
        owner = f"{status.worker} → {owner}"
    return f"{owner} ({', '.join(spec.standby)})" if spec.standby else owner


def _workers(
    partitions: dict[str, twin_partition.TwinPartition], heartbeats: dict[str, control_plane.Heartbeat], now_ms: int
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, beat in heartbeats.items():
        state = click.style("ready", fg="green") if beat.ready else click.style("not ready", fg="yellow")
        if beat.is_silent(now_ms):
            state = click.style(f"silent for {show.age(now_ms - beat.time_ms)}", fg="red")
        owned = sum(entry.spec.worker == name for entry in partitions.values())
        rows.append((name, state, str(owned), f"{sum(beat.load.values()):,.0f}", beat.address))
    return rows
