"""The operator's process, as far as it goes without an API server: what it leaves behind when it doesn't lead any more."""

from __future__ import annotations

import asyncio

import aiohttp
import prometheus_client

from fleet_operator import main
from fleet_operator.adapters import streams
from tests.support import operator_objects as objects


def test_who_has_lost_the_lease_says_nothing_more_of_fleets() -> None:
    async def body() -> None:
        async with streams.Streams() as looks, aiohttp.ClientSession() as session:
            options = main.Options((), objects.DEFAULTS, ("depot", "lease"))
            operator = main._Operator(options, None, looks, session)
            status = {"conditions": [{"type": "Ready", "status": "True", "reason": "AllPartitionsRunning"}]}
            operator.metrics.fleet_is(("depot", "trucks"), status, ())
            assert b"trucks" in prometheus_client.generate_latest(operator.metrics.registry)
            await operator._act_while_leading()
            assert b"trucks" not in prometheus_client.generate_latest(operator.metrics.registry)

    asyncio.run(body())
