"""A proxy in front of any Kinesis endpoint that does what emulators don't: fall behind, throttle, fail in part, lose replies.

    async with proxy.FaultProxy(endpoint_url) as kinesis:
        kinesis.millis_behind = 5_000
        kinesis.add(proxy.Rule("PutRecords", lose_reply=True, times=2))

Rules are tried in the order they were added; the first that fits and has times left decides. It speaks JSON 1.1, checks no
signature and holds no state but its rules and its count of calls.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import random
from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from tests.support import forwarding


@dataclasses.dataclass
class Rule:
    """operation: as in X-Amz-Target, "" = any. times: how often it applies. stream: only calls that name it.

    What it does, in this order: delay_s before anything; throttle or server_error instead of the call; fail: indexes of
    PutRecords' entries that don't reach Kinesis and fail; lose_reply: the connection is cut after the call was done.
    """

    operation: str = ""
    times: int = 1
    stream: str = ""
    delay_s: float = 0.0
    throttle: bool = False
    server_error: bool = False
    fail: frozenset[int] = frozenset()
    lose_reply: bool = False

    def fits(self, operation: str, stream: str) -> bool:
        return self.times > 0 and self.operation in ("", operation) and self.stream in ("", stream)


def some_of_each(dice: random.Random) -> list[Rule]:
    """In random order. Slow puts keep effects for long between their commit and their acknowledgement."""
    rules = [Rule("PutRecords", times=1, delay_s=dice.choice((0.02, 0.3, 1.5))) for _ in range(25)]
    rules += [Rule("PutRecords", lose_reply=True) for _ in range(3)]
    rules += [Rule("PutRecords", fail=frozenset({dice.randrange(3)})) for _ in range(4)]
    rules += [Rule("PutRecords", throttle=True), Rule("GetRecords", throttle=True)]
    rules += [Rule("GetRecords", lose_reply=True), Rule("GetRecords", server_error=True)]
    dice.shuffle(rules)
    return rules


class FaultProxy(forwarding.ForwardingProxy):
    """millis_behind: what GetRecords answers tell, None = upstream's own. date_shift_ms: added to each Date header.

    holds_back: GetRecords brings nothing, as Kinesis does on its way through a gap, and the next iterator is the same.
    watch: told of each call, operation and body, before anything is done with it.
    calls: by operation.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream, dropped_headers=("host",))
        self.millis_behind: int | None = None
        self.holds_back = False
        self.watch: Callable[[str, bytes], None] | None = None
        self.date_shift_ms = 0
        self._rules: list[Rule] = []

    def add(self, rule: Rule) -> Rule:
        """The rule is kept as it is: its `times` tells how often it is still to apply."""
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        self._rules.clear()

    def forward_to(self, upstream: str) -> None:
        """From now on; upstream may be away, which callers see as a server error."""
        self.upstream = upstream

    async def serve(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        body = await request.read()
        self.calls[operation] += 1
        if self.watch is not None:
            self.watch(operation, body)
        rule = self._rule(operation, body)
        if rule.delay_s:
            await asyncio.sleep(rule.delay_s)
        if rule.throttle:
            return self._error(400, "ProvisionedThroughputExceededException")
        if rule.server_error:
            return self._error(500, "InternalFailure")
        if rule.fail and operation == "PutRecords":
            return await self._put_in_part(request, body, rule.fail)
        if self.holds_back and operation == "GetRecords":
            return self._nothing(body)
        status, headers, answer = await self.forward(request, body)
        if rule.lose_reply:
            assert request.transport is not None
            request.transport.abort()
        if status == 200 and operation == "GetRecords" and self.millis_behind is not None:
            answer = orjson.dumps(orjson.loads(answer) | {"MillisBehindLatest": self.millis_behind})
        return web.Response(status=status, headers=self._shifted(headers), body=answer)

    def _rule(self, operation: str, body: bytes) -> Rule:
        told = orjson.loads(body) if body else {}
        stream = told.get("StreamName") or str(told.get("StreamARN", "")).rpartition("/")[2]
        for rule in self._rules:
            if rule.fits(operation, stream):
                rule.times -= 1
                return rule
        return Rule()

    async def _put_in_part(self, request: web.Request, body: bytes, fail: frozenset[int]) -> web.Response:
        told: dict[str, Any] = orjson.loads(body)
        entries = told["Records"]
        good = [entry for index, entry in enumerate(entries) if index not in fail]
        answer: dict[str, Any] = {"Records": []}
        headers: dict[str, str] = {"Content-Type": "application/x-amz-json-1.1"}
        if good:
            status, headers, raw = await self.forward(request, orjson.dumps(told | {"Records": good}))
            if status != 200:
                return web.Response(status=status, headers=self._shifted(headers), body=raw)
            answer = orjson.loads(raw)
        taken = iter(answer["Records"])
        refused = {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded for shard"}
        outcomes = [refused if index in fail else next(taken) for index in range(len(entries))]
        answer |= {"Records": outcomes, "FailedRecordCount": sum("ErrorCode" in outcome for outcome in outcomes)}
        return web.Response(headers=self._shifted(headers), body=orjson.dumps(answer))

    def _nothing(self, body: bytes) -> web.Response:
        again = orjson.loads(body)["ShardIterator"]
        answer = {"Records": [], "NextShardIterator": again, "MillisBehindLatest": self.millis_behind or 0}
        headers = self._shifted({"Content-Type": "application/x-amz-json-1.1"})
        return web.Response(headers=headers, body=orjson.dumps(answer))

    def _error(self, status: int, code: str) -> web.Response:
        headers = self._shifted({"Content-Type": "application/x-amz-json-1.1"})
        return web.Response(status=status, headers=headers, body=orjson.dumps({"__type": code, "message": code}))

    def _shifted(self, headers: dict[str, str]) -> dict[str, str]:
        """With the Date header moved by date_shift_ms; of now when upstream gave none."""
        given = next((value for name, value in headers.items() if name.lower() == "date"), email.utils.formatdate())
        at_s = email.utils.parsedate_to_datetime(given).timestamp() + self.date_shift_ms / 1000
        others = {name: value for name, value in headers.items() if name.lower() != "date"}
        return others | {"Date": email.utils.formatdate(at_s, usegmt=True)}
