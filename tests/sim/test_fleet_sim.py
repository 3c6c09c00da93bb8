"""Seeded runs of whole fleets in virtual time, each judged by the reference: see docs/simulator.md.

make sim SEEDS=2000                                 so many
SIM_SEED=17 pytest tests/sim/test_fleet_sim.py      one that failed, again: it replays identically, and is made smaller
"""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import re
from collections.abc import Callable

import pytest

from fleet_cli import parent_death
from tests.sim import fleet_runs, mutants, schedule

SEEDS = int(os.environ.get("SIM_SEEDS", "500"))
SEED = os.environ.get("SIM_SEED")
BLOCK = 20
"""Seeds a test: small enough for a test's time limit on a slow machine."""

_seeds = [int(SEED)] if SEED else list(range(1, SEEDS + 1))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, len(_seeds), BLOCK))
def test_seeded_fleets_equal_the_reference(first: int, record_property: Callable[[str, object], None]) -> None:
    met, failed = fleet_runs.block(_seeds[first : first + BLOCK])
    record_property(fleet_runs.COVERAGE, met.plain())  # conftest adds them up and prints them
    assert not failed, "\n\n".join(failed)


def test_five_hundred_schedules_hold_every_kind_of_trouble() -> None:
    drawn = collections.Counter(event.kind for seed in range(1, 501) for event in schedule.draw(seed).events)
    assert min(drawn[kind] for kind in schedule.Kind) >= 50, drawn


def test_a_seed_replays_identically() -> None:
    """In another process as well."""
    here = [fleet_runs.digest(seed) for seed in (7, 8)]
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), parent_death.end_with_parent
    ) as elsewhere:
        assert list(elsewhere.map(fleet_runs.digest, (7, 8))) == here


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
    fewer = re.search(r"made smaller, from (\d+) events to (\d+):", told)
    assert fewer is not None
    assert int(fewer[2]) <= 5 < int(fewer[1]), told
