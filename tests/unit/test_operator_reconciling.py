"""A whole round over parts of plain values: what a slow API server leaves of it."""

from __future__ import annotations

from typing import Any

import prometheus_client

from fleet_operator import (
    acting,
    actions,
    cache,
    errors,
    kinds,
    looking,
    plan,
    reconciling,
    status,
    stream_watch,
    telling,
    triggers,
)
from fleet_operator.metrics import Metrics
from tests.support import operator_cluster as scenes
from tests.unit import test_operator_acting as slow

FLEET = ("depot", "trucks")


class _Anything:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class _SlowApi(slow.Api):
    """A write that is given less time than it takes has no answer."""

    def replace(
        self, kind: kinds.Kind, namespace: str, manifest: dict[str, Any], subresource: str, within_s: float
    ) -> dict[str, Any]:
        answer = super().replace(kind, namespace, manifest, subresource, within_s)
        if within_s * 1_000 < self.takes_ms:
            raise errors.ApiUnavailableError("timed out")
        return answer


class _Looking:
    def __init__(self, taken: looking.Taken) -> None:
        self.taken = taken

    def look(self, fleet: object, refusals: object) -> looking.Taken:
        return self.taken

    def stamped(self, fleet: object, in_time: bool) -> float:
        return 4.0 if in_time else 8.0


def _lost_worker_and_edited_rules() -> looking.Taken:
    cluster = scenes.running(replicas=3)
    cluster.silent.add("trucks-2")
    cluster.now_ms += 25_000
    cluster.document["spec"]["rules"] = {"temperature": {"threshold": 70.0}}
    document = {**cluster.document, "status": cluster.status}
    document["metadata"] = {**document["metadata"], "uid": "fleet-uid", "resourceVersion": "7"}
    look = cluster.look()
    return looking.Taken(
        look, document, stream_watch.Seen(is_asked=True), (look.now_ms + looking.PUBLISH_MS_FIRST) / 1_000
    )


def _round(taken: looking.Taken, api: slow.Api) -> tuple[triggers.Outcome, Metrics]:
    metrics = Metrics()
    acts = acting.Acting(api, cache.Cache(), lambda: None, api.clock)
    none: Any = _Anything()
    looks: Any = _Looking(taken)
    parts = reconciling.Parts(looks, acts, none, none, metrics, lambda *_: None, lambda: None)
    return reconciling.Reconciling(parts).reconcile(FLEET), metrics


def test_rules_that_cant_be_published_in_time_keep_no_partition_from_being_taken_over() -> None:
    taken = _lost_worker_and_edited_rules()
    clock = slow.Clock()
    clock.ms = taken.look.now_ms
    api = _SlowApi(clock)
    api.takes_ms = 900
    outcome, metrics = _round(taken, api)
    lost = {entry.name for entry in taken.look.partitions if entry.spec.worker == "trucks-2"}
    assert lost
    assert lost <= {name for verb, name in api.verbs if verb == "merge"}
    assert outcome == triggers.Outcome(8.0)
    assert b'outcome="expired"} 1.0' in prometheus_client.generate_latest(metrics.registry)


def test_an_edit_that_isnt_stamped_yet_isnt_told_as_applied() -> None:
    look = _lost_worker_and_edited_rules().without_stamping().look
    (written,) = (each for each in plan.plan(look).actions if isinstance(each, actions.WriteStatus))
    (told,) = (each for each in written.status["conditions"] if each["type"] == "RulesApplied")
    assert (told["status"], told["reason"]) == ("False", "WorkersCatchUp")
    assert "isn't stamped yet" in told["message"]


def test_events_that_take_long_dont_hold_up_the_next_round() -> None:
    api = slow.Api(slow.Clock())
    api.takes_ms = 4_500
    events = tuple(status.Event("Normal", f"Reason{number}", "why") for number in range(10))
    document = {"metadata": {"name": "trucks", "namespace": "depot", "uid": "u", "resourceVersion": "7"}}
    tells: Any = telling.Telling(api, lambda: None, api.clock, "operator")  # type: ignore[arg-type]
    tells.tell(FLEET, document, actions.Plan((), "because", events))
    assert len(api.asked) == 3
