"""A list and its watch, kept up over an API server that misbehaves as real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import test_utils, web

from fleet_worker.adapters import clock, kubernetes_api, kubernetes_watch

PATH = "/things"
ARRIVES_S = 20.0
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def thing(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def listed(version: int, *things: dict[str, Any]) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert "watch" not in request.query
        return web.json_response({"metadata": {"resourceVersion": str(version)}, "items": list(things)})

    return answer


def refused(status: int, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "not now"}, status=status, headers=headers)

    return answer


def watched(after: int, *lines: object, is_cut: bool = False) -> Answer:
    """Raw bytes go out as they are. is_cut: the connection breaks then; else the watch goes on for good."""

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.query["resourceVersion"] == str(after), "goes on after what it was told last"
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        if is_cut:
            assert request.transport is not None
            request.transport.close()
            return response
        await asyncio.Event().wait()
        return response

    return answer


@contextlib.asynccontextmanager
async def states(
    folder: Path, script: Sequence[Answer], found: list[kubernetes_watch.Followed] | None = None
) -> AsyncIterator[tuple[AsyncIterator[kubernetes_watch.Objects], list[str]]]:
    """What is told while the server answers by the script; and who asked, by token. found: takes up who follows."""
    tokens: list[str] = []
    left = list(script)

    async def handle(request: web.Request) -> web.StreamResponse:
        tokens.append(request.headers["Authorization"])
        return await left.pop(0)(request)

    (folder / "token").write_text("first")
    application = web.Application()
    application.router.add_get(PATH, handle)
    async with test_utils.TestServer(application) as server:
        with clock.RealClock() as real:
            access = kubernetes_api.Access(str(server.make_url("")).rstrip("/"), folder)
            async with kubernetes_api.KubernetesApi.open(access, real) as api:
                followed = kubernetes_watch.Followed(api, PATH, {}, real)
                if found is not None:
                    found.append(followed)
                async with contextlib.aclosing(followed.states()) as told:
                    yield told, tokens


async def until(told: AsyncIterator[kubernetes_watch.Objects], names: set[str]) -> None:
    async with asyncio.timeout(ARRIVES_S):
        async for objects in told:
            if set(objects) == names:
                return


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            [
                listed(5, thing("a", 4)),
                watched(5, {"type": "ADDED", "object": thing("b", 6)}, b'{"type":"ADD', is_cut=True),
                watched(6, {"type": "ADDED", "object": thing("c", 7)}),
            ],
            id="cut in the middle of a line",
        ),
        pytest.param(
            [
                listed(5, thing("a", 4), thing("gone", 3)),
                watched(5, {"type": "ERROR", "object": {"code": 410, "message": "too old"}}, is_cut=True),
                listed(9, thing("a", 4), thing("b", 8)),
                watched(9, {"type": "ADDED", "object": thing("c", 10)}),
            ],
            id="too much was missed",
        ),
        pytest.param(
            [
                listed(5, thing("a", 4)),
                refused(410),
                listed(9, thing("a", 4), thing("b", 8)),
                watched(9, {"type": "BOOKMARK", "object": thing("", 20)}, is_cut=True),
                watched(20, {"type": "ADDED", "object": thing("c", 21)}),
            ],
            id="410, and a bookmark moves it on",
        ),
        pytest.param(
            [
                refused(500),
                refused(429, **{"Retry-After": "1"}),
                listed(5, thing("a", 4), thing("b", 4)),
                watched(5, b"this is no JSON\n", is_cut=True),
                watched(5, {"type": "ADDED", "object": thing("c", 7)}),
            ],
            id="500, 429, nonsense",
        ),
    ],
)
async def test_nothing_is_lost(tmp_path: Path, script: Sequence[Answer]) -> None:
    async with states(tmp_path, script) as (told, _):
        await until(told, {"a", "b", "c"})


def ended(after: int) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.query["resourceVersion"] == str(after)
        return web.Response()

    return answer


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([watched(50)], id="silent"),
        pytest.param([refused(504), refused(504), refused(504)], id="too large a version"),
        pytest.param([ended(50), ended(50), ended(50)], id="ends without a word"),
    ],
)
async def test_an_api_server_put_back_to_a_backup_is_listed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Sequence[Answer]
) -> None:
    monkeypatch.setattr(kubernetes_api, "SILENT_S_MAX", 0.3)
    before = [listed(50, thing("a", 4), thing("since", 49))]
    async with states(tmp_path, [*before, *script, listed(9, thing("a", 4), thing("b", 8)), watched(9)]) as (told, _):
        await until(told, {"a", "since"})
        await until(told, {"a", "b"})


async def test_trouble_is_over_at_the_first_word_and_not_when_a_watch_opens(tmp_path: Path) -> None:
    followed: list[kubernetes_watch.Followed] = []
    troubles: list[str] = []

    async def after_one_that_opened(request: web.Request) -> web.StreamResponse:
        troubles.append(followed[0].trouble)
        return await watched(5, {"type": "ADDED", "object": thing("b", 6)})(request)

    script = [listed(5, thing("a", 4)), refused(500), ended(5), after_one_that_opened]
    async with states(tmp_path, script, followed) as (told, _):
        await until(told, {"a", "b"})
        assert "answered 500" in troubles[0]
        assert followed[0].trouble == ""


async def test_a_refused_token_is_read_again(tmp_path: Path) -> None:
    async def replaced(request: web.Request) -> web.StreamResponse:
        (tmp_path / "token").write_text("second")
        return web.json_response({}, status=401)

    async with states(tmp_path, [replaced, listed(5, thing("a", 4)), watched(5)]) as (told, tokens):
        await until(told, {"a"})
        assert tokens[:2] == ["Bearer first", "Bearer second"]
