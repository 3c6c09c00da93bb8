"""kind: the users' cluster, where there is a Docker engine: a control plane and two nodes in containers. See providers.Cluster.

Linux and root are needed beside Docker, since the tests ask pods by their addresses and end processes inside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.e2e.cluster import errors, node
from tests.e2e.providers import Ability, ClusterFailedError

COMMAND_S_MAX = 600
READY_S_MAX = 180.0
LOOK_AGAIN_S = 0.5
NODES = """kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
"""
MANIFEST = "/etc/kubernetes/manifests/kube-apiserver.yaml"
ASIDE = "/etc/kubernetes/kube-apiserver.aside"


class KindProvider:
    """See providers.Cluster. name: of the kind cluster."""

    can = frozenset({Ability.LOSE_NODES, Ability.STOP_API_SERVER, Ability.REACH_PROCESSES, Ability.IMAGES})

    def __init__(self, name: str, folder: Path, kubectl: Path) -> None:
        self.name = name
        self.kubeconfig, self.kubectl = folder / "kubeconfig", kubectl
        self.address = ""

    def start(self) -> None:
        config = self.kubeconfig.with_name("kind.yaml")
        config.write_text(NODES)
        run(
            *("kind", "create", "cluster", f"--name={self.name}", f"--config={config}"),
            *(f"--kubeconfig={self.kubeconfig}", "--wait=180s"),
        )
        told = json.loads(run("docker", "network", "inspect", "kind"))
        gateways = [entry.get("Gateway", "") for entry in told[0]["IPAM"]["Config"]]
        self.address = next(address for address in gateways if "." in address)
        for item in json.loads(self._ask("get", "nodes", "--output=json"))["items"]:
            (at,) = (each["address"] for each in item["status"]["addresses"] if each["type"] == "InternalIP")
            # Docker's bridge knows the nodes' addresses; their pods' it must be told. The routes go with the bridge.
            run("ip", "route", "replace", item["spec"]["podCIDR"], "via", at)

    def end(self) -> None:
        run("kind", "delete", "cluster", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def nodes(self) -> list[str]:
        told = json.loads(await asyncio.to_thread(self._ask, "get", "nodes", "--output=json"))
        return [item["metadata"]["name"] for item in told["items"] if not item["spec"].get("taints")]

    async def lose_node(self, node: str, processes_live_on: bool = False) -> None:
        if processes_live_on:
            # Or systemd begins it anew.
            await asyncio.to_thread(run, "docker", "exec", node, "systemctl", "mask", "--runtime", "kubelet")
            await asyncio.to_thread(run, "docker", "exec", node, "systemctl", "kill", "--signal=KILL", "kubelet")
        else:
            await asyncio.to_thread(run, "docker", "kill", node)

    async def bring_back_node(self, node: str) -> None:
        await asyncio.to_thread(run, "docker", "start", node)
        await asyncio.to_thread(run, "docker", "exec", node, "systemctl", "unmask", "--runtime", "kubelet")
        await asyncio.to_thread(run, "docker", "exec", node, "systemctl", "start", "kubelet")
        await asyncio.to_thread(self._ask, "wait", "--for=condition=Ready", f"node/{node}", "--timeout=180s")

    async def stop_api_server(self) -> None:
        await asyncio.to_thread(run, "docker", "exec", self._control(), "mv", MANIFEST, ASIDE)
        await asyncio.to_thread(self._until, lambda: not self._is_ready(), "the API server is gone")

    async def start_api_server(self) -> None:
        bring = f"test ! -e {ASIDE} || mv {ASIDE} {MANIFEST}"
        await asyncio.to_thread(run, "docker", "exec", self._control(), "sh", "-c", bring)
        await asyncio.to_thread(self._until, self._is_ready, "the API server is ready")

    async def processes(self, pod_uid: str, container: str) -> Sequence[int]:
        return await asyncio.to_thread(self._processes, pod_uid, container)

    async def load_image(self, archive: Path) -> None:
        await asyncio.to_thread(run, "kind", "load", "image-archive", f"--name={self.name}", str(archive))

    async def gather(self, folder: Path) -> None:
        with contextlib.suppress(ClusterFailedError):
            await asyncio.to_thread(run, "kind", "export", "logs", f"--name={self.name}", str(folder))

    def _processes(self, pod_uid: str, container: str) -> list[int]:
        labels = (f"io.kubernetes.pod.uid={pod_uid}", f"io.kubernetes.container.name={container}")
        for each in run("kind", "get", "nodes", f"--name={self.name}").split():
            with contextlib.suppress(ClusterFailedError):
                asked = [word for label in labels for word in ("--label", label)]
                for found in run("docker", "exec", each, "crictl", "ps", "--quiet", *asked).split():
                    return node.pids_of(found)
        return []

    def _control(self) -> str:
        return f"{self.name}-control-plane"

    def _is_ready(self) -> bool:
        with contextlib.suppress(ClusterFailedError):
            return self._ask("get", "--raw=/readyz", "--request-timeout=2s") == "ok"
        return False

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterFailedError(f"not within {READY_S_MAX} s: {what}")
            time.sleep(LOOK_AGAIN_S)  # a poll with a deadline

    def _ask(self, *words: str) -> str:
        return run(str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *words)


def run(*command: str) -> str:
    """Raises ClusterFailedError with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)
    if done.returncode != 0:
        raise ClusterFailedError(f"{' '.join(command)}: {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def check() -> Path:
    """kubectl's path. Raises NotHereError with everything that is missing."""
    lacks = [name for name in ("docker", "kind", "kubectl", "ip") if shutil.which(name) is None]
    if platform.system() != "Linux" or os.geteuid() != 0:
        lacks.append("root on Linux")
    if not lacks and subprocess.run(["docker", "info"], capture_output=True, timeout=COMMAND_S_MAX).returncode != 0:
        lacks.append("a Docker engine that answers")
    if lacks:
        raise errors.NotHereError(f"no kind cluster can be made here: it takes {', '.join(lacks)}")
    return Path(shutil.which("kubectl") or "kubectl")


@contextlib.contextmanager
def running(images: Sequence[Path]) -> Iterator[KindProvider]:
    """images: archives. Raises cluster.errors.NotHereError before anything is begun."""
    kubectl = check()
    with tempfile.TemporaryDirectory(prefix="fleet-twin-kind-") as folder:
        provider = KindProvider(f"fleet-twin-{os.getpid()}", Path(folder), kubectl)
        try:
            provider.start()
            for archive in images:
                asyncio.run(provider.load_image(archive))
            yield provider
        finally:
            provider.end()
