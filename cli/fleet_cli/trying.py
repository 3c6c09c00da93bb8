"""`fleet-twin try`: a device that is too hot, for once, to see a command come back. What `helm test` runs.

The device is one of its own, and is forgotten afterwards: nobody else's twin is touched. Consumers of the alerts and commands see it like
any other device. It looks only at what is on the streams, so it tries the way that records really go.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import time
from typing import TYPE_CHECKING

import click

from fleet_cli import console

if TYPE_CHECKING:
    from fleet_cli import hot_device
    from fleet_model import spec

TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """Which fleet: a file, or an object of Kubernetes. name: None = the only one of the namespace."""

    path: pathlib.Path | None
    is_in_kubernetes: bool
    name: str | None
    namespace: str | None


@click.command(name="try", epilog=console.EXIT_CODES)
@click.option("--fleet", "path", type=click.Path(path_type=pathlib.Path), metavar="FILE", help="Fleet file.")
@click.option("--kubernetes", is_flag=True, help="The fleet is a DeviceFleet of the cluster at hand.")
@click.option("--name", metavar="NAME", help="With --kubernetes: which fleet.  [default: the only one]")
@click.option("-n", "--namespace", metavar="NAMESPACE", help="With --kubernetes.  [default: the current one]")
@click.option("--device", metavar="ID", help="The device's id, when a profile must match it.  [default: a new one]")
@click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the answer.",
)
def command(
    path: pathlib.Path | None,
    kubernetes: bool,
    name: str | None,
    namespace: str | None,
    device: str | None,
    timeout: float,
) -> None:
    """Push a device's hot records through a fleet, and wait for the command that answers them.

    Puts as many records above the temperature limit on the telemetry stream as the rule wants in a row, waits for its command
    (its alert, when the rule has no command), and lets the fleet forget the device.

    \b
    Examples:
      fleet-twin try --fleet fleet.yaml
      fleet-twin try --kubernetes --name trucks -n default
    """
    if (path is None) == (not kubernetes):
        raise click.UsageError("Say where the fleet is: either --fleet FILE or --kubernetes.")
    if path is not None and (name or namespace):
        raise click.UsageError("--name and --namespace go with --kubernetes.")
    from fleet_cli import hot_device, loop

    with console.told_plainly():
        fleet = _fleet(Where(path, kubernetes, name, namespace))
        told = loop.run(_try(fleet, hot_device.plan(fleet, device), timeout))
    click.echo(told)


def _fleet(where: Where) -> spec.FleetSpec:
    from fleet_worker.adapters import fleet_file

    if where.path is not None:
        return fleet_file.load(where.path)
    from fleet_cli import cluster_fleet

    return cluster_fleet.load(where.name, where.namespace)


async def _try(fleet: spec.FleetSpec, hot: hot_device.Plan, timeout_s: float) -> str:
    """One sentence about what came. Raises FleetTwinError when a stream can't be used; ends the command when nothing came."""
    from fleet_cli import hot_device, kinesis

    async with kinesis.open_api(fleet.aws) as api:
        hearing = hot_device.Hearing(api, fleet, hot)
        async with hearing as heard:
            started = time.monotonic()
            await hot_device.put(api, fleet, hot, timeout_s)
            click.echo(
                f"{hot.samples} records of {hot.temperature_c:g} °C of {hot.device_id} are on "
                f"{fleet.streams.telemetry.stream_name}; waiting for {hot.awaited}.",
                err=True,
            )
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await heard
            except TimeoutError:
                console.fail(
                    f"No {hot.awaited} for {hot.device_id} came within {timeout_s:g} s. Does the fleet run? Is it behind? "
                    "Its conditions, and `fleet-twin status`, tell.",
                    console.EXIT_NOT_READY,
                )
            finally:
                await hot_device.forget(api, fleet, hot)
            return f"{hot.awaited} for {hot.device_id} came after {time.monotonic() - started:.1f} s: {answer}"
