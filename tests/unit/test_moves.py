"""What is told of moves: from whom, to whom, how long nobody applied the partition's records."""

from __future__ import annotations

import dataclasses

import pytest

from fleet_cli.control import moves
from fleet_model import twin_partition
from fleet_model.twin_partition import Phase
from tests.contract import test_control as suite

SHARD = suite.SHARD
BEGAN_FROM = "100"


def running(worker: str, epoch: int, nonce: str = "", phase: Phase = Phase.RUNNING) -> twin_partition.Status:
    checkpoint = twin_partition.CheckpointStatus("base.parquet", epoch, 1, BEGAN_FROM)
    return twin_partition.Status(phase, worker, epoch, nonce or f"{worker}-{epoch}", checkpoint=checkpoint)


def see(watch: moves.Moves, now_s: float, status: twin_partition.Status) -> list[moves.Move]:
    return watch.see(now_s, {SHARD: dataclasses.replace(suite.wanted(), status=status)})


@pytest.fixture
def watch() -> moves.Moves:
    made = moves.Moves()
    assert see(made, 0.0, twin_partition.Status()) == []
    assert see(made, 1.0, running("worker-0", 1)) == []
    return made


def test_a_first_start_is_no_move(watch: moves.Moves) -> None:
    assert watch.under_way() == {}
    assert watch.awaiting() == {}
    assert see(watch, 9.0, running("worker-0", 1)) == []


def test_a_planned_move_pauses_from_the_drain_to_the_first_record(watch: moves.Moves) -> None:
    see(watch, 2.0, running("worker-0", 1, phase=Phase.DRAINING))
    assert watch.under_way() == {SHARD: "worker-0"}
    see(watch, 2.2, running("worker-0", 1, phase=Phase.RELEASED))
    see(watch, 2.4, running("worker-1", 2, phase=Phase.RESTORING))
    assert watch.awaiting() == {}
    assert see(watch, 2.6, running("worker-1", 2)) == []
    assert watch.awaiting() == {SHARD: "worker-1"}
    assert watch.applied(SHARD, BEGAN_FROM, 2.7) is None
    assert watch.applied(SHARD, "", 2.7) is None
    move = watch.applied(SHARD, "101", 2.8)
    assert move == moves.Move(SHARD, "worker-0", "worker-1", 2, pytest.approx(0.8))  # type: ignore[arg-type]
    assert move.words == f"{SHARD} worker-0 → worker-1, paused 0.8 s"
    assert watch.under_way() == watch.awaiting() == {}
    assert watch.applied(SHARD, "102", 2.9) is None
    assert see(watch, 9.0, running("worker-1", 2)) == []


def test_without_records_it_ends_where_the_new_owner_runs(watch: moves.Moves) -> None:
    see(watch, 2.0, running("worker-0", 1, phase=Phase.DRAINING))
    see(watch, 3.0, running("worker-1", 2))
    assert see(watch, 4.9, running("worker-1", 2)) == []
    assert see(watch, 5.0, running("worker-1", 2)) == [moves.Move(SHARD, "worker-0", "worker-1", 2, 1.0)]
    assert see(watch, 9.0, running("worker-1", 2)) == []


def test_what_went_between_two_looks_counts_from_the_first_of_them(watch: moves.Moves) -> None:
    see(watch, 2.0, running("worker-0", 1))
    see(watch, 2.5, running("worker-1", 2))
    assert watch.applied(SHARD, "101", 2.6) == moves.Move(SHARD, "worker-0", "worker-1", 2, pytest.approx(0.6))  # type: ignore[arg-type]


def test_a_drain_that_is_taken_back_ends_at_the_former_owner(watch: moves.Moves) -> None:
    see(watch, 2.0, running("worker-0", 1, phase=Phase.DRAINING))
    see(watch, 4.0, running("worker-0", 3, nonce="worker-0-1"))
    move = watch.applied(SHARD, "101", 4.5)
    assert move == moves.Move(SHARD, "worker-0", "worker-0", 3, 2.5)
    assert move.words == f"{SHARD} back at worker-0, paused 2.5 s"


def test_a_worker_that_died_pauses_its_partitions_whatever_their_objects_say(watch: moves.Moves) -> None:
    watch.worker_ended("worker-1", 1.5)
    assert watch.under_way() == {}
    watch.worker_ended("worker-0", 2.0)
    assert see(watch, 2.1, running("worker-0", 1)) == []
    assert see(watch, 20.0, running("worker-0", 1)) == []
    assert watch.under_way() == {SHARD: "worker-0"}
    see(watch, 22.0, running("worker-1", 2))
    assert watch.applied(SHARD, "90", 22.5) == moves.Move(SHARD, "worker-0", "worker-1", 2, 20.5)


def test_the_same_worker_started_again_is_told_by_its_nonce(watch: moves.Moves) -> None:
    watch.worker_ended("worker-0", 2.0)
    see(watch, 2.5, running("worker-0", 1))
    see(watch, 3.0, running("worker-0", 1, nonce="another"))
    assert watch.applied(SHARD, "101", 3.5) == moves.Move(SHARD, "worker-0", "worker-0", 1, 1.5)


def test_an_owner_that_dies_on_the_way_keeps_the_first_one_in_mind(watch: moves.Moves) -> None:
    see(watch, 2.0, running("worker-0", 1, phase=Phase.DRAINING))
    see(watch, 3.0, running("worker-1", 2))
    watch.worker_ended("worker-1", 3.1)
    see(watch, 4.0, running("worker-1", 2))
    see(watch, 5.0, running("worker-2", 3))
    assert watch.applied(SHARD, "101", 6.0) == moves.Move(SHARD, "worker-0", "worker-2", 3, 4.0)


def test_a_partition_whose_object_goes_is_forgotten(watch: moves.Moves) -> None:
    see(watch, 2.0, running("worker-0", 1, phase=Phase.DRAINING))
    assert watch.see(3.0, {}) == []
    assert watch.under_way() == {}


def test_a_shard_that_ended_is_no_pause(watch: moves.Moves) -> None:
    see(watch, 2.0, running("worker-0", 1, phase=Phase.CLOSED))
    assert watch.under_way() == {}
