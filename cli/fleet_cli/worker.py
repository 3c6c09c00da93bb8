"""`fleet-twin worker`: one worker. What it does is `fleet_worker.main`'s business."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys

import click

from fleet_cli import console


@click.command(name="worker", epilog=console.EXIT_CODES)
@click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=pathlib.Path),
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
@click.option(
    "--control",
    "control_folder",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    metavar="DIR",
    help="Share the fleet with other workers: the folder in which its control loop says who owns what.",
)
@click.option(
    "--kubernetes",
    "in_kubernetes",
    is_flag=True,
    help="In a pod of the operator's: fleet, rules and partitions come from the API server, the worker's name from POD_NAME.",
)
@click.option(
    "--pod-token",
    "token_folder",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    metavar="DIR",
    help="A folder in memory that goes with the pod: another pod on this disk trusts only what was closed cleanly.",
)
@click.option("--name", metavar="NAME", help="Of this worker, with --control: its own, and the same at every start.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the HTTP API.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 = a free one.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is logged to standard error.",
)
def command(
    fleet_path: pathlib.Path | None,
    data_folder: pathlib.Path,
    control_folder: pathlib.Path | None,
    in_kubernetes: bool,
    token_folder: pathlib.Path | None,
    name: str | None,
    host: str,
    port: int,
    log_level: str,
) -> None:
    """Run a worker that owns every shard of the fleet's telemetry stream, and shards that appear later.

    With --control and --name it owns what the control loop gives it instead: `fleet-twin demo --workers N` shows that. With
    --kubernetes, which the operator's pods run, it owns what the fleet's TwinPartitions say.

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

    loop.end_by_sigterm()
    from fleet_worker.adapters import allocation

    allocation.share_one_arena()
    from fleet_worker import main
    from fleet_worker.adapters import control_files

    if (fleet_path is None) != in_kubernetes:
        raise click.UsageError("Give --fleet FILE, or --kubernetes in a pod of the operator's.")
    if in_kubernetes and control_folder is not None:
        raise click.UsageError("--control is for workers outside Kubernetes.")
    if (control_folder is None) != (name is None):
        raise click.UsageError("--control and --name go together: the control loop knows each worker by its name.")
    if name is not None and not control_files.is_name(name):
        raise click.BadParameter("letters, digits, dashes, underscores and dots, such as worker-0", param_hint="--name")
    logs.configure(log_level)
    options = main.Options(fleet_path, data_folder, host, port, token_folder=token_folder)
    if control_folder is not None and name is not None:
        options = dataclasses.replace(options, control_folder=control_folder, name=name)
    with console.told_plainly():
        if in_kubernetes:
            options = main.in_pod(options, os.environ)
        sys.exit(loop.run(main.run(options)))
