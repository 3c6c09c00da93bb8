"""`fleet-twin status`: what a worker does."""

from __future__ import annotations

import json
import sys

import click

from fleet_cli import api, console, show


@click.command(name="status", epilog=console.EXIT_CODES)
@api.url_option
@api.json_option
def command(url: str, as_json: bool) -> None:
    """Show what a worker does: its partitions, how far it is behind, the rules in force.

    Exits with 4 when the worker is not ready, so a script can wait for it.

    \b
    Examples:
      fleet-twin status
      until fleet-twin status --json > /dev/null; do sleep 1; done
    """
    status = api.ask(url, "/v1/status")
    if as_json:
        click.echo(json.dumps(status, indent=2, ensure_ascii=False))
    else:
        _show(status)
    sys.exit(console.EXIT_OK if status["ready"] else console.EXIT_NOT_READY)


def _show(status: api.Json) -> None:
    totals, rules = status["totals"], status["rules"]
    ready = click.style("ready", fg="green") if status["ready"] else click.style("not ready", fg="red")
    open_alerts = ", ".join(f"{count:,} {trigger}" for trigger, count in totals["alerts_open"].items())
    facts = [
        ("fleet", status["fleet"]),
        ("worker", f"{status['worker']}, {ready}"),
        ("twins", f"{totals['twins']:,}"),
        ("open alerts", open_alerts),
        ("partitions", f"{totals['running']} of {totals['partitions'] + len(status['elsewhere'])} running"),
        ("behind", show.age(totals["lag_ms"])),
        ("outbox", f"{totals['outbox_effects']:,} effects on their way"),
        ("rules", f"generation {rules['generation']}"),
    ]
    facts += [("not ready", click.style(reason, fg="red")) for reason in status["not_ready_because"]]
    if rules["last_error"]:
        facts.append(("fleet file", click.style(f"refused, the last good rules hold: {rules['last_error']}", fg="red")))
    show.facts(facts)
    if not status["partitions"]:
        return
    click.echo()
    rows = [
        (
            entry["shard_id"],
            entry["phase"] + (f" ({entry['message']})" if entry["message"] else ""),
            f"{entry['twins']:,}",
            show.age(entry["lag_ms"]),
            show.age(status["time_ms"] - entry["clock_ms"]) if entry["clock_ms"] else show.DASH,
            f"{sum(entry['alerts_open'].values()):,}",
            f"{entry['outbox']['effects']:,}",
            str(entry["generation"]),
        )
        for entry in status["partitions"]
    ]
    show.table(("partition", "phase", "twins", "behind", "clock age", "open alerts", "outbox", "rules"), rows)
