"""The cluster that the kubeconfig at hand names, as it is: nobody's nodes are lost there, and nothing is loaded into it. See providers.Cluster.

FLEET_TWIN_E2E_ADDRESS is this machine's address as pods of the cluster see it, FLEET_TWIN_E2E_IMAGE the project's image as its nodes find it:
only whoever set it up knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.e2e.cluster import errors
from tests.e2e.providers import Ability, ClusterFailedError

ADDRESS, IMAGE = "FLEET_TWIN_E2E_ADDRESS", "FLEET_TWIN_E2E_IMAGE"
KUBECTL_S_MAX = 60


class CurrentProvider:
    """See providers.Cluster."""

    name = "current"
    can: frozenset[Ability] = frozenset()

    def __init__(self, kubeconfig: Path, kubectl: Path, address: str) -> None:
        self.kubeconfig, self.kubectl, self.address = kubeconfig, kubectl, address

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def nodes(self) -> list[str]:
        told = json.loads(await asyncio.to_thread(self.ask, "get", "nodes", "--output=json"))
        return [node["metadata"]["name"] for node in told["items"] if not node["spec"].get("taints")]

    async def lose_node(self, node: str, processes_live_on: bool = False) -> None:
        raise NotImplementedError("nobody's nodes are lost here: ask `can` for Ability.LOSE_NODES")

    async def bring_back_node(self, node: str) -> None:
        raise NotImplementedError("nobody's nodes are lost here: ask `can` for Ability.LOSE_NODES")

    async def stop_api_server(self) -> None:
        raise NotImplementedError("somebody else's API server goes on: ask `can` for Ability.STOP_API_SERVER")

    async def start_api_server(self) -> None:
        raise NotImplementedError("somebody else's API server goes on: ask `can` for Ability.STOP_API_SERVER")

    async def processes(self, pod_uid: str, container: str) -> Sequence[int]:
        raise NotImplementedError("pods run on other machines: ask `can` for Ability.REACH_PROCESSES")

    async def load_image(self, archive: Path) -> None:
        raise NotImplementedError("its nodes have the images, or fetch them: ask `can` for Ability.IMAGES")

    async def gather(self, folder: Path) -> None:
        """Whose logs these are, they keep."""

    def ask(self, *words: str) -> str:
        """kubectl's answer. Raises ClusterFailedError with its words."""
        command = [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=KUBECTL_S_MAX, check=False)
        if done.returncode != 0:
            raise ClusterFailedError(f"kubectl {' '.join(words)}: {done.stderr.strip()[-1000:]}")
        return done.stdout


@contextlib.contextmanager
def running() -> Iterator[CurrentProvider]:
    """Raises cluster.errors.NotHereError with what is missing, ClusterFailedError when nobody answers."""
    kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    kubectl, address = shutil.which("kubectl"), os.environ.get(ADDRESS)
    missing = [
        what
        for what, is_there in (
            (f"the kubeconfig {kubeconfig}", kubeconfig.is_file()),
            ("kubectl", kubectl),
            (f"{ADDRESS}, this machine's address as pods see it", address),
            (f"{IMAGE}, the project's image as its nodes find it", os.environ.get(IMAGE)),
        )
        if not is_there
    ]
    if missing or kubectl is None or address is None:
        raise errors.NotHereError("no cluster is at hand: it takes " + ", ".join(missing))
    provider = CurrentProvider(kubeconfig, Path(kubectl), address)
    provider.ask("get", "--raw=/readyz")
    yield provider
