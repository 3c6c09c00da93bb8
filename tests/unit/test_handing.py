"""The figures of `bench move`: what counts as a pause, as a first record, as given out twice."""

from __future__ import annotations

from fleet_cli.bench import handing

SHARD = "shardId-000000000000"
OTHER = "shardId-000000000001"


def test_a_pause_goes_from_the_last_answer_that_counted_to_the_first_new_one() -> None:
    reads = {SHARD: [(1_000, 0, 10), (2_000, 10, 20), (3_400, 20, 34), (4_400, 34, 44)]}
    (change,) = handing.changes(reads, {SHARD: [(3_300, 20)]}, since_ms=0)
    assert (change.before_ms, change.begun_ms, change.after_ms) == (2_000, 3_300, 3_400)
    assert change.pause_ms == 1_400
    assert change.again == 0


def test_an_answer_that_the_former_owner_threw_away_counts_as_never_applied() -> None:
    reads = {SHARD: [(1_000, 0, 10), (2_000, 10, 20), (3_400, 10, 34)]}
    (change,) = handing.changes(reads, {SHARD: [(3_300, 10)]}, since_ms=0)
    assert change.before_ms == 1_000
    assert change.pause_ms == 2_400
    assert change.again == 10


def test_what_isnt_over_or_began_before_is_no_change() -> None:
    reads = {SHARD: [(1_000, 0, 10)], OTHER: [(1_000, 0, 10), (2_000, 10, 20)]}
    assert handing.changes(reads, {SHARD: [(1_500, 10)], OTHER: [(500, 0)]}, since_ms=1_000) == []
    assert handing.changes({}, {SHARD: [(1_500, 10)]}, since_ms=0) == []


def test_the_first_read_is_that_of_who_began_since() -> None:
    """Not one of the former owner's after the time that is asked for."""
    reads = {SHARD: [(1_000, 0, 10), (2_000, 10, 20), (5_000, 10, 50)], OTHER: [(6_000, 0, 5)]}
    assert handing.first_reads(reads, {SHARD: [(500, 0), (4_900, 10)], OTHER: []}, since_ms=1_500) == {SHARD: 5_000}


def test_gaps_are_of_the_span_and_of_those_that_stayed() -> None:
    reads = {SHARD: [(1_000, 0, 10), (2_000, 10, 20), (3_500, 20, 60)], OTHER: [(2_000, 0, 100), (3_100, 100, 110)]}
    assert handing.gaps_ms(reads, (2_000, 4_000)) == [1_000, 1_500, 1_100]
    changed = handing.changes(reads, {SHARD: [(3_400, 20)]}, since_ms=0)
    assert handing.gaps_ms(reads, (2_000, 4_000), changed) == [1_000, 1_100]


def test_others_lose_what_waits_for_longer_than_a_poll() -> None:
    reads = {SHARD: [(0, 0, 1), (1_000, 1, 1_001), (3_500, 1_001, 3_501)], OTHER: [(0, 0, 1), (1_000, 1, 1_001)]}
    assert handing.others_lost(reads, (0, 2_000), ()) == 0
    assert handing.others_lost(reads, (0, 4_000), ()) == 1_250 / 4_500
    changed = handing.changes(reads, {SHARD: [(3_400, 1_001)]}, since_ms=0)
    assert handing.others_lost(reads, (0, 4_000), changed) == 0
    assert handing.others_lost({}, (0, 4_000), ()) is None


def test_percentiles_of_few_values() -> None:
    assert handing.percentile([], 99) is None
    assert handing.percentile([7], 99) == 7
    assert handing.percentile([0, 100], 50) == 50
    assert handing.percentile(list(range(101)), 99) == 99
