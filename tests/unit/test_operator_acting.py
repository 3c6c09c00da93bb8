"""Plans carried out on an API server of plain values: order, conditions, and what an error means for the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from fleet_model import generations, hashing, spec, twin_partition
from fleet_operator import (
    acting,
    actions,
    cache,
    errors,
    kinds,
    looking,
    naming,
    observed,
    reconciling,
    stream_watch,
    triggers,
)
from fleet_operator.acting import End
from fleet_operator.actions import Plan
from tests.support import operator_cluster as scenes
from tests.support import operator_objects as objects

NOW_MS = scenes.NOW_MS


class Clock:
    def __init__(self) -> None:
        self.ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


class Api:
    """Keeps what it was asked; `fails` says with what a verb on a name ends; each takes `takes_ms` of the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.takes_ms = clock, 0
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.fails: dict[tuple[str, str], errors.OperatorError] = {}
        self.version = 100

    def _do(self, verb: str, name: str, **told: Any) -> dict[str, Any]:
        self.asked.append((verb, name, told))
        self.clock.ms += self.takes_ms
        if (verb, name) in self.fails:
            raise self.fails[verb, name]
        self.version += 1
        body = told.get("body") or {}
        metadata = {"name": name, "namespace": "depot", **body.get("metadata", {})}
        return {**body, "metadata": {**metadata, "resourceVersion": str(self.version)}}

    def create(self, kind: kinds.Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        return self._do("create", manifest["metadata"]["name"], body=manifest)

    def apply(self, kind: kinds.Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        return self._do("apply", manifest["metadata"]["name"], body=manifest)

    def merge(self, kind: kinds.Kind, namespace: str, name: str, change: Mapping[str, Any]) -> dict[str, Any]:
        return self._do("merge", name, body=change)

    def replace(
        self, kind: kinds.Kind, namespace: str, manifest: dict[str, Any], subresource: str, within_s: float
    ) -> dict[str, Any]:
        return self._do("replace", manifest["metadata"]["name"], body=manifest, within_s=within_s)

    def delete(self, kind: kinds.Kind, namespace: str, name: str, options: Mapping[str, Any]) -> None:
        self._do("delete", name, options=options)

    @property
    def verbs(self) -> list[tuple[str, str]]:
        return [(verb, name) for verb, name, _ in self.asked]


class Scene:
    def __init__(self, **look: Any) -> None:
        self.clock = Clock()
        self.api = Api(self.clock)
        self.leads = True
        self.cache = cache.Cache()
        document = {
            **scenes.document(),
            "metadata": {"name": "trucks", "namespace": "depot", "uid": "fleet-uid", "resourceVersion": "7"},
        }
        taken = dataclasses.replace(scenes.Cluster().look(), now_ms=NOW_MS, **look)
        self.taken = looking.Taken(
            taken, document, stream_watch.Seen(is_asked=True), (NOW_MS + looking.PUBLISH_MS_FIRST) / 1_000
        )
        self.acts = acting.Acting(self.api, self.cache, self._check, self.clock)

    def _check(self) -> None:
        if not self.leads:
            raise errors.NotLeadingError("lost")

    def act(self, *todo: actions.Action) -> acting.Result:
        return self.acts.carry_out(self.taken, Plan(todo, "because"))


def entry(number: int, version: str = "5") -> twin_partition.TwinPartition:
    key_range = hashing.HashKeyRange()
    spec = twin_partition.Spec("trucks", "telemetry", f"shardId-{number}", key_range, worker="trucks-0", epoch=2)
    return twin_partition.TwinPartition("depot", f"trucks-{number}", spec, resource_version=version)


def child(name: str) -> naming.Manifest:
    return {"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}}


def test_in_order_and_all_of_it() -> None:
    scene = Scene()
    result = scene.act(
        actions.AddFinalizer(),
        actions.WriteStatus({"observedGeneration": 1}),
        actions.Apply(child("a")),
        actions.ChangePartition(entry(1)),
        actions.RestartPod("trucks-1", "uid-1"),
    )
    assert scene.api.verbs == [
        ("merge", "trucks"),
        ("replace", "trucks"),
        ("apply", "a"),
        ("merge", "trucks-1"),
        ("delete", "trucks-1"),
    ]
    assert (result.end, result.done, result.is_told) == (End.DONE, 5, True)


def test_the_status_is_written_over_what_the_finalizer_left() -> None:
    scene = Scene()
    scene.act(actions.AddFinalizer(), actions.WriteStatus({"observedGeneration": 1}))
    (_, _, first), (_, _, second) = scene.api.asked
    assert first["body"]["metadata"] == {"finalizers": [naming.FINALIZER], "resourceVersion": "7"}
    assert second["body"]["metadata"]["resourceVersion"] == "101"


def test_who_doesnt_lead_writes_nothing() -> None:
    scene = Scene()
    scene.leads = False
    result = scene.act(actions.AddFinalizer(), actions.Apply(child("a")))
    assert scene.api.asked == []
    assert result.end is End.FAILED


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (errors.ApiUnavailableError("away"), End.FAILED),
        (errors.ConflictError("another"), End.CONFLICT),
        (errors.MissingError("gone"), End.CONFLICT),
    ],
)
def test_nothing_after_one_that_failed(error: errors.OperatorError, end: End) -> None:
    scene = Scene()
    scene.api.fails["apply", "a"] = error
    result = scene.act(actions.Apply(child("a")), actions.Apply(child("b")), actions.ChangePartition(entry(1)))
    assert scene.api.verbs == [("apply", "a")]
    assert (result.end, result.refusals) == (end, ())


def test_a_refused_object_of_the_fleets_own_holds_nothing_else_up() -> None:
    scene = Scene()
    scene.api.fails["apply", "a"] = errors.RefusedError("exceeded quota")
    result = scene.act(actions.Apply(child("a")), actions.ChangePartition(entry(1)))
    assert scene.api.verbs == [("apply", "a"), ("merge", "trucks-1")]
    assert (result.end, result.refusals, result.done) == (End.REFUSED, ("exceeded quota",), 1)


def test_a_refused_partition_ends_it_since_its_children_come_after_it() -> None:
    scene = Scene()
    scene.api.fails["create", "parent"] = errors.RefusedError("no right")
    made = [{"kind": "TwinPartition", "metadata": {"name": name}} for name in ("parent", "child")]
    result = scene.act(*map(actions.Create, made))
    assert scene.api.verbs == [("create", "parent")]
    assert result.end is End.REFUSED


def test_partitions_are_each_a_matter_of_their_own() -> None:
    scene = Scene()
    scene.api.fails["merge", "trucks-1"] = errors.ConflictError("its owner wrote")
    result = scene.act(actions.ChangePartition(entry(1)), actions.ChangePartition(entry(2)))
    assert scene.api.verbs == [("merge", "trucks-1"), ("merge", "trucks-2")]
    assert (result.end, result.done) == (End.CONFLICT, 1)


def test_a_partition_is_changed_over_the_version_that_was_read() -> None:
    scene = Scene()
    scene.act(actions.ChangePartition(entry(1, version="42")), actions.DeletePartition(entry(2, version="43")))
    (_, _, changed), (_, _, deleted) = scene.api.asked
    assert changed["body"]["metadata"] == {"resourceVersion": "42"}
    assert changed["body"]["spec"]["epoch"] == 2
    assert deleted["options"]["preconditions"] == {"resourceVersion": "43"}


def test_a_child_is_applied_to_the_object_that_was_looked_at() -> None:
    scene = Scene(children={("Service", "a"): {"metadata": {"name": "a", "uid": "uid-a"}}})
    scene.act(actions.Apply(child("a")), actions.Apply(child("b")))
    assert scene.api.asked[0][2]["body"]["metadata"]["uid"] == "uid-a"
    assert "uid" not in scene.api.asked[1][2]["body"]["metadata"]


def test_what_is_gone_already_is_deleted() -> None:
    scene = Scene()
    scene.api.fails["delete", "a"] = errors.MissingError("gone")
    scene.api.fails["delete", "trucks-1"] = errors.ConflictError("another pod of that name")
    result = scene.act(
        actions.Delete("Service", "a", "uid-a"), actions.RestartPod("trucks-1", "old"), actions.Apply(child("b"))
    )
    assert result.end is End.DONE
    assert scene.api.verbs[-1] == ("apply", "b")


def test_a_set_that_leaves_its_pods_alone() -> None:
    scene = Scene()
    scene.act(actions.Delete("StatefulSet", "trucks", "uid-s", orphan=True))
    options = scene.api.asked[0][2]["options"]
    assert (options["propagationPolicy"], options["preconditions"]) == ("Orphan", {"uid": "uid-s"})


STAMPED = {"rules": {"generation": 2}}


def test_a_new_generation_is_published_in_time_or_stamped_anew() -> None:
    scene = Scene(status={"rules": {"generation": 1}})
    scene.clock.ms = NOW_MS + 100
    assert scene.act(actions.WriteStatus(STAMPED)).stamped
    assert scene.api.asked[0][2]["within_s"] == pytest.approx((looking.PUBLISH_MS_FIRST - 100) / 1000, abs=0.001)
    late = Scene(status={"rules": {"generation": 1}})
    late.clock.ms = NOW_MS + looking.PUBLISH_MS_FIRST - 50
    result = late.act(actions.WriteStatus(STAMPED), actions.Apply(child("a")))
    assert late.api.asked == []
    assert (result.end, result.stamped, result.is_told) == (End.EXPIRED, None, False)


def test_a_generation_that_is_answered_too_late_counts_as_late_and_is_told_when_it_may_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for takes_ms, in_time, told in ((100, True, False), (250, False, False), (400, False, True)):
        scene = Scene(status={"rules": {"generation": 1}})
        scene.api.takes_ms = takes_ms
        caplog.clear()
        assert scene.act(actions.WriteStatus(STAMPED)).stamped is in_time
        assert ("too late" in caplog.text) is told


def test_a_copy_of_a_generation_that_cant_be_kept_keeps_no_partition_from_its_owner() -> None:
    revision = {**child("trucks-1"), "kind": "ControllerRevision"}
    for error in (errors.RefusedError("a quota"), errors.ConflictError("somebody else's")):
        scene = Scene()
        scene.api.fails["create", "trucks-1"] = error
        result = scene.act(actions.Create(revision), actions.ChangePartition(entry(0)))
        assert ("merge", "trucks-0") in scene.api.verbs
        assert (result.end, result.rest, result.refusals) == (End.REFUSED, End.DONE, (str(error),))


def test_a_status_without_new_rules_has_all_the_time() -> None:
    scene = Scene(status={"rules": {"generation": 2}})
    scene.clock.ms = NOW_MS + 60_000
    assert scene.act(actions.WriteStatus(STAMPED)).stamped is None
    assert scene.api.asked[0][2]["within_s"] == acting.WRITE_S


def test_events_wait_for_the_status_that_they_belong_to() -> None:
    scene = Scene()
    scene.api.fails["replace", "trucks"] = errors.ConflictError("edited")
    assert not scene.act(actions.WriteStatus({})).is_told
    later = Scene()
    later.api.fails["apply", "a"] = errors.ConflictError("edited")
    assert later.act(actions.WriteStatus({}), actions.Apply(child("a"))).is_told


def test_own_writes_are_known_at_once() -> None:
    scene = Scene()
    manifest = {**child("a"), "metadata": {"name": "a", "namespace": "depot", "labels": {naming.FLEET: "trucks"}}}
    scene.act(actions.Apply(manifest))
    assert len(scene.cache.of_fleet(kinds.SERVICE, ("depot", "trucks"))) == 1


def test_scenes_are_of_this_fleet() -> None:
    assert Scene().taken.look.owner == objects.OWNER
    assert isinstance(Scene().taken.look, observed.Look)


def test_what_is_refused_is_asked_for_now_and_then_and_told_of_all_the_while() -> None:
    scene = Scene()
    scene.api.fails["apply", "a"] = errors.RefusedError("quota")
    told = [scene.act(actions.Apply(child("a")), actions.ChangePartition(entry(1)))]
    for _ in range(10):
        scene.clock.ms += 1_000
        told.append(scene.act(actions.Apply(child("a")), actions.ChangePartition(entry(1))))
    assert {(each.end, each.rest, each.refusals) for each in told} == {(End.REFUSED, End.DONE, ("quota",))}
    assert scene.api.verbs.count(("apply", "a")) == 3
    assert scene.api.verbs.count(("merge", "trucks-1")) == 11
    scene.act(actions.Apply({**child("a"), "spec": {"an": "edit"}}))
    assert scene.api.verbs.count(("apply", "a")) == 4


def test_a_lasting_refusal_of_an_own_object_doesnt_slow_the_fleets_rounds() -> None:
    scene = Scene()
    scene.api.fails["apply", "a"] = errors.RefusedError("quota")
    plan = Plan((), "because", again_ms=5_000)
    assert reconciling._outcome(scene.act(actions.Apply(child("a"))), plan) == triggers.Outcome(5.0)
    scene.api.fails["merge", "trucks-1"] = errors.RefusedError("no right")
    assert reconciling._outcome(scene.act(actions.ChangePartition(entry(1))), plan).failed


# ── a slow API server ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_ends_after_its_time_and_the_next_round_goes_on_at_once() -> None:
    scene = Scene()
    scene.api.takes_ms = 4_500
    result = scene.act(*(actions.ChangePartition(entry(number)) for number in range(100)))
    assert (result.end, result.done) == (End.CUT, 5)
    outcome = reconciling._outcome(result, Plan((), "because"))
    assert not outcome.failed
    assert 0 < outcome.again_s < 1
    assert "5 of 100" in result.why


def test_refusals_that_take_long_hold_partitions_up_for_one_round() -> None:
    scene = Scene()
    scene.api.takes_ms = 4_500
    names = [f"child-{number}" for number in range(7)]
    for name in names:
        scene.api.fails["apply", name] = errors.RefusedError("a webhook took its time")
    todo: list[actions.Action] = [*(actions.Apply(child(name)) for name in names), actions.ChangePartition(entry(1))]
    ends = [scene.act(*todo).end for _ in range(2)]
    assert ("merge", "trucks-1") in scene.api.verbs
    assert ends == [End.REFUSED, End.REFUSED]


def test_what_was_refused_is_known_though_a_round_didnt_come_to_it() -> None:
    scene = Scene(status={"rules": {"generation": 1}})
    scene.api.fails["apply", "a"] = errors.RefusedError("quota")
    scene.act(actions.Apply(child("a")))
    scene.api.fails["replace", "trucks"] = errors.ApiUnavailableError("timed out")
    scene.act(actions.WriteStatus(STAMPED), actions.Apply(child("a")))
    scene.act(actions.Apply(child("a")))
    assert scene.api.verbs.count(("apply", "a")) == 1


def test_a_publication_that_isnt_answered_in_time_is_stamped_anew() -> None:
    scene = Scene(status={"rules": {"generation": 1}})
    scene.api.fails["replace", "trucks"] = errors.ApiUnavailableError("timed out")
    assert scene.act(actions.WriteStatus(STAMPED)).end is End.EXPIRED


def test_a_generation_that_was_kept_is_put_back_without_haste() -> None:
    """Of a status that was lost."""
    kept = generations.first_generation(spec_of(scenes.document()))
    kept = dataclasses.replace(kept, generation=2, effective_ms=5)
    scene = Scene(status={}, rules=observed.Rules({"trucks-rules-2": kept}, NOW_MS + 1_000))
    scene.clock.ms = NOW_MS + 60_000
    scene.act(actions.WriteStatus(STAMPED))
    assert scene.api.asked[0][2]["within_s"] == acting.WRITE_S


def spec_of(document: dict[str, Any]) -> spec.FleetSpec:
    read = observed.read(document).fleet
    assert read is not None
    return read
