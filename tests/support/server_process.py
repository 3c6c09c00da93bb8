"""A server as a process of its own, for a test: started, waited for, ended by its pid, its output kept for the failure.

It never ends a process that it didn't start, and none outlives the run.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.support import orphans

STARTS_MAX = 3
START_S_MAX = 60.0
STOP_S_MAX = 10.0


class ServerFailedError(Exception):
    """The process ended, or didn't answer in time; with the end of its output."""


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """stop() is idempotent. The folder is the process' working folder and goes with it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fleet-twin-server-")
        self._output = (Path(self._folder.name) / "output.log").open("w+b")
        self._process = subprocess.Popen(
            command,
            cwd=self._folder.name,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at pytest is for pytest, which then ends the server
        )
        orphans.prevent(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        self._output.flush()
        return (Path(self._folder.name) / "output.log").read_text(errors="replace")

    def check_alive(self) -> None:
        """Raises ServerFailedError when the process has ended."""
        if self._process.poll() is not None:
            raise ServerFailedError(f"ended with {self._process.returncode}:\n{self.output()[-2000:]}")

    def wait_until_it_answers(self, port: int, path: str = "/", address: str = "127.0.0.1") -> None:
        """Any HTTP answer below 500 will do. Raises ServerFailedError."""
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            self.check_alive()
            connection = http.client.HTTPConnection(address, port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", path)
                if connection.getresponse().status < 500:
                    connection.close()
                    return
            connection.close()
            time.sleep(0.05)  # a poll with a deadline: there is nothing to be told by
        raise ServerFailedError(f"no answer on port {port} within {START_S_MAX} s:\n{self.output()[-2000:]}")

    def kill(self) -> None:
        """As a machine's death: the process gets no chance to say good-bye. `stop` still cleans up."""
        if self._process.poll() is None:
            self._process.kill()

    def stop(self) -> None:
        """Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._output.close()
        self._folder.cleanup()


@contextlib.contextmanager
def at_a_port(start: Callable[[int], ServerProcess], path: str, address: str = "127.0.0.1") -> Iterator[int]:
    """A server that can't tell a port that it chose by itself: one is chosen here, and another one when somebody else was quicker. The
    port, once it answers. start: begins it with that port. Raises ServerFailedError."""
    for attempt in range(1, STARTS_MAX + 1):
        port = free_port()
        process = start(port)
        try:
            try:
                process.wait_until_it_answers(port, path, address)
            except ServerFailedError:
                if attempt == STARTS_MAX:
                    raise
                continue
            yield port
            return
        finally:
            process.stop()
