"""A fleet on a real API server as both sides of a control plane: workers with the rights of their Role and no others, and the test as
the operator, who writes specs and generations.

There are no heartbeats in Kubernetes, and the fleet's start lies in the bucket: those promises aren't judged here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from fleet_model import packed_generations, parse, rules, twin_partition, twin_partition_document
from fleet_operator import naming, resources
from fleet_worker import control_plane, errors, ports
from fleet_worker.adapters import kubernetes_api, kubernetes_control
from tests.support import fleets, kube_api
from tests.support.api_server import ApiServer

FLEET = "trucks"


def fleet_document(namespace: str, **spec: Any) -> dict[str, Any]:
    document: dict[str, Any] = fleets.smallest()
    document["metadata"] = {"name": FLEET, "namespace": namespace}
    document["spec"] = {**document["spec"], **spec}
    return document


def account_folder(server: kube_api.KubeApi, folder: Path, token: str) -> Path:
    """As the kubelet puts it into a pod."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(token)
    (folder / "ca.crt").write_bytes(server.ca_file.read_bytes())
    return folder


def worker_token(server: kube_api.KubeApi, namespace: str) -> str:
    """Of an account with the fleet's Role, as the operator makes it."""
    fleet = parse.parse(fleet_document(namespace))
    role = resources.role(fleet, naming.Owner(FLEET, "0000"))
    return server.service_account(namespace, naming.worker_account(FLEET), role["rules"])


class AsOperator:
    """What the test writes."""

    def __init__(self, server: kube_api.KubeApi, namespace: str) -> None:
        self.server = server
        self.namespace = namespace
        self.folder = f"{kube_api.FLEETS}/namespaces/{namespace}"

    def path(self, shard_id: str = "") -> str:
        name = f"/{twin_partition.object_name(FLEET, shard_id)}" if shard_id else ""
        return f"{self.folder}/twinpartitions{name}"

    @property
    def fleet_path(self) -> str:
        return f"{self.folder}/devicefleets/{FLEET}"

    def make_fleet(self, **spec: Any) -> dict[str, Any]:
        return self.server.request("POST", f"{self.folder}/devicefleets", fleet_document(self.namespace, **spec))

    def generations(self) -> tuple[rules.RulesGeneration, ...]:
        status = self.server.request("GET", self.fleet_path).get("status") or {}
        packed = (status.get("rules") or {}).get("generations")
        return packed_generations.unpack(packed) if packed else ()

    def publish(self, kept: tuple[rules.RulesGeneration, ...]) -> None:
        self.write_status(packed_generations.pack(kept))

    def write_status(self, packed: str | None) -> None:
        patch = {"status": {"rules": {"generations": packed}}}
        self.server.request("PATCH", f"{self.fleet_path}/status", patch, kube_api.MERGE_PATCH)

    def create(self, wanted: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        document = twin_partition_document.document(wanted)
        metadata = {"name": wanted.name, "labels": {**naming.labels(FLEET, "partition")}}
        made = {key: document[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": metadata}
        return _parsed(_conflicts(lambda: self.server.request("POST", self.path(), made), wanted.spec.shard_id))

    def update_spec(
        self, shard_id: str, spec: twin_partition.Spec, resource_version: str
    ) -> twin_partition.TwinPartition:
        stored = _conflicts(lambda: self.server.request("GET", self.path(shard_id)), shard_id)
        # An empty resourceVersion would be an unconditional write.
        stored["metadata"]["resourceVersion"] = resource_version or "1"
        stored["spec"] = twin_partition_document.spec_document(spec)
        return _parsed(_conflicts(lambda: self.server.request("PUT", self.path(shard_id), stored), shard_id))

    def delete(self, shard_id: str, resource_version: str) -> None:
        options = {"preconditions": {"resourceVersion": resource_version or "1"}}
        _conflicts(lambda: self.server.request("DELETE", self.path(shard_id), options), shard_id)

    def partitions(self) -> dict[str, twin_partition.TwinPartition]:
        found = [_parsed(item) for item in self.server.request("GET", self.path())["items"]]
        return {entry.spec.shard_id: entry for entry in sorted(found, key=lambda entry: entry.spec.shard_id)}


class KubernetesPlane:
    """control_plane.ControlPlane, but for heartbeats and the start."""

    def __init__(self, operator: AsOperator, make_control: Callable[[], kubernetes_control.KubernetesControl]) -> None:
        self.operator = operator
        self._make_control = make_control
        self._controls: dict[str, kubernetes_control.KubernetesControl] = {}

    def control(self, worker: str) -> kubernetes_control.KubernetesControl:
        if worker not in self._controls:
            self._controls[worker] = self._make_control()
        return self._controls[worker]

    def ownership(self, worker: str) -> ports.Ownership:
        return self.control(worker).ownership(worker)

    async def heartbeat(self, beat: control_plane.Heartbeat) -> None:
        """The operator asks workers itself."""

    def follow_generations(self, worker: str) -> AsyncGenerator[tuple[rules.RulesGeneration, ...], None]:
        return self.control(worker).rules.follow()

    async def partitions(self) -> Mapping[str, twin_partition.TwinPartition]:
        return await asyncio.to_thread(self.operator.partitions)

    async def create(self, wanted: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        return await asyncio.to_thread(self.operator.create, wanted)

    async def update_spec(
        self, shard_id: str, spec: twin_partition.Spec, resource_version: str
    ) -> twin_partition.TwinPartition:
        return await asyncio.to_thread(self.operator.update_spec, shard_id, spec, resource_version)

    async def delete(self, shard_id: str, resource_version: str) -> None:
        await asyncio.to_thread(self.operator.delete, shard_id, resource_version)

    async def generations(self) -> tuple[rules.RulesGeneration, ...]:
        return await asyncio.to_thread(self.operator.generations)

    async def append_generation(
        self, make: control_plane.Make, oldest_arrival_ms: int
    ) -> tuple[rules.RulesGeneration, ...]:
        kept = await self.generations()
        made = make(kept, 0)
        if made is None:
            return kept
        await asyncio.to_thread(self.operator.publish, (*kept, made))
        return (*kept, made)


@contextlib.asynccontextmanager
async def opened(server: ApiServer, namespace: str, folder: Path, clock: ports.Clock) -> AsyncIterator[KubernetesPlane]:
    """A namespace with a fleet in it, no partitions yet."""
    server.make_namespace(namespace)
    operator = AsOperator(server, namespace)
    operator.make_fleet()
    account = account_folder(server, folder, worker_token(server, namespace))
    access = kubernetes_api.Access(server.url, account)
    async with kubernetes_api.KubernetesApi.open(access, clock) as api:
        fleet = kubernetes_control.Fleet(namespace, FLEET)
        plane = KubernetesPlane(operator, lambda: kubernetes_control.KubernetesControl(api, fleet, clock))
        try:
            yield plane
        finally:
            for control in plane._controls.values():
                await control.rules.close()


def _parsed(document: dict[str, Any]) -> twin_partition.TwinPartition:
    return twin_partition_document.parse_document(document)


def _conflicts(call: Callable[[], dict[str, Any]], shard_id: str) -> dict[str, Any]:
    try:
        return call()
    except kube_api.RefusedError as refused:
        if refused.status == 404:
            raise errors.PartitionGoneError(f"partition {shard_id}: {refused}") from refused
        if refused.status == 409:
            raise errors.PreconditionFailedError(f"partition {shard_id}: {refused}") from refused
        raise
