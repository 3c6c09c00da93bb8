"""The operator of a test session, however it was installed: killed, started again, asked for its metrics.

It installs nothing from the chart: `installing` does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tests.support import server_process

IMAGE = "localhost/fleet-twin:dev"
LEASE_NAMESPACE = "fleet-twin-system"


class Operator(Protocol):
    """kill: as by kill -9, in the middle of whatever it does; return when it is gone. start: again; idempotent."""

    def kill(self) -> None: ...

    def start(self) -> None: ...

    def gather(self, folder: Path) -> None:
        """Its log, for whoever looks into a failure."""


class OperatorProcess:
    """`fleet-twin operator` on this machine, for all namespaces. environment: besides PATH and the kubeconfig."""

    def __init__(self, kubeconfig: Path, log_path: Path, environment: Mapping[str, str]) -> None:
        self._log_path = log_path
        self.port = server_process.free_port()
        self._command = [
            *(sys.executable, "-m", "fleet_cli", "operator", "--all-namespaces", f"--image={IMAGE}"),
            *(f"--port={self.port}", f"--lease-namespace={LEASE_NAMESPACE}"),
        ]
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": "operator",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        if self._process is not None:
            self.check()
            return
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Fails the test when it has ended by itself."""
        assert self._process is None or self._process.poll() is None, (
            f"the operator ended with {self._process.returncode}:\n{self._log_path.read_text(errors='replace')[-4000:]}"
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """In good order, if it can."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def gather(self, folder: Path) -> None:
        if self._log_path.exists():
            (folder / "operator.log").write_bytes(self._log_path.read_bytes())
