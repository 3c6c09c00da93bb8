"""`fleet-twin partitions`: who has which partition, as the control folder tells it."""

from __future__ import annotations

import dataclasses
import http.client
import json
import pathlib
import time
import urllib.request
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import click

from fleet_cli import console, partition_skip, show

if TYPE_CHECKING:
    from fleet_model import twin_partition
    from fleet_worker import control_plane

ASK_S_MAX = 1.0
ANSWER_BYTES_MAX = 64 * 2**20
TWINS, CHECKPOINT_TIME = "fleet_twin_twins", "fleet_twin_checkpoint_time_seconds"
PHASE_COLOURS = {"Running": "green", "Failed": "red", "Draining": "yellow", "Restoring": "yellow", "Released": "yellow"}


@click.group(name="partitions", invoke_without_command=True, epilog=console.EXIT_CODES)
@partition_skip.control_option
@click.option("--json", "as_json", is_flag=True, help="The TwinPartition objects as JSON.")
@click.pass_context
def command(context: click.Context, control_folder: pathlib.Path | None, as_json: bool) -> None:
    """Show every partition: its worker, phase, epoch, twins, the age of its last checkpoint.

    Twins and ages are those of this moment, if the workers answer; their objects tell them seldom.

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
        fresh = _fresh([beat.address for beat in heartbeats.values() if not beat.is_silent(now_ms)])
        show.table(heads, [row(entry, now_ms, fresh) for entry in partitions.values()])
    else:
        click.echo("No partitions yet.")
    click.echo()
    if heartbeats:
        show.table(("worker", "state", "partitions", "records/s", "API"), _workers(partitions, heartbeats, now_ms))
    else:
        click.echo("No workers.")


command.add_command(partition_skip.command)


@dataclasses.dataclass(frozen=True, slots=True)
class Fresh:
    """What a worker tells of a partition just now. None: it doesn't."""

    twins: int | None
    checkpoint_ms: int | None


def _fresh(addresses: Iterable[str]) -> dict[str, Fresh]:
    """By shard id, of the workers that answer."""
    from prometheus_client import parser

    told: dict[tuple[str, str], float] = {}
    for address in addresses:
        try:
            with urllib.request.urlopen(f"{address}/metrics", timeout=ASK_S_MAX) as answer:
                text = answer.read(ANSWER_BYTES_MAX).decode()
        except (OSError, ValueError, http.client.HTTPException):
            continue
        for family in parser.text_string_to_metric_families(text):
            if family.name in (TWINS, CHECKPOINT_TIME):
                told |= {(family.name, sample.labels["shard"]): sample.value for sample in family.samples}
    found = {}
    for shard_id in {shard_id for _, shard_id in told}:
        twins, time_s = told.get((TWINS, shard_id)), told.get((CHECKPOINT_TIME, shard_id))
        found[shard_id] = Fresh(
            None if twins is None else int(twins), round(time_s * 1000) if time_s is not None and time_s > 0 else None
        )
    return found


def row(entry: twin_partition.TwinPartition, now_ms: int, fresh: Mapping[str, Fresh]) -> tuple[str, ...]:
    """One line of the table."""
    status = entry.status
    now = fresh.get(entry.spec.shard_id, Fresh(None, None))
    checkpoint_ms = now.checkpoint_ms or (status.checkpoint.time_ms if status.checkpoint is not None else None)
    checkpoint = show.DASH
    if checkpoint_ms is not None:
        checkpoint = show.age(max(0, now_ms - checkpoint_ms))
        if status.checkpoint_stale:
            checkpoint = click.style(f"{checkpoint}, stale", fg="yellow")
    return (
        entry.spec.shard_id,
        whose(entry),
        click.style(status.phase, fg=PHASE_COLOURS.get(status.phase)),
        str(entry.spec.epoch),
        f"{status.twins if now.twins is None else now.twins:,}",
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
