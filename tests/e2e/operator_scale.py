"""What an operator costs that looks after many fleets: until all have settled, at rest, and while they are edited for long.

The API server and its controllers are real, the workers are faked (tests/support/faked_workers.py), and Kinesis' lists of shards come
from an emulator. Prints a JSON line for each phase; `python -m tests.e2e.operator_scale --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e import operators
from tests.support import api_server, aws_env, faked_workers, kinesis_local, kube_api, streams

Manifest = dict[str, Any]
PATH = f"{faked_workers.FLEETS}/namespaces/default/devicefleets"
SECRETS = "/api/v1/namespaces/default/secrets"
MIB = 2**20
SETTLED_S_MAX = 300.0
"""Then it is given up."""
SETTLED_S, GROWTH_MAX = 60.0, 0.10
"""What is promised, of fifty fleets of twenty partitions on a machine with nothing else to do."""
SAMPLE_S = 2.0
QUIET = {"Ready": "True", "RulesApplied": "True", "Progressing": "False", "Rebalancing": "False", "Stalled": "False"}
WRITES = re.compile(r"^apiserver_request_total\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.MULTILINE)
WRITE_VERBS = ("POST", "PUT", "PATCH", "DELETE", "APPLY")
NOT_COUNTED = ("leases", "nodes", "tokenreviews", "subjectaccessreviews")
"""Resources that are written at rest by whoever is alive."""


# Faked workers are at loopback addresses, which no endpoint may have, and have no volumes: their controllers would say so again and again.
CLUSTER = api_server.Settings(
    programs=("kube-controller-manager",),
    controllers_off=("endpoints-controller", "endpointslice-controller", "persistentvolume-binder-controller"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """churn_s: for how long fleets are edited, one each `edit_every_s`; rest_s: for how long writes are counted in between."""

    fleets: int = 50
    partitions: int = 20
    workers: int = 2
    rest_s: float = 30.0
    churn_s: float = 0.0
    edit_every_s: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """settled_s: from the first fleet's creation. writes_at_rest: of anybody, beside leases, by what was written. memory: resident, MiB; samples of the churn by
    their order. edits: made during the churn."""

    settled_s: float
    writes_at_rest: dict[str, int]
    memory_settled_mib: float
    memory_mib: tuple[float, ...]
    edits: int
    resettled_s: float

    @property
    def growth(self) -> float:
        """Of memory over the churn, its second fifth against its last: 0.02 = 2 %."""
        fifth = len(self.memory_mib) // 5
        if fifth == 0:
            return 0.0
        early, late = sorted(self.memory_mib[fifth : 2 * fifth]), sorted(self.memory_mib[-fifth:])
        return late[len(late) // 2] / early[len(early) // 2] - 1

    def broken(self, settled_s_max: float = SETTLED_S) -> list[str]:
        """Which of the promises; a sentence each."""
        told = []
        if self.settled_s > settled_s_max:
            told.append(f"fleets settled after {self.settled_s:.0f} s, and {settled_s_max:.0f} are promised")
        if self.writes_at_rest:
            told.append(f"writes at rest: {_shown(self.writes_at_rest)}")
        if self.growth > GROWTH_MAX:
            told.append(f"memory grew by {self.growth:.0%}")
        return told


def _shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


async def measured(asked: Asked, server: api_server.ApiServer, folder: Path) -> Told:
    """On a CLUSTER without other fleets. Needs aws_env.apply()."""
    api: kube_api.KubeApi = server
    with kinesis_local.running(shard_limit=asked.fleets * asked.partitions + 10) as kinesis_url:
        async with streams.Streams.at(kinesis_url) as kinesis:
            for number in range(asked.fleets):
                await kinesis.create(f"stream-{number}", asked.partitions)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "fleet-twin-aws"},
            "stringData": {name: aws_env.VARIABLES[name] for name in names},
        }
        await asyncio.to_thread(api.request, "POST", SECRETS, secret)
        await asyncio.to_thread(api.make_namespace, operators.LEASE_NAMESPACE)
        environment = {"AWS_ENDPOINT_URL_KINESIS": kinesis_url, "AWS_EC2_METADATA_DISABLED": "true"}
        operator = operators.OperatorProcess(server.kubeconfig_path, folder / "operator.log", environment)
        operator.start()
        try:
            async with faked_workers.FakedWorkers(api).running():
                return await _phases(asked, api, operator)
        finally:
            await asyncio.to_thread(operator.stop)


async def _phases(asked: Asked, api: kube_api.KubeApi, operator: operators.OperatorProcess) -> Told:
    began = time.monotonic()
    for number in range(asked.fleets):
        await asyncio.to_thread(api.request, "POST", PATH, _fleet(number, asked.workers))
    await _settled(api, operator, asked)
    settled_s = time.monotonic() - began
    memory = _memory_mib(operator)
    before = await asyncio.to_thread(_writes, api)
    await asyncio.sleep(asked.rest_s)
    writes = await asyncio.to_thread(_writes, api) - before
    samples, edits = await _churned(asked, api, operator)
    began = time.monotonic()
    await _settled(api, operator, asked)
    return Told(settled_s, dict(writes), memory, tuple(samples), edits, time.monotonic() - began)


async def _churned(asked: Asked, api: kube_api.KubeApi, operator: operators.OperatorProcess) -> tuple[list[float], int]:
    dice, samples, edits = random.Random(1), list[float](), 0
    began = sampled = time.monotonic()
    while time.monotonic() - began < asked.churn_s:
        spec: Manifest = {"rules": {"temperature": {"threshold": dice.randrange(4000, 9000) / 100}}}
        if dice.randrange(4) == 0:
            spec["replicas"] = dice.randint(1, asked.workers + 1)
        path = f"{PATH}/fleet-{dice.randrange(asked.fleets)}"
        await asyncio.to_thread(api.request, "PATCH", path, {"spec": spec}, kube_api.MERGE_PATCH)
        edits += 1
        operator.check()
        if time.monotonic() - sampled > SAMPLE_S:
            samples.append(_memory_mib(operator))
            sampled = time.monotonic()
        await asyncio.sleep(asked.edit_every_s)
    return samples, edits


async def _settled(api: kube_api.KubeApi, operator: operators.OperatorProcess, asked: Asked) -> None:
    deadline = time.monotonic() + SETTLED_S_MAX
    while True:
        operator.check()
        fleets = (await asyncio.to_thread(api.request, "GET", PATH))["items"]
        unsettled = [fleet for fleet in fleets if not _is_settled(fleet, asked.partitions)]
        if len(fleets) == asked.fleets and not unsettled:
            return
        assert time.monotonic() < deadline, (
            f"{len(unsettled)} fleets haven't settled within {SETTLED_S_MAX} s; {unsettled[0]['metadata']['name']}: "
            f"{json.dumps(unsettled[0].get('status', {}).get('conditions'))}"
        )
        await asyncio.sleep(0.5)


def _is_settled(fleet: Manifest, partitions: int) -> bool:
    status = fleet.get("status") or {}
    told = {entry["type"]: entry["status"] for entry in status.get("conditions") or ()}
    return (
        status.get("observedGeneration") == fleet["metadata"]["generation"]
        and (status.get("partitions") or {}).get("running") == partitions
        and all(told.get(name) == value for name, value in QUIET.items())
    )


def _fleet(number: int, workers: int) -> Manifest:
    return {
        "apiVersion": "fleettwin.io/v1alpha1",
        "kind": "DeviceFleet",
        "metadata": {"name": f"fleet-{number}"},
        "spec": {
            "replicas": workers,
            "aws": {"region": aws_env.REGION, "credentialsSecretRef": {"name": "fleet-twin-aws"}},
            "streams": {
                "telemetry": {"name": f"stream-{number}"},
                "alerts": {"name": "alerts"},
                "commands": {"name": "commands"},
            },
            "checkpoint": {"bucket": "twins"},
            "rebalance": {"maxConcurrentMoves": 10},
        },
    }


def _memory_mib(operator: operators.OperatorProcess) -> float:
    assert operator.pid is not None
    return float(psutil.Process(operator.pid).memory_info().rss / MIB)


def _writes(api: kube_api.KubeApi) -> collections.Counter[str]:
    """Requests that change something, since the server started: "PATCH devicefleets/status" and how often."""
    counts: collections.Counter[str] = collections.Counter()
    for found in WRITES.finditer(api.text("GET", "/metrics")):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found["labels"]))
        if labels["verb"] in WRITE_VERBS and labels["resource"] not in NOT_COUNTED:
            resource = "/".join(filter(None, (labels["resource"], labels.get("subresource"))))
            counts[f"{labels['verb']} {resource} {labels['code']}"] += round(float(found["count"]))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.operator_scale", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--fleets", type=int, default=50)
    parser.add_argument("--partitions", type=int, default=20)
    parser.add_argument("--churn-minutes", type=float, default=30.0)
    given = parser.parse_args()
    asked = Asked(given.fleets, given.partitions, churn_s=given.churn_minutes * 60)
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory(prefix="fleet-twin-operator-") as name:
        aws_env.apply(patched)
        with api_server.running(CLUSTER) as server:
            server.apply_crds()
            told = asyncio.run(measured(asked, server, Path(name)))
    shown = {
        **dataclasses.asdict(told),
        "growth": told.growth,
        "memory_mib": told.memory_mib[:: max(1, len(told.memory_mib) // 30)],
    }
    print(json.dumps({**dataclasses.asdict(asked), **shown}))
    broken = told.broken()
    if broken:
        raise SystemExit("; ".join(broken))


if __name__ == "__main__":
    main()
