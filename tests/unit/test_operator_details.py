"""What the scenes of the plan's own tests pass over: one fact each."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fleet_operator import actions, ending, history, naming, observed, plan, status, workers
from tests.support import operator_cluster as scenes
from tests.support import operator_objects as objects

OTHER_IMAGE = "registry.example/fleet-twin:2"


def restarts(look: observed.Look) -> list[str]:
    return [action.name for action in plan.plan(look).actions if isinstance(action, actions.RestartPod)]


def updating() -> scenes.Cluster:
    """Its StatefulSet has the new template, no pod has."""
    cluster = scenes.running()
    cluster.document["spec"]["image"] = OTHER_IMAGE
    cluster.round()
    return cluster


def test_no_pod_goes_before_the_stateful_sets_controller_has_seen_the_template() -> None:
    cluster = updating()
    assert restarts(cluster.look()) == ["trucks-1"]
    key = "StatefulSet", "trucks"
    cluster.children[key] = {**cluster.children[key], "status": {"observedGeneration": 0}}
    assert restarts(cluster.look()) == []


def test_no_pod_is_made_anew_while_the_fleet_is_being_suspended() -> None:
    cluster = updating()
    cluster.document["spec"]["suspend"] = True
    assert restarts(cluster.look()) == []


def test_a_pod_is_told_to_end_once() -> None:
    cluster = updating()
    cluster.round()
    assert cluster.pods["trucks-1"].terminating
    assert restarts(cluster.look()) == []


POD = workers.Pod("trucks-1", 1, "old", "t", 0, ready=True)


@pytest.mark.parametrize(
    ("found", "now_ms", "expected"),
    [
        pytest.param(POD, 5, False, id="the old one, which is still ready"),
        pytest.param(None, 5, False, id="between the two"),
        pytest.param(dataclasses.replace(POD, uid="new", ready=False), 5, False, id="the new one, not ready yet"),
        pytest.param(dataclasses.replace(POD, uid="new"), 5, True, id="the new one, ready"),
        pytest.param(None, 10, True, id="its time is over"),
    ],
)
def test_when_a_restart_is_over(found: workers.Pod | None, now_ms: int, expected: bool) -> None:
    assert workers.Restart("trucks-1", "old", 10).has_ended(found, now_ms) is expected


def test_a_pod_that_was_deleted_is_ending_as_long_as_it_is_there() -> None:
    metadata: dict[str, Any] = {"name": "trucks-1", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}
    seen = workers.pod({"metadata": metadata}, "trucks", 0)
    assert seen is not None
    assert seen.terminating


def test_an_account_of_the_users_that_has_the_name_of_ours_is_never_deleted() -> None:
    cluster = scenes.running(serviceAccountName="trucks-worker")
    theirs = {"kind": "ServiceAccount", "metadata": {"name": "trucks-worker", "uid": "theirs"}}
    cluster.children["ServiceAccount", "trucks-worker"] = theirs
    assert cluster.round().actions == ()


def test_an_object_that_belongs_to_the_fleet_without_being_made_by_it_is_somebody_elses() -> None:
    reference = {**naming.owner_reference(objects.OWNER), "controller": False}
    assert naming.is_anothers({"metadata": {"ownerReferences": [reference]}}, objects.OWNER)


def test_there_is_no_last_checkpoint_of_all_while_some_partition_has_none() -> None:
    cluster = scenes.running()
    entries = list(cluster.partitions.values())
    assert status.last_checkpoint_ms(entries) is not None
    bare = dataclasses.replace(entries[0], status=dataclasses.replace(entries[0].status, checkpoint=None))
    assert status.last_checkpoint_ms([bare, *entries[1:]]) is None
    assert status.last_checkpoint_ms([]) is None


def test_a_new_fleets_conditions_that_are_well_make_no_events() -> None:
    cluster = scenes.Cluster()
    cluster.round()
    assert "NotStalled" not in cluster.events
    assert "Balanced" not in cluster.events
    assert "NoWorkerReady" in cluster.events  # this one isn't well


def test_a_deleted_fleet_goes_at_last_even_if_its_partitions_cannot_be_asked_to_let_go() -> None:
    cluster = scenes.running()
    look = dataclasses.replace(cluster.look(), deletion=observed.Deletion(cluster.now_ms - ending.DELETION_MS_MAX))
    assert plan.plan(look).actions == (actions.RemoveFinalizer(),)


def test_rules_are_not_applied_before_their_time_has_come() -> None:
    newest = history.published(scenes.running().status["rules"]["generations"]).kept[-1]
    later = dataclasses.replace(newest, effective_ms=1_000)
    assert plan.everybody_judges_by(later, 2, 2, 1_000)
    assert not plan.everybody_judges_by(later, 2, 2, 999)
    assert not plan.everybody_judges_by(later, 1, 2, 1_000)
    assert not plan.everybody_judges_by(later, 0, 0, 1_000)


@pytest.mark.parametrize(
    "kept", [None, "x", {}, {"worker": "w", "podUID": "u"}, {"worker": "w", "podUID": "u", "until": "soon"}]
)
def test_a_restart_that_nobody_can_read_is_none(kept: object) -> None:
    assert status.restart_of({"restarting": kept}) is None


def test_a_restart_is_read_as_it_was_written() -> None:
    cluster = updating()
    cluster.round()
    restart = status.restart_of(cluster.status)
    assert restart is not None
    assert (restart.worker, restart.uid) == ("trucks-1", cluster.pods["trucks-1"].uid)
    assert 0 < restart.until_ms - cluster.now_ms - (90_000 + 120_000) + 1_000 <= 1_000


def test_a_leaving_worker_whose_pod_is_being_made_anew_keeps_its_place_until_it_is_empty() -> None:
    cluster = scenes.running(replicas=3)
    del cluster.pods["trucks-2"]
    cluster.document["spec"]["replicas"] = 2
    heard = dataclasses.replace(cluster.look().signs, told_ms={"trucks-2": cluster.now_ms - 1_000})
    todo = plan.plan(dataclasses.replace(cluster.look(), signs=heard)).actions
    applied = [action.manifest for action in todo if isinstance(action, actions.Apply)]
    assert [each["spec"]["replicas"] for each in applied if each["kind"] == "StatefulSet"] == []
    assert not any(isinstance(action, actions.ChangePartition) and action.entry.spec.takeover for action in todo)


def _deleted(cluster: scenes.Cluster, **changes: Any) -> list[tuple[str, str]]:
    deletion = observed.Deletion(cluster.now_ms)
    made = plan.plan(dataclasses.replace(cluster.look(), deletion=deletion, **changes))
    assert made.actions == (actions.RemoveFinalizer(),)
    return [(event.reason, event.message) for event in made.events]


def test_of_partitions_that_were_deleted_before_the_fleet_nobody_claims_a_final_checkpoint() -> None:
    """As a foreground deletion does it."""
    ((reason, message),) = _deleted(scenes.running(), partitions=[])
    assert reason == "FinalCheckpointMissing"
    assert "4 partitions were deleted before the fleet" in message


def test_a_fleet_without_partitions_has_nothing_to_tell_when_it_goes() -> None:
    cluster = scenes.Cluster()
    cluster.shards = []
    cluster.round()
    assert _deleted(cluster) == []


def test_a_partition_that_cant_be_read_doesnt_keep_its_fleet() -> None:
    cluster = scenes.running()
    look = dataclasses.replace(cluster.look(), partitions=[], unreadable=["trucks-1 can't be read: spec.epoch"])
    made = plan.plan(dataclasses.replace(look, deletion=observed.Deletion(cluster.now_ms)))
    assert made.actions == (actions.RemoveFinalizer(),)
    assert "trucks-1 can't be read" in made.events[0].message


def test_the_condition_says_why_the_stream_cant_be_listed() -> None:
    cluster = scenes.running()
    why = "stream device-telemetry: not permitted"
    made = plan.plan(dataclasses.replace(cluster.look(), shards=None, stream_why=why))
    (written,) = (action.status for action in made.actions if isinstance(action, actions.WriteStatus))
    (stalled,) = (each for each in written["conditions"] if each["type"] == "Stalled")
    assert stalled["message"].endswith(why)
