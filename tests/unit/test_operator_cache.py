"""The cache: events, sweeps and own writes in every order, and the proof that events arrive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fleet_operator import cache, kinds, naming, workers
from fleet_operator.kinds import FleetKey
from tests.unit import test_operator_rolling

FLEET: FleetKey = ("depot", "trucks")
NAME = ("depot", "trucks-0")


def pod(version: int, name: str = "trucks-0", fleet: str = "trucks", **changes: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "depot",
            "resourceVersion": str(version),
            "labels": {naming.FLEET: fleet},
            **changes,
        }
    }


class Kept:
    def __init__(self) -> None:
        self.woken: list[FleetKey] = []
        self.now_s = 0.0
        self.cache = cache.Cache(lambda fleet, kind: self.woken.append(fleet))

    def event(self, version: int, event: str | None = "MODIFIED", **changes: Any) -> None:
        self.cache.event(kinds.POD, event, pod(version, **changes))

    def sweep(self, version: int, *found: dict[str, Any]) -> list[tuple[str, str]]:
        self.now_s += 60
        return self.cache.swept(kinds.POD, None, found, version, self.now_s)

    def versions(self, fleet: FleetKey = FLEET) -> list[int]:
        return [cache.version_of(found) for found in self.cache.of_fleet(kinds.POD, fleet)]


def test_an_event_wakes_its_fleet_and_an_old_one_nobody() -> None:
    kept = Kept()
    kept.event(5, "ADDED")
    kept.event(5, None)
    kept.event(4)
    assert kept.versions() == [5]
    assert kept.woken == [FLEET]


def test_an_own_write_is_known_before_its_event_comes() -> None:
    kept = Kept()
    kept.event(5)
    kept.cache.written(kinds.POD, pod(9))
    kept.event(7)
    assert kept.versions() == [9]


def test_a_deletion_that_no_event_told_of_is_found_by_a_sweep() -> None:
    kept = Kept()
    kept.event(5)
    kept.sweep(8)
    assert kept.versions() == []
    assert kept.woken == [FLEET, FLEET]


def test_an_event_from_before_a_sweep_brings_nothing_back() -> None:
    kept = Kept()
    kept.event(5)
    kept.sweep(8)
    kept.event(6)
    assert kept.versions() == []


def test_a_sweep_takes_nothing_away_that_came_after_it() -> None:
    kept = Kept()
    kept.event(12, "ADDED")
    kept.sweep(8)
    assert kept.versions() == [12]


def test_a_late_deletion_of_what_was_made_anew_is_none() -> None:
    kept = Kept()
    kept.event(12, "ADDED")
    kept.event(9, "DELETED")
    assert kept.versions() == [12]
    kept.event(13, "DELETED")
    assert kept.versions() == []


def test_an_object_that_changes_fleets() -> None:
    kept = Kept()
    kept.event(5)
    kept.event(6, fleet="vans")
    assert kept.versions() == []
    assert kept.versions(("depot", "vans")) == [6]
    assert ("depot", "vans") in kept.woken


def test_what_two_sweeps_find_and_no_event_told_of_is_late() -> None:
    kept = Kept()
    kept.event(5)
    assert kept.sweep(8, pod(7)) == []  # it may be on its way
    assert kept.sweep(20, pod(7)) == [NAME]
    kept.event(7)
    assert kept.sweep(30, pod(7)) == []


def test_two_sweeps_right_after_each_other_prove_nothing() -> None:
    kept = Kept()
    kept.event(5)
    assert kept.sweep(8, pod(7)) == []
    kept.now_s -= 59
    assert kept.sweep(8, pod(7)) == []


def test_events_that_come_between_two_sweeps_are_in_time() -> None:
    kept = Kept()
    kept.event(5)
    for version in range(10, 100, 10):
        assert kept.sweep(version, pod(version - 1)) == []
        kept.event(version - 1)


def test_own_writes_prove_nothing_about_events() -> None:
    kept = Kept()
    kept.event(5)
    kept.cache.written(kinds.POD, pod(7))
    kept.sweep(8, pod(7))
    assert kept.sweep(9, pod(7)) == [NAME]


def test_a_sweep_of_a_namespace_leaves_the_others_alone() -> None:
    kept = Kept()
    kept.event(5)
    kept.cache.swept(kinds.POD, "harbour", [], 9, 60)
    assert kept.versions() == [5]


def test_a_partition_belongs_to_the_fleet_that_its_spec_names() -> None:
    kept = Kept()
    found = {"metadata": {"name": "p", "namespace": "depot", "resourceVersion": "3"}, "spec": {"fleet": "trucks"}}
    kept.cache.event(kinds.PARTITION, "ADDED", found)
    assert kept.cache.of_fleet(kinds.PARTITION, FLEET) == [found]


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "trucks-1",
        "namespace": "depot",
        "uid": "u",
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {naming.FLEET: "trucks", naming.TEMPLATE_HASH: "t", "more": "x"},
        "managedFields": [{"manager": "kubelet", "fieldsV1": {f"f:{number}": {} for number in range(100)}}],
    },
    "spec": {"nodeName": "n", "containers": [{"name": "worker", "env": [{"name": f"V{n}"} for n in range(50)]}]},
    "status": {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "m"}}}],
        "containerStatuses": [{"name": "worker", "image": "i", "state": {"running": {"startedAt": "t"}}}],
    },
}


def test_of_a_pod_is_kept_what_is_read_of_it() -> None:
    """Tens of thousands of them are watched."""
    kept = Kept()
    kept.cache.event(kinds.POD, "ADDED", POD)
    (found,) = kept.cache.of_fleet(kinds.POD, FLEET)
    assert workers.pod(found, "trucks", 5) == workers.pod(POD, "trucks", 5)
    assert found["status"]["podIP"] == "10.0.0.1"
    assert len(json.dumps(found)) < len(json.dumps(POD)) / 4


@pytest.mark.parametrize("status", [case[0] for case in test_operator_rolling.STATUSES])
@pytest.mark.parametrize("ended", [{}, {"lastState": {"terminated": {"exitCode": 1}}}], ids=["", "crashed"])
def test_whatever_a_pod_says_is_read_of_it_as_it_is_kept(status: dict[str, Any], ended: dict[str, Any]) -> None:
    told = {name: [{**each, **ended} for each in status[name]] for name in status if name.endswith("ontainerStatuses")}
    pod = {**POD, "status": {**status, **told}}
    assert workers.pod(kinds.kept(kinds.POD, pod), "trucks", 5) == workers.pod(pod, "trucks", 5)


def test_what_is_compared_with_what_was_applied_is_kept_whole() -> None:
    kept = Kept()
    own = {**POD, "kind": "StatefulSet"}
    kept.cache.event(kinds.STATEFUL_SET, "ADDED", own)
    assert kept.cache.of_fleet(kinds.STATEFUL_SET, FLEET) == [own]


def test_a_claim_keeps_its_size_and_a_partition_all_but_the_owners_of_its_fields() -> None:
    claim = {**POD, "spec": {"resources": {"requests": {"storage": "1Gi"}}, "volumeName": "v"}, "status": {"x": "y"}}
    assert kinds.kept(kinds.CLAIM, claim)["spec"] == {"resources": {"requests": {"storage": "1Gi"}}}
    assert "status" not in kinds.kept(kinds.CLAIM, claim)
    partition = kinds.kept(kinds.PARTITION, POD)
    assert "managedFields" not in partition["metadata"]
    assert (partition["spec"], partition["status"]) == (POD["spec"], POD["status"])
