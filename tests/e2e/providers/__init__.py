"""What the scenarios need of a cluster, whoever provides it: kind, the one made here of Kubernetes' own parts, or the one at hand.

A provider decides nothing about fleets. What it can't do it doesn't name in `can`, and a scenario that needs it is skipped with that word.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Ability(enum.StrEnum):
    """What not every cluster lets a test do."""

    LOSE_NODES = "lose_nodes"
    STOP_API_SERVER = "stop_api_server"
    REACH_PROCESSES = "reach_processes"
    IMAGES = "images"
    """Pods are made from images, so there are rolling updates of them, and the chart can be installed."""


class Cluster(Protocol):
    """Of one test session. Every method raises ClusterFailedError with what failed and the end of the logs that tell why.

    kubeconfig: an administrator's, good from inside `entered`. kubectl: the program. address: of this machine as pods see it, where
    the session's emulators listen. can: see Ability.
    """

    name: str
    kubeconfig: Path
    kubectl: Path
    address: str
    can: frozenset[Ability]

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Within it this thread, and every thread, socket and process that it begins, is where pods and the API server can be reached
        by their addresses (a network namespace, where there is one)."""

    async def nodes(self) -> list[str]:
        """Where workers may run, by name."""

    async def lose_node(self, node: str, processes_live_on: bool = False) -> None:
        """As by a power cut: its kubelet is gone without a word, and with it everything that ran there. processes_live_on: only the
        kubelet is; pods' processes don't notice. Needs LOSE_NODES."""

    async def bring_back_node(self, node: str) -> None:
        """Its kubelet runs again, with the disk as it was. Idempotent. Needs LOSE_NODES."""

    async def stop_api_server(self) -> None:
        """Gone until `start_api_server`. Needs STOP_API_SERVER."""

    async def start_api_server(self) -> None:
        """Returns when it is ready. Idempotent. Needs STOP_API_SERVER."""

    async def processes(self, pod_uid: str, container: str) -> Sequence[int]:
        """Ids, on this machine, of a container's processes, its first one first; empty when none runs. Needs REACH_PROCESSES."""

    async def load_image(self, archive: Path) -> None:
        """An image archive (docker-archive) becomes known to every node. Needs IMAGES."""

    async def gather(self, folder: Path) -> None:
        """Its own logs (API server, kubelets …), for whoever looks into a failure. Never raises for what isn't there."""


class ClusterFailedError(Exception):
    """The cluster couldn't be made, or didn't do what it was told."""
