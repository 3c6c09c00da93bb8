"""`fleet-twin worker`: one worker outside Kubernetes. What it does is `fleet_worker.main`'s business."""

from __future__ import annotations

import pathlib
import sys

import click

from fleet_cli import console


@click.command(name="worker", epilog=console.EXIT_CODES)
@click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=pathlib.Path),
    required=True,
    metavar="FILE",
    help="Fleet file (DeviceFleet YAML). Edits of its rules and profiles take effect within 2 s.",
)
@click.option(
    "--data",
    "data_folder",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="This worker's folder: twins, position, rules generations. Made when missing.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the HTTP API.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 = a free one.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is logged to standard error.",
)
def command(fleet_path: pathlib.Path, data_folder: pathlib.Path, host: str, port: int, log_level: str) -> None:
    """Run a worker that owns every shard of the fleet's telemetry stream, and shards that appear later.

    It keeps twins in DIR, sends alerts and commands, and answers at http://HOST:PORT/v1/twins. Ctrl-C or SIGTERM
    ends it after a last commit; started again on the same DIR it goes on where it was. AWS credentials come from the
    usual places (environment, profile, role).

    \b
    Examples:
      fleet-twin worker --fleet fleet.yaml --data ./data
      fleet-twin worker --fleet fleet.yaml --data /var/lib/fleet-twin --port 9090
      AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test fleet-twin worker --fleet local.yaml --data ./data
    """
    from fleet_cli import logs, loop
    from fleet_worker import main

    logs.configure(log_level)
    with console.told_plainly():
        sys.exit(loop.run(main.run(main.Options(fleet_path, data_folder, host, port))))
