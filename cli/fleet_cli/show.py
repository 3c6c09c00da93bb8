"""Figures and tables as text: aligned, in colour on a terminal, plain elsewhere."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import click

SEVERITY_COLOURS = {"critical": "red", "warning": "yellow", "info": "cyan"}
DASH = "–"


def moment(ms: int | None) -> str:
    """Local time of milliseconds since the epoch."""
    if not ms:
        return DASH
    try:
        return datetime.datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"


def age(ms: float | None) -> str:
    """A span of milliseconds, in the unit that suits it."""
    if ms is None:
        return DASH
    seconds = ms / 1000.0
    for size, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def number(value: Any, digits: int = 1, unit: str = "") -> str:
    """None as a dash."""
    return DASH if value is None else f"{value:,.{digits}f}{unit}"


def size(count: int) -> str:
    """Bytes, in the decimal unit that suits."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} B"


def severity(name: str) -> str:
    return click.style(name, fg=SEVERITY_COLOURS.get(name))


def health(score: float | None) -> str:
    if score is None:
        return DASH
    colour = "green" if score >= 80 else "yellow" if score >= 50 else "red"
    return click.style(f"{score:.0f}", fg=colour)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, two spaces between them."""
    widths = [
        max(len(head), *(len(click.unstyle(row[column])) for row in rows)) if rows else len(head)
        for column, head in enumerate(heads)
    ]
    click.echo(click.style("  ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)), bold=True))
    for row in rows:
        cells = [cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Name and value, one a line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(click.style(name.ljust(width), dim=True) + "  " + value)
