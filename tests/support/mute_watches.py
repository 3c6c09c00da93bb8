"""An API server behind a way that swallows what watches say: as by a middlebox that forgot the connection. Nothing is closed, all else passes.

For clients that prove that their events still arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import aiohttp
import yarl
from aiohttp import web

from tests.support import forwarding


class MuteWatches(forwarding.ForwardingProxy):
    """endpoint_url: where to ask instead of upstream; plain HTTP."""

    def __init__(self, upstream: str, ca_file: Path) -> None:
        super().__init__(upstream, dropped_headers=("host",))
        self._trust = ssl.create_default_context(cafile=str(ca_file))
        self._speak = asyncio.Event()
        self._speak.set()
        self._times = 0

    def mute(self) -> None:
        """Watches that there are say nothing more, for good; those that are begun from now on, until `unmute`."""
        self._times += 1
        self._speak.clear()

    def unmute(self) -> None:
        self._speak.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Piece by piece: a watch has no end to wait for."""
        assert self._session is not None
        born, is_watch = self._times, request.query.get("watch") in ("true", "1")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in self._dropped}
        asked = self._session.request(
            request.method,
            yarl.URL(self.upstream + request.raw_path, encoded=True),
            data=await request.read() or None,
            headers=headers,
            ssl=self._trust,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        with contextlib.suppress(aiohttp.ClientConnectionResetError):
            async with asked as answer:
                kept = {
                    name: value for name, value in answer.headers.items() if name.lower() not in forwarding.HOP_HEADERS
                }
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    if is_watch:
                        await self._speak.wait()
                        if born != self._times:
                            await asyncio.Event().wait()  # until the proxy ends
                    await response.write(chunk)
        return response
