"""`fleet-twin`: the commands by name, each imported only when it is used, so that --help is quick."""

from __future__ import annotations

import importlib
import importlib.util

import click

from fleet_cli import console

COMMANDS = {
    "demo": ("demo", "The whole system on this machine, with a live view. Start here."),
    "worker": ("worker", "Run a worker that owns every shard of a fleet's stream."),
    "operator": ("operator", "Run the operator: makes fleets in Kubernetes what their DeviceFleet objects say."),
    "simulate": ("simulate", "Put a believable fleet's telemetry on a fleet's stream."),
    "twin": ("twin", "Look at twins: get one, list many."),
    "alerts": ("alerts", "List the alerts that are open."),
    "status": ("status", "Show what a worker does: partitions, lag, rules."),
    "partitions": ("partitions", "Show who has which partition, when several workers share a fleet."),
    "try": ("trying", "Push a hot device through a fleet and wait for its command."),
    "checkpoint": ("checkpoint", "Look into the bucket: list, show, verify and export checkpoints."),
    "bench": ("bench", "Measure the engine and the worker."),
}
"""Command → (module, one line of help). A module `fleet_cli.X` holds a click command named `command`."""


class Commands(click.Group):
    """Imports a command's module when the command is asked for, and not for the list of commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (module, _) in COMMANDS.items() if importlib.util.find_spec(f"fleet_cli.{module}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found = importlib.import_module(f"fleet_cli.{COMMANDS[cmd_name][0]}").command
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=console.EXIT_CODES,
)
@click.version_option(package_name="fleet-twin", prog_name="fleet-twin")
def main() -> None:
    """A digital twin for every device of a fleet.

    Telemetry comes in from a Kinesis stream; alerts and commands go out to two others. Each device's twin is kept
    by a worker and can be asked for.

    \b
    Examples:
      fleet-twin demo                                     see it all at work, nothing else needed
      fleet-twin worker --fleet fleet.yaml --data ./data  a worker for your own streams
      fleet-twin simulate --fleet fleet.yaml --devices 10000
      fleet-twin twin get sensor-7                        one device's twin
      fleet-twin alerts                                   what is wrong just now
    """
