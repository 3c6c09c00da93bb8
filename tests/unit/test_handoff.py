"""The hand-off, decision by decision, on small fleets that fit into a head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from fleet_model import conditions, control, handoff, hashing, partition, situation, twin_partition
from fleet_model.control import Kind, Reason
from fleet_model.twin_partition import Phase, Status, TwinPartition

NOW_MS = 10_000_000
FRESH = twin_partition.CheckpointStatus("key", 1, NOW_MS, "1")


def shard(number: int, of: int, parents: tuple[str, ...] = (), closed: bool = False) -> partition.Shard:
    start, end = 2**128 * number // of, 2**128 * (number + 1) // of - 1
    return partition.Shard(f"shard-{of}-{number}", hashing.HashKeyRange(start, end), parents, closed)


def entry(of: partition.Shard, worker: str, *, epoch: int = 1, phase: Phase = Phase.RUNNING) -> TwinPartition:
    """Held by the worker and settled."""
    spec = twin_partition.Spec("fleet", "telemetry", of.shard_id, of.hash_key_range, of.parents, worker, epoch)
    status = Status(phase, worker, epoch, checkpoint=FRESH) if worker else Status()
    return TwinPartition("default", of.shard_id, spec, status, "1")


def worker(ordinal: int, heard_ago_ms: int = 0, **more: object) -> control.Worker:
    made = control.Worker(f"worker-{ordinal}", ordinal, True, NOW_MS - heard_ago_ms)
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def look(
    entries: Sequence[TwinPartition],
    workers: Sequence[control.Worker],
    shards: Sequence[partition.Shard] | None = (),
    **settings: object,
) -> control.Observed:
    wanted = control.Settings(**{"replicas": len(workers), **settings})  # type: ignore[arg-type]
    listed = [partition.Shard(e.spec.shard_id, e.spec.hash_key_range, e.spec.parents) for e in entries]
    known = None if shards is None else [*shards, *(listed if not shards else ())]
    return control.Observed(NOW_MS, "default", "fleet", "telemetry", wanted, entries, workers, known)


def changed(observed: control.Observed) -> dict[str, twin_partition.Spec]:
    return {each.spec.shard_id: each.spec for each in handoff.step(observed).change}


def told(observed: control.Observed, kind: Kind) -> tuple[bool, Reason]:
    condition = handoff.step(observed).condition(kind)
    return condition.status, condition.reason


HALVES = [shard(0, 2), shard(1, 2)]


def test_new_shards_get_objects_and_owners_at_once() -> None:
    wanted = handoff.step(look([], [worker(0), worker(1)], HALVES))
    assert [(e.spec.shard_id, e.spec.worker, e.spec.epoch) for e in wanted.create] == [
        ("shard-2-0", "worker-0", 1),
        ("shard-2-1", "worker-1", 1),
    ]
    assert all(e.spec.assigned_ms == NOW_MS for e in wanted.create)
    assert wanted.condition(Kind.READY).reason is Reason.NOT_RUNNING


def test_parents_get_their_objects_before_their_children() -> None:
    """Whoever sees a child alone takes its parents for gone."""
    merged = shard(0, 1, ("shard-2-0", "shard-2-1"), closed=True)
    grandchildren = [shard(number, 3, (merged.shard_id,)) for number in range(3)]
    wanted = handoff.step(look([], [worker(0)], [*grandchildren, merged, *HALVES]))
    made = [each.spec.shard_id for each in wanted.create]
    assert len(made) == 6
    assert all(
        made.index(parent) < made.index(each.spec.shard_id) for each in wanted.create for parent in each.spec.parents
    )


def test_without_a_worker_objects_wait_and_it_is_told() -> None:
    observed = look([], [worker(0, ready=False)], HALVES)
    assert [(e.spec.worker, e.spec.epoch) for e in handoff.step(observed).create] == [("", 0), ("", 0)]
    assert told(observed, Kind.STALLED) == (True, Reason.NO_WORKER)
    assert told(observed, Kind.PROGRESSING) == (True, Reason.ASSIGNING)


def test_a_planned_move_warms_up_then_hands_over_then_waits() -> None:
    both = [entry(HALVES[0], "worker-0"), entry(HALVES[1], "worker-0")]
    crowd = [worker(0), worker(1)]
    [(shard_id, first)] = changed(look(both, crowd)).items()
    assert (first.worker, first.epoch, first.receiver, first.standby) == ("worker-0", 1, "worker-1", ("worker-1",))
    first = dataclasses.replace(first, standby_ms=NOW_MS - situation.NOTICE_MS)
    warming = [dataclasses.replace(e, spec=first) if e.spec.shard_id == shard_id else e for e in both]
    assert changed(look(warming, crowd)) == {}
    warm = [
        dataclasses.replace(
            e, status=dataclasses.replace(e.status, standby=(twin_partition.StandbyStatus("worker-1", 3, True),))
        )
        for e in warming
    ]
    just_named = dataclasses.replace(first, standby_ms=NOW_MS - situation.NOTICE_MS + 1)
    unnoticed = [dataclasses.replace(e, spec=just_named) if e.spec.shard_id == shard_id else e for e in warm]
    assert changed(look(unnoticed, crowd)) == {}
    second = changed(look(warm, crowd))[shard_id]
    assert (second.worker, second.epoch, second.takeover, second.receiver) == ("worker-1", 2, 0, "")
    assert second.standby == ()
    handed = [dataclasses.replace(e, spec=second) if e.spec.shard_id == shard_id else e for e in warm]
    assert changed(look(handed, crowd)) == {}
    assert told(look(handed, crowd), Kind.REBALANCING) == (True, Reason.MOVING)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASED])
def test_a_move_that_is_not_over_in_time_is_taken_back(phase: Phase) -> None:
    moving = entry(HALVES[0], "worker-0", phase=phase)
    late_ms = NOW_MS - 60_000 - situation.MOVE_MARGIN_MS
    spec = dataclasses.replace(moving.spec, worker="worker-1", epoch=2, assigned_ms=late_ms)
    crowd = [worker(0), worker(1)]
    entries = [dataclasses.replace(moving, spec=spec), entry(HALVES[1], "worker-1")]
    back = changed(look(entries, crowd))["shard-2-0"]
    assert (back.worker, back.epoch, back.takeover) == ("worker-0", 3, 3)
    in_time = dataclasses.replace(spec, assigned_ms=late_ms + 1)
    assert "shard-2-0" not in changed(look([dataclasses.replace(moving, spec=in_time), entries[1]], crowd))


def test_a_former_owner_who_falls_silent_is_not_waited_for() -> None:
    moving = entry(HALVES[0], "worker-0", phase=Phase.DRAINING)
    spec = dataclasses.replace(moving.spec, worker="worker-1", epoch=2, assigned_ms=NOW_MS - 21_000)
    entries = [dataclasses.replace(moving, spec=spec), entry(HALVES[1], "worker-1")]
    forced = changed(look(entries, [worker(0, 20_000), worker(1)]))["shard-2-0"]
    assert (forced.worker, forced.epoch, forced.takeover) == ("worker-1", 3, 3)


def test_silence_counts_from_twenty_seconds_and_not_while_a_restart_is_expected() -> None:
    entries = [entry(HALVES[0], "worker-0"), entry(HALVES[1], "worker-1")]
    assert changed(look(entries, [worker(0, 19_999), worker(1)])) == {}
    assert changed(look(entries, [worker(0, 20_000), worker(1)]))["shard-2-0"].worker == "worker-1"
    assert changed(look(entries, [worker(0, 20_000, restarting_until_ms=NOW_MS + 1), worker(1)])) == {}
    just_begun = dataclasses.replace(look(entries, [worker(0, 20_000), worker(1)]), watching_since_ms=NOW_MS - 5_000)
    assert changed(just_begun) == {}
    assert changed(look(entries, [worker(1)], replicas=2))["shard-2-0"].takeover == 2  # it isn't even there


def test_a_warm_standby_takes_over_before_anybody_else() -> None:
    crowd = [worker(0, 20_000), worker(1), worker(2)]
    lost = entry(HALVES[0], "worker-0")
    lost = dataclasses.replace(
        lost,
        spec=dataclasses.replace(lost.spec, standby=("worker-1", "worker-2")),
        status=dataclasses.replace(lost.status, standby=(twin_partition.StandbyStatus("worker-2", 1, True),)),
    )
    taken = changed(look([lost, entry(HALVES[1], "worker-2")], crowd, standby_replicas=1))["shard-2-0"]
    assert (taken.worker, taken.takeover) == ("worker-2", 2)


def test_when_many_are_silent_nothing_moves_and_it_is_told() -> None:
    quarters = [shard(number, 4) for number in range(4)]
    entries = [entry(each, f"worker-{number}") for number, each in enumerate(quarters)]
    crowd = [worker(0, 30_000), worker(1, 30_000), worker(2), worker(3)]
    observed = look(entries, crowd, quarters)
    assert changed(observed) == {}
    assert told(observed, Kind.STALLED) == (True, Reason.TOO_MANY_SILENT)
    one_silent = [worker(0, 30_000), worker(1), worker(2), worker(3)]
    assert list(changed(look(entries, one_silent))) == ["shard-4-0"]


def test_a_refused_claim_goes_on_above_the_manifest() -> None:
    spec = dataclasses.replace(entry(HALVES[0], "worker-0").spec, assigned_ms=NOW_MS)
    refused = TwinPartition("default", "a", spec, Status(manifest_epoch=7), "1")
    entries = [refused, entry(HALVES[1], "worker-1")]
    raised = changed(look(entries, [worker(0), worker(1)]))["shard-2-0"]
    assert (raised.worker, raised.epoch, raised.takeover, raised.first_epoch) == ("worker-0", 8, 8, 1)


def test_who_never_claimed_leaves_no_manifest_to_be_missed() -> None:
    spec = dataclasses.replace(entry(HALVES[0], "worker-0").spec, assigned_ms=NOW_MS - 60_000)
    begun = TwinPartition("default", "a", spec, Status(), "1")
    entries = [begun, entry(HALVES[1], "worker-1")]
    again = changed(look(entries, [worker(0, 30_000), worker(1)]))["shard-2-0"]
    assert (again.worker, again.epoch, again.first_epoch) == ("worker-1", 2, 2)


def test_a_failed_partition_stays_but_does_not_keep_a_leaving_worker() -> None:
    failed = entry(HALVES[0], "worker-1", phase=Phase.FAILED)
    entries = [failed, entry(HALVES[1], "worker-0")]
    crowd = [worker(0), worker(1)]
    assert changed(look(entries, crowd)) == {}
    assert told(look(entries, crowd), Kind.STALLED) == (True, Reason.FAILED)
    leaving = look(entries, crowd, replicas=1)
    assert changed(leaving)["shard-2-0"].receiver == "worker-0"
    assert handoff.step(leaving).workers_kept == 2


def test_without_checkpoints_nothing_moves_and_children_stay_on_their_parents_disk() -> None:
    closed = entry(HALVES[0], "worker-1", phase=Phase.CLOSED)
    children = [shard(0, 4, ("shard-2-0",)), shard(1, 4, ("shard-2-0",))]
    entries = [closed, entry(HALVES[1], "worker-1")]
    shards = [*HALVES, *children]
    observed = look(entries, [worker(0), worker(1, 60_000)], shards, has_checkpoints=False)
    wanted = handoff.step(observed)
    assert [e.spec.worker for e in wanted.create] == ["worker-1", "worker-1"]
    assert wanted.change == ()
    assert told(observed, Kind.CHECKPOINTS_HEALTHY) == (False, Reason.NO_CHECKPOINTS)
    assert told(observed, Kind.STALLED) == (True, Reason.CANNOT_MOVE)


def test_a_closed_partition_retires_when_nobody_needs_it_any_more() -> None:
    closed = entry(HALVES[0], "worker-0", phase=Phase.CLOSED)
    children = [shard(0, 4, ("shard-2-0",)), shard(1, 4, ("shard-2-0",))]
    heirs = [entry(child, "worker-0") for child in children]
    others = [entry(HALVES[1], "worker-0")]
    listed = [*children, HALVES[1]]
    assert handoff.step(look([closed, *heirs, *others], [worker(0)], listed)).delete == (closed,)
    assert handoff.step(look([closed, *heirs, *others], [worker(0)], [HALVES[0], *listed])).delete == ()
    assert handoff.step(look([closed, *heirs, *others], [worker(0)], None)).delete == ()
    waiting = dataclasses.replace(heirs[1], status=Status())
    assert handoff.step(look([closed, heirs[0], waiting, *others], [worker(0)], listed)).delete == ()


def test_standbys_are_spread_and_stay() -> None:
    quarters = [shard(number, 4) for number in range(4)]
    entries = [entry(each, f"worker-{number // 2}") for number, each in enumerate(quarters)]
    crowd = [worker(0), worker(1)]
    specs = changed(look(entries, crowd, quarters, standby_replicas=2))
    assert [spec.standby for spec in specs.values()] == [("worker-1",)] * 2 + [("worker-0",)] * 2


def test_holes_and_overlaps_are_told() -> None:
    quarters = [shard(number, 4) for number in range(4)]
    whole = [entry(each, "worker-0") for each in quarters]
    assert conditions.broken_ranges(whole) == []
    assert len(conditions.broken_ranges(whole[1:])) == 1
    assert len(conditions.broken_ranges([whole[0], *whole[2:]])) == 1
    assert len(conditions.broken_ranges(whole[:3])) == 1
    assert conditions.broken_ranges([*whole, entry(HALVES[0], "worker-0")]) != []
    observed = look(whole[1:], [worker(0)], quarters[1:])
    assert told(observed, Kind.STALLED) == (True, Reason.RANGES_BROKEN)
    # A child behind a parent that is still read covers nothing yet.
    child = dataclasses.replace(shard(0, 4), shard_id="child", parents=(quarters[0].shard_id,))
    assert conditions.broken_ranges([*whole, entry(child, "worker-0", phase=Phase.PENDING)]) == []


def test_a_receiver_that_never_warms_up_lets_others_go_first() -> None:
    quarters = [shard(number, 4) for number in range(4)]
    entries = [entry(each, "worker-0") for each in quarters]
    spec = dataclasses.replace(
        entries[0].spec,
        receiver="worker-1",
        standby=("worker-1",),
        standby_ms=NOW_MS - situation.WARM_UP_MS_MAX,
    )
    entries[0] = dataclasses.replace(entries[0], spec=spec)
    observed = look(entries, [worker(0), worker(1), worker(2)], quarters, max_concurrent_moves=1)
    specs = changed(observed)
    assert [spec.receiver for spec in specs.values()] == ["worker-2"]
    assert told(observed, Kind.STALLED) == (True, Reason.MOVES_STUCK)


def test_a_receiver_or_a_standby_that_falls_silent_is_replaced() -> None:
    entries = [entry(HALVES[0], "worker-0"), entry(HALVES[1], "worker-0")]
    named = dataclasses.replace(entries[0].spec, receiver="worker-1", standby=("worker-1",), standby_ms=NOW_MS)
    entries[0] = dataclasses.replace(entries[0], spec=named)
    specs = changed(look(entries, [worker(0), worker(1, 30_000), worker(2)], max_concurrent_moves=1))
    assert sorted((spec.receiver, spec.standby) for spec in specs.values()) == [("", ()), ("worker-2", ("worker-2",))]
    kept = dataclasses.replace(entries[1].spec, standby=("worker-1",))
    entries = [entry(HALVES[0], "worker-2"), dataclasses.replace(entries[1], spec=kept)]
    specs = changed(look(entries, [worker(0), worker(1, 30_000), worker(2)], standby_replicas=1))
    assert specs["shard-2-1"].standby == ("worker-2",)


def test_who_was_fenced_under_its_own_epoch_gets_the_next_one() -> None:
    """By a process of its own name that is gone by now: nobody else would ever raise the epoch."""
    fenced = entry(HALVES[0], "worker-0", epoch=4, phase=Phase.FAILED)
    fenced = dataclasses.replace(fenced, status=dataclasses.replace(fenced.status, manifest_epoch=4))
    entries = [fenced, entry(HALVES[1], "worker-1")]
    raised = changed(look(entries, [worker(0), worker(1)]))["shard-2-0"]
    assert (raised.worker, raised.epoch, raised.takeover) == ("worker-0", 5, 5)


def test_a_manifest_whose_owner_never_told_of_it_is_taken_over_in_the_end() -> None:
    late_ms = NOW_MS - 60_000 - situation.MOVE_MARGIN_MS
    spec = dataclasses.replace(entry(HALVES[0], "worker-0", epoch=3).spec, assigned_ms=late_ms)
    entries = [TwinPartition("default", "a", spec, Status(manifest_epoch=2), "1"), entry(HALVES[1], "worker-1")]
    assert changed(look(entries, [worker(0), worker(1)]))["shard-2-0"].takeover == 4
    in_time = dataclasses.replace(entries[0], spec=dataclasses.replace(spec, assigned_ms=late_ms + 1))
    assert changed(look([in_time, entries[1]], [worker(0), worker(1)])) == {}
    leaving = [worker(0, leaving=True), worker(1)]
    moved = changed(look([in_time, entries[1]], leaving))
    assert (moved["shard-2-0"].worker, moved["shard-2-0"].takeover) == ("worker-1", 4)
