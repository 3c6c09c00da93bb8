"""What the demo shows: a live page on a terminal, a line now and then elsewhere, a summary at the end. Pure: figures in."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Sequence

from rich import box, console, panel, table, text

from fleet_cli.demonstration import figures

SEVERITY_STYLES = {"critical": "bold red", "warning": "yellow", "info": "cyan"}
PHASE_STYLES = {"Running": "green", "Failed": "bold red"}
_EVENTS_ROWS_MIN, _EVENTS_ROWS_MAX = 3, 20
_FIXED_ROWS = 14
"""Rows of the page beside the events."""
_SHARING_ROWS, _SHARING_ROWS_MIN, _TALL_ROWS = 8, 3, 34
WIDE_COLUMNS = 110
"""Narrower terminals get alerts and commands one below the other."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """What doesn't change: how many devices, where the API and the fleet file are, what is compressed, whether workers share the
    fleet (else there is one)."""

    devices: int
    rate: float
    url: str
    fleet_path: str
    folder: str
    compressed: str
    is_shared: bool = False


def page(scene: Scene, now: figures.Figures, width: int, height: int) -> console.Group:
    """The live page for a terminal of `width` columns and `height` rows."""
    sharing: list[console.RenderableType] = []
    rows = height - _FIXED_ROWS
    if scene.is_shared:
        sharing_rows = _SHARING_ROWS if height >= _TALL_ROWS else _SHARING_ROWS_MIN
        sharing = [_sharing(now, sharing_rows, width)]
        rows -= sharing_rows + 2
    rows = max(_EVENTS_ROWS_MIN, min(_EVENTS_ROWS_MAX, rows))
    top = table.Table.grid(expand=True, padding=(0, 1))
    for _ in range(3):
        top.add_column(ratio=1)
    top.add_row(_fleet(scene, now), _flow(now), _latency(now))
    if width < WIDE_COLUMNS:
        rows = max(_EVENTS_ROWS_MIN, rows - 2)
        alerts_rows = (rows + 1) // 2
        return console.Group(
            _title(scene, now),
            top,
            *sharing,
            _alerts(now, alerts_rows),
            _commands(now, rows - alerts_rows),
            _footer(scene, now),
        )
    events = table.Table.grid(expand=True, padding=(0, 1))
    events.add_column(ratio=3)
    events.add_column(ratio=2)
    events.add_row(_alerts(now, rows), _commands(now, rows))
    return console.Group(_title(scene, now), top, *sharing, events, _footer(scene, now))


def _title(scene: Scene, now: figures.Figures) -> text.Text:
    title = text.Text.assemble(("Fleet Twin", "bold cyan"), f"  demo, {_span(now.elapsed_s)}")
    if now.note:
        title.append(f"  {now.note}", style="yellow")
    title.append(
        "   + and - start and stop workers, Ctrl-C ends it" if scene.is_shared else "   Ctrl-C ends it", style="dim"
    )
    title.no_wrap = True
    return title


def _box(title: str, pairs: Sequence[tuple[str, str, str]]) -> panel.Panel:
    """pairs: name, value, style."""
    grid = table.Table.grid(expand=True, padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for name, value, style in pairs:
        grid.add_row(name, text.Text(value, style=style))
    return panel.Panel(grid, title=title, title_align="left", border_style="blue", padding=(0, 1))


def _fleet(scene: Scene, now: figures.Figures) -> panel.Panel:
    open_alerts = now.open_alerts
    return _box(
        "Fleet",
        [
            ("twins", f"{now.twins:,} of {scene.devices:,}", "bold"),
            ("too hot", f"{open_alerts['temp_spike']:,}", "bold red" if open_alerts["temp_spike"] else ""),
            ("battery", f"{open_alerts['battery_drop']:,}", "yellow" if open_alerts["battery_drop"] else ""),
            ("offline", f"{open_alerts['offline']:,}", "yellow" if open_alerts["offline"] else ""),
        ],
    )


def _flow(now: figures.Figures) -> panel.Panel:
    records, effects = now.rates()
    return _box(
        "Flow",
        [
            ("records", f"{records:,.0f}/s", "bold"),
            ("in all", f"{now.records:,}", ""),
            ("effects", f"{effects:,.1f}/s", ""),
            ("dead letters", f"{now.dead_letters:,}", ""),
        ],
    )


def _latency(now: figures.Figures) -> panel.Panel:
    return _box(
        "Alert latency",
        [
            ("p50", _seconds(now.latency_p50_s), "bold"),
            ("p99", _seconds(now.latency_p99_s), ""),
            ("behind", _seconds(now.lag_s), "yellow" if now.lag_s > 5.0 else ""),
            ("rules gen.", str(now.generation or "–"), "bold cyan"),
        ],
    )


def _sharing(now: figures.Figures, rows: int, width: int) -> table.Table:
    """Who has which partition, and what happened to it."""
    both = table.Table.grid(expand=True, padding=(0, 1))
    both.add_column(ratio=1)
    both.add_column(ratio=1)
    is_wide = width >= WIDE_COLUMNS
    both.add_row(_partitions(now, rows, is_wide), _happened(now, rows, is_wide))
    return both


def _partitions(now: figures.Figures, rows: int, is_wide: bool) -> panel.Panel:
    """Those that aren't running first."""
    entries = sorted(
        (entry for entry in now.partitions if entry.phase != "Closed"),
        key=lambda entry: (entry.phase == "Running", entry.shard_id),
    )
    columns = 5 if is_wide else 3
    grid = _events_grid(columns)
    for entry in entries[:rows]:
        age = "" if entry.checkpoint_age_s is None else f"saved {entry.checkpoint_age_s:.0f} s ago"
        phase = text.Text(entry.phase, style=PHASE_STYLES.get(entry.phase, "yellow"))
        cells: list[console.RenderableType] = [
            _short(entry.shard_id),
            entry.whose,
            phase,
            f"{entry.twins:,} twins",
            age,
        ]
        grid.add_row(*cells[:columns])
    _fill(grid, rows, len(entries), columns)
    more = f", {len(entries) - rows} more not shown" if len(entries) > rows else ""
    return panel.Panel(
        grid, title=f"Partitions  {len(entries)}{more}", title_align="left", border_style="magenta", padding=(0, 1)
    )


def _happened(now: figures.Figures, rows: int, is_wide: bool) -> panel.Panel:
    grid = _events_grid(2)
    for elapsed_s, words in list(now.happened)[:rows]:
        grid.add_row(_span(elapsed_s), _short(words))
    _fill(grid, rows, len(now.happened), 2)
    workers = ", ".join(
        f"{worker.name if is_wide else worker.name.rpartition('-')[2] + ':'} {worker.partitions}"
        + ("" if worker.state == "ready" else f" ({worker.state})")
        for worker in now.workers
    )
    return panel.Panel(
        grid, title=f"Workers  {workers or 'none yet'}", title_align="left", border_style="magenta", padding=(0, 1)
    )


def _short(words: str) -> str:
    """Kinesis' shard ids as one says them."""
    return re.sub(r"shardId-0*(\d)", r"shard \1", words)


def _alerts(now: figures.Figures, rows: int) -> panel.Panel:
    grid = _events_grid(4)
    for event in list(now.alerts_seen)[:rows]:
        style = SEVERITY_STYLES.get(event.severity, "")
        grid.add_row(_clock(event.time_ms), event.device_id, text.Text(_alert_words(event), style=style), event.text)
    _fill(grid, rows, len(now.alerts_seen), 4)
    counts = ", ".join(f"{count:,} {trigger}" for trigger, count in sorted(now.fired.items()))
    return panel.Panel(
        grid, title=f"Alerts  {counts or 'none yet'}", title_align="left", border_style="red", padding=(0, 1)
    )


def _commands(now: figures.Figures, rows: int) -> panel.Panel:
    grid = _events_grid(4)
    for event in list(now.commands_seen)[:rows]:
        grid.add_row(_clock(event.time_ms), event.device_id, text.Text(event.kind, style="green"), _parameters(event))
    _fill(grid, rows, len(now.commands_seen), 4)
    counts = f"{sum(now.commands.values()):,} sent, {now.obeyed:,} obeyed"
    return panel.Panel(grid, title=f"Commands  {counts}", title_align="left", border_style="green", padding=(0, 1))


def _events_grid(columns: int) -> table.Table:
    grid = table.Table(box=box.SIMPLE, show_header=False, show_edge=False, expand=True, padding=(0, 1, 0, 0))
    for number in range(columns):
        last = number == columns - 1
        width = 8 if number == 0 else None
        grid.add_column(
            no_wrap=True, overflow="ellipsis", ratio=1 if last else None, min_width=width, style="dim" if last else ""
        )
    return grid


def _fill(grid: table.Table, rows: int, shown: int, columns: int) -> None:
    """Empty rows, so that the page keeps its height."""
    for _ in range(rows - min(rows, shown)):
        grid.add_row(*[""] * columns)


def _footer(scene: Scene, now: figures.Figures) -> text.Text:
    footer = text.Text(no_wrap=True, overflow="ellipsis")
    footer.append(" HTTP API    ", style="dim")
    footer.append(f"{scene.url}/v1/twins\n", style="bold")
    footer.append(" fleet file  ", style="dim")
    footer.append(scene.fleet_path, style="bold")
    footer.append("  edit and save: it holds at once\n", style="dim")
    footer.append(" ask it      ", style="dim")
    footer.append(f"fleet-twin twin get sensor-0{_url_option(scene)}\n", style="bold")
    if now.rules_error:
        footer.append(f" The edit is refused, the last good rules hold: {_first_line(now.rules_error)}", style="red")
    else:
        footer.append(f" {scene.compressed}", style="dim italic")
    return footer


def _url_option(scene: Scene) -> str:
    return "" if scene.url.endswith(":8080") else f" --url {scene.url}"


def _alert_words(event: figures.Event) -> str:
    return event.kind if event.state == "firing" else f"{event.kind} over"


def _parameters(event: figures.Event) -> str:
    """A command's parameters without the signs of JSON."""
    return event.text.strip("{}").replace('"', "").replace(":", " ")


def _first_line(words: str) -> str:
    return words.partition("\n")[0]


def _clock(time_ms: int) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(time_ms / 1000):%H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return "?"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def line(now: figures.Figures) -> str:
    """One plain line of figures, for logs."""
    records, effects = now.rates()
    parts = [
        f"time={now.elapsed_s:.0f}s",
        f"twins={now.twins}",
        f"records={now.records}",
        f"records_per_s={records:.0f}",
        f"effects_per_s={effects:.1f}",
        *(f"open_{trigger}={count}" for trigger, count in now.open_alerts.items()),
        f"alerts={sum(now.fired.values())}",
        f"commands={sum(now.commands.values())}",
        f"latency_p50={_seconds(now.latency_p50_s).replace(' ', '')}",
        f"latency_p99={_seconds(now.latency_p99_s).replace(' ', '')}",
        f"behind={now.lag_s:.1f}s",
        f"generation={now.generation}",
    ]
    if now.workers:
        parts.append(f"workers={len(now.workers)}")
        parts.append(f"moves={now.moves_count}")
    if now.rules_error:
        parts.append(f'rules_error="{_first_line(now.rules_error)}"')
    if now.note:
        parts.append(f'note="{now.note}"')
    return " ".join(parts)


def summary(now: figures.Figures) -> list[str]:
    """What happened, at the end: `name: value` lines."""
    fired = ", ".join(f"{trigger} {now.fired[trigger]:,}" for trigger in figures.TRIGGERS)
    commands = ", ".join(f"{name} {count:,}" for name, count in sorted(now.commands.items())) or "none"
    lines = [
        f"ran for:        {now.elapsed_s:.0f} s",
        f"records in:     {now.records:,} (sent {now.sent:,}" + (f", lost {now.lost:,})" if now.lost else ")"),
        f"twins:          {now.twins:,}",
        f"alerts:         {fired}; resolved {now.resolved:,}",
        f"commands:       {commands}; obeyed {now.obeyed:,}",
        f"dead letters:   {now.dead_letters:,}",
        f"alert latency:  p50 {_seconds(now.latency_p50_s)}, p99 {_seconds(now.latency_p99_s)}",
        f"rules:          generation {now.generation}",
    ]
    if now.moved or now.worker_deaths:
        pauses = sorted(move.pause_s for move in now.moved)
        told = f", paused {pauses[len(pauses) // 2]:.1f} s in the middle, {pauses[-1]:.1f} s at most" if pauses else ""
        lines.append(f"moves:          {now.moves_count:,}{told}")
    if now.worker_deaths:
        lines.append(f"worker deaths:  {now.worker_deaths:,} (after one, records are counted only nearly)")
    return lines
