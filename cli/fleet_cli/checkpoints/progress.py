"""How far long work has come: a bar on a terminal, nothing elsewhere. On standard error, so that data can go to standard output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]


def _silent(amount: int) -> None:
    """Nobody watches."""


@contextlib.contextmanager
def bar(what: str, total: int, *, is_bytes: bool = False) -> Iterator[Advance]:
    """A function that is told of each further amount, from the event loop's thread."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich import console, progress

    amount: progress.ProgressColumn = (
        progress.DownloadColumn() if is_bytes else progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} twins")
    )
    rate: progress.ProgressColumn = (
        progress.TransferSpeedColumn() if is_bytes else progress.TextColumn("{task.speed:,.0f}/s")
    )
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        amount,
        rate if is_bytes else progress.TaskProgressColumn(show_speed=True),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console.Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda amount: shown.advance(task, amount)
