"""Answers of workers that can't be read: they count as silence and end nothing."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from fleet_operator.adapters import worker_http


async def asked(body: bytes) -> tuple[object, list[str]]:
    async def status(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/v1/status", status)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        _, port = runner.addresses[0][:2]
        counted: list[str] = []
        async with aiohttp.ClientSession() as session:
            told = await worker_http.WorkerHttp(session, counted.append).status(f"http://127.0.0.1:{port}")
        return told, counted
    finally:
        await runner.cleanup()


def test_an_answer() -> None:
    assert asyncio.run(asked(b'{"ready": true}')) == ({"ready": True}, ["answered"])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[1]", id="no object"),
        pytest.param(b'{"a":' * 200_000 + b"1" + b"}" * 200_000, id="too deep"),
        pytest.param(b'{"a": ' + b"9" * 5_000 + b"}", id="too long a number"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
    ],
)
def test_what_cant_be_read_is_silence(body: bytes) -> None:
    assert asyncio.run(asked(body)) == (None, ["silent"])
