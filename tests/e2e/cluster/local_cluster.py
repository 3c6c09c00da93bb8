"""The whole cluster: control plane, nodes, volumes, the names of Services; begun and ended as one.

Everything lies in one folder and in namespaces of the kernel of its own, so two clusters on a machine don't meet.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from tests.e2e.cluster import errors, names, needs, network, node, sweeping, volumes
from tests.support import api_server, kube_api, orphans

READY_S_MAX = 180.0
REMOVE_S_MAX = 30.0
LOOK_AGAIN_S = 0.1
NODES = "/api/v1/nodes"


class LocalCluster:
    """What `running` gives. server: the API server as its administrator, to be asked from inside `entered` only."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.namespace = name
        orphans.begin()
        network.make_cluster(name)
        (folder / "control").mkdir()
        with self.entered():
            self.server = api_server.ApiServer(
                folder / "control", api_server.Settings(address=network.CONTROL, programs=api_server.FEATURES)
            )
        self.nodes: dict[str, node.Node] = {}
        self._names = names.Names(folder, self.server.kubeconfig_path)

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Within it this thread, and what it begins, reaches the API server, pods and Services by their addresses."""
        return network.entered(self.namespace)

    def start(self, nodes: int, images: Sequence[Path]) -> None:
        """Returns when every node is ready. Raises NodeFailedError or ServerFailedError."""
        with self.entered():
            self.server.start_all()
            self._names.start()
        for number in range(1, nodes + 1):
            made = node.Node(self.namespace, number, self.folder / "nodes", self.server)
            self.nodes[made.name] = made
        self._at_once(node.Node.start)
        network.services_through(self.namespace, 1)
        for image in images:
            self.load_image(image)
        with self.entered():
            self._make_volumes()
        self.until(self.all_ready, "every node ready", READY_S_MAX)
        self.until(self._names.is_ready, "the names of Services", READY_S_MAX)

    def load_image(self, archive: Path) -> None:
        """Becomes known to every node."""
        self._at_once(lambda each: each.load_image(archive))

    def lose_node(self, name: str, processes_live_on: bool = False) -> None:
        lost = self.nodes[name]
        if processes_live_on:
            lost.kill_kubelet()
            return
        lost.cut_power()
        # Whoever asks for a Service from the control plane's side needs another way in.
        others = [each.number for each in self.nodes.values() if each.name != name]
        if others:
            network.services_through(self.namespace, min(others))

    def bring_back_node(self, name: str) -> None:
        """Returns when Kubernetes calls it ready. Idempotent."""
        began = time.time()
        self.nodes[name].start()
        self.until(lambda: self._heartbeat(name) >= began and self._is_ready(name), f"{name} ready", READY_S_MAX)

    def stop_api_server(self) -> None:
        self.server.stop()

    def start_api_server(self) -> None:
        with self.entered():
            self.server.start()

    def processes(self, pod_uid: str, container: str) -> list[int]:
        """Ids, on this machine, of a container's processes, its first one first; [] when none runs."""
        for each in self.nodes.values():
            found = each.container_of(pod_uid, container)
            if found is not None:
                return node.pids_of(found)
        return []

    def gather(self, folder: Path) -> None:
        """Every program's own words, a file each."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.server.outputs():
            (folder / f"{name}.log").write_text(text)
        (folder / "coredns.log").write_text(self._names.output())
        for each in self.nodes.values():
            for name, text in each.outputs():
                (folder / f"{each.name}-{name}.log").write_text(text)

    def end(self) -> None:
        """Every process and namespace that it began, and its folder. Idempotent."""
        self._at_once(node.Node.end)
        self._names.end()
        self.server.end()
        for each in self.nodes.values():
            each.remove()
        network.remove(self.namespace)
        self._remove_folder()

    def until(self, condition: Callable[[], bool], what: str, seconds_max: float) -> None:
        """Asked in the cluster's network. Raises NodeFailedError when it doesn't hold in time."""
        deadline = time.monotonic() + seconds_max
        while True:
            with self.entered():
                if condition():
                    return
            if time.monotonic() > deadline:
                raise errors.NodeFailedError(f"not within {seconds_max} s: {what}")
            time.sleep(LOOK_AGAIN_S)  # a poll with a deadline

    def all_ready(self) -> bool:
        return all(map(self._is_ready, self.nodes))

    def _is_ready(self, name: str) -> bool:
        try:
            told = self.server.request("GET", f"{NODES}/{name}")
        except (kube_api.RefusedError, OSError):
            return False
        conditions = told["status"].get("conditions", [])
        return {"Ready": "True"}.items() <= {each["type"]: each["status"] for each in conditions}.items()

    def _heartbeat(self, name: str) -> float:
        """When the node's Lease was last renewed; 0 when there is none."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"
        with contextlib.suppress(kube_api.RefusedError, OSError):
            told = self.server.request("GET", path)["spec"].get("renewTime", "")
            return datetime.datetime.fromisoformat(told).timestamp() if told else 0.0
        return 0.0

    def _make_volumes(self) -> None:
        documents: list[dict[str, Any]] = [volumes.storage_class()]
        for each in self.nodes.values():
            documents += volumes.make(each.name, each.disk)
        for document in documents:
            is_class = document["kind"] == "StorageClass"
            path = "/apis/storage.k8s.io/v1/storageclasses" if is_class else "/api/v1/persistentvolumes"
            self.server.request("POST", path, document)

    def _at_once(self, what: Callable[[node.Node], None]) -> None:
        """With every node; raises the first failure after all have ended."""
        if not self.nodes:
            return
        with futures.ThreadPoolExecutor(len(self.nodes)) as pool:
            for done in [pool.submit(what, each) for each in self.nodes.values()]:
                done.result()

    def _remove_folder(self) -> None:
        """The kernel lets go of dead namespaces' mounts a little later."""
        deadline = time.monotonic() + REMOVE_S_MAX
        while True:
            try:
                shutil.rmtree(self.folder)
                return
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOOK_AGAIN_S)  # a poll with a deadline


@contextlib.contextmanager
def running(nodes: int = 2, images: Sequence[Path] = ()) -> Iterator[LocalCluster]:
    """A ready cluster with these image archives (the pause image among them). Raises NotHereError before anything is begun."""
    assert 1 <= nodes <= network.NODES_MAX
    needs.check()
    sweeping.sweep()
    cluster = LocalCluster(sweeping.make_folder(), sweeping.namespace())
    try:
        cluster.start(nodes, images)
        yield cluster
    finally:
        cluster.end()
