"""Seeded runs of whole fleets, each judged by the reference: see docs/simulator.md.

make sim SEEDS=2000                              so many
SIM_SEED=17 pytest tests/sim/test_fleet_sim.py   one that failed, again: it replays identically, and is made smaller
"""

from __future__ import annotations

import os

import pytest

from tests.sim import fleet_runs

SEEDS = int(os.environ.get("SIM_SEEDS", "500"))
SEED = os.environ.get("SIM_SEED")
BLOCK = 10
"""Seeds a test: small enough for a test's time limit on a slow machine."""

_seeds = [int(SEED)] if SEED else list(range(1, SEEDS + 1))
_coverage = fleet_runs.Coverage()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, len(_seeds), BLOCK))
def test_seeded_fleets_equal_the_reference(first: int) -> None:
    failed = []
    for seed in _seeds[first : first + BLOCK]:
        problems = fleet_runs.checked(seed, _coverage)
        if problems:
            failed.append(problems)
    assert not failed, "\n\n".join(failed)


@pytest.mark.skipif(len(_seeds) < 300, reason="too few seeds to meet everything")
def test_every_kind_of_fault_was_met() -> None:
    print("\n" + str(_coverage))
    assert _coverage.missing() == []


def test_a_seed_replays_identically() -> None:
    assert fleet_runs.digest(7) == fleet_runs.digest(7)
