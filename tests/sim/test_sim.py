"""Seeded runs of the production pipeline in virtual time, with restarts and full disks, each judged by the reference.

make sim SEEDS=2000                       so many
SIM_SEED=17 pytest tests/sim -s           one that failed, again: it replays identically
"""

from __future__ import annotations

import os
import random

import pytest

from tests.property import driving, histories, piping

SEEDS = int(os.environ.get("SIM_SEEDS", "100"))
SEED = os.environ.get("SIM_SEED")
BLOCK = 25
"""Seeds a test: small enough for a test's time limit on a slow machine."""

_seeds = [int(SEED)] if SEED else list(range(1, SEEDS + 1))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, len(_seeds), BLOCK))
def test_seeded_runs_equal_the_reference(first: int) -> None:
    failed: dict[int, list[str]] = {}
    for seed in _seeds[first : first + BLOCK]:
        randomness = random.Random(seed)
        history = histories.draw(randomness, records_max=60)
        manner = piping.Manner(
            randomness, rows_max=randomness.choice([0, 1, 2, 3]), restarts=randomness.randint(0, 3), full_percent=15
        )
        run = piping.run(history, manner)
        if run.outcome is None:
            failed[seed] = ["the run came to no end"]
        elif found := driving.disagreements(history, run.outcome):
            failed[seed] = found
    assert not failed, "\n".join(f"SIM_SEED={seed}: {line}" for seed, lines in failed.items() for line in lines)
