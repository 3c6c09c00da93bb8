"""Nodes and kubelets that run pods as processes of this machine: a cluster for tests where no container can be had.

The API server and the controllers that make the pods are real, and so is what runs in them; only what lies between is played here:
nodes with their leases, placement, addresses, volumes, probes, restarts, graceful and forced ends. It looks at all pods some times
a second and brings each one step on, so it may miss nothing but time. It plays no network, no limits, no security contexts: what a
pod may do is judged on real clusters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.client
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support import kube_api, pod_process

Manifest = dict[str, Any]
LOOK_EVERY_S = 0.25
LEASE_EVERY_S = 4.0
PROBE_S_MAX = 2.0
PROBE_EVERY_S = 1.0
UNREADY_AFTER = 2
CRASH_DELAYS_S = (0.0, 1.0, 2.0, 4.0, 8.0)
LIVED_S = 30.0
"""Who ran for so long begins anew with its delays."""
BROKEN = "broken"
"""An image whose name holds this can't be had."""
STATUS = "application/merge-patch+json"
NODES, LEASES = "/api/v1/nodes", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclasses.dataclass(slots=True)
class _Pod:
    """What a kubelet knows of a pod of its own. misses: readiness probes that failed in a row. crashes: ends in a row, each soon after its start.
    told: the status that was written last. ends_at: when it is killed, once it was told to end."""

    process: pod_process.PodProcess
    node: str
    waiting: str = ""
    has_started: bool = False
    ready: bool = False
    misses: int = 0
    probed_at: float = 0.0
    crashes: int = 0
    told: Manifest | None = None
    ends_at: float | None = None


class Kubelets:
    """Of all nodes; runs in a thread of its own between `start` and `stop`. processes and their logs are below `folder`."""

    def __init__(self, api: kube_api.KubeApi, folder: Path, nodes: tuple[str, ...] = ("node-1", "node-2")) -> None:
        self._api, self._folder = api, folder
        self.nodes = nodes
        self._addresses = (
            f"127.{64 + os.getpid() % 128}.{number // 250}.{number % 250 + 1}" for number in itertools.count()
        )
        self._pods: dict[str, _Pod] = {}
        self._lost: set[str] = set()
        self._zombies: list[pod_process.PodProcess] = []
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelets", daemon=True)
        self._leased_at = 0.0
        self.failure: BaseException | None = None

    # What a test does to nodes and pods

    def lose(self, node: str, processes_live_on: bool) -> None:
        """Its kubelet does nothing more, and what runs there is killed, unless it is to live on."""
        with self._lock:
            self._lost.add(node)
            for known in self._pods.values():
                if known.node == node and not processes_live_on:
                    known.process.kill()

    def bring_back(self, node: str) -> None:
        with self._lock:
            self._lost.discard(node)
            self._leased_at = 0.0

    def pids(self, pod_uid: str) -> list[int]:
        with self._lock:
            known = self._pods.get(pod_uid)
            pid = known.process.pid if known is not None else None
            return [] if pid is None else [pid]

    def logs(self) -> Path:
        return self._folder / "logs"

    # The loop

    def start(self) -> None:
        self.logs().mkdir(parents=True, exist_ok=True)
        for node in self.nodes:
            self._register(node)
        self._thread.start()

    def stop(self) -> None:
        """Every process is gone on return. Raises what the loop ended with."""
        self._over.set()
        self._thread.join()
        for known in self._pods.values():
            known.process.kill()
        for zombie in self._zombies:
            zombie.kill()
        if self.failure is not None:
            raise RuntimeError("the kubelets stopped working") from self.failure

    def _run(self) -> None:
        try:
            while not self._over.wait(LOOK_EVERY_S):
                try:
                    self._look()
                except OSError:
                    continue  # the API server is away; containers go on, as on a real node
                except kube_api.RefusedError as refused:
                    if refused.status not in (404, 409) and refused.status < 500:
                        raise  # what is gone or has changed meanwhile is looked at anew
        except Exception as error:  # noqa: BLE001 - the thread's end is told by `stop`
            self.failure = error

    def _look(self) -> None:
        with self._lock:
            for known in self._pods.values():
                if known.node not in self._lost:
                    self._tend(known)
            if time.monotonic() - self._leased_at > LEASE_EVERY_S:
                self._renew()
            pods = self._api.request("GET", "/api/v1/pods")["items"]
            there = {pod["metadata"]["uid"]: pod for pod in pods}
            for uid in [uid for uid in self._pods if uid not in there]:
                self._gone(uid)
            for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
                self._bring_on(pod, pods)
            self._sweep_claims()

    def _bring_on(self, pod: Manifest, pods: Sequence[Manifest]) -> None:
        """One step. pods: all there are; where one is bound to is noted there."""
        metadata, node = pod["metadata"], pod["spec"].get("nodeName")
        deleted = "deletionTimestamp" in metadata
        if not node:
            if not deleted:
                self._bind(pod, pods)
            return
        if node in self._lost or node not in self.nodes:
            return
        known = self._pods.get(metadata["uid"])
        if known is None:
            if deleted:
                self._finish(pod)
                return
            known = self._pods[metadata["uid"]] = self._placed(pod, node)
        if deleted:
            self._end(pod, known)
            return
        self._tell(pod, known)

    def _bind(self, pod: Manifest, pods: Sequence[Manifest]) -> None:
        """To the node with the fewest pods of its controller, then with the fewest: as a scheduler spreads them. A claim makes no
        difference, as with volumes of the network."""
        alive = [node for node in self.nodes if node not in self._lost]
        if not alive:
            return
        controller = pod["metadata"].get("ownerReferences")
        count = {node: [0, 0] for node in alive}
        for other in pods:
            if other["spec"].get("nodeName") in count:
                count[other["spec"]["nodeName"]][0] += other["metadata"].get("ownerReferences") == controller
                count[other["spec"]["nodeName"]][1] += 1
        pod["spec"]["nodeName"] = min(alive, key=lambda node: count[node])
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        self._api.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/pods/{name}/binding",
            {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name, "uid": pod["metadata"]["uid"]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": pod["spec"]["nodeName"]},
            },
        )

    def _placed(self, pod: Manifest, node: str) -> _Pod:
        metadata = pod["metadata"]
        claims = {name: self._claim_folder(metadata["namespace"], name) for name in pod_process.claims_of(pod)}
        place = pod_process.Place(next(self._addresses), self._folder / "pods" / metadata["uid"], claims)
        log_path = self.logs() / f"{metadata['namespace']}.{metadata['name']}.log"
        return _Pod(pod_process.PodProcess(self._api, pod, place, log_path), node)

    # A container's life

    def _tend(self, known: _Pod) -> None:
        """Starts it when it is due, and asks how it is. Needs no API server once it runs."""
        process = known.process
        if known.ends_at is not None:
            if process.pid is not None and time.monotonic() > known.ends_at:
                process.kill()
            return
        if process.restarts >= 0 and process.pid is not None:
            self._probe(known)
            return
        if process.has_ended() and known.told is not None and not known.waiting:
            lived_s = time.monotonic() - process.started_at
            known.crashes = 0 if lived_s > LIVED_S else known.crashes + 1
            known.waiting = "CrashLoopBackOff" if known.crashes > 2 else "ContainerCreating"
            known.ready = known.has_started = False
        delay_s = CRASH_DELAYS_S[min(known.crashes, len(CRASH_DELAYS_S) - 1)]
        if process.restarts >= 0 and time.monotonic() - process.started_at < delay_s:
            return
        if BROKEN in process.pod["spec"]["containers"][0]["image"]:
            known.waiting = "ImagePullBackOff"
            return
        try:
            process.start()
        except pod_process.NotYetError as error:
            known.waiting = str(error).partition(":")[0]
            return
        known.waiting, known.misses = "", 0

    def _probe(self, known: _Pod) -> None:
        if time.monotonic() - known.probed_at < PROBE_EVERY_S:
            return
        known.probed_at = time.monotonic()
        answered = _answers(known.process.address, "/readyz" if known.has_started else "/healthz")
        if not known.has_started:
            known.has_started = answered
            return
        known.misses = 0 if answered else known.misses + 1
        if answered or known.misses >= UNREADY_AFTER:
            known.ready = answered

    def _end(self, pod: Manifest, known: _Pod) -> None:
        process = known.process
        if known.ends_at is None:
            known.ends_at = time.monotonic() + (pod["metadata"].get("deletionGracePeriodSeconds") or 0)
            known.ready = False
            process.signal(signal.SIGTERM)
            self._tell(pod, known)
        if process.pid is None:
            self._finish(pod)
            self._gone(pod["metadata"]["uid"])

    def _finish(self, pod: Manifest) -> None:
        """The object goes: its containers have ended."""
        metadata = pod["metadata"]
        self._api.request(
            "DELETE",
            f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}",
            {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "gracePeriodSeconds": 0,
                "preconditions": {"uid": metadata["uid"]},
            },
        )

    def _gone(self, uid: str) -> None:
        """Its object is no more. On a lost node nobody hears of it: what runs there runs on."""
        known = self._pods[uid]
        if known.node in self._lost:
            return
        known.process.kill()
        known.process.forget()
        del self._pods[uid]

    # What is told

    def _tell(self, pod: Manifest, known: _Pod) -> None:
        status = _status(pod, known)
        if status == known.told:
            return
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        self._api.request("PATCH", path, {"metadata": {"uid": metadata["uid"]}, "status": status}, STATUS)
        known.told = status

    def _register(self, node: str) -> None:
        labels = {"kubernetes.io/hostname": node, "kubernetes.io/os": "linux"}
        made = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}}
        self._api.request("POST", NODES, made)
        size = {"cpu": "8", "memory": "32Gi", "pods": "110"}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": _now()}
        status = {"capacity": size, "allocatable": size, "conditions": [ready]}
        self._api.request("PATCH", f"{NODES}/{node}/status", {"status": status}, STATUS)

    def _renew(self) -> None:
        for node in self.nodes:
            if node in self._lost:
                continue
            self._api.request(
                "PATCH",
                f"{LEASES}/{node}?fieldManager=kubelet&force=true",
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": node},
                    "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": _now(micro=True)},
                },
                kube_api.APPLY_PATCH,
            )
        self._leased_at = time.monotonic()

    # Volumes

    def _claim_folder(self, namespace: str, name: str) -> Path:
        """By the claim's uid: one of the same name that is made anew is empty."""
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
        claim = self._api.request("GET", path)
        if (claim.get("status") or {}).get("phase") != "Bound":
            capacity = claim["spec"]["resources"]["requests"]
            self._api.request("PATCH", f"{path}/status", {"status": {"phase": "Bound", "capacity": capacity}}, STATUS)
        return self._folder / "claims" / str(claim["metadata"]["uid"])

    def _sweep_claims(self) -> None:
        folder = self._folder / "claims"
        if not folder.exists() or not any(folder.iterdir()):
            return
        claims = self._api.request("GET", "/api/v1/persistentvolumeclaims")["items"]
        there = {claim["metadata"]["uid"] for claim in claims}
        for path in folder.iterdir():
            if path.name not in there:
                shutil.rmtree(path)


def _answers(address: str, path: str) -> bool:
    connection = http.client.HTTPConnection(address, 8080, timeout=PROBE_S_MAX)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _status(pod: Manifest, known: _Pod) -> Manifest:
    """As a kubelet writes it. Times only where somebody might read them, so that equal states are equal."""
    process, spec = known.process, pod["spec"]
    runs = process.pid is not None
    waiting = known.waiting or "ContainerCreating"
    state: Manifest = {"running": {}} if runs else {"waiting": {"reason": waiting}}
    if known.ends_at is not None and not runs:
        state = {"terminated": {"exitCode": process.exit_code or 0}}
    container: Manifest = {
        "name": spec["containers"][0]["name"],
        "image": spec["containers"][0]["image"],
        "imageID": spec["containers"][0]["image"],
        "containerID": f"process://{process.pid or 0}",
        "ready": known.ready,
        "started": known.has_started,
        "restartCount": max(0, process.restarts),
        "state": state,
    }
    if process.exit_code is not None:
        container["lastState"] = {"terminated": {"exitCode": process.exit_code}}
    ready = "True" if known.ready else "False"
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Initialized", "status": "True"},
        {"type": "ContainersReady", "status": ready},
        {"type": "Ready", "status": ready},
    ]
    return {
        "phase": "Running" if process.restarts >= 0 else "Pending",
        "podIP": process.address,
        "podIPs": [{"ip": process.address}],
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "conditions": conditions,
        "containerStatuses": [container],
    }


def _now(micro: bool = False) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def running(api: kube_api.KubeApi, folder: Path, nodes: tuple[str, ...] = ("node-1", "node-2")) -> Iterator[Kubelets]:
    kubelets = Kubelets(api, folder, nodes)
    kubelets.start()
    try:
        yield kubelets
    finally:
        kubelets.stop()
