"""Up to when all rules are known, without any clock of the worker's but the monotonic one."""

from __future__ import annotations

from fleet_model import generations
from fleet_worker.core import horizon


def test_an_answer_holds_from_when_its_question_was_begun() -> None:
    known = horizon.Horizon()
    known.seen(1_000_000, now_s=10.0)
    begun_ms = known.stream_ms(now_s=10.5)
    assert begun_ms == 1_000_500
    known.looked(begun_ms)  # however long the answer took
    assert known.known_until_ms(now_s=10.5) == 1_000_500 + horizon.AHEAD_MS
    assert 0 < horizon.AHEAD_MS < generations.AHEAD_MS


def test_a_question_begun_after_a_record_came_always_covers_it() -> None:
    known = horizon.Horizon()
    for arrival_ms, now_s in ((5_000, 100.0), (9_000, 100.1), (2_000, 400.0), (3_000, 461.0)):
        known.seen(arrival_ms, now_s)
        known.looked(known.stream_ms(now_s))
        assert known.known_until_ms(now_s) >= arrival_ms


def test_old_records_don_t_put_the_clock_back_and_an_old_answer_takes_nothing_away() -> None:
    known = horizon.Horizon()
    known.seen(100_000, now_s=1.0)
    known.seen(5_000, now_s=2.0)
    assert known.stream_ms(now_s=2.0) == 101_000
    known.looked(101_000)
    known.looked(50_000)
    assert known.known_until_ms(now_s=2.0) == 101_000 + horizon.AHEAD_MS


def test_a_single_time_far_in_the_future_is_forgotten() -> None:
    known = horizon.Horizon()
    known.seen(9_000_000, now_s=100.0)
    known.looked(known.stream_ms(100.0))
    for second in range(101, 101 + int(2 * horizon.REMEMBERED_S) + 1):
        known.seen(second * 1_000, float(second))
    now_s = 101 + 2 * horizon.REMEMBERED_S
    assert known.stream_ms(now_s) == now_s * 1_000
    assert known.known_until_ms(now_s) == now_s * 1_000 + horizon.AHEAD_MS, "what comes later is asked for again"


def test_before_any_record_nothing_is_known() -> None:
    known = horizon.Horizon()
    assert (known.stream_ms(5.0), known.known_until_ms(5.0)) == (0, 0)
