"""`fleet-twin simulate`: a believable fleet on a stream. The fleet itself is in `simulator`."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from fleet_cli import console

if TYPE_CHECKING:
    from fleet_cli.simulator import faults, runner

_PLAIN_EACH = 5
DEVICES_MAX = 5_000_000


class FaultShares(click.ParamType[object]):
    """`hot=1%,drain=1%` as faults.Shares."""

    name = "faults"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> faults.Shares:
        from fleet_cli.simulator import faults

        if isinstance(value, faults.Shares):
            return value
        try:
            return faults.parse(str(value))
        except faults.FaultsSpecError as error:
            self.fail(str(error), param, ctx)


@click.command(name="simulate", epilog=console.EXIT_CODES)
@click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=pathlib.Path),
    required=True,
    metavar="FILE",
    help="Fleet file: names the streams and the endpoint, and the limits that faults overstep.",
)
@click.option("--devices", type=click.IntRange(1, DEVICES_MAX), required=True, metavar="N", help="How many devices.")
@click.option("--rate", type=float, metavar="R", help="Records/s of all devices together.  [default: N/10]")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Same seed, same telemetry.")
@click.option(
    "--faults",
    "shares",
    type=FaultShares(),
    default="",
    metavar="LIST",
    help="Shares of the devices with each fault, e.g. hot=1%,drain=1%,silent=1%; see above.",
)
@click.option("--duration", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Stop after this long.")
@click.option(
    "--time-scale",
    type=click.FloatRange(0, 10_000, min_open=True),
    default=1.0,
    show_default=True,
    metavar="X",
    help="The world's time (days, roads, load, charging, pauses between faults) runs X times as fast.",
)
@click.option(
    "--ignore-commands",
    is_flag=True,
    help="Devices don't obey the commands stream, so content depends on the seed only.",
)
@click.option("--json", "as_json", is_flag=True, help="Each second a JSON object with the counts.")
def command(
    fleet_path: pathlib.Path,
    devices: int,
    rate: float | None,
    seed: int,
    shares: faults.Shares,
    duration: float | None,
    time_scale: float,
    ignore_commands: bool,
    as_json: bool,
) -> None:
    """Put a believable fleet's telemetry on a fleet's stream.

    Sensors, trucks and gateways: temperatures follow the day, batteries are charged and drained, trucks drive, a new
    firmware rolls out. Devices obey cool_down, reduce_duty and reboot when they come back on the commands stream.

    \b
    Faults (NAME=SHARE of the devices, such as hot=1% or hot=0.01):
      hot        runs above its temperature limit for a while, until told to cool_down
      drain      loses more than 10 %/h while idle, until told to reduce_duty
      silent     stops for longer than its offline limit, then returns
      clock      has a wrong clock, from minutes ahead to days behind
      poison     sends records nobody can use now and then
      duplicate  sends some samples twice
      json       speaks JSON instead of protobuf

    \b
    Examples:
      fleet-twin simulate --fleet fleet.yaml --devices 1000
      fleet-twin simulate --fleet fleet.yaml --devices 100000 --rate 10000 --faults hot=1%,drain=1%,silent=1%
      fleet-twin simulate --fleet fleet.yaml --devices 50 --rate 50 --duration 60 --time-scale 20 --faults hot=10%
    """
    from fleet_cli.simulator import runner

    rate = devices / 10.0 if rate is None else rate
    highest = min(runner.RATE_MAX, devices * runner.PER_DEVICE_RATE_MAX)
    if not 0.0 < rate <= highest:
        raise click.BadParameter(
            f"{rate:g} records/s: {devices} devices can send between 0 and {highest:g} together", param_hint="--rate"
        )
    options = runner.Options(devices, rate, seed, shares, duration, time_scale, not ignore_commands)
    with console.told_plainly():
        _run(fleet_path, options, as_json)


def _run(fleet_path: pathlib.Path, options: runner.Options, as_json: bool) -> None:
    import asyncio
    import dataclasses
    import json

    from fleet_cli import kinesis, loop
    from fleet_cli.simulator import faults, producer, runner
    from fleet_worker.adapters import fleet_file

    fleet = fleet_file.load(fleet_path)
    click.echo(
        f"{options.devices:,} devices, {options.rate:,.0f} records/s to {fleet.streams.telemetry.stream_name}, "
        f"seed {options.seed}, faults {faults.describe(options.shares)}. Ctrl-C stops.",
        err=True,
    )
    simulation: runner.Simulation
    with console.live_line() as show:
        told = 0

        def tell(report: runner.Report) -> None:
            nonlocal told
            told += 1
            if as_json:
                click.echo(json.dumps(dataclasses.asdict(report)))
            elif console.is_terminal() or told % _PLAIN_EACH == 1:
                show(line(report))

        simulation = runner.Simulation(fleet, options, tell)

        async def run() -> runner.Report:
            stop = asyncio.Event()
            with loop.stopped_by_signals(stop):
                async with kinesis.open_api(fleet.aws) as api:
                    return await simulation.run(api, stop)

        report = loop.run(run())
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    else:
        click.echo(f"sent {report.records:,} records in {report.elapsed_s:.0f} s, lost {report.lost:,}")
    if report.lost:
        console.fail(f"{report.lost:,} records were not taken by Kinesis within {producer.RETRY_S:.0f} s and are lost.")


def line(report: runner.Report) -> str:
    """One line of figures."""
    parts = [
        f"{report.elapsed_s:.0f}s",
        f"records={report.records}",
        f"rate={report.rate:.0f}/s",
        f"waiting={report.waiting}",
        f"obeyed={report.obeyed}",
    ]
    if report.again:
        parts.append(f"sent_again={report.again}")
    if report.lost:
        parts.append(f"lost={report.lost}")
    if report.late_s >= 1.0:
        parts.append(f"behind_schedule={report.late_s:.0f}s")
    return " ".join(parts)
