"""Which pod is made anew next, as tables: small fleets, one decision each."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from fleet_model import hashing, twin_partition
from fleet_model.twin_partition import Phase, Status, TwinPartition
from fleet_operator import rolling, workers
from fleet_operator.workers import Pod

NOW_MS = 10_000_000_000
FRESH = twin_partition.CheckpointStatus("key", 1, NOW_MS, "1")


def pod(ordinal: int, template: str = "new", **more: Any) -> Pod:
    made = Pod(f"f-{ordinal}", ordinal, f"uid-{ordinal}", template, NOW_MS - 60_000, "node", ready=True, running=True)
    return dataclasses.replace(made, **more)


def entry(worker: str, phase: Phase = Phase.RUNNING, **more: Any) -> TwinPartition:
    """One that its worker holds. more: of the spec, or `stale`."""
    checkpoint_stale = more.pop("stale", False)
    spec = twin_partition.Spec("f", "s", f"of-{worker}", hashing.HashKeyRange(0, hashing.HASH_KEY_MAX), (), worker, 1)
    status = Status(phase, worker, 1, checkpoint=FRESH, checkpoint_stale=checkpoint_stale)
    return TwinPartition("default", "x", dataclasses.replace(spec, **more), status)


def decide(pods: list[Pod], *entries: TwinPartition, **more: Any) -> rolling.Decision:
    return rolling.decide(rolling.Look("new", more.pop("replicas", len(pods)), pods, entries, NOW_MS, **more))


def restarted(decision: rolling.Decision) -> str:
    """The worker; what else was decided by its kind."""
    return decision.worker if isinstance(decision, rolling.Restart) else type(decision).__name__


LONG_AGO_MS = NOW_MS - rolling.START_MS_MAX


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        pytest.param([pod(0), pod(1)], "Settled", id="nothing is outdated"),
        pytest.param([pod(0, "old"), pod(1, "old"), pod(2, "old")], "f-2", id="the highest ordinal first"),
        pytest.param([pod(0, "old"), pod(1, "old"), pod(2)], "f-1", id="then the next"),
        pytest.param([pod(0, "old"), pod(1, ready=False)], "Wait", id="the updated one isn't ready yet"),
        pytest.param([pod(0, "old"), pod(1, ready=False, created_ms=LONG_AGO_MS)], "Stuck", id="nor does it become so"),
        pytest.param(
            [pod(0, "old"), pod(1, ready=False, created_ms=0, unready_ms=NOW_MS - 9_000)],
            "Wait",
            id="an old one that isn't ready for a moment",
        ),
        pytest.param(
            [pod(0, "old", ready=False, created_ms=0, unready_ms=NOW_MS - 9_000), pod(1, created_ms=0)],
            "Wait",
            id="an outdated one that isn't ready for a moment goes through the gates",
        ),
        pytest.param(
            [pod(0, "old"), pod(1, ready=False, created_ms=0, unready_ms=LONG_AGO_MS)], "Stuck", id="nor again"
        ),
        pytest.param(
            [pod(0, "old"), pod(1, ready=False, broken="ImagePullBackOff")], "Stuck", id="the update is broken"
        ),
        pytest.param(
            [pod(0, "old"), pod(1, "older", ready=False, broken="ErrImagePull")], "f-1", id="mended by the next"
        ),
        pytest.param(
            [pod(0, "old", ready=False, broken="CrashLoopBackOff"), pod(1, ready=False)],
            "f-0",
            id="broken goes at once",
        ),
        pytest.param([pod(0, "old", broken="CrashLoopBackOff"), pod(1)], "f-0", id="ready, so an ordinary one"),
        pytest.param([pod(0, "old", ready=False), pod(1, "old")], "Wait", id="outdated, on its way: first it comes up"),
        pytest.param([pod(0, "old", ready=False, created_ms=LONG_AGO_MS), pod(1)], "f-0", id="it never comes up"),
        pytest.param([pod(0, "old"), pod(1, terminating=True)], "Wait", id="one is ending"),
        pytest.param([pod(0, "old", terminating=True, ready=False), pod(1)], "Wait", id="it is ending already"),
        pytest.param([pod(0, "")], "f-0", id="made by an operator that didn't label its pods"),
        pytest.param([], "Settled", id="no workers"),
    ],
)
def test_the_next_one(pods: list[Pod], expected: str) -> None:
    assert restarted(decide(pods)) == expected


def test_a_pod_that_is_missing_is_waited_for() -> None:
    assert restarted(decide([pod(0, "old")], replicas=2)) == "Wait"


def test_nothing_before_the_stateful_sets_controller_knows_the_template() -> None:
    assert restarted(decide([pod(0, "old", ready=False, broken="CrashLoopBackOff")], is_seen=False)) == "Wait"


def test_no_ready_worker_is_taken_down_while_too_many_are_silent() -> None:
    assert restarted(decide([pod(0, "old")], too_many_are_silent=True)) == "Wait"
    broken = pod(0, "old", ready=False, broken="CrashLoopBackOff")
    assert restarted(decide([broken], too_many_are_silent=True)) == "f-0"


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        pytest.param(entry("f-1"), "f-1", id="it runs, its checkpoint is fresh"),
        pytest.param(entry("f-1", stale=True), "f-0", id="no fresh checkpoint: another goes first"),
        pytest.param(entry("f-1", Phase.RESTORING), "f-0", id="not back yet"),
        pytest.param(entry("f-1", Phase.FAILED), "f-1", id="failed: a new start can only help"),
        pytest.param(entry("f-1", receiver="f-2", standby=("f-2",)), "f-0", id="it moves away"),
        pytest.param(entry("f-2", receiver="f-1", standby=("f-1",)), "f-0", id="something moves to it"),
        pytest.param(entry("f-2", epoch=2), "f-1", id="the new epoch of another is no business of its own"),
        pytest.param(entry("f-1", epoch=2), "f-0", id="it hasn't claimed under its new epoch"),
        pytest.param(entry("f-1", Phase.CLOSED), "f-1", id="closed: nothing waits"),
        pytest.param(entry("f-1", standby=("f-2",)), "f-1", id="a standby elsewhere holds nobody up"),
    ],
)
def test_gates(held: TwinPartition, expected: str) -> None:
    assert restarted(decide([pod(0, "old"), pod(1, "old"), pod(2)], held)) == expected


def test_when_no_gate_is_open_it_waits_and_says_for_what() -> None:
    decision = decide([pod(0, "old")], entry("f-0", stale=True))
    assert decision == rolling.Wait("f-0 waits: of-f-0 has no fresh checkpoint")


def test_a_whole_update_takes_every_worker_once_and_one_at_a_time() -> None:
    pods = {number: pod(number, "old") for number in range(4)}
    order = []
    for _ in range(20):
        decision = decide(list(pods.values()))
        if isinstance(decision, rolling.Settled):
            break
        if isinstance(decision, rolling.Restart):
            number = int(decision.worker[-1])
            order.append(number)
            pods[number] = pod(number, ready=False, uid=f"again-{number}")
        else:
            assert sum(not each.ready for each in pods.values()) == 1
            pods = {number: dataclasses.replace(each, ready=True) for number, each in pods.items()}
    assert order == [3, 2, 1, 0]


def test_an_update_that_cannot_start_takes_down_one_worker_and_the_next_one_mends_it() -> None:
    pods = [pod(0, "old"), pod(1, "old"), pod(2, "bad", ready=False, broken="CrashLoopBackOff")]
    bad = rolling.Look("bad", 3, pods, (), NOW_MS)
    assert rolling.decide(bad) == rolling.Stuck("f-2", "f-2 doesn't become ready: CrashLoopBackOff")
    assert restarted(rolling.decide(dataclasses.replace(bad, template="good"))) == "f-2"
    assert restarted(rolling.decide(dataclasses.replace(bad, template="old"))) == "f-2"  # taken back


# ── what is seen of workers ──────────────────────────────────────────────────────────────────────────────────────────


def found(**status: Any) -> dict[str, Any]:
    metadata = {"name": "f-1", "uid": "u", "labels": {"fleettwin.io/template-hash": "new"}}
    return {"metadata": metadata, "spec": {"nodeName": "node"}, "status": status}


def state(name: str = "worker", **state: Any) -> dict[str, Any]:
    return {"name": name, "state": state}


def crashed(lives: int, last_s: int, ready: bool = False) -> dict[str, Any]:
    """In so many lives, the last of which took so long; it runs again."""
    times = [
        datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC) + datetime.timedelta(seconds=s) for s in (0, last_s)
    ]
    began, end = (time.strftime("%Y-%m-%dT%H:%M:%SZ") for time in times)
    last = {"exitCode": 1, "startedAt": began, "finishedAt": end}
    return state(running={}) | {"ready": ready, "restartCount": lives - 1, "lastState": {"terminated": last}}


READY = [{"type": "Ready", "status": "True"}]


STATUSES = [
    ({"phase": "Running", "conditions": READY, "containerStatuses": [state(running={})]}, True, True, ""),
    ({"phase": "Running", "containerStatuses": [state(running={})]}, False, True, ""),
    ({"phase": "Pending"}, False, False, ""),
    ({"containerStatuses": [state(waiting={"reason": "ContainerCreating"})]}, False, False, ""),
    ({"containerStatuses": [state(waiting={"reason": "ErrImagePull"})]}, False, False, "ErrImagePull"),
    (
        {"initContainerStatuses": [state("i", waiting={"reason": "CrashLoopBackOff"})]},
        False,
        False,
        "CrashLoopBackOff",
    ),
    ({"containerStatuses": [crashed(lives=3, last_s=5)]}, False, True, "CrashLoopBackOff"),
    ({"containerStatuses": [crashed(lives=2, last_s=5)]}, False, True, ""),
    ({"containerStatuses": [crashed(lives=3, last_s=3_600)]}, False, True, ""),
    ({"conditions": READY, "containerStatuses": [crashed(lives=3, last_s=5, ready=True)]}, True, True, ""),
    ({"phase": "Failed", "reason": "Evicted", "conditions": READY}, False, False, "Evicted"),
    ({"phase": "Failed"}, False, False, "Failed"),
    ({}, False, False, ""),
]
"""Of pods: what one says, and whether it is ready, whether it runs, and why it is broken."""


@pytest.mark.parametrize(("status", "ready", "running", "broken"), STATUSES)
def test_a_pod_is_read(status: dict[str, Any], ready: bool, running: bool, broken: str) -> None:
    seen = workers.pod(found(**status), "f", 5)
    assert seen is not None
    assert (seen.ready, seen.running, seen.broken) == (ready, running, broken)
    assert (seen.ordinal, seen.template, seen.node, seen.created_ms) == (1, "new", "node", 5)


def test_since_when_a_pod_is_not_ready() -> None:
    told = {"type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:10:00Z"}
    seen = [workers.pod(found(conditions=[each]), "f", 5) for each in (told, {**told, "status": "True"}, READY[0])]
    assert [pod.unready_ms for pod in seen if pod is not None] == [600_000, 5, 5]


def test_what_is_broken_waits_for_another_that_is_being_made_anew() -> None:
    broken = [pod(0, "old", ready=False, broken="ErrImagePull"), pod(1, "old", ready=False, broken="ErrImagePull")]
    assert restarted(decide(broken)) == "f-1"
    assert restarted(decide(broken, begun="f-1")) == "f-1"
    assert decide(broken, begun="f-0") == rolling.Wait("f-0 is being made anew")


def test_pods_of_others_are_not_read() -> None:
    assert workers.pod(found(), "other", 0) is None


@pytest.mark.parametrize(
    ("seen", "signs", "ago_ms"),
    [
        pytest.param(pod(1), workers.Signs(nodes_ms={"node": NOW_MS - 9_000}), 9_000, id="as its node says"),
        pytest.param(pod(1), workers.Signs(nodes_ms={"node": NOW_MS + 5}), 0, id="a node's clock is ahead"),
        pytest.param(pod(1), workers.Signs(), 0, id="nobody may look at nodes: as its pod says"),
        pytest.param(pod(1, ready=False), workers.Signs(), 60_000, id="not ready, and no node to ask"),
        pytest.param(pod(1, running=False), workers.Signs(nodes_ms={"node": NOW_MS}), 60_000, id="it doesn't run"),
        pytest.param(
            pod(1, running=False),
            workers.Signs({"f-1": workers.Answer(NOW_MS - 3_000)}),
            3_000,
            id="it answered a probe",
        ),
        pytest.param(
            pod(1, ready=False, crashed=True),
            workers.Signs(nodes_ms={"node": NOW_MS}),
            60_000,
            id="it crashes for ever",
        ),
        pytest.param(pod(1, running=False), workers.Signs(told_ms={"f-1": NOW_MS - 40}), 40, id="it wrote a status"),
        pytest.param(
            pod(1, terminating=True),
            workers.Signs(nodes_ms={"node": NOW_MS - 30_000}),
            30_000,
            id="ending on a lost node",
        ),
    ],
)
def test_signs_of_life(seen: Pod, signs: workers.Signs, ago_ms: int) -> None:
    assert NOW_MS - workers.heard_ms(seen, signs, NOW_MS) == ago_ms


@pytest.mark.parametrize(
    ("conditions", "exit_code", "crashed"), [((), 1, True), (READY, 1, False), ((), 0, False), ((), 137, True)]
)
def test_a_container_that_crashed_and_is_not_ready_since(conditions: Any, exit_code: int, crashed: bool) -> None:
    running = state(running={}) | {"lastState": {"terminated": {"exitCode": exit_code}}}
    seen = workers.pod(found(phase="Running", conditions=list(conditions), containerStatuses=[running]), "f", 5)
    assert seen is not None
    assert seen.crashed == crashed


def test_partitions_do_not_wait_for_a_pod_that_cannot_start() -> None:
    restart = workers.Restart("f-1", "uid-before", NOW_MS + 60_000)
    for found_now, until_ms in (
        (pod(1, ready=False), NOW_MS + 60_000),
        (pod(1, ready=False, crashed=True), 0),
        (pod(1, ready=False, broken="ErrImagePull"), 0),
    ):
        (_, seen) = workers.observed(workers.Expected("f", 2), [pod(0), found_now], workers.Signs(), restart, NOW_MS)
        assert seen.restarting_until_ms == until_ms
    before = dataclasses.replace(pod(1, ready=False, crashed=True), uid="uid-before")  # the one that is to go
    assert restart.awaited_ms(before) == restart.until_ms


def test_a_worker_between_two_pods_was_heard_of_last_when_it_was() -> None:
    signs = workers.Signs({"f-1": workers.Answer(NOW_MS - 2_000, True)})
    restart = workers.Restart("f-1", "uid-1", NOW_MS + 60_000)
    first, second = workers.observed(workers.Expected("f", 2), [pod(0)], signs, restart, NOW_MS)
    assert (first.name, first.ready, first.restarting_until_ms) == ("f-0", True, 0)
    assert (second.name, second.ready, second.heard_ms) == ("f-1", False, NOW_MS - 2_000)
    assert second.restarting_until_ms == NOW_MS + 60_000


def test_workers_above_the_wanted_number_are_leaving_and_those_that_end_are_given_nothing() -> None:
    seen = workers.observed(
        workers.Expected("f", 2), [pod(2), pod(0, terminating=True), pod(1)], workers.Signs(), None, NOW_MS
    )
    assert [(each.name, each.leaving, each.ready) for each in seen] == [
        ("f-0", False, False),
        ("f-1", False, True),
        ("f-2", True, True),
    ]
