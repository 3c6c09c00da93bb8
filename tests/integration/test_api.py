"""The API over HTTP: real engines behind it, aiohttp's own client before it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import test_utils, web
from prometheus_client import parser
from yarl import URL

from fleet_model import hashing, rules
from fleet_proto import fleet_pb2
from fleet_worker import errors, metrics
from fleet_worker.adapters import clock
from fleet_worker.api import app, directory, parameters, queries
from fleet_worker.core import commits, records, twins
from tests.support import commits as made
from tests.support import partitions
from tests.support.partitions import START_MS, Reading

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


class TestTwins:
    @pytest.mark.parametrize("limit", [1, 7, 100, 1000])
    async def test_pages_hold_every_twin_once_in_key_order_across_partitions(self, limit: int) -> None:
        worker = two_halves()
        device_ids = [f"truck-{k}" for k in range(150)]
        feed(worker, *map(Reading, device_ids))
        async with asking(worker) as client:
            found = await every(client, "/v1/twins", limit)
            assert ids(found) == in_key_order(device_ids)
            assert found[0] == await ask(client, f"/v1/twins/{found[0]['device_id']}")

    async def test_a_page_never_holds_more_than_its_limit_and_ends_exactly(self) -> None:
        worker = two_halves()
        feed(worker, *(Reading(f"truck-{k}") for k in range(20)))
        async with asking(worker) as client:
            page = await ask(client, "/v1/twins?limit=20")
            assert (len(page["twins"]), page["next"]) == (20, None)
            page = await ask(client, "/v1/twins?limit=19")
            assert len(page["twins"]) == 19
            page = await ask(client, f"/v1/twins?limit=19&cursor={page['next']}")
            assert (len(page["twins"]), page["next"]) == (1, None)

    async def test_a_walk_is_stable_while_twins_come_and_go(self) -> None:
        worker = two_halves()
        stay = [f"stay-{k}" for k in range(60)]
        feed(worker, *map(Reading, stay), *(Reading(f"go-{k}") for k in range(60)))
        found, cursor, turn = [], "", 0
        async with asking(worker) as client:
            while True:
                page = await ask(client, f"/v1/twins?limit=10{cursor}")
                found += ids(page["twins"])
                if page["next"] is None:
                    break
                cursor = f"&cursor={page['next']}"
                forget = partitions.control(f"go-{turn}", START_MS + turn + 1, forget_device=fleet_pb2.ForgetDevice())
                feed(worker, forget, Reading(f"come-{turn}", START_MS + turn + 1))
                turn += 1
        assert turn > 8
        assert len(found) == len(set(found))
        assert in_key_order(found) == found
        assert set(stay) <= set(found)

    async def test_a_walk_goes_on_when_the_shard_was_split_meanwhile(self) -> None:
        whole, halves = partitions.SeenWorker([partitions.SeenPartition()]), two_halves()
        device_ids = [f"truck-{k}" for k in range(40)]
        feed(whole, *map(Reading, device_ids))
        feed(halves, *map(Reading, device_ids))
        async with asking(whole) as before, asking(halves) as after:
            page = await ask(before, "/v1/twins?limit=13")
            rest = await ask(after, f"/v1/twins?limit=100&cursor={page['next']}")
            assert ids(page["twins"]) + ids(rest["twins"]) == in_key_order(device_ids)

    async def test_filters(self) -> None:
        profile = rules.Profile("cold-chain", rules.Match(device_id_prefix="cold-"), rules.Rules())
        worker = two_halves(generations=[rules.RulesGeneration(profiles=(profile,))])
        late = START_MS + 400_000
        feed(worker, *(Reading(f"silent-{k}") for k in range(5)))
        feed(worker, *(entry for k in range(6) for entry in partitions.hot(f"hot-{k}", late)))
        feed(worker, *(Reading(f"cold-{k}", late, firmware="2.0") for k in range(7)))
        feed(worker, *(Reading(f"flat-{k}", late, battery_pct=4.0) for k in range(8)))
        for seen in worker.mine:
            seen.advance(late + 5_000)
        expected = {
            "": 26,
            "?offline=true": 5,
            "?offline=false": 21,
            "?alert=offline": 5,
            "?alert=temp_spike": 6,
            "?alert=battery_drop": 0,
            "?alert=any": 11,
            "?alert=any&offline=false": 6,
            "?alert=temp_spike&offline=true": 0,
            "?health_below=100": 19,
            "?health_below=50.1": 11,
            "?health_below=50.1&alert=temp_spike": 6,
            "?prefix=cold-": 7,
            "?prefix=none-": 0,
            "?firmware=2.0": 7,
            "?firmware=1.0": 19,
            "?firmware=2.0&prefix=hot": 0,
            "?profile=cold-chain": 7,
            "?profile=default": 19,
        }
        async with asking(worker) as client:
            for query, count in expected.items():
                for limit in (4, 1000):
                    found = ids(await every(client, f"/v1/twins{query}", limit))
                    assert (query, len(found)) == (query, count)
                    assert found == in_key_order(list(set(found)))
            assert set(ids(await every(client, "/v1/twins?offline=true", 2))) == {f"silent-{k}" for k in range(5)}

    @pytest.mark.parametrize(
        ("query", "parameter"),
        [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=ten", "limit"),
            ("limit=-1", "limit"),
            ("limit=99999999999999999999", "limit"),
            ("limit=%C2%B2", "limit"),
            ("cursor=nonsense", "cursor"),
            ("cursor=AAAA", "cursor"),
            ("cursor=" + "A" * 2000, "cursor"),
            ("offline=yes", "offline"),
            ("alert=hot", "alert"),
            ("health_below=nan", "health_below"),
            ("health_below=0", "health_below"),
            ("health_below=101", "health_below"),
            ("prefix=", "prefix"),
            ("profile=unknown", "profile"),
            ("limit=1&limit=2", "limit"),
            ("colour=red", "colour"),
            ("partial=1", "partial"),
        ],
    )
    async def test_a_wrong_parameter_is_named_with_its_remedy(self, query: str, parameter: str) -> None:
        async with asking(two_halves()) as client:
            assert (await ask(client, f"/v1/twins?{query}", 400))["parameter"] == parameter

    async def test_a_list_with_a_hole_is_refused_unless_partial(self) -> None:
        worker = two_halves()
        feed(worker, *(Reading(f"truck-{k}") for k in range(30)))
        missing = worker.mine.pop(0)
        worker.others = [directory.Elsewhere("shard-low", LOW, "trucks-1", 9, "Running")]
        async with asking(worker) as client:
            for path in ("/v1/twins", "/v1/alerts", "/v1/dead-letters"):
                refusal = await ask(client, path, 503)
                assert (refusal["owner"], refusal["epoch"], refusal["shard_id"]) == ("trucks-1", 9, "shard-low")
                answer = await ask(client, f"{path}?partial=true")
                assert answer["missing"] == [
                    {
                        "hash_key_range": {"start": "0", "end": str(HALF - 1)},
                        "owners": [{"shard_id": "shard-low", "worker": "trucks-1", "epoch": 9, "phase": "Running"}],
                    }
                ]
            shown = await ask(client, "/v1/twins?partial=true")
            assert len(shown["twins"]) == 30 - len(missing.engine.table)
            worker.mine[0].phase = "Restoring"
            assert [
                entry["hash_key_range"]["start"] for entry in (await ask(client, "/v1/alerts?partial=true"))["missing"]
            ] == ["0"]

    async def test_a_list_ends_before_a_hole_and_tells_how_to_go_on(self) -> None:
        worker = two_halves()
        feed(worker, *(Reading(f"truck-{k}") for k in range(30)))
        gone = worker.mine.pop(1)
        worker.others = [
            directory.Elsewhere("shard-2", hashing.HashKeyRange(HALF, 2**128 - 1001), "trucks-1", 9, "Running"),
            directory.Elsewhere("shard-3", hashing.HashKeyRange(2**128 - 1000, 2**128 - 1), "trucks-2", 1, "Running"),
        ]
        async with asking(worker) as client:
            page = await ask(client, "/v1/twins?limit=1000")
            assert len(page["twins"]) == 30 - len(gone.engine.table)
            refusal = await ask(client, f"/v1/twins?cursor={page['next']}", 503)
            assert refusal["cursor"] == page["next"]
            assert (refusal["shard_id"], refusal["owner"], refusal["epoch"]) == ("shard-2", "trucks-1", 9)
            assert refusal["hash_key_range"] == {"start": str(HALF), "end": str(2**128 - 1001)}
            # With nothing to tell before the hole, no page: an empty one could be taken for all there is.
            assert (await ask(client, "/v1/alerts", 503))["cursor"] == page["next"]
            behind = await ask(client, f"/v1/twins?cursor={refusal['next']}", 503)
            assert (behind["shard_id"], behind["owner"], behind["next"]) == ("shard-3", "trucks-2", None)
            partial = await ask(client, "/v1/twins?limit=1000&partial=true")
            assert partial["twins"] == page["twins"]
            assert [owner["worker"] for owner in partial["missing"][0]["owners"]] == ["trucks-1", "trucks-2"]

    @pytest.mark.parametrize("limit", [3, 1000])
    async def test_the_table_and_the_store_make_one_list(self, tmp_path: Path, limit: int) -> None:
        profile = rules.Profile("new", rules.Match(firmware="2.0"), rules.Rules(rules.TemperatureRule(threshold=25.0)))
        worker = two_halves(generations=[rules.RulesGeneration(profiles=(profile,))])
        device_ids = [f"truck-{k}" for k in range(60)]
        versions = {name: "2.0" if k % 3 == 0 else "1.0" for k, name in enumerate(device_ids)}
        feed(worker, *(Reading(name, firmware=versions[name]) for name in device_ids))
        feed(
            worker,
            *(
                entry
                for name in device_ids[:10]
                for entry in partitions.hot(name, START_MS + 10, firmware=versions[name])
            ),
        )
        for k, seen in enumerate(worker.mine):
            mine = [name for name in device_ids[::2] if name in seen.engine.table.slots]
            seen.commit(tmp_path / str(k), leaving=mine)
            assert seen.engine.table.stored_elsewhere == len(mine)
        feed(worker, *(Reading(f"fresh-{k}", START_MS + 20_000) for k in range(5)))
        fresh = [f"fresh-{k}" for k in range(5)]
        young = [name for name in device_ids if versions[name] == "2.0"]
        async with asking(worker) as client:
            found = await every(client, "/v1/twins", limit)
            assert ids(found) == in_key_order(device_ids + fresh)
            assert {entry["device_id"]: entry["telemetry"]["firmware"] for entry in found}.items() >= versions.items()
            assert all(
                entry["rules"]["profile"] == ("new" if versions.get(entry["device_id"]) == "2.0" else "default")
                for entry in found
            )
            assert ids(await every(client, "/v1/twins?prefix=fresh", limit)) == in_key_order(fresh)
            assert ids(await every(client, "/v1/twins?alert=temp_spike", limit)) == in_key_order(device_ids[:10])
            assert ids(await every(client, "/v1/twins?firmware=2.0", limit)) == in_key_order(young)
            assert ids(await every(client, "/v1/twins?profile=new", limit)) == in_key_order(young)
            ill = {entry["device_id"] for entry in found if entry["health"]["score"] < 90}
            assert set(ids(await every(client, "/v1/twins?health_below=90", limit))) == ill
            assert ill == set(young) | set(device_ids[:10])

    async def test_a_store_that_gives_a_range_in_parts_is_read_to_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = partitions.SeenPartition()
        device_ids = [f"truck-{k}" for k in range(50)]
        seen.feed(*map(Reading, device_ids))
        seen.commit(tmp_path, leaving=device_ids[:49])
        stored = seen.stored

        async def in_parts(key_range: hashing.HashKeyRange) -> directory.StoredRows:
            rows = (await stored(key_range)).rows
            few = commits.TwinRows(rows.digests[:4], rows.device_ids[:4], rows.rows[:4], {}, rows.telemetry[:4])
            return directory.StoredRows(few, complete=len(rows.device_ids) <= 4)

        monkeypatch.setattr(seen, "stored", in_parts)
        async with asking(partitions.SeenWorker([seen])) as client:
            assert ids(await every(client, "/v1/twins", 1000)) == in_key_order(device_ids)

    async def test_device_ids_of_one_hash_key_are_told_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Anyone can make two strings with the same MD5; here all of them have it."""
        monkeypatch.setattr(hashing, "digest", lambda device_id: b"\x11" * 16)
        seen = partitions.SeenPartition()
        device_ids = [f"truck-{k:02}" for k in range(20)]
        seen.feed(*map(Reading, reversed(device_ids)))
        async with asking(partitions.SeenWorker([seen])) as client:
            for limit in (1, 3, 19):
                assert ids(await every(client, "/v1/twins", limit)) == device_ids

    async def test_too_many_lists_at_once_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        go = asyncio.Event()

        async def slow(*_: Any) -> Any:
            await go.wait()
            return {"twins": [], "next": None}

        monkeypatch.setattr(queries, "twins", slow)
        places = queries.LISTS_AT_ONCE + queries.LISTS_WAITING_MAX
        async with asking(two_halves()) as client:
            asked = [asyncio.create_task(client.get("/v1/twins")) for _ in range(places + 1)]
            done, waiting = await asyncio.wait(asked, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            (refused,) = done
            assert refused.result().status == 503
            go.set()
            assert {response.status for response in await asyncio.gather(*waiting)} == {200}


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


class TestAlerts:
    async def test_open_alerts_paged_by_device_and_filtered_by_trigger(self) -> None:
        worker = two_halves()
        for k in range(9):
            feed(worker, *partitions.hot(f"hot-{k}"))
        feed(worker, *(Reading(f"fine-{k}", START_MS + 310_000) for k in range(9)))
        for seen in worker.mine:
            seen.advance(START_MS + 310_000)
        async with asking(worker) as client:
            for limit in (1, 4, 100):
                found = await every(client, "/v1/alerts", limit, "alerts")
                assert len(found) == 18
                assert in_key_order(list(dict.fromkeys(ids(found)))) == list(dict.fromkeys(ids(found)))
                for trigger in rules.TRIGGERS:
                    some = await every(client, f"/v1/alerts?trigger={trigger}", limit, "alerts")
                    assert some == [entry for entry in found if entry["trigger"] == trigger]
            alert = found[0]
            twin = await ask(client, f"/v1/twins/{alert['device_id']}")
            assert twin["alerts"] == [
                {key: value for key, value in entry.items() if key not in ("device_id", "last_seen_ms")}
                for entry in found[:2]
            ]
            assert (await ask(client, "/v1/alerts?trigger=hot", 400))["parameter"] == "trigger"


class TestDeadLetters:
    async def test_the_newest_of_all_partitions_first(self) -> None:
        worker = two_halves()
        for k, seen in enumerate(worker.mine):
            seen.letters = [
                records.DeadLetter(reason, "why", "truck-1", str(n), 0, START_MS + 2 * n + k, b"\xff" * 9_000, 70_000)
                for n, reason in (
                    (3, records.Reason.UNDECODABLE),
                    (2, records.Reason.NOT_FINITE),
                    (1, records.Reason.UNDECODABLE),
                )
            ]
        async with asking(worker) as client:
            found = (await ask(client, "/v1/dead-letters"))["dead_letters"]
            assert [entry["arrival_ms"] - START_MS for entry in found] == [7, 6, 5, 4, 3, 2]
            assert found[0] == {
                "shard_id": "shard-high",
                "reason": "undecodable",
                "detail": "why",
                "device_id": "truck-1",
                "sequence_number": "3",
                "subsequence_number": 0,
                "arrival_ms": START_MS + 7,
                "size_bytes": 70_000,
                "data_base64": base64.b64encode(b"\xff" * 4_096).decode(),
            }
            assert len((await ask(client, "/v1/dead-letters?limit=4"))["dead_letters"]) == 4
            some = (await ask(client, "/v1/dead-letters?reason=not_finite&limit=1"))["dead_letters"]
            assert [entry["arrival_ms"] - START_MS for entry in some] == [5]
            assert (await ask(client, "/v1/dead-letters?reason=ugly", 400))["parameter"] == "reason"


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
