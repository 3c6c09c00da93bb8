"""The operator as a process against a real API server with Kubernetes' own controllers; pods and workers are played by the test."""

from __future__ import annotations

import json
import time

import pytest

from fleet_model.twin_partition import Phase
from tests.support import kube_api, operator_process, played_workers, streams
from tests.support.api_server import ApiServer
from tests.support.operator_process import APPLY_PATCH, MERGE_PATCH, Fleet
from tests.support.operator_scene import Scene

pytestmark = [pytest.mark.processes, pytest.mark.slow]

WAIT_S = 60.0
REST_S = 12.0
"""More than two of the operator's own looks."""


async def test_a_fleet_becomes_what_it_says_and_then_nothing_is_written(scene: Scene, kinesis: streams.Streams) -> None:
    """Parents' partitions come before their children's; the operator leaves no traces of kopf; at rest it writes nothing."""
    await kinesis.create(scene.stream, shards=2)
    await kinesis.split(scene.stream, "shardId-000000000000")
    fleet = scene.fleet
    scene.apply()
    with operator_process.running(scene.kubeconfig, scene.namespace) as operator:
        scene.until(lambda: len(fleet.partitions()) == 4, "a partition for each shard")
        made = [entry.spec.shard_id for entry in fleet.partitions()]
        assert made.index("shardId-000000000000") < min(
            made.index("shardId-000000000002"), made.index("shardId-000000000003")
        )
        kinds = sorted(found["metadata"]["name"] for found in fleet.children())
        assert {"trucks", "trucks-api", "trucks-workers", "trucks-worker", "trucks-rules-0000000001"} <= set(kinds)
        with played_workers.playing(fleet) as played:
            scene.play_until(played, lambda: fleet.condition("Progressing")["status"] == "False", "nothing to do")
            _stands_still(fleet, operator)
        own = fleet.get()
        assert own["metadata"]["finalizers"] == ["fleettwin.io/final-checkpoint"]
        assert "kopf" not in json.dumps([own, *fleet.children(), *fleet.made()])
        assert not [each["metadata"]["name"] for each in fleet.made() if each["metadata"].get("finalizers")]
        assert operator.get("/healthz") == (200, "ok\n")
        assert operator.get("/readyz") == (200, "ok\n")


def _stands_still(fleet: Fleet, operator: operator_process.Operator) -> None:
    """By the objects' versions and by the operator's own count, over more than two of its looks."""
    deadline = time.monotonic() + WAIT_S
    while True:
        before = fleet.versions(), operator.metric("fleet_twin_operator_api_writes_total")
        rounds = operator.metric("fleet_twin_operator_reconciles_total")
        since = time.monotonic()
        while time.monotonic() < since + REST_S or operator.metric("fleet_twin_operator_reconciles_total") < rounds + 2:
            operator.check_alive()
            time.sleep(0.2)  # a poll with a deadline: that nothing happens has no other sign
            assert time.monotonic() < deadline + WAIT_S
        if (fleet.versions(), operator.metric("fleet_twin_operator_api_writes_total")) == before:
            return
        assert time.monotonic() < deadline, "writes at rest"


async def test_edits(scene: Scene, kinesis: streams.Streams) -> None:
    """Rules, scale, a spec that the schema can't refuse, and hands other than ours."""
    await kinesis.create(scene.stream, shards=2)
    fleet = scene.fleet
    scene.apply()
    with operator_process.running(scene.kubeconfig, scene.namespace), played_workers.playing(fleet) as played:
        scene.play_until(played, lambda: fleet.condition("Ready")["status"] == "True", "Ready", 90)
        began = time.time()
        fleet.edit(rules={"temperature": {"threshold": 70.0}})
        scene.until(lambda: fleet.status()["rules"]["generation"] == 2, "the new rules' generation", 10)
        assert time.time() - began < 2.0
        assert began + 0.9 < fleet.status()["rules"]["effectiveMs"] / 1000 < began + 3.0
        scene.play_until(played, lambda: fleet.condition("RulesApplied")["status"] == "True", "RulesApplied")

        # A name of a class that the API server's regular expressions know, and a worker's don't.
        fleet.edit(profiles=[{"name": "a", "match": {"deviceIdRegex": r"\p{Letter}+"}, "rules": {}}])
        scene.until(lambda: fleet.condition("RulesApplied")["reason"] == "SpecInvalid", "the wrong field is told")
        assert "spec.profiles[0].match.deviceIdRegex" in fleet.condition("RulesApplied")["message"]
        assert fleet.status()["rules"]["generation"] == 2
        fleet.edit(profiles=[])
        scene.play_until(played, lambda: fleet.condition("RulesApplied")["status"] == "True", "good rules again")

        _by_other_hands(scene)

        fleet.edit(replicas=3)
        stateful_set = fleet.path("statefulsets", "trucks", "/apis/apps/v1")
        scene.until(lambda: scene.server.request("GET", stateful_set)["spec"]["replicas"] == 3, "three workers")
        scene.play_until(played, lambda: fleet.status()["readyReplicas"] == 3, "the third worker")
        fleet.edit(replicas=1)
        scene.play_until(played, lambda: len(played.pods()) == 1, "the last two are emptied, then gone", 120)
        assert {entry.spec.worker for entry in fleet.partitions()} == {"trucks-0"}


def _by_other_hands(scene: Scene) -> None:
    """Edited, taken away, taken over, deleted: each comes back as it was."""
    server, fleet = scene.server, scene.fleet
    service = fleet.path("services", "trucks-api")
    budget = fleet.path("poddisruptionbudgets", "trucks", "/apis/policy/v1")
    server.request("PATCH", service, {"spec": {"selector": {"app": "another"}}}, MERGE_PATCH)
    scene.until(lambda: "app" not in server.request("GET", service)["spec"]["selector"], "the selector is ours again")
    server.request("PATCH", budget, {"spec": {"maxUnavailable": 2}}, MERGE_PATCH)
    scene.until(lambda: server.request("GET", budget)["spec"]["maxUnavailable"] == 1, "the budget is ours again")
    label = {"metadata": {"labels": {"app.kubernetes.io/component": None}}}
    server.request("PATCH", budget, label, MERGE_PATCH)
    scene.until(
        lambda: "app.kubernetes.io/component" in server.request("GET", budget)["metadata"]["labels"],
        "the label that was taken away",
    )
    taken = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "trucks", "annotations": {"mine": "stays"}},
        "spec": {"maxUnavailable": 3},
    }
    server.request("PATCH", f"{budget}?fieldManager=somebody&force=true", taken, APPLY_PATCH)
    scene.until(lambda: server.request("GET", budget)["spec"]["maxUnavailable"] == 1, "ours against another manager")
    assert server.request("GET", budget)["metadata"]["annotations"]["mine"] == "stays"
    server.request("DELETE", service)
    scene.until(lambda: _is_there(server, service), "the deleted service is made anew")


def _is_there(server: ApiServer, path: str) -> bool:
    try:
        return "deletionTimestamp" not in server.request("GET", path)["metadata"]
    except kube_api.RefusedError as refused:
        if refused.status != 404:
            raise
        return False


async def test_a_name_that_is_somebody_elses_is_left_alone(scene: Scene, kinesis: streams.Streams) -> None:
    await kinesis.create(scene.stream)
    fleet = scene.fleet
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "trucks-api", "namespace": scene.namespace},
        "spec": {"selector": {"app": "mine"}, "ports": [{"port": 80}]},
    }
    scene.server.request("POST", fleet.path("services"), service)
    scene.apply()
    with operator_process.running(scene.kubeconfig, scene.namespace):
        scene.until(lambda: "trucks-api" in fleet.condition("Stalled")["message"], "the taken name is told")
        assert "isn't this fleet's" in fleet.condition("Stalled")["message"]
        scene.until(lambda: len(fleet.partitions()) == 1, "the rest goes on")
        kept = scene.server.request("GET", fleet.path("services", "trucks-api"))
        assert kept["spec"]["selector"] == {"app": "mine"}
        assert "ownerReferences" not in kept["metadata"]


async def test_deletion_waits_for_the_final_checkpoint_and_takes_everything_along(
    scene: Scene, kinesis: streams.Streams
) -> None:
    await kinesis.create(scene.stream, shards=2)
    fleet = scene.fleet
    scene.apply()
    with operator_process.running(scene.kubeconfig, scene.namespace), played_workers.playing(fleet) as played:
        scene.play_until(played, lambda: fleet.condition("Ready")["status"] == "True", "Ready", 90)
        fleet.delete()
        scene.until(lambda: not any(entry.spec.worker for entry in fleet.partitions()), "partitions are let go")
        assert fleet.exists()
        assert fleet.condition("Ready")["reason"] == "Deleting"
        assert {entry.status.phase for entry in fleet.partitions()} == {Phase.RUNNING}
        scene.play_until(played, lambda: not fleet.exists(), "the fleet goes when its partitions are released")
        scene.play_until(played, lambda: not fleet.children() and not fleet.partitions(), "and takes all along")
        events = scene.server.request("GET", fleet.path("events"))["items"]
        assert "FinalCheckpointTaken" in {event["reason"] for event in events}
