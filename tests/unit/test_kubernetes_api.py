"""One request to an API server, and what counts as having heard from it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import test_utils, web

from fleet_worker import errors
from fleet_worker.adapters import clock, kubernetes_api

PATH = "/things"


class Ticking(clock.RealClock):
    """Each look at it is a second later."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 1.0
        return self.now_s


@contextlib.asynccontextmanager
async def answering(folder: Path, answer: web.Response) -> AsyncIterator[kubernetes_api.KubernetesApi]:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=answer.status, body=answer.body)

    (folder / "token").write_text("first")
    application = web.Application()
    application.router.add_get(PATH, handle)
    async with test_utils.TestServer(application) as server:
        with Ticking() as ticking:
            access = kubernetes_api.Access(str(server.make_url("")).rstrip("/"), folder)
            async with kubernetes_api.KubernetesApi.open(access, ticking) as api:
                yield api


class Starved(clock.RealClock):
    """Every thread is in a slow fsync."""

    async def in_thread(self, function: Callable[[], clock.Answer]) -> clock.Answer:
        await asyncio.Event().wait()
        raise AssertionError("waits for good")


async def test_a_request_waits_for_none_of_the_threads_that_commits_need(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first")
    (tmp_path / "ca.crt").write_text("no certificate")
    access = kubernetes_api.Access("https://127.0.0.1:1", tmp_path)
    with Starved() as starved:
        async with kubernetes_api.KubernetesApi.open(access, starved) as api, asyncio.timeout(20.0):
            with pytest.raises(errors.ControlPlaneUnavailableError, match=r"ca\.crt: the cluster's CA can't be read"):
                await api.get(PATH)


@pytest.mark.parametrize("status", [401, 403, 429, 500])
async def test_a_refusal_is_nothing_heard(tmp_path: Path, status: int) -> None:
    async with answering(tmp_path, web.json_response({"message": "no"}, status=status)) as api:
        before = api.heard_at
        with pytest.raises(errors.ControlPlaneUnavailableError, match=f"answered {status}: no"):
            await api.get(PATH)
        assert api.heard_at == before


async def test_an_answer_is(tmp_path: Path) -> None:
    async with answering(tmp_path, web.json_response({})) as api:
        before = api.heard_at
        assert await api.get(PATH) == {}
        assert api.heard_at > before
