"""The worker's HTTP API over real engines, asked by aiohttp's own client: what every test of an answer needs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import test_utils, web
from yarl import URL

from fleet_model import hashing
from fleet_worker import metrics
from fleet_worker.adapters import clock
from fleet_worker.api import app
from tests.support import partitions

Client = test_utils.TestClient[web.Request, web.Application]
HALF = 2**127
LOW, HIGH = hashing.HashKeyRange(0, HALF - 1), hashing.HashKeyRange(HALF, hashing.HASH_KEY_MAX)


@contextlib.asynccontextmanager
async def asking(worker: partitions.SeenWorker, measured: metrics.Metrics | None = None) -> AsyncIterator[Client]:
    with clock.RealClock() as real:
        api = app.Api(worker, measured or metrics.Metrics(), real)
        async with test_utils.TestClient(test_utils.TestServer(api.application())) as client:
            yield client


async def ask(client: Client, path: str, status: int = 200) -> Any:
    response = await client.get(URL(path, encoded=True))
    answer = await response.json(content_type=None)
    assert response.status == status, answer
    assert response.content_type == (
        "application/json" if status == 200 or path == "/readyz" else "application/problem+json"
    )
    if status != 200 and path != "/readyz":
        assert answer["status"] == status
        assert answer["detail"]
        assert answer["remedy"]
    if status == 503 and path != "/readyz":
        assert int(response.headers["Retry-After"]) > 0
    return answer


async def every(client: Client, path: str, limit: int, kind: str = "twins") -> list[Any]:
    """All of a list, page by page."""
    found: list[Any] = []
    cursor = ""
    for _ in range(10_000):
        page = await ask(client, f"{path}{'&' if '?' in path else '?'}limit={limit}{cursor}")
        found += page[kind]
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"
    raise AssertionError("the list has no end")


def in_key_order(device_ids: list[str]) -> list[str]:
    return sorted(device_ids, key=lambda device_id: (hashing.hash_key(device_id), device_id))


def ids(shown: list[Any]) -> list[str]:
    return [entry["device_id"] for entry in shown]


def two_halves(**more: Any) -> partitions.SeenWorker:
    return partitions.SeenWorker(
        [partitions.SeenPartition("shard-low", LOW, **more), partitions.SeenPartition("shard-high", HIGH, **more)]
    )


def feed(worker: partitions.SeenWorker, *messages: Any) -> None:
    """Each record to the partition that owns its device."""
    for seen in worker.mine:
        mine = [entry for entry in messages if hashing.hash_key(entry.device_id) in seen.identity.hash_key_range]
        if mine:
            seen.feed(*mine)
