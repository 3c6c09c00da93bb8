"""The operator's plan for a fleet that comes up, grows, shrinks, is updated, suspended and deleted: scenes on a cluster of plain values."""

from __future__ import annotations

import dataclasses

import pytest

from fleet_model.twin_partition import Phase
from fleet_operator import actions, history, naming, observed, plan
from tests.support.operator_cluster import Cluster, running

# ── the beginning, and rest ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_fleet_comes_up() -> None:
    cluster = Cluster()
    cluster.run()
    assert isinstance(cluster.done[0], actions.AddFinalizer)
    assert cluster.condition("Ready") == ("True", "AllPartitionsRunning")
    assert cluster.condition("RulesApplied") == ("True", "EveryWorkerJudges")
    assert cluster.condition("Stalled") == ("False", "NotStalled")
    assert cluster.status["partitions"] == {"total": 4, "running": 4, "moving": 0, "failed": 0}
    assert (cluster.status["replicas"], cluster.status["readyReplicas"], cluster.status["twins"]) == (2, 2, 40)
    assert cluster.status["selector"].endswith("fleettwin.io/fleet=trucks")
    assert list(cluster.revisions) == ["trucks-rules-0000000001"]


def test_at_rest_nothing_is_written() -> None:
    cluster = running()
    for _ in range(5):
        assert cluster.round().actions == ()
        cluster.now_ms += 5_000
    assert cluster.round().why == "done"


def test_the_same_look_gives_the_same_plan() -> None:
    look = Cluster().look()
    assert plan.plan(look) == plan.plan(look)


@pytest.mark.parametrize("killed_after", range(12))
def test_an_operator_that_is_killed_anywhere_is_gone_on_with(killed_after: int) -> None:
    cluster = Cluster()
    cluster.round(stop_after=killed_after)
    cluster.settle()
    cluster.run()
    assert cluster.condition("Ready") == ("True", "AllPartitionsRunning")
    assert history.published(cluster.status["rules"]["generations"]).kept == tuple(
        history.read_revisions(list(cluster.revisions.values())).values()
    )


def test_an_object_of_somebody_else_is_left_alone_and_told() -> None:
    cluster = Cluster()
    theirs = {"kind": "Service", "metadata": {"name": "trucks-api", "uid": "theirs"}}
    cluster.children["Service", "trucks-api"] = theirs
    cluster.run()
    assert cluster.children["Service", "trucks-api"] is theirs
    assert cluster.condition("Stalled") == ("True", "NameTaken")
    assert cluster.condition("Ready")[0] == "True"


def test_an_account_that_is_not_used_any_more_goes() -> None:
    cluster = running()
    cluster.document["spec"]["serviceAccountName"] = "mine"
    cluster.run()
    assert ("ServiceAccount", "trucks-worker") not in cluster.children


def test_what_the_api_server_refuses_is_told() -> None:
    cluster = running()
    refused = dataclasses.replace(cluster.look(), refusals=("StatefulSet trucks: exceeded quota",))
    (written,) = plan.plan(refused).actions
    assert isinstance(written, actions.WriteStatus)
    (stalled,) = (each for each in written.status["conditions"] if each["type"] == "Stalled")
    assert (stalled["reason"], stalled["message"]) == ("WriteRefused", "StatefulSet trucks: exceeded quota")


# ── scaling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_growing_starts_workers_at_once_and_shrinking_empties_them_first() -> None:
    cluster = running()
    cluster.document["spec"]["replicas"] = 4
    cluster.round()
    assert cluster.replicas == 4
    cluster.run()
    assert cluster.owners() == {f"trucks-{number}" for number in range(4)}
    cluster.document["spec"]["replicas"] = 1
    for _ in range(40):
        cluster.round()
        assert {naming.ordinal("trucks", name) or 0 for name in cluster.owners()} <= set(range(cluster.replicas))
        cluster.settle()
    assert (cluster.replicas, cluster.owners(), set(cluster.pods)) == (1, {"trucks-0"}, {"trucks-0"})


def test_a_lost_node_costs_its_worker_the_partitions_while_its_pod_stays_terminating() -> None:
    cluster = running(replicas=3)
    cluster.silent.add("trucks-2")
    cluster.pods["trucks-2"] = dataclasses.replace(cluster.pods["trucks-2"], terminating=True, ready=False)
    cluster.now_ms += 25_000
    for _ in range(5):
        cluster.round()
        cluster.settle()
    assert cluster.owners() == {"trucks-0", "trucks-1"}
    assert cluster.condition("Ready")[0] == "True"


# ── updates ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_update_restarts_one_worker_at_a_time_which_keeps_its_partitions() -> None:
    cluster = running(replicas=3)
    owners = {entry.spec.shard_id: entry.spec.worker for entry in cluster.partitions.values()}
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    for _ in range(30):
        cluster.round()
        assert sum(not pod.ready for pod in cluster.pods.values()) <= 1
        cluster.settle()
    restarted = [action.name for action in cluster.done if isinstance(action, actions.RestartPod)]
    assert restarted == ["trucks-2", "trucks-1", "trucks-0"]
    assert {entry.spec.shard_id: entry.spec.worker for entry in cluster.partitions.values()} == owners
    assert all(entry.spec.epoch == 1 for entry in cluster.partitions.values())
    assert "restarting" not in cluster.status
    assert cluster.condition("Progressing") == ("False", "Settled")
    assert "UpdatingWorkers" in cluster.events


def test_whose_pod_is_made_anew_is_written_down_before_it_is_deleted() -> None:
    cluster = running()
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    cluster.round()
    cluster.settle()
    made = plan.plan(cluster.look())
    kinds = [type(action) for action in made.actions]
    assert kinds.index(actions.WriteStatus) < kinds.index(actions.RestartPod)
    cluster.round(stop_after=1)  # killed in between: the next one goes on with the same pod
    assert cluster.status["restarting"]["worker"] == "trucks-1"
    assert not cluster.pods["trucks-1"].terminating
    (again,) = (action for action in cluster.round().actions if isinstance(action, actions.RestartPod))
    assert again.name == "trucks-1"


def test_a_bad_update_stops_at_the_first_and_the_next_one_mends_it() -> None:
    cluster = running(replicas=3)
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:bad"
    cluster.round()
    cluster.broken = cluster.children["StatefulSet", "trucks"]["spec"]["template"]["metadata"]["labels"][
        naming.TEMPLATE_HASH
    ]
    for _ in range(60):
        cluster.settle()
        cluster.round()
    assert [pod.broken for pod in cluster.pods.values()] == ["", "", "CrashLoopBackOff"]
    assert cluster.condition("Stalled") == ("True", "UpdateStuck")
    assert cluster.owners() == {"trucks-0", "trucks-1"}  # its time to come back was over
    assert cluster.condition("Ready")[0] == "True"
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    cluster.run(80)
    assert all(pod.ready for pod in cluster.pods.values())
    assert cluster.condition("Stalled") == ("False", "NotStalled")
    assert cluster.owners() == {"trucks-0", "trucks-1", "trucks-2"}


# ── volumes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_volumes_grow_claims_first_then_the_template_and_no_pod_goes() -> None:
    cluster = running()
    pods = {name: pod.uid for name, pod in cluster.pods.items()}
    cluster.document["spec"]["storage"] = {"size": "20Gi"}
    cluster.round()
    assert {claim.size for claim in cluster.claims.values()} == {"20Gi"}
    assert cluster.condition("Progressing") == ("True", "GrowingVolumes")
    made = cluster.round()
    assert actions.Delete("StatefulSet", "trucks", "uid of ('StatefulSet', 'trucks')", orphan=True) in made.actions
    cluster.run()
    claim = cluster.children["StatefulSet", "trucks"]["spec"]["volumeClaimTemplates"][0]["spec"]
    assert claim["resources"]["requests"]["storage"] == "20Gi"
    assert {name: pod.uid for name, pod in cluster.pods.items()} == pods


@pytest.mark.parametrize("storage", [{"size": "1Gi"}, {"storageClassName": "slow"}])
def test_what_volumes_cannot_become_is_told_and_nothing_is_touched(storage: dict[str, str]) -> None:
    cluster = running(storage={"size": "10Gi", "storageClassName": "fast"})
    cluster.document["spec"]["storage"] = {"size": "10Gi", "storageClassName": "fast", **storage}
    cluster.run()
    assert cluster.condition("Stalled") == ("True", "StorageCannotChange")
    assert {type(action) for action in cluster.done} == {actions.WriteStatus}


# ── suspended, deleted ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_suspended_fleet_lets_its_partitions_go_then_its_workers_and_comes_back() -> None:
    cluster = running()
    cluster.document["spec"]["suspend"] = True
    cluster.round()
    assert cluster.owners() == {""}
    assert cluster.replicas == 2
    cluster.run()
    assert (cluster.replicas, cluster.pods) == (0, {})
    assert {entry.status.phase for entry in cluster.partitions.values()} == {Phase.RELEASED}
    assert cluster.condition("Ready") == ("False", "Suspended")
    assert cluster.condition("Stalled") == ("False", "NotStalled")
    assert cluster.round().actions == ()
    cluster.document["spec"]["suspend"] = False
    cluster.run()
    assert cluster.condition("Ready") == ("True", "AllPartitionsRunning")


def test_a_fleet_that_is_suspended_while_its_volumes_grow_lets_its_partitions_go_first() -> None:
    cluster = running(storage={"size": "10Gi"})
    cluster.document["spec"] |= {"suspend": True, "storage": {"size": "20Gi"}}
    asked = []
    for _ in range(4):
        made = cluster.round()
        asked += [
            action.manifest["spec"]["replicas"]
            for action in made.actions
            if isinstance(action, actions.Apply) and action.manifest["kind"] == "StatefulSet"
        ]
        if cluster.owners() == {""} and Phase.RELEASED not in {e.status.phase for e in cluster.partitions.values()}:
            assert 0 not in asked, "its workers end before their final checkpoints"
    cluster.run()
    assert (cluster.replicas, cluster.pods) == (0, {})
    assert cluster.condition("Ready") == ("False", "Suspended")


def test_a_deleted_fleet_goes_when_every_partition_has_its_final_checkpoint() -> None:
    cluster = running()
    cluster.deletion = observed.Deletion(cluster.now_ms)
    cluster.round()
    assert cluster.has_finalizer
    assert cluster.condition("Ready") == ("False", "Deleting")
    cluster.settle()
    assert {entry.status.phase for entry in cluster.partitions.values()} == {Phase.RELEASED}
    cluster.round()
    assert not cluster.has_finalizer
    assert cluster.events[-1] == "FinalCheckpointTaken"
    assert cluster.round().actions == ()


def test_a_deleted_fleet_does_not_wait_for_workers_that_are_gone() -> None:
    cluster = running()
    cluster.silent = set(cluster.pods)
    cluster.deletion = observed.Deletion(cluster.now_ms)
    cluster.round()
    cluster.now_ms += 25_000
    cluster.round()
    assert not cluster.has_finalizer
    assert cluster.events[-1] == "FinalCheckpointMissing"


def test_a_deleted_fleet_waits_no_longer_than_its_drain_timeout_and_a_margin() -> None:
    cluster = running()
    cluster.deletion = observed.Deletion(cluster.now_ms)
    cluster.round()
    cluster.now_ms += 89_000
    cluster.round()
    assert cluster.has_finalizer
    cluster.now_ms += 2_000
    cluster.round()
    assert not cluster.has_finalizer


def test_who_does_not_want_to_wait_need_not() -> None:
    cluster = running()
    cluster.deletion = observed.Deletion(cluster.now_ms, at_once=True)
    cluster.round()
    assert not cluster.has_finalizer
    assert cluster.events == ["FinalCheckpointSkipped"]
