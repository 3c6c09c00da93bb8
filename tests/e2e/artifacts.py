"""What is left for whoever looks into a failed scenario: objects, events, logs and metrics, in one folder per scenario.

Gathering never hides the failure: what can't be had is noted in the folder instead.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from tests.e2e import operators
from tests.e2e import scene as scenes

FOLDER = Path(os.environ.get("FLEET_TWIN_E2E_ARTIFACTS", Path(__file__).parent / "artifacts"))
KINDS = (
    "devicefleets,twinpartitions,statefulsets,pods,persistentvolumeclaims,services,controllerrevisions,poddisruptionbudgets,"
    "roles,rolebindings,serviceaccounts"
)
PODS_OF = (("", 8080, ("metrics", "v1/status")), (operators.LEASE_NAMESPACE, 8081, ("metrics",)))
"""Namespaces ("" = the scenario's own: workers; then the operator's), the port that their pods answer at, and what they are asked for."""
METRICS_S_MAX = 5
REPORT = pytest.StashKey[list[str]]()
"""Lines for the end of a run."""


@contextlib.asynccontextmanager
async def scene_of(stage: scenes.Stage, request: pytest.FixtureRequest) -> AsyncIterator[scenes.Scene]:
    """A test's own namespace; what is left of it is gathered when the test failed."""
    namespace = request.node.name.removeprefix("test_").replace("_", "-")[:40].strip("-")
    async with scenes.opened(stage, namespace) as opened:
        failed = request.session.testsfailed
        try:
            yield opened
            if request.session.testsfailed > failed:
                print(f"what is left of it: {await gather(opened, request.node.name)}")
        finally:
            await scenes.closed(opened)


async def gather(scene: scenes.Scene, test: str) -> Path:
    """Where it is."""
    folder = FOLDER / re.sub(r"[^A-Za-z0-9_.-]+", "-", test)
    get = "get", "--namespace", scene.namespace
    await _printed(scene.stage, folder / "objects.yaml", *get, KINDS, "-o=yaml")
    await _printed(scene.stage, folder / "objects.txt", *get, KINDS, "-o=wide")
    await _printed(scene.stage, folder / "events.txt", *get, "events", "--sort-by=.lastTimestamp", "-o=wide")
    for namespace, port, paths in PODS_OF:
        await _pods(scene.stage, namespace or scene.namespace, port, paths, folder)
    scene.stage.operator.gather(folder)
    await scene.stage.cluster.gather(folder)
    return folder


async def _pods(stage: scenes.Stage, namespace: str, port: int, paths: Sequence[str], folder: Path) -> None:
    """What each has said, said before it was started anew, and answers now."""
    try:
        pods = await stage.objects("pods", namespace)
    except scenes.KubectlError as error:
        _write(folder / f"pods-of-{namespace}.missing", str(error))
        return
    for pod in pods:
        name = pod["metadata"]["name"]
        logs = ("logs", name, "--all-containers", "--prefix", "--namespace", namespace)
        await _printed(stage, folder / f"{name}.log", *logs)
        await _printed(stage, folder / f"{name}.before.log", *logs, "--previous")
        address = (pod.get("status") or {}).get("podIP")
        if address:
            for path in paths:
                await _asked(f"http://{address}:{port}/{path}", folder / f"{name}.{path.replace('/', '.')}.txt")


async def _printed(stage: scenes.Stage, file: Path, *words: str) -> None:
    try:
        _write(file, await stage.kubectl(*words, check=False))
    except scenes.KubectlError as error:
        _write(file.with_suffix(".missing"), str(error))


async def _asked(url: str, file: Path) -> None:
    timeout = aiohttp.ClientTimeout(total=METRICS_S_MAX)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            _write(file, await answer.text())
    except (aiohttp.ClientError, TimeoutError) as error:
        _write(file.with_suffix(".missing"), f"{url}: {error!r}")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
