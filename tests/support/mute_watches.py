"""An API server behind a way that swallows what watches say: as by a middlebox that forgot the connection. Nothing is closed, all else passes.

For clients that prove that their events still arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import yarl
from aiohttp import web

from tests.support.forwarding import BODY_BYTES_MAX, HOP_HEADERS


class MuteWatches:
    """url: where to ask instead of upstream; plain HTTP. Runs on a thread of its own."""

    def __init__(self, upstream: str, ca_file: Path) -> None:
        self.url = ""
        self._upstream = upstream
        self._trust = ssl.create_default_context(cafile=str(ca_file))
        self._loop = asyncio.new_event_loop()
        self._speak = asyncio.Event()
        self._speak.set()
        self._over = asyncio.Event()
        self._times = 0

    def mute(self) -> None:
        """Watches that there are say nothing more, for good; those that are begun from now on, until `unmute`."""
        self._times += 1
        self._loop.call_soon_threadsafe(self._speak.clear)

    def unmute(self) -> None:
        self._loop.call_soon_threadsafe(self._speak.set)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        loop = self._loop
        thread = threading.Thread(target=loop.run_forever, name="mute-watches", daemon=True)
        thread.start()
        begun = asyncio.run_coroutine_threadsafe(self._begun(), loop)
        stack = begun.result(30)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(self._over.set)
            asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()

    async def _begun(self) -> contextlib.AsyncExitStack:
        stack = contextlib.AsyncExitStack()
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout, auto_decompress=False))
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return stack

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        born, is_watch = self._times, request.query.get("watch") in ("true", "1")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in {*HOP_HEADERS, "host"}}
        url = yarl.URL(self._upstream + request.raw_path, encoded=True)
        body = await request.read()
        asked = self._session.request(request.method, url, data=body or None, headers=headers, ssl=self._trust)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(contextlib.suppress(aiohttp.ClientConnectionResetError))
            answer = await stack.enter_async_context(asked)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_HEADERS}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                if is_watch:
                    await self._speak.wait()
                    if born != self._times:
                        await self._over.wait()
                await response.write(chunk)
        return response
