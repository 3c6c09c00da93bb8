"""The API over HTTP: real engines behind it, aiohttp's own client before it."""

from __future__ import annotations

import asyncio
import gc
import re
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import parser

from fleet_model import hashing
from fleet_proto import fleet_pb2
from fleet_worker import errors, metrics
from fleet_worker.adapters import clock
from fleet_worker.api import app, directory, parameters, queries
from fleet_worker.core import commits, twins
from tests.support import commits as made
from tests.support import partitions
from tests.support.asking import HALF, HIGH, LOW, ask, asking, feed, ids, in_key_order, two_halves
from tests.support.partitions import START_MS, Reading


class TestOneTwin:
    async def test_it_is_shown_from_the_partition_that_owns_it(self) -> None:
        worker = two_halves()
        feed(worker, *(Reading(f"truck-{k}") for k in range(10)))
        async with asking(worker) as client:
            for k in range(10):
                shown = await ask(client, f"/v1/twins/truck-{k}")
                low = hashing.hash_key(f"truck-{k}") < HALF
                assert shown["device_id"] == f"truck-{k}"
                assert shown["partition"]["shard_id"] == ("shard-low" if low else "shard-high")

    @pytest.mark.parametrize(
        "device_id",
        ["site/1/pump", "a//b", "..", "../x", "a%2Fb", "100%", "ü λ", "a?b#c&d", "a+b", "line\nend", "x" * 256],
    )
    async def test_any_device_id_goes_into_a_path(self, device_id: str) -> None:
        worker = partitions.SeenWorker([partitions.SeenPartition()])
        feed(worker, Reading(device_id), Reading("other"))
        async with asking(worker) as client:
            # Clients take the path segments . and .. away, unless the dots are encoded as well.
            encoded = urllib.parse.quote(device_id, safe="").replace(".", "%2E")
            assert (await ask(client, f"/v1/twins/{encoded}"))["device_id"] == device_id

    async def test_slashes_may_stand_as_they_are(self) -> None:
        worker = partitions.SeenWorker([partitions.SeenPartition()])
        feed(worker, Reading("site/1/pump"))
        async with asking(worker) as client:
            assert (await ask(client, "/v1/twins/site/1/pump"))["device_id"] == "site/1/pump"

    @pytest.mark.parametrize("path", ["", "%FF%FE", "y" * 257])
    async def test_what_is_no_device_id_is_refused_by_name(self, path: str) -> None:
        async with asking(two_halves()) as client:
            assert (await ask(client, f"/v1/twins/{path}", 400))["parameter"] == "device_id"

    async def test_only_the_running_owner_says_that_there_is_none(self) -> None:
        worker = two_halves()
        async with asking(worker) as client:
            refusal = await ask(client, "/v1/twins/nobody", 404)
            assert refusal["type"] == "urn:fleet-twin:problem:unknown-device"
            assert refusal["epoch"] == 3
            owner = next(seen for seen in worker.mine if hashing.hash_key("nobody") in seen.identity.hash_key_range)
            for phase in metrics.PHASES:
                if phase == "Running":
                    continue
                owner.phase, owner.message = phase, "because of the test"
                refusal = await ask(client, "/v1/twins/nobody", 503)
                assert refusal["owner"] == "trucks-0"
                assert refusal["epoch"] == 3
                assert refusal["phase"] == phase
                assert refusal["shard_id"] == owner.identity.shard_id
                assert "because of the test" in refusal["detail"]

    async def test_a_known_twin_is_not_shown_by_a_partition_that_does_not_run(self) -> None:
        worker = two_halves()
        feed(worker, Reading("truck-1"))
        for seen in worker.mine:
            seen.phase = "Draining"
        async with asking(worker) as client:
            await ask(client, "/v1/twins/truck-1", 503)

    async def test_another_worker_is_named_as_the_owner(self) -> None:
        worker = partitions.SeenWorker([], others=[directory.Elsewhere("shard-0", LOW, "trucks-2", 7, "Running")])
        worker.others.append(directory.Elsewhere("shard-1", HIGH, "", 4, "Pending"))
        async with asking(worker) as client:
            low = next(name for name in map(str, range(100)) if hashing.hash_key(name) < HALF)
            high = next(name for name in map(str, range(100)) if hashing.hash_key(name) >= HALF)
            refusal = await ask(client, f"/v1/twins/{low}", 503)
            assert (refusal["owner"], refusal["epoch"], refusal["phase"]) == ("trucks-2", 7, "Running")
            refusal = await ask(client, f"/v1/twins/{high}", 503)
            assert (refusal["owner"], refusal["epoch"], refusal["phase"]) == (None, 4, "Pending")

    async def test_before_anything_is_known_nothing_is_claimed(self) -> None:
        async with asking(partitions.SeenWorker([])) as client:
            refusal = await ask(client, "/v1/twins/truck-1", 503)
            assert (refusal["owner"], refusal["epoch"]) == (None, None)

    async def test_a_parent_that_closed_does_not_hide_the_child_that_runs(self) -> None:
        parent, child = partitions.SeenPartition("parent"), partitions.SeenPartition("child")
        parent.phase = "Closed"
        child.feed(Reading("truck-1"))
        async with asking(partitions.SeenWorker([parent, child])) as client:
            assert (await ask(client, "/v1/twins/truck-1"))["partition"]["shard_id"] == "child"
            await ask(client, "/v1/twins/nobody", 404)
            child.phase, child.epoch = "Restoring", 1
            assert (await ask(client, "/v1/twins/nobody", 503))["shard_id"] == "child"

    async def test_a_forgotten_device_is_unknown_until_it_speaks_again(self) -> None:
        worker = partitions.SeenWorker([partitions.SeenPartition()])
        forget = partitions.control("truck-1", START_MS + 1_000, forget_device=fleet_pb2.ForgetDevice())
        feed(worker, Reading("truck-1"), forget)
        async with asking(worker) as client:
            await ask(client, "/v1/twins/truck-1", 404)
            assert (await ask(client, "/v1/twins"))["twins"] == []
            feed(worker, Reading("truck-1", START_MS + 2_000))
            assert (await ask(client, "/v1/twins/truck-1"))["counters"]["samples"] == 1

    async def test_a_twin_outside_the_table_comes_from_the_store(self, tmp_path: Path) -> None:
        seen = partitions.SeenPartition()
        seen.feed(Reading("cold", firmware="7.7"), Reading("warm", START_MS + 1_000))
        seen.commit(tmp_path, leaving=["cold"])
        assert seen.engine.table.snapshot("cold") is None
        async with asking(partitions.SeenWorker([seen])) as client:
            shown = await ask(client, "/v1/twins/cold")
            assert shown["telemetry"]["firmware"] == "7.7"
            assert shown["counters"]["samples"] == 1
            # Committed, its Telemetry left the table; the row didn't.
            assert (await ask(client, "/v1/twins/warm"))["telemetry"]["timestamp"] == START_MS + 1_000
            await ask(client, "/v1/twins/nobody", 404)

    async def test_no_404_from_a_partition_that_left_while_its_store_was_read(self, tmp_path: Path) -> None:
        seen = partitions.SeenPartition()
        seen.feed(Reading("cold"), Reading("warm"))
        seen.commit(tmp_path, leaving=["cold"])
        fetch = seen.fetch

        async def and_leave(device_ids: Any) -> commits.TwinRows:
            seen.phase = "Released"
            return await fetch(device_ids)

        seen.fetch = and_leave  # type: ignore[method-assign]
        async with asking(partitions.SeenWorker([seen])) as client:
            await ask(client, "/v1/twins/nobody", 503)

    async def test_a_broken_store_is_told_as_such(self, tmp_path: Path) -> None:
        seen = partitions.SeenPartition()
        seen.feed(Reading("cold"), Reading("warm"))
        seen.commit(tmp_path, leaving=["cold"])

        async def fetch(device_ids: Any) -> commits.TwinRows:
            raise errors.StoreBrokenError("page 7 is torn")

        seen.fetch = fetch  # type: ignore[method-assign]
        async with asking(partitions.SeenWorker([seen])) as client:
            assert "page 7 is torn" in (await ask(client, "/v1/twins/cold", 503))["detail"]


class TestNothingStalls:
    async def test_a_page_of_a_large_table_lets_the_loop_run(self) -> None:
        seen = partitions.SeenPartition()
        device_ids = [f"device-{k}" for k in range(200_000)]
        rows = made.twin_rows(device_ids)
        rows.rows["last_arrival_ms"] = START_MS
        rows.rows["last"][:, 1] = 80
        seen.engine.load(rows)
        seen.state = commits.PartitionState(clock_ms=START_MS + 1_000)
        worker = partitions.SeenWorker([seen])
        turns_s: list[float] = []

        async def watch() -> None:
            last = time.thread_time()
            while True:
                await asyncio.sleep(0)
                turns_s.append(time.thread_time() - last)
                last = time.thread_time()

        expected = in_key_order(device_ids)
        paging = parameters.Paging(limit=1000)
        # What a turn of the loop costs, in CPU time: neither other processes nor the garbage of other tests count.
        gc.collect()
        gc.disable()
        watching = asyncio.create_task(watch())
        try:
            for given in ({}, {"health_below": 99.0}, {"prefix": "device-1"}, {"alert": twins.Flag.ANY_OPEN}):
                page = await queries.twins(worker, parameters.wanted(given), paging)
                if not given:
                    assert ids(page["twins"]) == expected[:1000]
        finally:
            gc.enable()
            watching.cancel()
        assert len(turns_s) > 50
        # No time limit: machines differ. No turn may hold the loop for a large part of the whole.
        assert max(turns_s) < sum(turns_s) / 5


class TestStatusAndProbes:
    async def test_status(self) -> None:
        worker = two_halves()
        feed(worker, *partitions.hot("hot-1"), *(Reading(f"truck-{k}") for k in range(9)))
        low, high = worker.mine
        low.lag_ms, high.lag_ms, low.outbox = 4_000, None, directory.Outbox(3, START_MS)
        high.phase, high.message = "Restoring", "reading a checkpoint"
        worker.last_rule_error = "spec.rules.temperature.threshold: not a number"
        async with asking(worker) as client:
            status = await ask(client, "/v1/status")
            assert (status["fleet"], status["worker"]) == ("default/trucks", "trucks-0")
            assert status["rules"] == {"generation": 1, "last_error": worker.last_rule_error}
            assert status["totals"] == {
                "partitions": 2,
                "running": 1,
                "twins": 10,
                "lag_ms": 4_000,
                "outbox_effects": 3,
                "alerts_open": {"temp_spike": 1, "battery_drop": 0, "offline": 0},
            }
            assert status["ready"] is False
            assert status["not_ready_because"] == ["partition shard-high is Restoring: reading a checkpoint"]
            shown = status["partitions"][0]
            assert shown["shard_id"] == "shard-low"
            assert shown["hash_key_range"] == {"start": "0", "end": str(HALF - 1)}
            assert shown["position"]["sequence_number"] == low.state.position.sequence_number
            assert shown["outbox"] == {"effects": 3, "oldest_ms": START_MS}
            assert shown["clock_ms"] == low.state.clock_ms
            assert shown["twins"] == shown["twins_in_memory"] == len(low.engine.table)

    async def test_ready_once_every_partition_runs(self) -> None:
        worker = two_halves()
        async with asking(worker) as client:
            assert (await ask(client, "/readyz"))["not_ready_because"] == []
            worker.mine[0].phase = "Failed"
            worker.reasons = ["the stream's shards are not known yet"]
            answer = await ask(client, "/readyz", 503)
            assert answer["not_ready_because"] == [
                "the stream's shards are not known yet",
                "partition shard-low is Failed",
            ]
            worker.mine[0].phase, worker.reasons = "Closed", []
            await ask(client, "/readyz")
            assert (await ask(client, "/healthz"))["status"] == "alive"

    async def test_the_index_lists_every_route(self) -> None:
        async with asking(two_halves()) as client:
            response = await client.get("/")
            text = await response.text()
            assert response.content_type == "text/plain"
            listed = set(re.findall(r"^(/\S*)", text, re.MULTILINE))
            routes = {route.resource.canonical for route in client.app.router.routes() if route.resource}
            assert listed == {route.split(":")[0] + "}" if ":" in route else route for route in routes if route != "/"}

    async def test_what_is_not_there_is_a_problem_too(self) -> None:
        async with asking(two_halves()) as client:
            await ask(client, "/v2/twins", 404)
            response = await client.post("/v1/twins", data=b"{}")
            assert (response.status, response.content_type) == (405, "application/problem+json")
            assert response.headers["Allow"]
            assert (await client.head("/v1/status")).status == 200

    async def test_metrics_tell_the_partitions_as_they_are_now(self) -> None:
        worker, measured = two_halves(), metrics.Metrics()
        feed(worker, *partitions.hot("hot-1"), *(Reading(f"truck-{k}") for k in range(9)))
        worker.mine[0].lag_ms, worker.mine[1].phase = 1_500, "Draining"
        async with asking(worker, measured) as client:
            response = await client.get("/metrics")
            assert response.status == 200
            families = {family.name: family for family in parser.text_string_to_metric_families(await response.text())}

        def total(name: str, **labels: str) -> float:
            return sum(
                sample.value
                for sample in families[f"fleet_twin_{name}"].samples
                if labels.items() <= sample.labels.items()
            )

        assert total("twins") == 10
        assert total("alerts_open", trigger="temp_spike") == 1
        assert total("lag_seconds", shard="shard-low") == 1.5
        assert total("partition_phase", shard="shard-high", phase="Draining") == 1
        assert total("partition_phase") == 2
        assert total("partition_clock_age_seconds", shard="shard-low") > 0
        assert total("rules_generation") == 1
        assert all("device" not in sample.labels for family in families.values() for sample in family.samples)


class TestServing:
    async def test_it_binds_to_loopback_and_leaves_nothing_behind(self) -> None:
        measured = metrics.Metrics()
        with clock.RealClock() as real:
            async with app.serve(app.Api(two_halves(), measured, real), port=0) as (host, port):
                assert host == "127.0.0.1"
                async with aiohttp.ClientSession() as session:
                    async with session.get(f"http://{host}:{port}/healthz") as response:
                        assert response.status == 200
                    async with session.get(f"http://{host}:{port}/v1/twins/{'x' * 5_000}") as response:
                        assert response.status == 400
                await until(
                    lambda: (measured.registry.get_sample_value("fleet_twin_loop_stall_seconds_count") or 0) > 0
                )
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientConnectionError):
                    await session.get(f"http://{host}:{port}/healthz")
        assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()

    async def test_an_address_in_use_is_an_error_that_says_so(self) -> None:
        with clock.RealClock() as real:
            api = app.Api(two_halves(), metrics.Metrics(), real)
            async with app.serve(api, port=0) as (_, port):
                with pytest.raises(OSError, match=str(port)):
                    async with app.serve(api, port=port):
                        pass


async def until(holds: Callable[[], bool], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
