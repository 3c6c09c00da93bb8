"""Seeded runs of the production pipeline in virtual time, with restarts and full disks, each judged by the reference.

make sim SEEDS=2000                              so many, and of whole fleets as well
SIM_SEED=17 pytest tests/sim/test_sim.py -s      one that failed, again: it replays identically
"""

from __future__ import annotations

import os

import pytest

from tests.sim import pipeline_runs

SEEDS = int(os.environ.get("SIM_SEEDS", "100"))
SEED = os.environ.get("SIM_SEED")
BLOCK = 25
"""Seeds a test: small enough for a test's time limit on a slow machine."""

_seeds = [int(SEED)] if SEED else list(range(1, SEEDS + 1))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, len(_seeds), BLOCK))
def test_seeded_runs_equal_the_reference(first: int) -> None:
    failed = {seed: found for seed in _seeds[first : first + BLOCK] if (found := pipeline_runs.checked(seed))}
    assert not failed, "\n".join(f"SIM_SEED={seed}: {line}" for seed, lines in failed.items() for line in lines)
