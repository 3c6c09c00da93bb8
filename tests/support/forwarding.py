"""What the tests' two proxies share: listening, passing a call on as it came, ending. What they do to a call is their own."""

from __future__ import annotations

import abc
import collections
from collections.abc import Collection
from types import TracebackType
from typing import Self

import aiohttp
import yarl
from aiohttp import web

BODY_BYTES_MAX = 64 * 2**20
UPSTREAM_S_MAX = 60.0
HOP_HEADERS = {"content-length", "connection", "transfer-encoding", "accept-encoding", "content-encoding", "expect"}


class ForwardingProxy(abc.ABC):
    """calls: how many came in, by what the proxy tells them apart by. endpoint_url: where to send them. upstream: where they go."""

    def __init__(self, upstream: str, dropped_headers: Collection[str] = ()) -> None:
        """dropped_headers: of requests, in small letters, besides those between two hops."""
        self.calls: collections.Counter[str] = collections.Counter()
        self.endpoint_url = ""
        self.upstream = upstream
        self._dropped = {*HOP_HEADERS, *dropped_headers}
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    @abc.abstractmethod
    async def serve(self, request: web.Request) -> web.StreamResponse:
        """The answer to any call."""

    async def forward(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of upstream's answer."""
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in self._dropped}
        url = yarl.URL(self.upstream.rstrip("/") + request.raw_path, encoded=True)
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_HEADERS}
            return answer.status, kept, await answer.read()

    async def __aenter__(self) -> Self:
        whole = aiohttp.ClientTimeout(total=UPSTREAM_S_MAX)
        # Bodies pass as they are, and nothing asks for compressed ones: proxies look into them.
        self._session = aiohttp.ClientSession(
            timeout=whole, auto_decompress=False, skip_auto_headers=["Accept-Encoding"]
        )
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self.serve)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint_url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        assert self._session is not None
        await self._runner.cleanup()
        await self._session.close()
