"""How the commands speak: plain lines for pipes, colour and live lines on a terminal, errors as one message.

Figures go to standard output; messages about the run go to standard error, so a pipe gets data only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_NOT_READY = 4

EXIT_CODES = """\b
Exit codes:
  0  done
  1  failed; the message says what to do
  2  wrong usage, or a fleet file with mistakes
  3  no such twin, partition or checkpoint
  4  the worker or the bucket does not answer, or is not ready: try again
"""


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Ends the command with a message on standard error."""
    head, _, rest = message.partition("\n")
    click.echo(click.style("Error: ", fg="red", bold=True) + head + ("\n" + rest if rest else ""), err=True)
    sys.exit(code)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Our own errors end the command with their message; anything else is a bug and keeps its traceback."""
    from fleet_model import parse
    from fleet_worker import errors

    try:
        yield
    except parse.InvalidFleetError as error:
        fail(f"the fleet file is not valid\n{error}", EXIT_USAGE)
    except errors.FleetTwinError as error:
        fail(str(error), EXIT_FAILED)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


@contextmanager
def live_line() -> Iterator[Callable[[str], None]]:
    """A function that shows a line: in place on a terminal, one after the other elsewhere."""
    if not is_terminal():
        yield lambda text: click.echo(text)
        return
    from rich import console, live

    with live.Live(console=console.Console(), refresh_per_second=4, transient=True) as shown:
        yield lambda text: shown.update(text)
