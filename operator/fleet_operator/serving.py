"""The operator's HTTP side: /healthz and /readyz for the kubelet, /metrics for Prometheus. Only reads what others measured."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import prometheus_client
from aiohttp import web

from fleet_operator import alive
from fleet_operator.metrics import Metrics


@contextlib.asynccontextmanager
async def serving(host: str, port: int, metrics: Metrics, signs: Callable[[], alive.Signs]) -> AsyncIterator[int]:
    """Yields the port. Raises OSError when it is taken."""

    def answer(why: list[str]) -> web.Response:
        return web.Response(status=503 if why else 200, text="\n".join(why) + "\n" if why else "ok\n")

    async def healthz(_: web.Request) -> web.Response:
        return answer(alive.why_not_healthy(signs()))

    async def readyz(_: web.Request) -> web.Response:
        return answer(alive.why_not_ready(signs()))

    async def scrape(_: web.Request) -> web.Response:
        seen = signs()
        metrics.watch_age.set(seen.beat if seen.beat is not None else seen.age)
        body = prometheus_client.generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
