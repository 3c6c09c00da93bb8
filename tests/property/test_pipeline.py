"""The whole pipeline against the reference, on random histories: with the table unbounded or as small as can be, over restarts
and full disks, the twins and effects are the same.

What is in the table is nobody's business: rows that leave and come back, an offline index that is built again, limits and
generations that change while a device's row is elsewhere. What counts as right is the reference's business.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies

from tests.property import driving, histories, piping

hard = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
seeds = strategies.integers(0, 2**32)


@hard
@given(histories.histories(), seeds)
def test_restarts_and_full_disks_change_nothing(history: histories.History, seed: int) -> None:
    check(history, seed, restarts=2, full_percent=15)


@hard
@given(histories.histories(), seeds, strategies.integers(1, 3))
def test_a_bounded_table_changes_nothing(history: histories.History, seed: int, rows_max: int) -> None:
    check(history, seed, rows_max=rows_max, restarts=2, full_percent=10)


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_a_fleet_of_ten_times_the_bound(seed: int) -> None:
    """Hundreds of devices, most of them outside the table most of the time."""
    history = histories.draw(random.Random(seed), records_max=1500, crowd=300)
    manner = piping.Manner(random.Random(seed), rows_max=30, restarts=seed % 3, records_max=60)
    run = piping.run(history, manner)
    assert run.outcome is not None
    assert not driving.disagreements(history, run.outcome)
    assert run.rows_outside > 200, "hardly anyone left the table"


def check(history: histories.History, seed: int, **manner: int) -> None:
    def wrong(entry: histories.History) -> list[str]:
        return piping.disagreements(entry, piping.Manner(random.Random(seed), **manner))

    if found := wrong(history):
        smaller = histories.smaller(history, lambda entry: bool(wrong(entry)))
        pytest.fail("\n".join([repr(smaller), f"seed {seed}, {manner}", *(wrong(smaller) or found)]))
