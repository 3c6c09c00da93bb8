"""The operator is killed, doubled and cut off, against a real API server; and a worker's end, which it must notice by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_model import packed_generations
from tests.support import kube_api, moto_server, mute_watches, operator_process, played_workers, streams
from tests.support.operator_scene import Scene

pytestmark = [pytest.mark.processes, pytest.mark.slow]

TAKEN_S = 40.0
"""A Lease runs out after 15 s; the rest is the start of a process on a busy machine."""


@pytest.fixture(scope="module")
def kinesis_url() -> Iterator[str]:
    """moto's: shards don't change here."""
    with moto_server.running() as url:
        yield url


async def test_killed_in_the_middle_of_its_steps(scene: Scene, kinesis: streams.Streams) -> None:
    """Whatever stood when it died, the next one goes on from there, and the end is what it would have been."""
    await kinesis.create(scene.stream, shards=6)
    fleet = scene.fleet
    scene.apply()
    moments: list[tuple[Callable[[], object], str]] = [
        (lambda: fleet.status(), "its first status stands"),
        (lambda: len(fleet.partitions()) >= 2, "some partitions are made"),
        (lambda: any(entry.spec.worker for entry in fleet.partitions()), "some partitions are given to workers"),
        (lambda: fleet.status()["rules"]["generation"] == 2, "an edit of the rules is published"),
    ]
    with played_workers.playing(fleet) as played:
        for moment, what in moments:
            if "edit" in what:
                fleet.edit(rules={"battery": {"maxDropPerHour": 12.5}})
            with operator_process.running(scene.kubeconfig, scene.namespace) as operator:
                if "given" in what:
                    scene.play_until(played, moment, what, TAKEN_S)
                else:
                    scene.until(moment, what, TAKEN_S)
                operator.kill()
        with operator_process.running(scene.kubeconfig, scene.namespace):
            scene.play_until(played, lambda: fleet.condition("Ready")["status"] == "True", "Ready", 90)
            scene.play_until(played, lambda: fleet.condition("RulesApplied")["status"] == "True", "RulesApplied")
            entries = fleet.partitions()
            assert len(entries) == 6
            assert {entry.status.worker for entry in entries} == {"trucks-0", "trucks-1"}
            generations = packed_generations.unpack(fleet.status()["rules"]["generations"])
            assert [each.generation for each in generations] == [1, 2]
            revisions = [found for found in fleet.children() if "-rules-" in found["metadata"]["name"]]
            assert sorted(found["revision"] for found in revisions) == [1, 2]


async def test_of_two_operators_one_acts(scene: Scene, kinesis: streams.Streams) -> None:
    await kinesis.create(scene.stream)
    fleet = scene.fleet
    scene.apply()
    first = operator_process.Operator(scene.kubeconfig, scene.namespace, "operator-a")
    second = operator_process.Operator(scene.kubeconfig, scene.namespace, "operator-b")
    both = (first, second)
    try:
        scene.until(lambda: sum(each.acts for each in both) == 1, "one acts")
        acting, waiting = both if first.acts else (second, first)
        scene.until(lambda: waiting.get("/readyz")[0] == 200, "the other one is ready")
        scene.until(lambda: len(fleet.partitions()) == 1, "the fleet's partition")
        assert waiting.metric("fleet_twin_operator_api_writes_total") == 0
        acting.kill()
        killed = time.monotonic()
        scene.until(lambda: waiting.acts, "the other one acts", TAKEN_S)
        assert time.monotonic() - killed > 5, "a Lease that was never given back has to run out"
        fleet.edit(rules={"temperature": {"threshold": 70.0}})
        scene.until(lambda: fleet.status()["rules"]["generation"] == 2, "the edit is published", 10)
        with operator_process.running(scene.kubeconfig, scene.namespace, "operator-c") as third:
            scene.until(lambda: third.get("/readyz")[0] == 200, "a third one is ready")
            assert not third.acts
            waiting.stop()
            stopped = time.monotonic()
            scene.until(lambda: third.acts, "given back, the Lease is taken at once", TAKEN_S)
            assert time.monotonic() - stopped < 10
    finally:
        for each in both:
            each.stop()


async def test_an_api_server_that_is_away_for_a_while(scene: Scene, kinesis: streams.Streams) -> None:
    """The operator stops acting, isn't ended for it, and goes on when the server is back: the same process, without being told."""
    await kinesis.create(scene.stream)
    fleet = scene.fleet
    scene.apply()
    with operator_process.running(scene.kubeconfig, scene.namespace) as operator:
        scene.until(lambda: fleet.status().get("rules"), "the fleet is looked after")
        scene.server.stop()
        try:
            what = "it acts no more: others may have the Lease by now"
            scene.server.wait(lambda: not operator.acts, what, 20)
            assert operator.get("/healthz")[0] == 200
        finally:
            scene.server.start()
        scene.until(lambda: operator.acts, "it acts again")
        fleet.edit(rules={"temperature": {"threshold": 70.0}})
        scene.until(lambda: fleet.status()["rules"]["generation"] == 2, "and hears of edits", 30)
        operator.check_alive()
        assert operator.get("/healthz") == (200, "ok\n")


@pytest.mark.e2e_only
@pytest.mark.timeout(400)
async def test_watches_that_fall_silent_are_noticed_and_begun_anew(
    scene: Scene, kinesis: streams.Streams, tmp_path: Path
) -> None:
    """Nothing closes the connections. Its health says so while no event arrives, and its watches end by their own time, not by anybody's word."""
    await kinesis.create(scene.stream)
    fleet = scene.fleet

    async def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        await asyncio.to_thread(scene.until, condition, what, seconds)

    scene.apply()
    token = scene.server.service_account(scene.namespace, "operator-behind", operator_process.RULES)
    async with mute_watches.MuteWatches(scene.server.url, scene.server.ca_file) as behind:
        path = tmp_path / "behind.kubeconfig"
        kube_api.write_kubeconfig(path, behind.endpoint_url, scene.server.ca_file, {"token": token}, scene.namespace)
        operator = operator_process.Operator(path, scene.namespace)
        try:
            await until(lambda: fleet.status().get("rules"), "the fleet is looked after")
            fleet.edit(rules={"temperature": {"threshold": 69.0}})
            await until(lambda: fleet.status()["rules"]["generation"] == 2, "it hears of edits at once", 5)
            assert operator.get("/healthz")[0] == 200
            behind.mute()
            await until(lambda: operator.get("/healthz")[0] == 503, "it notices that nothing arrives", 120)
            assert "arrive" in operator.get("/healthz")[1]
            behind.unmute()
            await until(lambda: operator.get("/healthz")[0] == 200, "its watches are begun anew", 120)
            fleet.edit(rules={"temperature": {"threshold": 70.0}})
            await until(lambda: fleet.status()["rules"]["generation"] == 3, "and hear of edits at once", 5)
            operator.check_alive()
        finally:
            await asyncio.to_thread(operator.stop)


async def test_a_worker_that_stops_answering_loses_its_partitions(scene: Scene, kinesis: streams.Streams) -> None:
    """After 20 s, though its pod stays: nobody waits for a node that is lost."""
    await kinesis.create(scene.stream, shards=3)
    fleet = scene.fleet
    scene.apply(replicas=3)
    with (
        operator_process.running(scene.kubeconfig, scene.namespace),
        played_workers.playing(fleet) as played,
    ):
        everybody = {"trucks-0", "trucks-1", "trucks-2"}
        scene.play_until(played, lambda: {e.status.worker for e in fleet.partitions()} == everybody, "balanced", 90)
        scene.play_until(played, lambda: fleet.condition("Rebalancing")["status"] == "False", "nothing moves")
        epochs = {entry.spec.shard_id: entry.spec.epoch for entry in fleet.partitions()}
        played.silence("trucks-1")
        began = time.monotonic()
        others = {"trucks-0", "trucks-2"}
        scene.play_until(played, lambda: {e.status.worker for e in fleet.partitions()} <= others, "a takeover", 60)
        assert time.monotonic() - began > 15
        taken = [entry for entry in fleet.partitions() if entry.spec.takeover]
        assert len(taken) == 1
        assert taken[0].spec.takeover == taken[0].spec.epoch == epochs[taken[0].spec.shard_id] + 1
        assert {pod["metadata"]["name"] for pod in played.pods()} == everybody
