"""`fleet-twin twin get` and `twin list`: what the fleet's workers know of devices."""

from __future__ import annotations

import json

import click

from fleet_cli import api, console, gathering, show

LIMIT_DEFAULT, LIMIT_MAX = 20, 1_000_000
_METRICS = (("temperature_c", "temperature", " °C"), ("battery_pct", "battery", " %"), ("cpu_load", "cpu load", ""))


@click.group(name="twin", epilog=console.EXIT_CODES)
def command() -> None:
    """Look at twins: get one, list many.

    \b
    Examples:
      fleet-twin twin get sensor-7
      fleet-twin twin list --alert any
    """


@command.command(name="get", epilog=console.EXIT_CODES)
@click.argument("device")
@api.url_option
@api.json_option
def get(device: str, url: str, as_json: bool) -> None:
    """Show the twin of DEVICE: last telemetry, statistics, health, open alerts, limits.

    \b
    Examples:
      fleet-twin twin get sensor-7
      fleet-twin twin get truck-8 --json
      fleet-twin twin get sensor-7 --url http://127.0.0.1:9090
    """
    twin = api.ask(url, api.twin_path(device))
    if as_json:
        click.echo(json.dumps(twin, indent=2, ensure_ascii=False))
        return
    _show(twin)


@command.command(name="list", epilog=console.EXIT_CODES)
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=LIMIT_DEFAULT, show_default=True, metavar="N")
@click.option(
    "--alert", type=click.Choice(["any", "temp_spike", "battery_drop", "offline"]), help="Only with this alert open."
)
@click.option("--offline/--online", default=None, help="Only those that are, or are not, offline.")
@click.option("--health-below", type=click.FloatRange(0, 100, min_open=True), metavar="SCORE", help="Only worse ones.")
@click.option("--prefix", metavar="TEXT", help="Only device ids that start so.")
@click.option("--firmware", metavar="VERSION", help="Only with this firmware.")
@click.option("--profile", metavar="NAME", help="Only of this profile of the fleet file.")
@api.partial_option
@api.url_option
@api.json_option
def list_twins(
    limit: int,
    alert: str | None,
    offline: bool | None,
    health_below: float | None,
    prefix: str | None,
    firmware: str | None,
    profile: str | None,
    partial: bool,
    url: str,
    as_json: bool,
) -> None:
    """List twins of the whole fleet, in the order of their hash keys; all filters given must match.

    \b
    Examples:
      fleet-twin twin list
      fleet-twin twin list --alert any --limit 100
      fleet-twin twin list --prefix truck- --health-below 60
      fleet-twin twin list --offline --json
    """
    filters = {
        "alert": alert,
        "offline": offline,
        "health_below": health_below,
        "prefix": prefix,
        "firmware": firmware,
        "profile": profile,
    }
    twins = gathering.pages(url, "/v1/twins", "twins", filters, limit, partial=partial)
    if as_json:
        click.echo(json.dumps(twins, indent=2, ensure_ascii=False))
        return
    if not twins:
        click.echo("No twin matches." if any(value is not None for value in filters.values()) else "No twins yet.")
        return
    rows = []
    for twin in twins:
        told = twin["telemetry"] or {}
        rows.append(
            (
                twin["device_id"],
                show.health(twin["health"]["score"]),
                show.number(told.get("temperature_c"), 1, " °C"),
                show.number(told.get("battery_pct"), 1, " %"),
                show.number(told.get("cpu_load"), 2),
                told.get("firmware") or show.DASH,
                show.age(_silence_ms(twin)),
                " ".join(alert["trigger"] for alert in twin["alerts"]),
            )
        )
    show.table(("device", "health", "temperature", "battery", "cpu", "firmware", "heard", "open alerts"), rows)


def _silence_ms(twin: api.Json) -> int | None:
    """Since the device was last heard, by its partition's clock."""
    heard_ms, clock_ms = twin["last_seen_ms"], twin["partition"]["clock_ms"]
    return None if heard_ms is None else max(0, clock_ms - heard_ms)


def _show(twin: api.Json) -> None:
    told = twin["telemetry"] or {}
    limits, battery, counters = twin["limits"], twin["battery"], twin["counters"]
    silence = show.age(_silence_ms(twin))
    click.echo(click.style(twin["device_id"], bold=True) + f"   health {show.health(twin['health']['score'])}")
    show.facts(
        [
            ("last heard", f"{show.moment(twin['last_seen_ms'])}  ({silence} ago)"),
            ("device time", show.moment(told.get("timestamp"))),
            ("location", told.get("location") or show.DASH),
            ("firmware", told.get("firmware") or show.DASH),
            ("profile", f"{twin['rules']['profile']}, rules generation {twin['rules']['generation']}"),
            ("limits", _limits(limits)),
            ("battery drop", show.number(battery["rate_pct_per_hour"], 1, " %/h while idle")),
            ("records", f"{counters['samples']:,} samples, {counters['late']:,} late, {counters['gaps']:,} gaps"),
            ("partition", twin["partition"]["shard_id"]),
        ]
    )
    statistics = twin["statistics"]
    if statistics is not None:
        click.echo()
        rows = [
            (
                name + unit.rstrip(),
                *(f"{statistics[metric][of]:.2f}" for of in ("last", "mean", "deviation", "minimum", "maximum")),
            )
            for metric, name, unit in _METRICS
        ]
        show.table(("last hour", "last", "mean", "deviation", "minimum", "maximum"), rows)
    click.echo()
    if not twin["alerts"]:
        click.echo(click.style("no open alerts", fg="green"))
        return
    show.table(
        ("open alert", "severity", "last fired", "times", "acknowledged"),
        [
            (
                alert["trigger"],
                show.severity(alert["severity"]),
                show.moment(alert["last_fired_ms"]),
                str(alert["repeats"]),
                "yes" if alert["acknowledged"] else "no",
            )
            for alert in twin["alerts"]
        ],
    )


def _limits(limits: api.Json) -> str:
    parts = [
        show.number(limits["temperature_c"], 1, " °C"),
        show.number(limits["battery_pct_per_hour"], 1, " %/h"),
        "offline after " + show.age(limits["offline_after_ms"]),
    ]
    return ", ".join(parts)
