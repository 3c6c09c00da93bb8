"""The HTTP server: routes, limits, and a clean start and end. What is answered is `queries`' business.

It is read-only and without authentication, so outside Kubernetes it listens on loopback unless told otherwise; whoever opens it
further puts a proxy or a NetworkPolicy in front.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import prometheus_client.exposition
from aiohttp import web

from fleet_worker import metrics, ports
from fleet_worker.api import directory, loop_watch, parameters, problems, queries, scrape

HOST_DEFAULT = "127.0.0.1"
PORT_DEFAULT = 8080
BODY_BYTES_MAX = 1024
"""Nothing here reads a body."""
LINE_BYTES_MAX = 4096
"""Of the request line: the longest device id takes 768 bytes percent-encoded."""
HEADER_BYTES_MAX = 8192
CONNECTIONS_WAITING_MAX = 128
KEEPALIVE_SECONDS = 30.0
SHUTDOWN_SECONDS = 2.0
"""For answers under way at the end."""

TWIN_PREFIX = "/v1/twins/"

INDEX = """Fleet Twin, worker API (answers to GET)

/v1/twins/{device_id}   one twin; the id percent-encoded
/v1/twins               twins in key order, paged: limit, cursor, partial;
                        filters: offline, alert, health_below, prefix, firmware, profile
/v1/alerts              open alerts: trigger, limit, cursor, partial
/v1/dead-letters        records that could not be processed, newest first: limit, reason, partial
/v1/status              fleet, worker, partitions, rules
/healthz                the event loop is alive
/readyz                 every partition is running
/metrics                for Prometheus
"""


class Api:
    """The handlers, over one worker. worker: None while it starts; waits_for: what for, as long as that lasts."""

    def __init__(
        self,
        worker: directory.WorkerView | None,
        measured: metrics.Metrics,
        clock: ports.Clock,
        waits_for: Callable[[], str] = lambda: "the start of its process",
    ) -> None:
        self.worker = worker
        self._waits_for = waits_for
        self._metrics = measured
        self._clock = clock
        self._lists = queries.Gate()
        self._scrapes = queries.Gate(at_once=1)

    def application(self) -> web.Application:
        application = web.Application(middlewares=[problems.middleware], client_max_size=BODY_BYTES_MAX)
        application.add_routes(
            [
                web.get("/", self.index),
                # Ids may hold slashes and line ends, so the pattern is everything.
                web.get(TWIN_PREFIX + r"{device_id:[\s\S]*}", self.twin),
                web.get("/v1/twins", self.twins),
                web.get("/v1/alerts", self.alerts),
                web.get("/v1/dead-letters", self.dead_letters),
                web.get("/v1/status", self.status),
                web.get("/healthz", self.healthz),
                web.get("/readyz", self.readyz),
                web.get("/metrics", self.metrics),
            ]
        )
        return application

    async def index(self, request: web.Request) -> web.Response:
        return web.Response(text=INDEX)

    async def twin(self, request: web.Request) -> web.Response:
        parameters.read(request, {})
        device_id = parameters.device_id(request, TWIN_PREFIX)
        return _json(await queries.twin(self._started(), device_id))

    async def twins(self, request: web.Request) -> web.Response:
        values = parameters.read(request, parameters.TWINS)
        async with self._lists.passing():
            return _json(await queries.twins(self._started(), parameters.wanted(values), parameters.paging(values)))

    async def alerts(self, request: web.Request) -> web.Response:
        values = parameters.read(request, {"trigger": parameters.alert, **parameters.PAGING})
        flags = values.get("trigger", parameters.ALERT_FLAGS["any"])
        async with self._lists.passing():
            return _json(await queries.alerts(self._started(), flags, parameters.paging(values)))

    async def dead_letters(self, request: web.Request) -> web.Response:
        values = parameters.read(
            request, {"limit": parameters.limit, "reason": parameters.reason, "partial": parameters.boolean}
        )
        limit = values.get("limit", parameters.LIMIT_DEFAULT)
        async with self._lists.passing():
            is_partial = values.get("partial", False)
            return _json(await queries.dead_letters(self._started(), limit, values.get("reason"), is_partial))

    async def status(self, request: web.Request) -> web.Response:
        parameters.read(request, {})
        return _json(await queries.status(self._started(), self._clock.wall_ms()))

    async def healthz(self, request: web.Request) -> web.Response:
        """That this answers at all is the message."""
        return _json({"status": "alive"})

    async def readyz(self, request: web.Request) -> web.Response:
        reasons = [f"it waits for {self._waits_for()}"] if self.worker is None else queries.unready(self.worker)
        answer = {"status": "not ready" if reasons else "ready", "not_ready_because": reasons}
        return _json(answer, status=503 if reasons else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        async with self._scrapes.passing():
            if self.worker is not None:
                await scrape.refresh(self.worker, self._metrics, self._clock.wall_ms())
            encode, content_type = prometheus_client.exposition.choose_encoder(request.headers.get("Accept", ""))
            body = await self._clock.in_thread(lambda: encode(self._metrics.registry))
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _started(self) -> directory.WorkerView:
        """Raises problems.ProblemError."""
        if self.worker is None:
            raise problems.starting(self._waits_for())
        return self.worker

    async def watch_loop(self) -> None:
        await loop_watch.watch(self._clock, self._metrics)


@contextlib.asynccontextmanager
async def serve(api: Api, host: str = HOST_DEFAULT, port: int = PORT_DEFAULT) -> AsyncIterator[tuple[str, int]]:
    """Serves while the context lasts; gives the address bound (port 0: one that is free). Raises OSError when it is taken."""
    runner = web.AppRunner(
        api.application(),
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
    )
    await runner.setup()
    watching = asyncio.create_task(api.watch_loop())
    try:
        await web.TCPSite(runner, host, port, backlog=CONNECTIONS_WAITING_MAX).start()
        bound = runner.addresses[0]
        yield str(bound[0]), int(bound[1])
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await runner.cleanup()


def _json(answer: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(answer), content_type="application/json")
