"""How results are shown: a table for people, one line of JSON for everything else. It computes nothing."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from typing import Any

import click


def as_json(name: str, asked: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """One line: what was asked, on what, and what came out."""
    machine = {"machine": platform.machine(), "python": platform.python_version(), "time": int(time.time())}
    click.echo(json.dumps({"bench": name, "asked": dict(asked), **machine, **_rounded(result)}))


def as_table(title: str, rows: Mapping[str, str]) -> None:
    """Label and figure a line, the figures in a column."""
    width = max(map(len, rows)) + 2
    click.echo(click.style(title, bold=True))
    for label, figure in rows.items():
        click.echo(f"  {label:<{width}}{figure}")


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit and ' ' + unit}"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f} MB"


def _rounded(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _short(value) for key, value in result.items()}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < 1e5 else round(value)
    if isinstance(value, dict):
        return _rounded(value)
    return value
