"""The operator of a test session, however it was installed: killed, started again, asked for its metrics.

It installs nothing from the chart: `installing` does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.e2e import providers
from tests.support import orphans, server_process

IMAGE = "localhost/fleet-twin:dev"
LEASE_NAMESPACE = "fleet-twin-system"
RELEASE = "fleet-twin"
CHART = Path(__file__).parents[2] / "charts" / "fleet-twin"
HELM_S_MAX = 180
READY_S_MAX = 120.0
LOOK_AGAIN_S = 0.2


class Operator(Protocol):
    """kill: as by kill -9, in the middle of whatever it does; return when it is gone. start: again; idempotent."""

    def kill(self) -> None: ...

    def start(self) -> None: ...

    def leads_at(self) -> str:
        """The node of the one that acts; "" where it isn't a pod."""

    def gather(self, folder: Path) -> None:
        """Its log, for whoever looks into a failure, where that isn't a pod's."""


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
            orphans.prevent(self._process.pid)

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

    def leads_at(self) -> str:
        return ""

    def gather(self, folder: Path) -> None:
        if self._log_path.exists():
            (folder / "operator.log").write_bytes(self._log_path.read_bytes())


class OperatorPod:
    """Installed by the chart, as a user does it. It needs a cluster with images, and one whose processes can be reached, to be killed."""

    def __init__(self, cluster: providers.Cluster, helm: Path, image: str, environment: Mapping[str, str]) -> None:
        """image: `repository:tag`."""
        self._cluster, self._helm = cluster, helm
        repository, _, tag = image.rpartition(":")
        env = [{"name": name, "value": value} for name, value in environment.items()]
        # Two, as whoever runs fleets in earnest has them: a node may be lost with one.
        self.values = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"},
            "env": env,
            "replicas": 2,
        }

    def install(self, chart: Path = CHART, **values: object) -> str:
        """Or upgrades; what helm printed. Returns when the operator is ready. values: over its own."""
        return self.helm(
            *("upgrade", "--install", RELEASE, str(chart), "--create-namespace", "--values=-"),
            *("--wait", f"--timeout={HELM_S_MAX}s"),
            stdin=json.dumps({**self.values, **values}),
        )

    def uninstall(self) -> str:
        return self.helm("uninstall", RELEASE, "--wait", f"--timeout={HELM_S_MAX}s")

    def helm(self, *words: str, stdin: str = "") -> str:
        command = [
            str(self._helm),
            *words,
            f"--namespace={LEASE_NAMESPACE}",
            f"--kubeconfig={self._cluster.kubeconfig}",
        ]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=HELM_S_MAX + 60, check=False
        )
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    def start(self) -> None:
        """Waits until the kubelet has started it again."""
        deadline = time.monotonic() + READY_S_MAX
        while True:
            told = [condition for pod in self._pods() for condition in pod["status"].get("conditions") or ()]
            if any(entry["type"] == "Ready" and entry["status"] == "True" for entry in told):
                return
            assert time.monotonic() < deadline, f"the operator isn't ready after {READY_S_MAX} s"
            time.sleep(LOOK_AGAIN_S)  # a poll with a deadline

    def kill(self) -> None:
        for pod in self._pods():
            for pid in asyncio.run(self._cluster.processes(pod["metadata"]["uid"], "operator"))[:1]:
                os.kill(pid, signal.SIGKILL)

    def leads_at(self) -> str:
        told = self._asked("get", "lease", "--output=jsonpath={.items[*].spec.holderIdentity}")
        leaders = [
            pod for pod in self._pods() if any(word.startswith(pod["metadata"]["name"]) for word in told.split())
        ]
        assert len(leaders) == 1, f"{len(leaders)} operators lead: {told}"
        return str(leaders[0]["spec"]["nodeName"])

    def gather(self, folder: Path) -> None:
        """Nothing: what its pods have said is gathered as any pods' words are."""

    def _pods(self) -> list[dict[str, Any]]:
        told = self._asked("get", "pods", "--selector=app.kubernetes.io/component=operator", "-o=json")
        found: list[dict[str, Any]] = json.loads(told)["items"]
        return found

    def _asked(self, *words: str) -> str:
        command = [str(self._cluster.kubectl), f"--kubeconfig={self._cluster.kubeconfig}", *words]
        done = subprocess.run(
            [*command, f"--namespace={LEASE_NAMESPACE}"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout
