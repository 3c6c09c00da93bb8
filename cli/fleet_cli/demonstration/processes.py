"""The demo's children: started so that they end with it, ended by their own pids, in order, within a bound.

Each is in a session of its own, so Ctrl-C on the terminal reaches the demo alone, which then ends them one after the
other. Should the demo be killed, Linux ends them (parent-death signal).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import sys
from collections.abc import Mapping

from fleet_cli import parent_death
from fleet_worker import errors

PORT_S = 30.0
_LOG_TAIL_LINES = 12


class Child:
    """One process. name: for messages. log: where its standard error, and what isn't read of its output, goes."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: pathlib.Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    def tail(self) -> str:
        """The last lines of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        return ""

    def ended_badly(self) -> errors.FleetTwinError:
        """The error for a child that ended by itself."""
        return errors.FleetTwinError(
            f"The {self.name} ended with exit code {self.process.returncode}. The end of its log:\n{self.tail()}"
        )

    async def end(self, wait_s: float) -> int:
        """SIGTERM, and SIGKILL after wait_s. Returns the exit code."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
        try:
            return await asyncio.wait_for(self.process.wait(), wait_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            return await self.process.wait()


async def start(
    name: str, arguments: list[str], folder: pathlib.Path, environment: Mapping[str, str], output: bool = False
) -> Child:
    """Runs `python -m …`. output: its standard output is a pipe for the caller (and its standard input is held open), else
    it goes to the log."""
    log = folder / f"{name.replace(' ', '-')}.log"
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            stdin=asyncio.subprocess.PIPE if output else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if output else file,
            stderr=file,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=parent_death.before_exec(),
        )
    return Child(name, process, log)


async def read_port(child: Child) -> int:
    """The port that the child prints as its first line."""
    assert child.process.stdout is not None
    try:
        line = await asyncio.wait_for(child.process.stdout.readline(), PORT_S)
    except TimeoutError:
        line = b""
    if not line.strip().isdigit():
        await asyncio.wait([asyncio.ensure_future(child.process.wait())], timeout=1.0)
        raise errors.FleetTwinError(f"The {child.name} did not start. The end of its log:\n{child.tail()}")
    return int(line)
