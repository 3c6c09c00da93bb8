"""A worker as a process of its own, `fleet-twin worker`, for tests that kill it: started, asked, killed, stopped.

The same object stands for one process after another on the same data folder. It never ends a process that it didn't
start, and its log holds every start's output.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from tests.support import aws_env, orphans

READY_S_MAX = 60.0
STOP_S_MAX = 10.0
"""What the worker promises for SIGTERM."""
EXIT_S_MAX = 40.0
"""How long a test waits before it calls a process stuck."""
LOOK_AGAIN_S = 0.02
ASK_AGAIN_S = 0.1
"""Between questions: each costs the worker some milliseconds."""
LOG_SHOWN_BYTES = 6_000
_ADDRESS = re.compile(r"twins at (http://127\.0\.0\.1:\d+)/")


class WorkerFailedError(AssertionError):
    """The worker ended by itself, or didn't do in time what it should; with the end of its log."""


class WorkerProcess:
    """`async with WorkerProcess(fleet_path, data_folder, log_path) as worker`: nothing runs until `start`."""

    def __init__(
        self,
        fleet_path: Path,
        data_folder: Path,
        log_path: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] = types.MappingProxyType({}),
    ) -> None:
        """options: further ones of the command. environment: besides the dummy credentials."""
        self._command = [
            *(sys.executable, "-m", "fleet_cli", "worker"),
            *("--fleet", str(fleet_path), "--data", str(data_folder), "--port", "0", *options),
        ]
        self._environment = environment
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._url = ""
        self._session: aiohttp.ClientSession | None = None
        self.starts = 0
        self.kills = 0

    def start(self) -> None:
        assert self._process is None, "the worker runs already"
        self._url = ""
        self._log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=aws_env.environment(PYTHONUNBUFFERED="1", **self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            orphans.prevent(self._process.pid)
        self.starts += 1

    def kill(self) -> None:
        """SIGKILL, and gone on return."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None
        self.kills += 1

    def pause(self) -> None:
        os.kill(self._running().pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._running().pid, signal.SIGCONT)

    async def stop(self, exit_code: int = 0) -> float:
        """SIGTERM; the seconds until it had ended with that. Raises WorkerFailedError for any other end."""
        process = self._running()
        began = time.monotonic()
        process.terminate()
        while process.poll() is None:
            if time.monotonic() - began > EXIT_S_MAX:
                raise WorkerFailedError(f"still there {EXIT_S_MAX} s after SIGTERM:\n{self.log()}")
            await asyncio.sleep(LOOK_AGAIN_S)
        self._process = None
        if process.returncode != exit_code:
            raise WorkerFailedError(f"ended with {process.returncode} on SIGTERM:\n{self.log()}")
        return time.monotonic() - began

    async def ready(self) -> None:
        """Returns when every partition runs."""
        await self.until(lambda status: bool(status["ready"]), "the worker isn't ready", READY_S_MAX)

    async def until(self, condition: Callable[[dict[str, Any]], bool], what: str, seconds_max: float) -> dict[str, Any]:
        """Asks for /v1/status until the condition holds for it; that status. Raises WorkerFailedError."""
        deadline = time.monotonic() + seconds_max
        status: dict[str, Any] | None = None
        while True:
            status = await self.status() or status
            if status is not None and condition(status):
                return status
            if time.monotonic() > deadline:
                raise WorkerFailedError(f"{what} after {seconds_max} s; status {status}\n{self.log()}")
            await asyncio.sleep(ASK_AGAIN_S if self._url else LOOK_AGAIN_S)

    async def status(self) -> dict[str, Any] | None:
        """/v1/status; None while it doesn't answer yet. Raises WorkerFailedError when the process has ended by itself."""
        if not self._listens():
            return None
        try:
            return await self.get("/v1/status")
        except (aiohttp.ClientError, TimeoutError):
            self.check_alive()
            return None

    async def get(self, path: str) -> dict[str, Any]:
        """The answer to a question that has one. Raises aiohttp.ClientError."""
        assert self._session is not None
        async with self._session.get(self._url + path) as answer:
            answer.raise_for_status()
            told: dict[str, Any] = await answer.json()
            return told

    async def text(self, path: str) -> str:
        """As `get`, for what isn't JSON."""
        assert self._session is not None
        async with self._session.get(self._url + path) as answer:
            answer.raise_for_status()
            return await answer.text()

    def log(self) -> str:
        """The end of it."""
        return self._log_path.read_bytes()[-LOG_SHOWN_BYTES:].decode(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def has_answered(self) -> bool:
        """Whether this start has told its address already; before that it may not stop in a clean way."""
        if not self._url and self._process is not None:
            self._look_for_address()
        return bool(self._url)

    def _running(self) -> subprocess.Popen[bytes]:
        self.check_alive()
        assert self._process is not None, "no worker runs"
        return self._process

    def check_alive(self) -> None:
        """Raises WorkerFailedError when the process has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise WorkerFailedError(f"ended by itself with {self._process.returncode}:\n{self.log()}")

    def _listens(self) -> bool:
        """Whether the log of this start tells an address already."""
        self.check_alive()
        return self.has_answered

    def _look_for_address(self) -> None:
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            found = _ADDRESS.search(log.read().decode(errors="replace"))
        self._url = found[1] if found else ""

    async def __aenter__(self) -> WorkerProcess:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        assert self._session is not None
        await self._session.close()
