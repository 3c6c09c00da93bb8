"""A twin's view shows what the rules made of it, with the alert ids that were published."""

from __future__ import annotations

import json

import pytest

from fleet_model import rules
from fleet_proto import fleet_pb2
from fleet_worker.api import walk
from fleet_worker.core import effects, views
from tests.support import partitions
from tests.support.partitions import START_MS, Reading


async def view(seen: partitions.SeenPartition, device_id: str) -> views.Json:
    stretch = await walk.one(seen, device_id)
    assert stretch is not None
    shown = views.twin_views(stretch.found, stretch.standpoint)[0]
    assert json.loads(json.dumps(shown)) == shown
    return shown


def alert_ids(caused: list[effects.Effect]) -> list[str]:
    return [effect.effect_id for effect in caused if effect.target is effects.Target.ALERTS]


async def test_a_twin_in_full() -> None:
    seen = partitions.SeenPartition()
    seen.feed(
        Reading("truck-1", START_MS, 20.5, 80.0, 0.1, "2.1"),
        Reading("truck-1", START_MS + 60_000, 21.5, 79.9, 0.1, "2.1"),
        Reading("truck-1", START_MS + 60_000, 99.0),
        Reading("truck-1", START_MS + 960_000, 19.5, 79.0, 0.25, "2.2"),
    )
    shown = await view(seen, "truck-1")
    assert shown["device_id"] == "truck-1"
    assert shown["last_seen_ms"] == START_MS + 960_000
    assert shown["telemetry"] == {
        "timestamp": START_MS + 960_000,
        "temperature_c": 19.5,
        "battery_pct": 79.0,
        "cpu_load": 0.25,
        "location": "52.5,13.4",
        "firmware": "2.2",
    }
    assert shown["counters"] == {"samples": 3, "late": 1, "gaps": 1}
    assert shown["statistics"]["until_ms"] == START_MS + 960_000
    temperature = shown["statistics"]["temperature_c"]
    assert (temperature["last"], temperature["minimum"], temperature["maximum"]) == (19.5, 19.5, 21.5)
    assert 19.5 < temperature["mean"] < 21.5
    assert temperature["deviation"] == pytest.approx(temperature["variance"] ** 0.5, rel=1e-5)
    assert shown["battery"] == {
        "rate_pct_per_hour": pytest.approx(6.0, rel=1e-4),
        "drop_pct": pytest.approx(0.1, rel=1e-4),
        "idle_ms": 60_000,
        "observed_enough": False,
    }
    assert shown["limits"] == {"temperature_c": 60.0, "battery_pct_per_hour": 10.0, "offline_after_ms": 300_000}
    assert shown["health"] == {
        "score": 100.0,
        "lost": {"temperature_margin": 0.0, "battery": 0.0, "battery_slope": 0.0, "recency": 0.0, "alerts": 0.0},
    }
    assert shown["alerts"] == []
    assert shown["overrides"] == {}
    assert shown["rules"] == {"generation": 1, "profile": "default"}
    heard = shown["partition"].pop("last_heard")
    assert heard == shown["partition"]["position"]
    assert heard["sequence_number"].startswith("4959033827149")
    assert shown["partition"] == {
        "shard_id": "shardId-000000000000",
        "epoch": 3,
        "clock_ms": START_MS + 960_000,
        "position": heard,
    }


async def test_an_open_alert_has_the_id_that_was_published() -> None:
    seen = partitions.SeenPartition()
    published = alert_ids(seen.feed(*partitions.hot("truck-1", samples=6)))
    assert len(published) == 2
    (alert,) = (await view(seen, "truck-1"))["alerts"]
    assert alert == {
        "trigger": "temp_spike",
        "severity": "critical",
        "acknowledged": False,
        "alert_id": published[-1],
        "last_fired_ms": START_MS + 5_000,
        "repeats": 2,
        "generation": 1,
    }
    acknowledge = fleet_pb2.Acknowledge(alert_id=published[-1])
    seen.feed(partitions.control("truck-1", START_MS + 6_000, acknowledge=acknowledge))
    assert (await view(seen, "truck-1"))["alerts"][0]["acknowledged"]


async def test_an_offline_alert_has_the_id_of_its_last_firing_though_no_row_keeps_it() -> None:
    repeating = rules.Rules(offline=rules.OfflineRule(repeat_interval_ms=60_000))
    seen = partitions.SeenPartition(generations=[rules.RulesGeneration(default=repeating)])
    seen.feed(Reading("truck-1"))
    for after_ms, firings in ((300_000, 1), (360_000, 1), (420_000, 1)):
        published = alert_ids(seen.advance(START_MS + after_ms))
        assert len(published) == firings
        (alert,) = (await view(seen, "truck-1"))["alerts"]
        assert alert["alert_id"] == published[-1]
        assert alert["last_fired_ms"] == START_MS + after_ms
        assert alert["trigger"] == "offline"
    assert alert["repeats"] == 3
    assert alert["generation"] is None
    assert (await view(seen, "truck-1"))["health"]["score"] == 100 - 30 - 30


async def test_overrides_and_the_limits_that_follow_from_them() -> None:
    cold = rules.Profile(
        "cold-chain", rules.Match(device_id_prefix="truck-"), rules.Rules(rules.TemperatureRule(threshold=8.0))
    )
    seen = partitions.SeenPartition(generations=[rules.RulesGeneration(profiles=(cold,))])
    seen.feed(
        Reading("truck-1"),
        Reading("drone-1"),
        partitions.control(
            "truck-1",
            START_MS + 10,
            update_threshold=fleet_pb2.UpdateThreshold(rule=fleet_pb2.OFFLINE, threshold=90.5),
        ),
        partitions.control("drone-1", START_MS + 20, update_threshold=fleet_pb2.UpdateThreshold(threshold=33.0)),
    )
    truck, drone = await view(seen, "truck-1"), await view(seen, "drone-1")
    assert truck["rules"]["profile"] == "cold-chain"
    assert truck["limits"] == {"temperature_c": 8.0, "battery_pct_per_hour": 10.0, "offline_after_ms": 90_500}
    assert truck["overrides"] == {"offline": {"threshold": 90.5, "issued_ms": START_MS + 10}}
    assert drone["rules"]["profile"] == "default"
    assert drone["limits"]["temperature_c"] == 33.0
    assert drone["overrides"] == {"temperature": {"threshold": 33.0, "issued_ms": START_MS + 20}}


async def test_a_twin_that_never_sent_a_sample_claims_nothing() -> None:
    seen = partitions.SeenPartition()
    threshold = fleet_pb2.UpdateThreshold(threshold=33.0)
    seen.feed(partitions.control("silent-1", START_MS, update_threshold=threshold))
    shown = await view(seen, "silent-1")
    assert shown["last_seen_ms"] is None
    assert shown["telemetry"] is None
    assert shown["statistics"] is None
    assert shown["health"] == {"score": None, "lost": None}
    assert shown["battery"]["rate_pct_per_hour"] is None
    assert shown["partition"]["last_heard"] == {"sequence_number": "", "subsequence_number": 0}


async def test_a_disabled_rule_has_no_limit() -> None:
    off = rules.Rules(offline=rules.OfflineRule(enabled=False))
    seen = partitions.SeenPartition(generations=[rules.RulesGeneration(default=off)])
    seen.feed(Reading("truck-1"))
    assert (await view(seen, "truck-1"))["limits"]["offline_after_ms"] is None
