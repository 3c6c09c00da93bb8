"""What a scenario has at hand: a namespace of its own on the session's cluster, a fleet in it, its streams, its load and its judge.

Steps (tests/e2e/steps) act on it and look at it; it only keeps what they share, and asks the API server. Nothing here judges.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fleet_model import packed_generations, rules, spec
from fleet_worker import ports
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import s3
from tests.e2e import operators, providers
from tests.support import aws_env, fleet_judge, steady_load, streams

Manifest = dict[str, Any]
BUCKET = "twins"
NAME = "trucks"
SECRET = "fleet-twin-aws"
KUBECTL_S_MAX = 60.0
LOOK_AGAIN_S = 0.2
CHECKPOINT_INTERVAL = "5s"
RATE = int(os.environ.get("FLEET_TWIN_E2E_RATE", "2000"))
DEVICES = int(os.environ.get("FLEET_TWIN_E2E_DEVICES", "20000"))
KINESIS = os.environ.get("FLEET_TWIN_E2E_KINESIS", "memory")
EDITS = int(os.environ.get("FLEET_TWIN_E2E_EDITS", "6"))
PATIENCE = float(os.environ.get("FLEET_TWIN_E2E_PATIENCE", "1"))
"""Factor on every deadline but those that are promises, for machines that are busy with other things."""
RATE_MIN = 0.6 * RATE / PATIENCE if KINESIS == "memory" else 0.0
"""Records/s that a steady load must have put: less would prove less. Other emulators take what they can."""


class KubectlError(AssertionError):
    """It said no, or didn't answer in time."""


@dataclasses.dataclass
class Stage:
    """Of the session. kinesis_url, store_url: as pods see them, and here. report: lines for the end of the run."""

    cluster: providers.Cluster
    operator: operators.Operator
    kinesis_url: str
    store_url: str
    folder: Path
    report: list[str] = dataclasses.field(default_factory=list)

    async def kubectl(
        self, *words: str, stdin: str | None = None, check: bool = True, seconds_max: float = KUBECTL_S_MAX
    ) -> str:
        """What it printed. Raises KubectlError."""
        process = await asyncio.create_subprocess_exec(
            str(self.cluster.kubectl),
            f"--kubeconfig={self.cluster.kubeconfig}",
            *words,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        given = None if stdin is None else stdin.encode()
        try:
            printed, errors = await asyncio.wait_for(process.communicate(given), seconds_max * PATIENCE)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise KubectlError(f"kubectl {' '.join(words)}: no answer within {seconds_max * PATIENCE} s") from None
        if check and process.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(words)}: {errors.decode()}{printed.decode()}")
        return printed.decode() + ("" if check else errors.decode())

    async def objects(self, kind: str, namespace: str) -> list[Manifest]:
        found: list[Manifest] = json.loads(await self.kubectl("get", kind, "--namespace", namespace, "-o=json"))[
            "items"
        ]
        return found


class Scene:
    """One scenario's. document: of its fleet as it was applied last."""

    def __init__(
        self, stage: Stage, namespace: str, kinesis: streams.Streams, judge_objects: ports.ObjectStore
    ) -> None:
        self.stage, self.namespace, self.kinesis = stage, namespace, kinesis
        self.telemetry, self.alerts, self.commands = (
            f"{namespace}-{kind}" for kind in ("telemetry", "alerts", "commands")
        )
        self.document: Manifest = {}
        self.load = steady_load.SteadyLoad(kinesis, self.telemetry, DEVICES, RATE)
        self.judge = fleet_judge.FleetJudge(
            fleet_judge.Fleet(
                namespace,
                NAME,
                self.telemetry,
                self.alerts,
                self.commands,
                kinesis,
                judge_objects,
                self.generations,
            )
        )
        self._generations: tuple[rules.RulesGeneration, ...] = ()

    # Asking

    async def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        return await self.stage.kubectl(*words, "--namespace", self.namespace, stdin=stdin, check=check)

    async def fleet(self) -> Manifest:
        found: Manifest = json.loads(await self.kubectl("get", "devicefleet", NAME, "-o=json"))
        return found

    async def pods(self) -> list[Manifest]:
        """Of workers, by ordinal."""
        found = await self.stage.objects("pods", self.namespace)
        workers = [pod for pod in found if pod["metadata"].get("labels", {}).get("fleettwin.io/fleet") == NAME]
        return sorted(workers, key=lambda pod: int(pod["metadata"]["name"].rpartition("-")[2]))

    async def pod(self, ordinal: int) -> Manifest:
        (found,) = [pod for pod in await self.pods() if pod["metadata"]["name"] == f"{NAME}-{ordinal}"]
        return found

    async def worker_elsewhere(self, node: str) -> int:
        """The ordinal of one of two workers, not on that node."""
        return next((index for index, pod in enumerate(await self.pods()) if pod["spec"]["nodeName"] != node), 1)

    async def stateful_set_uid(self) -> str:
        """ "" without one."""
        found = await self.stage.objects("statefulsets", self.namespace)
        return str(found[0]["metadata"]["uid"]) if found else ""

    async def shards_of(self, worker: str) -> list[str]:
        """That it runs, as it says itself."""
        told = [(entry["spec"]["shardId"], entry.get("status") or {}) for entry in await self.partitions()]
        return [shard for shard, status in told if status.get("worker") == worker and status.get("phase") == "Running"]

    async def partitions(self) -> list[Manifest]:
        return await self.stage.objects("twinpartitions", self.namespace)

    async def generations(self) -> Sequence[rules.RulesGeneration]:
        """All that the fleet published; those that it keeps no more are remembered here."""
        status = (await self.fleet()).get("status") or {}
        told = packed_generations.unpack(status["rules"]["generations"])
        known = {entry.generation: entry for entry in (*self._generations, *told)}
        self._generations = tuple(known[number] for number in sorted(known))
        return self._generations

    async def open_shards(self) -> list[str]:
        """In the order of their ranges."""
        shards = [shard for shard in await self.kinesis.shards(self.telemetry) if not shard.closed]
        return [shard.shard_id for shard in sorted(shards, key=lambda shard: shard.hash_key_range)]

    # Waiting, telling

    async def until(self, look: Callable[[], Any], what: str, seconds_max: float) -> float:
        """Awaits look() until it gives nothing ("" = it holds; else why not yet); the seconds that it took. seconds_max is stretched by
        PATIENCE. Fails the test with what was missing last."""
        began = time.monotonic()
        deadline = began + seconds_max * PATIENCE
        while True:
            self.load.check()
            missing = await look()
            if not missing:
                return time.monotonic() - began
            assert time.monotonic() < deadline, f"{what}: not within {seconds_max * PATIENCE:.0f} s: {missing}"
            await asyncio.sleep(LOOK_AGAIN_S)

    def tell(self, line: str) -> None:
        """At the end of the run, and at once for whoever looks on (pytest -s)."""
        self.stage.report.append(f"{self.namespace}: {line}")
        print(f"{time.strftime('%H:%M:%S')} {self.namespace}: {line}", flush=True)

    # Applying

    async def apply(self, *documents: Manifest) -> None:
        await self.stage.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(documents, allow_unicode=True))

    def fleet_document(self, workers: int, **sections: object) -> Manifest:
        """The fleet that scenarios run: everything of it can be told from outside within seconds."""
        endpoints = [
            {"name": "AWS_ENDPOINT_URL_KINESIS", "value": self.stage.kinesis_url},
            {"name": "AWS_ENDPOINT_URL_S3", "value": self.stage.store_url},
        ]
        small = {"requests": {"cpu": "20m", "memory": "128Mi"}}
        return {
            "apiVersion": "fleettwin.io/v1alpha1",
            "kind": "DeviceFleet",
            "metadata": {"name": NAME, "namespace": self.namespace},
            "spec": {
                "replicas": workers,
                "aws": {"region": aws_env.REGION, "credentialsSecretRef": {"name": SECRET}},
                "streams": {
                    "telemetry": {"name": self.telemetry, "startPosition": "TrimHorizon"},
                    "alerts": {"name": self.alerts},
                    "commands": {"name": self.commands},
                },
                "profiles": steady_load.PROFILES,
                "storage": {"size": "1Gi"},
                "checkpoint": {"bucket": BUCKET, "interval": CHECKPOINT_INTERVAL},
                "rebalance": {"drainTimeout": "30s"},
                "template": {"spec": {"containers": [{"name": "worker", "env": endpoints, "resources": small}]}},
                **sections,
            },
        }

    def secret(self) -> Manifest:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": self.namespace},
            "stringData": {name: aws_env.VARIABLES[name] for name in names},
        }


@contextlib.asynccontextmanager
async def opened(stage: Stage, namespace: str) -> AsyncIterator[Scene]:
    """Needs aws_env.apply(). The namespace is made by the first step, and left to the stage's end."""
    aws = spec.Aws(region=aws_env.REGION, endpoint_url=stage.store_url)
    checkpoint = spec.Checkpoint(bucket=BUCKET)
    async with contextlib.AsyncExitStack() as stack:
        kinesis = await stack.enter_async_context(streams.Streams.at(stage.kinesis_url))
        clock = stack.enter_context(clocks.RealClock())
        objects = await stack.enter_async_context(s3.open_store(aws, checkpoint, (namespace, NAME), clock))
        scene = Scene(stage, namespace, kinesis, objects)
        try:
            yield scene
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await scene.load.stop()


async def closed(scene: Scene) -> None:
    """The namespace goes, without waiting for it: nothing of it may burden the next scenario."""
    await scene.load.stop()
    annotate = ("annotate", "devicefleet", NAME, "fleettwin.io/skip-final-checkpoint=true", "--overwrite")
    await scene.kubectl(*annotate, check=False)
    await scene.stage.kubectl("delete", "namespace", scene.namespace, "--wait=false", check=False)
