"""The planner against a slow and obvious one: balanced, few moves, nobody who can't, stable, and in runs of ranges."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_model import hashing, planner
from tests.reference import planner as reference

WORDS = st.sampled_from([None, None, 0.0, 1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 40.0])


def shards(loads: Sequence[float | None]) -> tuple[planner.Partition, ...]:
    """Neighbouring ranges over the whole space."""
    borders = [2**128 * number // len(loads) for number in range(len(loads) + 1)]
    return tuple(
        planner.Partition(
            f"shardId-{number:012d}", hashing.HashKeyRange(borders[number], borders[number + 1] - 1), load
        )
        for number, load in enumerate(loads)
    )


def workers(number: int) -> tuple[planner.Worker, ...]:
    return tuple(planner.Worker(f"worker-{ordinal}", ordinal) for ordinal in range(number))


@st.composite
def cases(draw: st.DrawFn, shards_max: int = 30, workers_max: int = 8, loads: object = WORDS) -> reference.Case:
    """Any fleet with at least one able worker; owners may be nobody, gone, leaving or not ready."""
    assert isinstance(loads, st.SearchStrategy)
    partitions = shards(draw(st.lists(loads, min_size=1, max_size=shards_max)))
    crowd = [
        dataclasses.replace(worker, ready=draw(st.integers(0, 5)) > 0, leaving=draw(st.integers(0, 5)) == 0)
        for worker in workers(draw(st.integers(1, workers_max)))
    ]
    crowd[0] = dataclasses.replace(crowd[0], ready=True, leaving=False)
    names = [worker.name for worker in crowd]
    owners = st.sampled_from(draw(st.sampled_from([names, [names[0]], [""], [*names, "", "worker-99"]])))
    return reference.Case(partitions, tuple(crowd), {partition.shard_id: draw(owners) for partition in partitions})


def planned(case: reference.Case) -> dict[str, str]:
    return planner.plan(case.partitions, case.workers, case.current)


@given(cases())
def test_everyone_has_an_owner_who_can(case: reference.Case) -> None:
    for shard_id, owner in planned(case).items():
        if reference.is_left_alone(case, case.current[shard_id]):
            assert owner == case.current[shard_id]
        else:
            assert owner in case.able


@given(cases())
def test_no_single_move_would_clearly_help(case: reference.Case) -> None:
    assert reference.unevenness(case, planned(case), planner.TOLERANCE) == []


@given(cases())
def test_as_even_as_the_simple_planner(case: reference.Case) -> None:
    """By less than the heaviest partition, since moves that only change roles aren't made."""
    simple = reference.loads(case, reference.simple_plan(case, planner.TOLERANCE))
    ours = reference.loads(case, planned(case))
    weights = case.weights()
    if weights:
        slack = planner.TOLERANCE * reference.share(case) + max(weights.values())
        assert max(ours.values()) <= max(simple.values()) + slack


@given(cases())
def test_a_plan_is_its_own_plan(case: reference.Case) -> None:
    plan = planned(case)
    assert planner.plan(case.partitions, case.workers, plan) == plan


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_means_nothing(case: reference.Case, shuffled: random.Random) -> None:
    partitions, crowd = list(case.partitions), list(case.workers)
    shuffled.shuffle(partitions)
    shuffled.shuffle(crowd)
    assert planner.plan(partitions, crowd, case.current) == planned(case)


@settings(max_examples=60, deadline=None)
@given(cases(shards_max=6, workers_max=4, loads=st.none()))
def test_alike_partitions_move_exactly_as_often_as_they_must(case: reference.Case) -> None:
    plan = planned(case)
    carried = reference.loads(case, plan).values()
    assert reference.moves(case, plan) == reference.fewest_moves(_only_the_able(case, plan), max(carried), min(carried))


@settings(max_examples=60, deadline=None)
@given(cases(shards_max=6, workers_max=4, loads=st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0])))
def test_unlike_partitions_move_hardly_more_often_than_they_must(case: reference.Case) -> None:
    """Fewest moves for unlike weights is a knapsack; the planner is greedy."""
    plan = planned(case)
    carried = reference.loads(case, plan).values()
    fewest = reference.fewest_moves(_only_the_able(case, plan), max(carried), min(carried))
    assert fewest <= reference.moves(case, plan) <= fewest + 2


def _only_the_able(case: reference.Case, plan: dict[str, str]) -> reference.Case:
    """Without those that no plan may touch."""
    looked_at = case.weights()
    partitions = tuple(partition for partition in case.partitions if partition.shard_id in looked_at)
    return reference.Case(partitions, case.workers, {shard_id: case.current[shard_id] for shard_id in looked_at})


def test_first_plans_are_in_far_fewer_runs_than_the_simple_planners() -> None:
    """Over many fleets: balance goes first, so that one odd fleet may come out with a run more."""
    draws = random.Random(1)
    ours = simple = 0
    for _ in range(300):
        loads = [draws.choice([None, 1.0, 1.5, 2.0, 3.0, 5.0]) for _ in range(draws.randint(1, 60))]
        partitions = shards(loads)
        current = {partition.shard_id: "" for partition in partitions}
        case = reference.Case(partitions, workers(draws.randint(1, 12)), current)
        ours += reference.runs(case, planned(case))
        simple += reference.runs(case, reference.simple_plan(case, planner.TOLERANCE))
    assert ours < simple / 2


@given(st.integers(1, 60), st.integers(1, 12))
def test_a_first_plan_of_alike_partitions_has_one_run_per_worker(number: int, crowd: int) -> None:
    partitions = shards([None] * number)
    case = reference.Case(partitions, workers(crowd), {partition.shard_id: "" for partition in partitions})
    assert reference.runs(case, planned(case)) == min(number, crowd)


@given(cases(loads=st.floats(0, 1e6)), st.data())
def test_small_changes_of_load_move_nothing(case: reference.Case, data: st.DataObject) -> None:
    plan = planned(case)
    shaken = tuple(
        dataclasses.replace(partition, load=(partition.load or 0.0) * data.draw(st.floats(0.999, 1.001)))
        for partition in case.partitions
    )
    again = planner.plan(shaken, case.workers, plan, tolerance=planner.TOLERANCE + 0.05)
    assert sum(again[shard_id] != owner for shard_id, owner in plan.items()) <= 1


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 8))
def test_scaling_moves_no_more_than_the_newcomers_get_or_the_leavers_had(number: int, before: int, after: int) -> None:
    partitions = shards([None] * number)
    first = planner.plan(partitions, workers(before), {})
    crowd = [dataclasses.replace(worker, leaving=worker.ordinal >= after) for worker in workers(max(before, after))]
    second = planner.plan(partitions, crowd, first)
    moved = {shard_id for shard_id, owner in first.items() if second[shard_id] != owner}
    leaving = {worker.name for worker in crowd if worker.leaving}
    newcomers = {worker.name for worker in crowd if worker.ordinal >= before}
    assert all(first[shard_id] in leaving or second[shard_id] in newcomers for shard_id in moved)
    assert not leaving & set(second.values())
    for name in newcomers:
        assert abs(list(second.values()).count(name) - number / after) < max(1.2, number / after * 0.15)


# ── cases that a person would look at ────────────────────────────────────────────────────────────────────────────────


def owners(plan: dict[str, str]) -> str:
    return " ".join(name.removeprefix("worker-") for _, name in sorted(plan.items()))


def currently(partitions: Sequence[planner.Partition], text: str) -> dict[str, str]:
    return {
        partition.shard_id: "" if word == "-" else f"worker-{word}"
        for partition, word in zip(partitions, text.split(), strict=True)
    }


@pytest.mark.parametrize(
    ("loads", "crowd", "now", "wished"),
    [
        ([None] * 6, 3, "- - - - - -", "0 0 1 1 2 2"),
        ([None] * 5, 2, "0 0 0 1 1", "0 0 0 1 1"),
        ([None] * 6, 2, "0 0 0 0 1 1", "0 0 0 1 1 1"),
        ([None] * 6, 3, "0 0 0 1 1 1", "0 0 2 2 1 1"),
        ([None] * 6, 3, "0 0 1 1 9 9", "0 0 1 1 2 2"),
        ([10, 1, 1, 1, 1], 2, "0 0 0 0 0", "1 0 0 0 0"),
        ([10, 1, 1, 1, 1], 2, "0 0 0 1 1", "0 1 1 1 1"),
        ([100.0, 108.0, 96.0, 101.0], 2, "0 0 1 1", "0 0 1 1"),
        ([0.0, 0.0, 0.0, 0.0], 2, "0 0 0 0", "0 0 1 1"),
        ([None] * 4, 0, "0 - 9 1", "0 - 9 1"),
    ],
)
def test_plans_that_a_person_expects(loads: list[float | None], crowd: int, now: str, wished: str) -> None:
    partitions = shards(loads)
    plan = planner.plan(partitions, workers(crowd), currently(partitions, now))
    assert plan == currently(partitions, wished), owners(plan)


def test_children_stay_where_their_parents_were_unless_balance_says_otherwise() -> None:
    whole = shards([None] * 4)
    left, right = (
        dataclasses.replace(child, shard_id=f"shardId-00000000001{number}", parents=(whole[3].shard_id,))
        for number, child in enumerate(shards([None] * 8)[6:])
    )
    now = currently(whole, "0 1 2 3")
    plan = planner.plan([*whole[:3], left, right], workers(4), now)
    assert (plan[left.shard_id], plan[right.shard_id]) == ("worker-3", "worker-3")
    plan = planner.plan([*whole[:3], left, right], workers(5), now)
    assert {plan[left.shard_id], plan[right.shard_id]} == {"worker-3", "worker-4"}


def test_a_merged_child_goes_to_the_less_loaded_parent() -> None:
    partitions = shards([None] * 4)
    child = planner.Partition(
        "shardId-000000000009",
        hashing.HashKeyRange(partitions[2].hash_key_range.start, partitions[3].hash_key_range.end),
        parents=(partitions[2].shard_id, partitions[3].shard_id),
    )
    plan = planner.plan([partitions[0], partitions[1], child], workers(4), currently(partitions, "0 1 1 3"))
    assert plan[child.shard_id] == "worker-3"


def test_a_warm_copy_decides_who_takes_over_and_which_one_moves() -> None:
    partitions = [dataclasses.replace(partition, standby=("worker-2",)) for partition in shards([None] * 6)]
    plan = planner.plan(partitions, workers(3), currently(partitions, "0 0 9 9 1 1"))
    assert owners(plan) == "0 0 2 2 1 1"
    partitions = list(shards([None] * 4))
    partitions[1] = dataclasses.replace(partitions[1], standby=("worker-1",))
    plan = planner.plan(partitions, workers(2), currently(partitions, "0 0 0 0"))
    assert plan[partitions[1].shard_id] == "worker-1"
    assert list(plan.values()).count("worker-1") == 2


def test_capacity_counts() -> None:
    partitions = shards([None] * 30)
    crowd = [planner.Worker("worker-0", 0, capacity=2.0), planner.Worker("worker-1", 1)]
    plan = planner.plan(partitions, crowd, {})
    assert list(plan.values()).count("worker-0") == 20


def test_what_is_no_load_counts_as_unknown() -> None:
    partitions = shards([float("nan"), float("inf"), -1.0, 4.0])
    assert owners(planner.plan(partitions, workers(2), {})) == "0 0 1 1"


@given(cases(), st.data())
def test_what_is_pinned_stays_with_an_owner_who_can(case: reference.Case, data: st.DataObject) -> None:
    pinned = tuple(dataclasses.replace(each, pinned=data.draw(st.booleans())) for each in case.partitions)
    plan = planner.plan(pinned, case.workers, case.current)
    for partition in pinned:
        if partition.pinned and case.current[partition.shard_id] in case.able:
            assert plan[partition.shard_id] == case.current[partition.shard_id]
    assert planner.plan(pinned, case.workers, plan) == plan
