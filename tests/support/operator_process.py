"""The operator as a process of a test, and what it needs: a service account with the chart's rights, a fleet's document, pods and
workers that the test plays itself.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleet_model import twin_partition, twin_partition_document
from tests.support import aws_env, kube_api, server_process
from tests.support.api_server import ApiServer

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
STREAM = "telemetry"

RULES: list[dict[str, Any]] = [
    {
        "apiGroups": ["fleettwin.io"],
        "resources": ["devicefleets"],
        "verbs": ["get", "list", "watch", "patch"],
    },
    {"apiGroups": ["fleettwin.io"], "resources": ["devicefleets/status"], "verbs": ["get", "patch", "update"]},
    {"apiGroups": ["fleettwin.io"], "resources": ["devicefleets/finalizers"], "verbs": ["update"]},
    {
        "apiGroups": ["fleettwin.io"],
        "resources": ["twinpartitions"],
        "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
    },
    {"apiGroups": ["fleettwin.io"], "resources": ["twinpartitions/status"], "verbs": ["get", "patch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "delete"]},
    {
        "apiGroups": [""],
        "resources": ["services", "serviceaccounts"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
    {
        "apiGroups": ["apps"],
        "resources": ["statefulsets", "controllerrevisions"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {
        "apiGroups": ["policy"],
        "resources": ["poddisruptionbudgets"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {
        "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["roles", "rolebindings"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["create", "get", "list", "watch", "update", "patch"],
    },
]


class Operator:
    """One process. port: of /healthz, /readyz and /metrics."""

    def __init__(self, kubeconfig: Path, namespace: str, pod: str = "operator-0") -> None:
        self.port = server_process.free_port()
        self._process = server_process.ServerProcess(
            [
                *(sys.executable, "-m", "fleet_cli", "operator"),
                *(f"--namespace={namespace}", "--image=fleet-twin:test", "--host=127.0.0.1", f"--port={self.port}"),
            ],
            aws_env.environment(KUBECONFIG=str(kubeconfig), POD_NAME=pod),
        )

    def output(self) -> str:
        return self._process.output()

    def check_alive(self) -> None:
        self._process.check_alive()

    def kill(self) -> None:
        """As by kill -9."""
        self._process.kill()

    def stop(self) -> None:
        self._process.stop()

    def get(self, path: str) -> tuple[int, str]:
        """The status, 0 when nobody answers, and the body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The sum over its labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    @property
    def acts(self) -> bool:
        return self.metric("fleet_twin_operator_is_leader") == 1.0


@contextlib.contextmanager
def running(kubeconfig: Path, namespace: str, pod: str = "operator-0") -> Iterator[Operator]:
    operator = Operator(kubeconfig, namespace, pod)
    try:
        yield operator
    finally:
        operator.stop()


def kubeconfig(server: ApiServer, namespace: str, folder: Path) -> Path:
    """Of a service account that has the rights of a namespaced install, and no more."""
    token = server.service_account(namespace, "operator", RULES)
    return server.as_user(token).write_kubeconfig(folder / "operator.kubeconfig", namespace)


def document(namespace: str, name: str, endpoint: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "fleettwin.io/v1alpha1",
        "kind": "DeviceFleet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 2,
            "aws": {"region": aws_env.REGION, "endpointURL": endpoint},
            "streams": {
                "telemetry": {"name": STREAM},
                "alerts": {"name": "alerts"},
                "commands": {"name": "commands"},
            },
            "checkpoint": {"bucket": "checkpoints"},
            **spec,
        },
    }


class Fleet:
    """A fleet on a server, as its user sees it; and its workers, played by the test."""

    def __init__(self, server: ApiServer, namespace: str, name: str) -> None:
        self.server, self.namespace, self.name = server, namespace, name

    def path(self, plural: str, name: str = "", root: str = "/api/v1") -> str:
        return f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    @property
    def own(self) -> str:
        return self.path("devicefleets", self.name, kube_api.FLEETS)

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        return self.server.request("POST", self.path("devicefleets", root=kube_api.FLEETS), manifest)

    def get(self) -> dict[str, Any]:
        return self.server.request("GET", self.own)

    def exists(self) -> bool:
        try:
            self.get()
        except kube_api.RefusedError as refused:
            if refused.status != 404:
                raise
            return False
        return True

    def edit(self, **spec: Any) -> dict[str, Any]:
        return self.server.request("PATCH", self.own, {"spec": spec}, MERGE_PATCH)

    def delete(self) -> None:
        self.server.request("DELETE", self.own)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.get().get("status") or {}
        return status

    def condition(self, kind: str) -> dict[str, Any]:
        found = [entry for entry in self.status().get("conditions", ()) if entry["type"] == kind]
        return found[0] if found else {"status": "Unknown", "reason": "", "message": ""}

    def children(self) -> list[dict[str, Any]]:
        """All objects that a fleet consists of, but partitions and pods."""
        rbac = kube_api.RBAC
        places = [
            self.path("services"),
            self.path("statefulsets", root="/apis/apps/v1"),
            self.path("poddisruptionbudgets", root="/apis/policy/v1"),
            self.path("roles", root=rbac),
            self.path("rolebindings", root=rbac),
            self.path("serviceaccounts"),
            self.path("controllerrevisions", root="/apis/apps/v1"),
        ]
        selector = f"?labelSelector=fleettwin.io/fleet={self.name}"
        return [found for place in places for found in self.server.request("GET", place + selector)["items"]]

    def made(self) -> list[dict[str, Any]]:
        """Its pods and partitions."""
        places = self.path("pods"), self.path("twinpartitions", root=kube_api.FLEETS)
        return [found for place in places for found in self.server.request("GET", place)["items"]]

    def partitions(self) -> list[twin_partition.TwinPartition]:
        """In the order in which they were made."""
        found = self.server.request("GET", self.path("twinpartitions", root=kube_api.FLEETS))["items"]
        ours = [each for each in found if each["spec"]["fleet"] == self.name]
        ours.sort(key=lambda each: int(each["metadata"]["resourceVersion"]) if not each.get("status") else 0)
        head = {"apiVersion": twin_partition_document.API_VERSION, "kind": twin_partition_document.KIND}
        return [twin_partition_document.parse_document({**each, **head}) for each in ours]

    def versions(self) -> dict[str, str]:
        """Of every object that the operator writes: what must stand still at rest."""
        found = [self.get(), *self.children()]
        found += self.server.request("GET", self.path("twinpartitions", root=kube_api.FLEETS))["items"]
        return {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in found}

    def write_status(self, entry: twin_partition.TwinPartition, status: twin_partition.Status) -> None:
        """As the partition's owner."""
        change = {
            "metadata": {"resourceVersion": entry.resource_version},
            "status": twin_partition_document.status_document(status),
        }
        place = self.path("twinpartitions", entry.name, kube_api.FLEETS)
        self.server.request("PATCH", f"{place}/status", json.loads(json.dumps(change)), MERGE_PATCH)
