"""The API's lists over HTTP: twins by page, order and filter, open alerts, dead letters."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from fleet_model import hashing, rules
from fleet_proto import fleet_pb2
from fleet_worker.api import directory, queries
from fleet_worker.core import commits, records
from tests.support import partitions
from tests.support.asking import HALF, LOW, ask, asking, every, feed, ids, in_key_order, two_halves
from tests.support.partitions import START_MS, Reading


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
