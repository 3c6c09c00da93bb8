"""What the operator plans when a fleet's spec is edited: a generation of rules, or a word about a mistake that changes nothing."""

from __future__ import annotations

import dataclasses

from fleet_model import generations
from fleet_operator import actions, history, plan
from tests.support.operator_cluster import STREAM, Cluster, running


def test_an_edit_becomes_a_generation_that_is_published_before_it_is_kept() -> None:
    cluster = running()
    uids = {pod.uid for pod in cluster.pods.values()}
    cluster.document["spec"]["rules"] = {"temperature": {"threshold": 70.0}}
    made = plan.plan(cluster.look())
    assert [type(action) for action in made.actions] == [actions.WriteStatus, actions.Create]
    cluster.round(stop_after=1)
    newest = history.published(cluster.status["rules"]["generations"]).kept[-1]
    assert (newest.generation, newest.effective_ms) == (2, cluster.now_ms + 1_000)
    assert newest.default.temperature.threshold == 70.0
    assert cluster.condition("RulesApplied") == ("False", "WorkersCatchUp")
    cluster.run()
    assert cluster.condition("RulesApplied") == ("True", "EveryWorkerJudges")
    assert list(cluster.revisions) == ["trucks-rules-0000000001", "trucks-rules-0000000002"]
    assert {pod.uid for pod in cluster.pods.values()} == uids


def test_a_mistake_in_the_rules_leaves_the_last_good_ones_and_names_the_field() -> None:
    cluster = running(replicas=3)
    before = cluster.status["rules"]["generations"]
    cluster.document["spec"]["profiles"] = [{"name": "a", "match": {"deviceIdRegex": "("}, "rules": {}}]
    cluster.run()
    assert cluster.status["rules"]["generations"] == before
    assert cluster.condition("RulesApplied") == ("False", "SpecInvalid")
    (told,) = (each for each in cluster.status["conditions"] if each["type"] == "RulesApplied")
    assert told["message"].startswith("spec.profiles[0].match.deviceIdRegex:")
    cluster.silent.add("trucks-2")  # and the fleet goes on all the same
    cluster.now_ms += 25_000
    for _ in range(5):
        cluster.round()
        cluster.settle()
    assert cluster.owners() == {"trucks-0", "trucks-1"}


def test_a_status_that_got_lost_is_published_anew_from_what_was_kept() -> None:
    cluster = running()
    cluster.document["spec"]["rules"] = {"temperature": {"threshold": 70.0}}
    cluster.run()
    kept = cluster.status["rules"]["generations"]
    cluster.status = {}
    cluster.run()
    assert history.published(cluster.status["rules"]["generations"]) == history.published(kept)


def test_a_history_that_contradicts_itself_is_told_and_left_as_it_is() -> None:
    cluster = running()
    kept = cluster.status["rules"]
    other = dataclasses.replace(history.published(kept["generations"]).kept[0], effective_ms=7)
    cluster.revisions["trucks-rules-0000000001"]["data"] = generations.rules_document(other)
    cluster.document["spec"]["rules"] = {"temperature": {"threshold": 70.0}}
    cluster.run()
    assert cluster.condition("RulesApplied") == ("False", "HistoryBroken")
    assert {key: cluster.status["rules"][key] for key in kept if key != "appliedWorkers"} == {
        key: kept[key] for key in kept if key != "appliedWorkers"
    }


def test_a_template_that_cannot_be_laid_over_leaves_the_pods_and_names_the_field() -> None:
    cluster = running()
    uids = {pod.uid for pod in cluster.pods.values()}
    cluster.document["spec"]["template"] = {"spec": {"hostname": "x"}}
    cluster.run()
    assert cluster.condition("Stalled") == ("True", "SpecInvalid")
    assert {pod.uid for pod in cluster.pods.values()} == uids


def test_a_spec_that_cannot_be_read_at_all_changes_nothing_but_the_conditions() -> None:
    cluster = running()
    cluster.document["spec"]["streams"]["alerts"] = {"name": STREAM}
    cluster.run()
    assert {type(action) for action in cluster.done} == {actions.WriteStatus}
    assert cluster.condition("Stalled") == ("True", "SpecInvalid")
    assert cluster.condition("Ready") == ("True", "AllPartitionsRunning")
    del cluster.document["spec"]["streams"]
    fresh = Cluster()
    fresh.document = cluster.document
    fresh.run()
    assert fresh.condition("Ready") == ("False", "SpecInvalid")
