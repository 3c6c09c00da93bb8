"""Workers that only say what workers say, by the hundred: for seeing what an operator costs, not what it is worth.

They play the kubelet as well: each pod of a fleet is ready at once, answers `/v1/status` on port 8080 of an address of its own, and
claims at once whatever it is named for. No records, no twins, no bucket; they never fail, unless a test tells them to.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import itertools
import os
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from tests.support import kube_api

Manifest = dict[str, Any]
LOOK_EVERY_S = 0.5
LEASE_EVERY_S = 5.0
AT_ONCE = 16
NODE = "node-1"
FLEETS = "/apis/fleettwin.io/v1alpha1"
MERGE = {"Content-Type": "application/merge-patch+json"}
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE}"


@dataclasses.dataclass(slots=True)
class _Worker:
    """address: its own, where its server listens. generation: of the rules, which it takes up as soon as it sees them."""

    name: str
    namespace: str
    fleet: str
    address: str
    runner: web.AppRunner
    generation: int = 0


class FakedWorkers:
    """Of every fleet of a server. writes: statuses that were written, for whoever counts what the operator wrote besides."""

    def __init__(self, api: kube_api.KubeApi) -> None:
        self._api = api
        self._trust = ssl.create_default_context(cafile=str(api.ca_file))
        self._workers: dict[str, _Worker] = {}
        self._addresses = (
            f"127.{192 + os.getpid() % 60}.{number // 250}.{number % 250 + 1}" for number in itertools.count()
        )
        self._session: aiohttp.ClientSession | None = None
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._leased_at = 0.0
        self.writes = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakedWorkers]:
        """In the background until the end. Raises what they ended with."""
        headers = {"Authorization": f"Bearer {self._api.token}"}
        connector = aiohttp.TCPConnector(limit=AT_ONCE, ssl=self._trust)
        async with aiohttp.ClientSession(self._api.url, connector=connector, headers=headers) as session:
            self._session = session
            await self._asked("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
            task = asyncio.create_task(self._run())
            try:
                yield self
            finally:
                task.cancel()
                (ended,) = await asyncio.gather(task, return_exceptions=True)
                for worker in self._workers.values():
                    await worker.runner.cleanup()
            if isinstance(ended, Exception):
                raise ended

    async def _run(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._leased_at > LEASE_EVERY_S:
            await self._lease()
            self._leased_at = loop.time()
        fleets = (await self._asked("GET", f"{FLEETS}/devicefleets"))["items"]
        generations = {
            (fleet["metadata"]["namespace"], fleet["metadata"]["name"]): fleet["status"]["rules"]["generation"]
            for fleet in fleets
            if "generation" in ((fleet.get("status") or {}).get("rules") or {})
        }
        pods = (await self._asked("GET", "/api/v1/pods"))["items"]
        await asyncio.gather(*(self._pod(pod) for pod in pods))
        for uid in self._workers.keys() - {pod["metadata"]["uid"] for pod in pods}:
            await self._workers.pop(uid).runner.cleanup()
        for worker in self._workers.values():
            worker.generation = generations.get((worker.namespace, worker.fleet), 0)
        named = {(worker.namespace, worker.name) for worker in self._workers.values()}
        partitions = (await self._asked("GET", f"{FLEETS}/twinpartitions"))["items"]
        await asyncio.gather(*(self._partition(entry, named) for entry in partitions))

    async def _pod(self, pod: Manifest) -> None:
        """Bound, ready, or gone."""
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if "deletionTimestamp" in metadata:
            body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
            await self._asked("DELETE", path, body)
            return
        if not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": metadata["name"]}, "target": target}
            await self._asked("POST", f"{path}/binding", body)
        if metadata["uid"] not in self._workers:
            worker = await self._begun(pod)
            self._workers[metadata["uid"]] = worker
            await self._write(f"{path}/status", _pod_status(pod, worker.address))

    async def _begun(self, pod: Manifest) -> _Worker:
        metadata, address = pod["metadata"], next(self._addresses)
        app = web.Application()
        runner = web.AppRunner(app)
        worker = _Worker(
            metadata["name"], metadata["namespace"], metadata["labels"]["fleettwin.io/fleet"], address, runner
        )

        async def answered(request: web.Request) -> web.Response:
            return web.json_response(
                {
                    "worker": worker.name,
                    "ready": True,
                    "can_take_partitions": True,
                    "load": {},
                    "control_plane": {"trouble": None},
                    "rules": {"generation": worker.generation},
                    "partitions": [],
                }
            )

        app.router.add_get("/v1/status", answered)
        await runner.setup()
        await web.TCPSite(runner, address, 8080).start()
        return worker

    async def _partition(self, entry: Manifest, named: set[tuple[str, str]]) -> None:
        """Its owner runs it from the moment it hears of it; a standby is warm at once."""
        metadata, wanted, told = entry["metadata"], entry["spec"], entry.get("status") or {}
        owner = wanted.get("worker", "")
        if not owner or (metadata["namespace"], owner) not in named:
            return
        standby = [{"worker": name, "checkpointNumber": 1, "warm": True} for name in wanted.get("standby") or ()]
        is_owned = (
            told.get("worker") == owner and told.get("epoch") == wanted["epoch"] and told.get("phase") == "Running"
        )
        if is_owned and (told.get("standby") or []) == standby:
            return
        checkpoint = {"key": "base", "epoch": wanted["epoch"], "time": _now(), "sequenceNumber": "1"}
        status = {
            "phase": "Running",
            "worker": owner,
            "epoch": wanted["epoch"],
            "nonce": f"{hash(owner) & 0xFFFFFFFFFFFFFFFF:016x}",
            "twins": 1000,
            "checkpoint": checkpoint,
            "standby": standby,
        }
        await self._write(
            f"{FLEETS}/namespaces/{metadata['namespace']}/twinpartitions/{metadata['name']}/status", status
        )

    async def _lease(self) -> None:
        spec = {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": _now(micro=True)}
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NODE}, "spec": spec}
        await self._asked(
            "PATCH", f"{LEASE}?fieldManager=kubelet&force=true", lease, {"Content-Type": kube_api.APPLY_PATCH}
        )

    async def _write(self, path: str, status: Manifest) -> None:
        await self._asked("PATCH", path, {"status": status}, MERGE)
        self.writes += 1

    async def _asked(
        self, method: str, path: str, body: Manifest | None = None, headers: dict[str, str] | None = None
    ) -> Manifest:
        """Refusals of what is gone or there already are no trouble: the next look finds it so."""
        assert self._session is not None
        async with self._gate, self._session.request(method, path, json=body, headers=headers) as answer:
            told: Manifest = await answer.json()
            if answer.status >= 400 and answer.status not in (404, 409):
                raise kube_api.RefusedError(method, path, answer.status, told)
            return told


def _pod_status(pod: Manifest, address: str) -> Manifest:
    names = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    container = pod["spec"]["containers"][0]
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": name, "status": "True"} for name in names],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": container["image"],
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {}},
            }
        ],
    }


def _now(micro: bool = False) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return (
        now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if micro
        else now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"
    )
