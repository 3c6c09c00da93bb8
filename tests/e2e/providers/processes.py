"""A cluster whose pods are processes: a real API server and controllers, and kubelets that are played (tests/support/pods_as_processes).

For machines that can't run containers, and for `make test`: no root, no images, ready in seconds. What only a real kubelet, a real
network or a real image shows is judged elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.e2e.providers import Ability
from tests.support import api_server, pods_as_processes


class ProcessCluster:
    """See providers.Cluster. kubelets: for what only these can do."""

    name = "processes"
    address = "127.0.0.1"
    can = frozenset({Ability.LOSE_NODES, Ability.STOP_API_SERVER, Ability.REACH_PROCESSES})

    def __init__(self, server: api_server.ApiServer, kubelets: pods_as_processes.Kubelets) -> None:
        self.server, self.kubelets = server, kubelets
        self.kubeconfig, self.kubectl = server.kubeconfig_path, server.kubectl

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def nodes(self) -> list[str]:
        return list(self.kubelets.nodes)

    async def lose_node(self, node: str, processes_live_on: bool = False) -> None:
        await asyncio.to_thread(self.kubelets.lose, node, processes_live_on)

    async def bring_back_node(self, node: str) -> None:
        await asyncio.to_thread(self.kubelets.bring_back, node)

    async def stop_api_server(self) -> None:
        await asyncio.to_thread(self.server.stop)

    async def start_api_server(self) -> None:
        await asyncio.to_thread(self.server.start)

    async def processes(self, pod_uid: str, container: str) -> Sequence[int]:
        return await asyncio.to_thread(self.kubelets.pids, pod_uid)

    async def load_image(self, archive: Path) -> None:
        raise NotImplementedError("there are no images here: ask `can` for Ability.IMAGES")

    async def gather(self, folder: Path) -> None:
        shutil.copytree(self.kubelets.logs(), folder / "pods", dirs_exist_ok=True)
        for name in ("kube-apiserver", "kube-controller-manager", "etcd"):
            (folder / f"{name}.log").write_text(self.server.output(name))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ProcessCluster]:
    """Raises go_toolchain.NoGoError where Kubernetes' programs can't be had."""
    with api_server.running(api_server.Settings(programs=("kube-controller-manager",))) as server:
        server.apply_crds()
        with pods_as_processes.running(server, folder) as kubelets:
            yield ProcessCluster(server, kubelets)
