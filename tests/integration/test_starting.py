"""A worker that can't begin yet: it is alive and says what it waits for, and a stop ends it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import test_utils, web

from fleet_worker import metrics
from fleet_worker.adapters import clock
from fleet_worker.api import app
from tests.support import aws_env, certificates, fleets, orphans, partitions, waiting

ADDRESS = re.compile(r"starting; (http://127\.0\.0\.1:\d+)/readyz")
START_S_MAX = 30.0
EXIT_S_MAX = 10.0


# ── what is answered ─────────────────────────────────────────────────────────────────────────────────────────────────


async def answered(client: test_utils.TestClient[web.Request, web.Application], path: str) -> tuple[int, Any]:
    response = await client.get(path)
    return response.status, await (response.json(content_type=None) if path != "/metrics" else response.text())


async def test_until_it_knows_anything_it_is_alive_not_ready_and_refuses_the_rest() -> None:
    with clock.RealClock() as real:
        api = app.Api(None, metrics.Metrics(), real, lambda: "the API server: it sleeps")
        async with test_utils.TestClient(test_utils.TestServer(api.application())) as client:
            assert await answered(client, "/healthz") == (200, {"status": "alive"})
            status, told = await answered(client, "/readyz")
            assert (status, told["not_ready_because"]) == (503, ["it waits for the API server: it sleeps"])
            for path in ("/v1/twins/a", "/v1/twins", "/v1/alerts", "/v1/dead-letters", "/v1/status"):
                response = await client.get(path)
                assert int(response.headers["Retry-After"]) > 0
                status, told = await answered(client, path)
                assert (status, told["type"]) == (503, "urn:fleet-twin:problem:starting")
                assert "the API server: it sleeps" in told["detail"]
            assert (await answered(client, "/v1/twins?limit=no"))[0] == 400
            status, text = await answered(client, "/metrics")
            assert status == 200
            assert "fleet_twin_rules_generation" in text
            api.worker = partitions.SeenWorker([])
            assert (await answered(client, "/v1/status"))[0] == 200
            assert (await answered(client, "/readyz"))[0] == 200


# ── as a process ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield nobody.getsockname()[1]


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections, and says nothing."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        yield mute.getsockname()[1]


def spawned(command: list[str], environment: dict[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    orphans.prevent(process.pid)
    return process


def address_in(log_path: Path) -> str | None:
    found = ADDRESS.search(log_path.read_text())
    return found[1] if found else None


@contextlib.asynccontextmanager
async def started(
    folder: Path, *options: str, **environment: str
) -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address."""
    log_path = folder / "worker.log"
    command = [sys.executable, "-m", "fleet_cli", "worker", "--data", str(folder / "data"), "--port", "0", *options]
    process = spawned(command, aws_env.environment(PYTHONUNBUFFERED="1", **environment), log_path)
    try:
        await waiting.until(
            lambda: address_in(log_path) is not None or process.poll() is not None,
            "it says where it answers",
            START_S_MAX,
        )
        found = address_in(log_path)
        assert found is not None, log_path.read_text()
        yield process, found
    finally:
        process.kill()
        process.wait()


async def not_ready_because(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/readyz") as answer:
        assert answer.status == 503
        (reason,) = (await answer.json(content_type=None))["not_ready_because"]
        return str(reason)


async def alive_waiting_and_stopped(process: subprocess.Popen[bytes], url: str, waits_for: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(START_S_MAX):
            while waits_for not in await not_ready_because(session, url):  # noqa: ASYNC110
                await asyncio.sleep(waiting.LOOK_AGAIN_S)
        async with session.get(f"{url}/healthz") as answer:
            assert answer.status == 200
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, EXIT_S_MAX) == 0


@pytest.mark.processes
@pytest.mark.parametrize("server", [refusing, silent])
async def test_a_pods_worker_is_alive_while_it_waits_for_the_api_server(tmp_path: Path, server: Any) -> None:
    """Else its liveness probe would kill it for as long as the API server is away."""
    certificates.Authority(tmp_path)
    (tmp_path / "token").write_text("token")
    with server() as port:
        pod = {
            "FLEET_NAME": "trucks",
            "POD_NAMESPACE": "depot",
            "POD_NAME": "trucks-0",
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(port),
            "FLEET_TWIN_SERVICE_ACCOUNT_DIR": str(tmp_path),
        }
        async with started(tmp_path, "--kubernetes", **pod) as (process, url):
            await alive_waiting_and_stopped(process, url, "its fleet" if server is silent else "the API server: ")


@pytest.mark.processes
@pytest.mark.parametrize("server", [refusing, silent])
async def test_a_worker_is_alive_while_it_waits_for_kinesis(tmp_path: Path, server: Any) -> None:
    with server() as port:
        at = {"region": "eu-central-1", "endpointURL": f"http://127.0.0.1:{port}"}
        path = tmp_path / "fleet.yaml"
        path.write_text(yaml.safe_dump(fleets.with_field("spec.aws", at)))
        async with started(tmp_path, "--fleet", str(path)) as (process, url):
            await alive_waiting_and_stopped(process, url, "Kinesis")
