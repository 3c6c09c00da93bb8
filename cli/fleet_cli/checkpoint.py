"""`fleet-twin checkpoint`: what is in a fleet's bucket. It reads; nothing in the bucket is ever changed by it."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from typing import TYPE_CHECKING

import click

from fleet_cli import console, show

if TYPE_CHECKING:
    from fleet_cli.checkpoints import bucket, verifying

AT_ONCE, AT_ONCE_MAX = 8, 24
FORMATS = ("parquet", "jsonl", "csv")

fleet_option = click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=pathlib.Path),
    required=True,
    envvar="FLEET_TWIN_FLEET",
    show_envvar=True,
    metavar="FILE",
    help="Fleet file: its spec.checkpoint names bucket and prefix, its spec.aws region and endpoint.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group(name="checkpoint", epilog=console.EXIT_CODES)
def command() -> None:
    """Look into the bucket: list, show, verify and export checkpoints. Workers need not run; nothing is changed.

    \b
    Examples:
      fleet-twin checkpoint ls --fleet fleet.yaml
      fleet-twin checkpoint verify --fleet fleet.yaml
      fleet-twin checkpoint export --fleet fleet.yaml --out twins.parquet
    """


@command.command(name="ls", epilog=console.EXIT_CODES)
@fleet_option
@json_option
def ls(fleet_path: pathlib.Path, as_json: bool) -> None:
    """List the fleet's partitions in the bucket: owner, checkpoint, age, twins, size.

    "owned" is a partition that its worker keeps, "released" one that any worker may claim, "ended" one whose shard was
    read to its end: its twins go on in its children. A manifest that can't be read is told, with exit code 1.

    \b
    Examples:
      fleet-twin checkpoint ls --fleet fleet.yaml
      fleet-twin checkpoint ls --fleet fleet.yaml --json | jq '.[] | select(.checkpoint.age_ms > 120000)'
    """
    from fleet_cli.checkpoints import bucket, listing

    found = bucket.run(fleet_path, bucket.partitions)
    now_ms = time.time_ns() // 1_000_000
    if as_json:
        documents = [listing.document(entry, now_ms) for entry in found]
        click.echo(json.dumps(documents, indent=2, ensure_ascii=False))
    else:
        listing.table(found, now_ms)
        listing.tell_holes(found)
    sys.exit(console.EXIT_FAILED if any(entry.trouble for entry in found) else console.EXIT_OK)


@command.command(name="show", epilog=console.EXIT_CODES)
@click.argument("shard")
@fleet_option
@json_option
def show_one(shard: str, fleet_path: pathlib.Path, as_json: bool) -> None:
    """Show the manifest of SHARD in words, and each file of its checkpoint. --json gives the manifest itself.

    \b
    Examples:
      fleet-twin checkpoint show shardId-000000000000 --fleet fleet.yaml
      fleet-twin checkpoint show shardId-000000000000 --fleet fleet.yaml --json | jq .checkpoint.position
    """
    from fleet_cli.checkpoints import bucket, listing
    from fleet_model import manifest

    async def work(opened: bucket.Opened) -> bucket.Partition:
        return (await bucket.partitions(opened, (shard,)))[0]

    entry = bucket.run(fleet_path, work)
    if entry.manifest is None:
        console.fail(entry.trouble)
    if as_json:
        click.echo(manifest.encode(entry.manifest), nl=False)
    else:
        listing.words(entry.manifest, time.time_ns() // 1_000_000)


@command.command(name="verify", epilog=console.EXIT_CODES)
@click.argument("shards", nargs=-1, metavar="[SHARD]...")
@fleet_option
@click.option(
    "--parallel",
    type=click.IntRange(1, AT_ONCE_MAX),
    default=AT_ONCE,
    show_default=True,
    metavar="N",
    help="Files that are read at the same time.",
)
@json_option
def verify(shards: tuple[str, ...], fleet_path: pathlib.Path, parallel: int, as_json: bool) -> None:
    """Read every file that the manifests name, and tell all that is wrong. Without SHARD: the whole fleet.

    Checksums, rows, the order of keys, hash ranges, deltas that build on one another, outbox numbers; for the whole
    fleet also that every hash key is spoken for. Damage is listed, with exit code 1.

    \b
    Examples:
      fleet-twin checkpoint verify --fleet fleet.yaml
      fleet-twin checkpoint verify shardId-000000000000 --fleet fleet.yaml --json
    """
    from fleet_cli.checkpoints import bucket, listing, progress, verifying

    async def work(opened: bucket.Opened) -> tuple[list[verifying.Verdict], list[str]]:
        found = await bucket.partitions(opened, shards)
        size = sum(part.size for entry in found if entry.checkpoint for part in entry.checkpoint.parts)
        with progress.bar("verifying", size, is_bytes=True) as advance:
            verifier = verifying.Verifier(opened, parallel, advance)
            verdicts = await bucket.all_of(verifier.verify(entry) for entry in found)
        return verdicts, [] if shards else listing.holes(found)

    verdicts, holes = bucket.run(fleet_path, work)
    damage = [each for verdict in verdicts for each in verdict.damage]
    damage += [verifying.Damage("", "", hole) for hole in holes]
    if as_json:
        click.echo(json.dumps(verifying.document(verdicts, damage), indent=2, ensure_ascii=False))
    else:
        _tell(verdicts, damage)
    sys.exit(console.EXIT_FAILED if damage else console.EXIT_OK)


def _tell(verdicts: list[verifying.Verdict], damage: list[verifying.Damage]) -> None:
    twins, files = sum(verdict.twins for verdict in verdicts), sum(verdict.files for verdict in verdicts)
    size = show.size(sum(verdict.bytes for verdict in verdicts))
    read = f"{len(verdicts):,} partitions, {twins:,} twins, {files:,} files, {size}"
    without = [verdict.shard_id for verdict in verdicts if not verdict.number and not verdict.damage]
    if without:
        click.echo(f"Without a checkpoint yet: {', '.join(without)}")
    if not damage:
        click.echo(click.style("All is well: ", fg="green") + read)
        return
    heads = ("partition", "file", "what is wrong")
    show.table(heads, [(each.shard_id or show.DASH, each.file or show.DASH, each.what) for each in damage])
    click.echo()
    click.echo(
        click.style("1 thing is wrong" if len(damage) == 1 else f"{len(damage):,} things are wrong", fg="red")
        + f" in {read}."
    )
    click.echo("What to do: docs/runbooks/checkpoint-broken.md", err=True)


@command.command(name="export", epilog=console.EXIT_CODES)
@fleet_option
@click.option(
    "--out",
    type=click.Path(path_type=str),
    metavar="PATH",
    help="A file; or a folder (that exists, or PATH/), which gets a file for each partition.  [default: standard output]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="[default: by the ending of --out, else jsonl; parquet in a folder]",
)
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@click.option("--shard", "shards", multiple=True, metavar="SHARD", help="Only this partition's twins; may be repeated.")
@click.option("--device", "devices", multiple=True, metavar="ID", help="Only this device's twin; may be repeated.")
@click.option("--device-prefix", default="", metavar="TEXT", help="Only device ids that start so.")
@click.option("--open-alerts", is_flag=True, help="Only twins with an open alert.")
@click.option("--columns", "wanted", metavar="A,B,…", help="Only these columns, in this order.  [default: all]")
@click.option(
    "--list-columns",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *given: _columns(*given),
    help="Show the columns' names.",
)
def export(
    fleet_path: pathlib.Path,
    out: str | None,
    form: str | None,
    force: bool,
    shards: tuple[str, ...],
    devices: tuple[str, ...],
    device_prefix: str,
    open_alerts: bool,
    wanted: str | None,
) -> None:
    """Write the twins of the newest checkpoints, a row a twin, as Parquet, JSON lines or CSV.

    Base and deltas are laid over one another; forgotten devices are left out; all filters given must match. Times are
    UTC. A file has its name only once it is complete.

    \b
    Examples:
      fleet-twin checkpoint export --fleet fleet.yaml --out twins.parquet
      fleet-twin checkpoint export --fleet fleet.yaml --out twins/ --format csv
      fleet-twin checkpoint export --fleet fleet.yaml --open-alerts --columns device_id,offline | jq .
      fleet-twin checkpoint export --fleet fleet.yaml --device sensor-7 --device truck-8
    """
    from fleet_cli.checkpoints import bucket, delivering, exporting

    path = None if out in (None, "-") else pathlib.Path(str(out))
    is_folder = path is not None and (path.is_dir() or str(out).endswith("/"))
    order = delivering.Order(
        form=form or _form(path, is_folder),
        out=path,
        is_folder=is_folder,
        force=force,
        names=_names(wanted),
        shards=shards,
        wanted=exporting.Filter(device_prefix.encode(), frozenset(device.encode() for device in devices), open_alerts),
    )
    delivering.check(order)
    sys.exit(bucket.run(fleet_path, lambda opened: delivering.export(opened, order)))


def _form(path: pathlib.Path | None, is_folder: bool) -> str:
    if path is None:
        return "jsonl"
    ending = path.suffix.removeprefix(".").lower()
    if is_folder:
        return "parquet"
    if ending not in FORMATS:
        raise click.BadParameter(
            f"{path.name} doesn't end in .parquet, .jsonl or .csv; say which with --format", param_hint="--out"
        )
    return ending


def _names(wanted: str | None) -> tuple[str, ...]:
    from fleet_cli.checkpoints import columns

    if wanted is None:
        return tuple(columns.COLUMNS)
    names = tuple(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
    unknown = [name for name in names if name not in columns.COLUMNS]
    if unknown or not names:
        raise click.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is no column; there are {', '.join(columns.COLUMNS)}",
            param_hint="--columns",
        )
    return names


def _columns(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from fleet_cli.checkpoints import columns

        click.echo("\n".join(columns.COLUMNS))
        context.exit()
