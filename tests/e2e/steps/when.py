"""When …: what happens to a fleet, done as its user, its cluster or bad luck would do it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.e2e import scene as scenes
from tests.e2e.cluster import needs
from tests.e2e.steps import then

API_SERVER_PORT = "443"
"""Of its Service."""


async def the_fleet_is_scaled_to(scene: scenes.Scene, workers: int) -> None:
    await scene.kubectl("scale", "devicefleet", scenes.NAME, f"--replicas={workers}")


async def a_shard_is_split(scene: scenes.Scene) -> None:
    shard = (await scene.open_shards())[0]
    await scene.kinesis.split(scene.telemetry, shard)


async def two_shards_are_merged(scene: scenes.Scene) -> None:
    """The last two, which lie side by side."""
    *_, first, second = await scene.open_shards()
    await scene.kinesis.merge(scene.telemetry, first, second)


async def the_fleet_is_patched(scene: scenes.Scene, spec: dict[str, object]) -> float:
    """By `kubectl patch`; when that was begun, by the wall clock, in seconds."""
    began_s = time.time()
    patch = json.dumps({"spec": spec})
    await scene.kubectl("patch", "devicefleet", scenes.NAME, "--type=merge", f"--patch={patch}")
    return began_s


async def a_worker_is_killed(scene: scenes.Scene, ordinal: int) -> None:
    """kill -9 of its first process; the container is started again on its disk."""
    pod = await scene.pod(ordinal)
    pids = await scene.stage.cluster.processes(pod["metadata"]["uid"], "worker")
    assert pids, f"{pod['metadata']['name']} doesn't run"
    os.kill(pids[0], signal.SIGKILL)


async def a_worker_loses_its_disk(scene: scenes.Scene, ordinal: int) -> None:
    """Its claim is deleted, and with its pod it is gone."""
    name = f"{scenes.NAME}-{ordinal}"
    await scene.kubectl("delete", "persistentvolumeclaim", f"twins-{name}", "--wait=false")
    await scene.kubectl("delete", "pod", name, "--wait=false")


async def the_node_of_a_worker_is_lost(scene: scenes.Scene, ordinal: int, processes_live_on: bool = False) -> str:
    """Its name."""
    node = str((await scene.pod(ordinal))["spec"]["nodeName"])
    await scene.stage.cluster.lose_node(node, processes_live_on)
    return node


async def a_pod_is_deleted(scene: scenes.Scene, ordinal: int) -> None:
    """On a lost node it stays Terminating for good."""
    await scene.kubectl("delete", "pod", f"{scenes.NAME}-{ordinal}", "--wait=false")


async def the_node_comes_back(scene: scenes.Scene, node: str) -> None:
    await scene.stage.cluster.bring_back_node(node)


async def a_worker_is_cut_off_from_the_api_server(scene: scenes.Scene, pod: dict[str, Any]) -> None:
    """It hears of nothing, and reaches Kinesis and S3 as before."""
    pids = await scene.stage.cluster.processes(pod["metadata"]["uid"], "worker")
    assert pids, f"{pod['metadata']['name']} doesn't run"
    rule = ("iptables", "-I", "OUTPUT", "-p", "tcp", "--dport", API_SERVER_PORT, "-j", "DROP")
    command = ["nsenter", f"--target={pids[0]}", "--net", *rule]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=needs.environment())
    assert done.returncode == 0, done.stderr


async def a_pod_is_force_deleted(scene: scenes.Scene, ordinal: int) -> None:
    await scene.kubectl("delete", "pod", f"{scenes.NAME}-{ordinal}", "--force", "--grace-period=0", "--wait=false")


async def the_operator_is_killed_in_the_middle(scene: scenes.Scene, dice: random.Random) -> None:
    """Some moment within the seconds in which it acts on what just happened; it is started again at once."""
    await asyncio.sleep(dice.uniform(0.2, 4.0))
    await asyncio.to_thread(scene.stage.operator.kill)
    await asyncio.to_thread(scene.stage.operator.start)


@contextlib.asynccontextmanager
async def the_api_server_is_away(scene: scenes.Scene) -> AsyncIterator[None]:
    """Back, and ready, at the end."""
    await scene.stage.cluster.stop_api_server()
    try:
        yield
    finally:
        await scene.stage.cluster.start_api_server()


async def the_fleet_is_deleted(scene: scenes.Scene) -> float:
    """Until it is gone; the seconds that took."""
    await scene.kubectl("delete", "devicefleet", scenes.NAME, "--wait=false")
    return await then.the_fleet_is_gone(scene)


async def the_fleet_is_applied_again(scene: scenes.Scene) -> None:
    await scene.apply(scene.document)
