"""A real worker whose bucket is busy: it is told as a metric, and stops nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import aws_env, live_fleet, moto_server, object_proxy, shared_fleet, streams, waiting, worker_process

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(120)]

COUNTED_S_MAX = 30.0


@contextlib.asynccontextmanager
async def scene(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[worker_process.WorkerProcess, object_proxy.ObjectProxy]]:
    """A worker (not started) of a fleet with a bucket, and the proxy before the store and Kinesis."""
    aws_env.apply(monkeypatch)
    checkpoint = {"bucket": shared_fleet.BUCKET, "interval": "2s"}
    with moto_server.running() as url:
        await shared_fleet.make_bucket(url)
        async with (
            streams.Streams.at(url) as kinesis,
            object_proxy.ObjectProxy(url) as faults,
            live_fleet.made(folder, kinesis, faults.endpoint_url, checkpoint=checkpoint) as fleet,
            fleet.worker() as worker,
        ):
            yield worker, faults


async def test_calls_to_the_bucket_that_are_tried_again_are_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path / "fleet", monkeypatch) as (worker, faults):
        worker.start()
        await worker.ready()
        faults.add(object_proxy.Rule("PUT", status=503, code="SlowDown", times=3))

        line = 'fleet_twin_object_store_retries_total{operation="PutObject",trouble="busy"} 3.0'
        deadline = time.monotonic() + COUNTED_S_MAX
        while line not in await worker.text("/metrics"):
            assert time.monotonic() < deadline, "the calls that were tried again aren't counted"
            await asyncio.sleep(waiting.LOOK_AGAIN_S)
        assert "The object store: PutObject of" in worker.log()
        assert "SlowDown" in worker.log()
        await worker.stop()
