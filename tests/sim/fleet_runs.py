"""Runs seeds of the fleet simulator: finds what is wrong with one, makes its schedule smaller, counts what was met.

python -m tests.sim.fleet_runs --seeds 20000 --processes 2     as `make sim` does it
python -m tests.sim.fleet_runs --seed 17 [--show] [--smaller]  one of them
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from fleet_cli import parent_death
from tests.sim import parts, schedule, world

BLOCK = 25
COVERAGE = "met"
ENOUGH = 300
"""So many runs meet every kind of trouble."""
SHRINK_S_MAX = 120.0
TOLD_CHARACTERS_MAX = 12_000


class Coverage:
    """What happened, over all runs: of each kind how often, and in how many runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.often: collections.Counter[str] = collections.Counter()
        self.in_runs: collections.Counter[str] = collections.Counter()

    def add(self, outcome: parts.Outcome) -> None:
        self.runs += 1
        self.often += outcome.seen
        self.in_runs.update({what for what, count in outcome.seen.items() if count})

    def join(self, other: Coverage) -> None:
        self.runs += other.runs
        self.often += other.often
        self.in_runs += other.in_runs

    def plain(self) -> list[object]:
        """For a report that travels between processes."""
        return [self.runs, dict(self.often), dict(self.in_runs)]

    @classmethod
    def of(cls, plain: list[Any]) -> Coverage:
        made = cls()
        made.runs, made.often, made.in_runs = plain[0], collections.Counter(plain[1]), collections.Counter(plain[2])
        return made

    def missing(self) -> list[str]:
        """Kinds of trouble that no run met."""
        return [kind.value for kind in schedule.TROUBLES if not self.often[kind.value]]

    def __str__(self) -> str:
        lines = [f"{self.runs} runs. What was met, how often, in how many runs:"]
        lines += [f"  {count:8d} {self.in_runs[what]:7d}  {what}" for what, count in sorted(self.often.items())]
        return "\n".join(lines)


def digest(seed: int) -> str:
    return world.run(schedule.draw(seed)).digest


def checked(seed: int, coverage: Coverage) -> str:
    """What is wrong with the seed's run, its schedule made smaller; "" when nothing is."""
    planned = schedule.draw(seed)
    outcome = world.run(planned)
    coverage.add(outcome)
    return _told(planned, outcome) if outcome.problems else ""


def told_smaller(seed: int, kinds: Sequence[schedule.Kind] = schedule.TROUBLES) -> str:
    """Of a seed that fails."""
    planned = schedule.draw(seed, kinds)
    return _told(planned, world.run(planned))


def _told(planned: schedule.Schedule, outcome: parts.Outcome) -> str:
    until_s = time.monotonic() + SHRINK_S_MAX

    def fails(fewer: schedule.Schedule) -> bool:
        return time.monotonic() < until_s and bool(world.run(fewer).problems)

    fewest = schedule.smaller(planned, fails)
    problems = "\n".join(world.run(fewest).problems)[:TOLD_CHARACTERS_MAX]
    return (
        f"SIM_SEED={planned.setting.seed} fails: {outcome.problems[0][:500]}\n"
        f"made smaller, from {len(planned.events)} events to {len(fewest.events)}:\n{fewest}\n{problems}"
    )


def block(seeds: Sequence[int]) -> tuple[Coverage, list[str]]:
    """What was met, and what failed."""
    coverage = Coverage()
    found = [problems for seed in seeds if (problems := checked(seed, coverage))]
    return coverage, found


def processes() -> int:
    """One a core."""
    return os.cpu_count() or 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Seeded runs of whole fleets, each judged by the reference.")
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--processes", type=int, default=processes())
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--show", action="store_true", help="its schedule")
    parser.add_argument("--smaller", action="store_true", help="made smaller when it fails")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed, show=options.show, make_smaller=options.smaller)
    return _many(range(options.first, options.first + options.seeds), options.processes)


def _one(seed: int, *, show: bool, make_smaller: bool) -> int:
    planned = schedule.draw(seed)
    if show:
        print(planned)
    outcome = world.run(planned)
    print("\n".join(outcome.problems) or "nothing is wrong")
    print(f"{outcome.seconds:.0f} s of virtual time, digest {outcome.digest}\n{outcome.judgement}")
    if outcome.problems and make_smaller:
        print(_told(planned, outcome))
    return 1 if outcome.problems else 0


def _many(seeds: range, count: int) -> int:
    began = time.monotonic()
    coverage, failed = Coverage(), 0
    blocks = [seeds[first : first + BLOCK] for first in range(0, len(seeds), BLOCK)]
    with concurrent.futures.ProcessPoolExecutor(count, initializer=parent_death.end_with_parent) as pool:
        for part, found in pool.map(block, blocks):
            coverage.join(part)
            failed += len(found)
            for problems in found:
                print(problems, end="\n\n", flush=True)
            if coverage.runs % 500 < BLOCK:
                spent_s = time.monotonic() - began
                print(f"{coverage.runs} of {len(seeds)} seeds, {failed} failed, {spent_s:.0f} s", flush=True)
    print(coverage)
    print(f"{coverage.runs} seeds, {failed} failed, {time.monotonic() - began:.0f} s")
    if coverage.runs >= ENOUGH and coverage.missing():
        print(f"never met: {coverage.missing()}")
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
