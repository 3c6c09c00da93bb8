"""`fleet-twin alerts`: the alerts that are open in the fleet."""

from __future__ import annotations

import json

import click

from fleet_cli import api, console, gathering, show

LIMIT_DEFAULT, LIMIT_MAX = 50, 1_000_000


@click.command(name="alerts", epilog=console.EXIT_CODES)
@click.option(
    "--trigger", type=click.Choice(["any", "temp_spike", "battery_drop", "offline"]), help="Only alerts of this kind."
)
@click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=LIMIT_DEFAULT,
    show_default=True,
    metavar="N",
    help="At most so many alerts.",
)
@api.partial_option
@api.url_option
@api.json_option
def command(trigger: str | None, limit: int, partial: bool, url: str, as_json: bool) -> None:
    """List the alerts that are open in the whole fleet, in the order of their devices' hash keys.

    \b
    Examples:
      fleet-twin alerts
      fleet-twin alerts --trigger offline --limit 500
      fleet-twin alerts --json | jq -r '.[].device_id'
    """
    alerts = gathering.pages(url, "/v1/alerts", "alerts", {"trigger": trigger}, limit, partial=partial)
    if as_json:
        click.echo(json.dumps(alerts, indent=2, ensure_ascii=False))
        return
    if not alerts:
        click.echo(click.style("No open alerts.", fg="green"))
        return
    rows = [
        (
            alert["device_id"],
            alert["trigger"],
            show.severity(alert["severity"]),
            show.moment(alert["last_fired_ms"]),
            str(alert["repeats"]),
            "yes" if alert["acknowledged"] else "no",
            alert["alert_id"],
        )
        for alert in alerts
    ]
    show.table(("device", "alert", "severity", "last fired", "times", "acknowledged", "id"), rows)
    if len(alerts) == limit:
        click.echo(f"The first {limit}; more with --limit.", err=True)
