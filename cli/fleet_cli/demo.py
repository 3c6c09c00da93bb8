"""`fleet-twin demo`: the whole system on this machine. What it does is in `demonstration`."""

from __future__ import annotations

import pathlib
import sys

import click

from fleet_cli import console, demonstration

DEVICES_MAX = 100_000
RATE_MAX = 10_000.0


@click.group(name="demo", invoke_without_command=True, epilog=console.EXIT_CODES)
@click.pass_context
@click.option(
    "--devices", type=click.IntRange(1, DEVICES_MAX), default=1000, show_default=True, metavar="N", help="How many."
)
@click.option(
    "--rate",
    type=click.FloatRange(0, RATE_MAX, min_open=True),
    metavar="R",
    help="Records/s of all devices together.  [default: N/2]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, demonstration.WORKERS_MAX),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that share the fleet.",
)
@click.option(
    "--duration", type=click.FloatRange(1), metavar="SECONDS", help="End after this long.  [default: at Ctrl-C]"
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8080, show_default=True, metavar="P", help="Of the HTTP API."
)
@click.option(
    "--fleet-file",
    "fleet_path",
    type=click.Path(path_type=pathlib.Path, dir_okay=False),
    metavar="PATH",
    help="A fleet file of yours instead of the demo's. It is only read; its streams are made on the demo's Kinesis.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    metavar="DIR",
    help="A new folder for fleet file, twins and logs, which stays.  [default: a temporary one]",
)
def command(
    context: click.Context,
    devices: int,
    rate: float | None,
    workers: int,
    duration: float | None,
    port: int,
    fleet_path: pathlib.Path | None,
    keep: pathlib.Path | None,
) -> None:
    """Watch a simulated fleet being twinned, alerted and commanded. Nothing else is needed.

    Starts an embedded Kinesis and S3 (moto), workers, and a fleet of simulated devices in which some run hot, lose charge
    or fall silent; shows a live view on a terminal, plain lines elsewhere. Everything ends with Ctrl-C, and nothing
    stays but what --keep keeps.

    While it runs, from a second terminal: edit the fleet file whose path is shown, or ask the worker with
    `fleet-twin twin get sensor-0`, `fleet-twin alerts`, `fleet-twin status`. `fleet-twin demo scale 3` changes the number of
    workers, as do the keys + and - in the live view; `fleet-twin partitions` shows who has what.

    \b
    Examples:
      fleet-twin demo
      fleet-twin demo --devices 5000 --rate 2000
      fleet-twin demo --workers 2
      fleet-twin demo --duration 60 --keep ./demo
      fleet-twin demo --fleet-file my-fleet.yaml --port 9090

    A worker that dies is started again. Exits with 1 when one dies again and again, or when a run over a minute long brought no
    alert.
    """
    if context.invoked_subcommand is not None:
        return
    from fleet_cli.demonstration import play

    default_rate = min(RATE_MAX, max(1.0, devices / 2.0))
    options = play.Options(devices, default_rate if rate is None else rate, port, workers, duration, fleet_path, keep)
    with console.told_plainly():
        sys.exit(play.play(options))


@command.command(name="scale", epilog=console.EXIT_CODES)
@click.argument("workers", type=click.IntRange(1, demonstration.WORKERS_MAX), metavar="N")
@click.option(
    "--folder",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    metavar="DIR",
    help="Of the demo, when several run.",
)
@click.option("--no-wait", is_flag=True, help="Return at once, not when every partition has found its place.")
def scale(workers: int, folder: pathlib.Path | None, no_wait: bool) -> None:
    """Change the number of workers of the demo that runs in another terminal, while records flow.

    Prints each move when it is over: the partition, from which worker, to which, and how long its pause was: from the moment the
    former owner stops reading it to the first record that the new one applies. A worker that is to leave ends once
    it owns nothing.

    \b
    Examples:
      fleet-twin demo scale 3
      fleet-twin demo scale 1
    """
    from fleet_cli import loop, running
    from fleet_cli.demonstration import scaling

    with console.told_plainly():
        loop.run(scaling.scale(running.find_in(folder), workers, wait=not no_wait))
