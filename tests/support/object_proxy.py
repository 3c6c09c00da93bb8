"""A proxy in front of any S3 endpoint that does what emulators don't: be busy, refuse, lose replies, hang, break off.

    async with object_proxy.ObjectProxy(endpoint_url) as store:
        store.add(object_proxy.Rule("PUT", lose_reply=True, times=2))

Rules are tried in the order they were added; the first that fits and has times left decides. It checks no signature and holds no state
but its rules and its count of calls.
"""

from __future__ import annotations

import asyncio
import dataclasses

from aiohttp import web

from tests.support import forwarding


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


class ObjectProxy(forwarding.ForwardingProxy):
    """calls: by method."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)  # with the Host header as it was signed
        self._rules: list[Rule] = []

    def add(self, rule: Rule) -> Rule:
        """The rule is kept as it is: its `times` tells how often it is still to apply."""
        self._rules.append(rule)
        return rule

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.calls[request.method] += 1
        rule = self._rule(request.method)
        if rule.status:
            told = f"<Error><Code>{rule.code}</Code><Message>as the test wants it</Message></Error>".encode()
            return web.Response(status=rule.status, body=told if rule.page is None else rule.page)
        status, headers, answer = await self.forward(request, body)
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
