"""A proxy in front of any S3 endpoint that does what emulators don't: be busy, refuse, lose replies, hang, break off.

    async with object_proxy.ObjectProxy(endpoint_url) as store:
        store.add(object_proxy.Rule("PUT", lose_reply=True, times=2))

Rules are tried in the order they were added; the first that fits and has times left decides. It checks no signature and holds no state
but its rules and its count of calls.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from types import TracebackType

import aiohttp
import yarl
from aiohttp import web

BODY_BYTES_MAX = 64 * 2**20
UPSTREAM_S_MAX = 60.0
_HOP_HEADERS = {"content-length", "connection", "transfer-encoding", "accept-encoding", "content-encoding", "expect"}


@dataclasses.dataclass
class Rule:
    """method: "" = any. times: how often it applies.

    What it does, in this order: status, code: this answer instead of the call. page: with this body instead of an error of S3's form.
    lose_reply: the connection is cut after the call was done. hang_s: the answer waits for so long. break_off: only the first
    half of the answer's body arrives.
    """

    method: str = ""
    times: int = 1
    status: int = 0
    code: str = ""
    page: bytes | None = None
    lose_reply: bool = False
    hang_s: float = 0.0
    break_off: bool = False


class ObjectProxy:
    """calls: how many came in, by method. endpoint_url: where to send them."""

    def __init__(self, upstream: str) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.endpoint_url = ""
        self._upstream = upstream
        self._rules: list[Rule] = []
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    def add(self, rule: Rule) -> Rule:
        """The rule is kept as it is: its `times` tells how often it is still to apply."""
        self._rules.append(rule)
        return rule

    async def __aenter__(self) -> ObjectProxy:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=UPSTREAM_S_MAX), auto_decompress=False
        )
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._serve)
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

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.calls[request.method] += 1
        rule = self._rule(request.method)
        if rule.status:
            told = f"<Error><Code>{rule.code}</Code><Message>as the test wants it</Message></Error>".encode()
            return web.Response(status=rule.status, body=told if rule.page is None else rule.page)
        status, headers, answer = await self._forward(request, body)
        assert request.transport is not None
        if rule.lose_reply:
            request.transport.abort()
        if rule.hang_s:
            await asyncio.sleep(rule.hang_s)
        if rule.break_off:
            response = web.StreamResponse(status=status, headers=headers | {"Content-Length": str(len(answer))})
            await response.prepare(request)
            await response.write(answer[: len(answer) // 2])
            request.transport.abort()
            return response
        return web.Response(status=status, headers=headers, body=answer)

    def _rule(self, method: str) -> Rule:
        for rule in self._rules:
            if rule.times > 0 and rule.method in ("", method):
                rule.times -= 1
                return rule
        return Rule()

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """With the Host header as it was signed."""
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        url = yarl.URL(self._upstream + request.raw_path, encoded=True)
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_HEADERS}
            return answer.status, kept, await answer.read()
