"""Seeded runs of whole fleets in virtual time, each judged by the reference: see docs/simulator.md.

make sim SEEDS=2000                                 so many
SIM_SEED=17 pytest tests/sim/test_fleet_sim.py      one that failed, again: it replays identically, and is made smaller
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Iterator

import pytest

from tests.sim import fleet_runs, mutants

SEEDS = int(os.environ.get("SIM_SEEDS", "500"))
SEED = os.environ.get("SIM_SEED")
BLOCK = 50
"""Seeds a test: small enough for a test's time limit on a slow machine."""
ENOUGH = 300
"""So many runs meet every kind of trouble."""

_seeds = [int(SEED)] if SEED else list(range(1, SEEDS + 1))
_coverage = fleet_runs.Coverage()


@pytest.fixture(scope="module")
def pool() -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """New processes, as this one may have threads that wouldn't live on in a copy of it."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(fleet_runs.processes(), context) as workers:
        yield workers


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, len(_seeds), BLOCK))
def test_seeded_fleets_equal_the_reference(first: int, pool: concurrent.futures.ProcessPoolExecutor) -> None:
    failed = []
    seeds = _seeds[first : first + BLOCK]
    for met, found in pool.map(fleet_runs.block, [[seed] for seed in seeds]):
        _coverage.join(met)
        failed += found
    assert not failed, "\n\n".join(failed)


@pytest.mark.skipif(len(_seeds) < ENOUGH, reason="too few seeds to meet everything")
def test_every_kind_of_trouble_was_met() -> None:
    print(f"\n{_coverage}")
    assert _coverage.missing() == []


def test_a_seed_replays_identically(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    here = [fleet_runs.digest(seed) for seed in (7, 8)]
    assert list(pool.map(fleet_runs.digest, (7, 8))) == here


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", mutants.QUICK)
def test_a_planted_bug_is_found(name: str) -> None:
    """Some of them; `make sim-mutants` plants them all."""
    found = mutants.caught(name, mutants.QUICK_SEEDS_MAX)
    assert found.seed, f"{mutants.QUICK_SEEDS_MAX} runs didn't find: {name}"


def test_a_failing_schedule_is_made_smaller() -> None:
    name = "a child begins before its parents have ended"
    bug = mutants.BUGS[name]
    seed = mutants.caught(name, mutants.QUICK_SEEDS_MAX).seed
    with bug.plant():
        told = fleet_runs.told_smaller(seed, bug.kinds)
    assert f"SIM_SEED={seed} fails" in told
    assert "split" in told or "merge" in told
    assert len(told.splitlines()) < 12, told
