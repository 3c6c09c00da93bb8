"""The cluster of this machine alone (tests/e2e/cluster): real nodes, real containers, no Docker. See providers.Cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tests.e2e.cluster import errors, local_cluster, network
from tests.e2e.providers import Ability, ClusterFailedError
from tests.support import server_process

_T = TypeVar("_T")


class LocalProvider:
    """See providers.Cluster. cluster: for what only this one can do."""

    name = "local"
    address = network.CONTROL
    can = frozenset({Ability.LOSE_NODES, Ability.STOP_API_SERVER, Ability.REACH_PROCESSES, Ability.IMAGES})

    def __init__(self, cluster: local_cluster.LocalCluster) -> None:
        self.cluster = cluster
        self.kubeconfig, self.kubectl = cluster.server.kubeconfig_path, cluster.server.kubectl

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return self.cluster.entered()

    async def nodes(self) -> list[str]:
        return list(self.cluster.nodes)

    async def lose_node(self, node: str, processes_live_on: bool = False) -> None:
        await _done(lambda: self.cluster.lose_node(node, processes_live_on))

    async def bring_back_node(self, node: str) -> None:
        await _done(lambda: self.cluster.bring_back_node(node))

    async def stop_api_server(self) -> None:
        await _done(self.cluster.stop_api_server)

    async def start_api_server(self) -> None:
        await _done(self.cluster.start_api_server)

    async def processes(self, pod_uid: str, container: str) -> Sequence[int]:
        return await _done(lambda: self.cluster.processes(pod_uid, container))

    async def load_image(self, archive: Path) -> None:
        await _done(lambda: self.cluster.load_image(archive))

    async def gather(self, folder: Path) -> None:
        await _done(lambda: self.cluster.gather(folder))


@contextlib.contextmanager
def running(nodes: int, images: Sequence[Path]) -> Iterator[LocalProvider]:
    """images: archives, the pause image's among them. Raises cluster.errors.NotHereError where this machine can't have the cluster."""
    with _own_errors(), local_cluster.running(nodes, images) as cluster:
        yield LocalProvider(cluster)


async def _done(what: Callable[[], _T]) -> _T:
    with _own_errors():
        return await asyncio.to_thread(what)


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except (errors.NodeFailedError, server_process.ServerFailedError, OSError) as failed:
        raise ClusterFailedError(str(failed)) from failed
