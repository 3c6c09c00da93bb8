"""kill -9 at random moments, edits of the rules among them: afterwards twins and effects equal the reference's.

KILL_RUNS=200 pytest tests/integration/test_kill.py      more of them
SEED=17 pytest tests/integration/test_kill.py            one that failed, again
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import pytest

from tests.support import killing, live_fleet, live_judge, proxy, streams

RUNS = int(os.environ.get("KILL_RUNS", "50"))
SEED = os.environ.get("SEED")
AT_ONCE = 3
"""Runs mostly wait: for starts, ticks and polls."""
RUN_S_MAX = 240.0
TOTAL_S_MAX = max(600, RUNS * 40)

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.mark.timeout(TOTAL_S_MAX)
async def test_killed_workers_leave_twins_and_effects_as_the_reference(
    tmp_path: Path, kinesis_url: str, kinesis: streams.Streams, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = [int(SEED)] if SEED else list(range(1, RUNS + 1))
    began = time.monotonic()
    failures: list[str] = []
    totals = live_judge.Judgement()
    kills: dict[str, int] = {}
    watched: list[int] = []
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> None:
        async with gate:
            run_began = time.monotonic()
            try:
                async with asyncio.timeout(RUN_S_MAX):
                    run, judgement = await killed(seed, tmp_path / f"seed-{seed}", kinesis_url, kinesis)
            except (AssertionError, TimeoutError) as error:
                failures.append(f"SEED={seed}: {type(error).__name__}: {error}")
                return
            took = f"{time.monotonic() - run_began:.1f} s, stopped in {run.stop_s:.1f} s"
            with capsys.disabled():
                print(f"\nSEED={seed}: killed at {', '.join(run.killed)}; {judgement}; {took}", end="")
            for trigger in run.killed:
                kills[trigger] = kills.get(trigger, 0) + 1
            totals.add(judgement)
            watched.append(run.watched)
            if judgement.problems:
                told = "\n".join(judgement.problems[:30])
                failures.append(f"SEED={seed}, killed at {', '.join(run.killed)} (see {tmp_path}/seed-{seed}):\n{told}")
            if run.stop_s > killing.STOP_S_MAX:
                failures.append(f"SEED={seed}: took {run.stop_s:.1f} s to stop")

    await asyncio.gather(*map(one, seeds))
    with capsys.disabled():
        print(f"\n{len(seeds)} runs in {time.monotonic() - began:.0f} s, {sum(kills.values())} kills {kills}: {totals}")
    assert not failures, f"{len(failures)} of {len(seeds)} runs failed\n" + "\n\n".join(failures)
    if len(seeds) >= 10:
        assert totals.effects > 20 * len(seeds), "hardly anything happened in these runs"
        assert totals.generations > len(seeds), "no edit took effect in these runs"
        assert sum(watched) > len(seeds), "hardly any alert went through the proxies"


async def killed(
    seed: int, folder: Path, url: str, kinesis: streams.Streams
) -> tuple[killing.Run, live_judge.Judgement]:
    """Every other run goes through a proxy that delays and fails puts."""
    async with contextlib.AsyncExitStack() as stack:
        faults = await stack.enter_async_context(proxy.FaultProxy(url)) if seed % 2 else None
        endpoint = faults.endpoint_url if faults is not None else url
        fleet = await stack.enter_async_context(live_fleet.made(folder, kinesis, endpoint, shards=2 + seed % 2))
        run = killing.Run(seed, fleet, faults)
        return run, await run.go()
