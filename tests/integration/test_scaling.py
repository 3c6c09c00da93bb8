"""Two workers become four and one, while processes are killed, paused and robbed of their disks: afterwards twins and effects equal the
reference's.

SCALE_RUNS=20 pytest tests/integration/test_scaling.py      more of them
SEED=17 pytest tests/integration/test_scaling.py            one that failed, again
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_worker import errors
from tests.support import (
    catching_up,
    go_toolchain,
    go_tools,
    live_judge,
    moto_server,
    proxy,
    scaling,
    scaling_judge,
    scaling_loop,
    shared_fleet,
    streams,
    versitygw,
)

RUNS = int(os.environ.get("SCALE_RUNS", "5"))
SEED = os.environ.get("SEED")
AT_ONCE = 2
"""Runs mostly wait, but a worker's start costs a second of a core, and there are a dozen in a run."""
RUN_S_MAX = 480.0
TOTAL_S_MAX = go_tools.BUILD_S_MAX + max(900, RUNS * 150)
OFFLINE_SHORTEST_MS = 10_000

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.mark.timeout(TOTAL_S_MAX)
async def test_scaled_and_killed_workers_leave_twins_and_effects_as_the_reference(
    tmp_path: Path, kinesis_url: str, kinesis: streams.Streams, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = [int(SEED)] if SEED else list(range(1, RUNS + 1))
    began = time.monotonic()
    failures: list[str] = []
    totals = live_judge.Judgement()
    events: dict[str, int] = {}
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int, store_url: str) -> None:
        async with gate:
            run_began = time.monotonic()
            happened: list[str] = []
            try:
                async with asyncio.timeout(RUN_S_MAX):
                    judgement = await scaled(
                        seed, tmp_path / f"seed-{seed}", kinesis, (kinesis_url, store_url), happened
                    )
            except (AssertionError, TimeoutError, errors.FleetTwinError, ExceptionGroup) as error:
                failures.append(f"SEED={seed}: {', '.join(happened)}: {told(error)}")
                return
            took = f"{time.monotonic() - run_began:.1f} s"
            with capsys.disabled():
                print(f"\nSEED={seed}: {', '.join(happened)}; {judgement}; {took}", end="")
            for event in happened:
                kind = event.rpartition(", ")[2] if ", " in event else event.split()[0]
                events[kind] = events.get(kind, 0) + 1
            totals.add(judgement)
            if judgement.problems:
                words = "\n".join(judgement.problems[:30])
                failures.append(f"SEED={seed}, {', '.join(happened)} (see {tmp_path}/seed-{seed}):\n{words}")

    with object_store() as store_url:
        await shared_fleet.make_bucket(store_url)
        await asyncio.gather(*(one(seed, store_url) for seed in seeds))
    with capsys.disabled():
        print(f"\n{len(seeds)} runs in {time.monotonic() - began:.0f} s, {events}: {totals}")
    assert not failures, f"{len(failures)} of {len(seeds)} runs failed\n" + "\n\n".join(failures)
    if len(seeds) >= 5:
        assert totals.effects > 20 * len(seeds), "hardly anything happened in these runs"


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """versitygw; where it can't be built, moto's server, which does for one owner at a time."""
    try:
        versitygw.installed()
    except go_toolchain.NoGoError:
        with moto_server.running() as url:
            yield url
        return
    with versitygw.running() as url:
        yield url


def told(error: BaseException) -> str:
    """An error with those that it groups."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(told, error.exceptions))
    return f"{type(error).__name__}: {error}"


async def scaled(
    seed: int, folder: Path, kinesis: streams.Streams, urls: tuple[str, str], happened: list[str]
) -> live_judge.Judgement:
    """urls: of Kinesis and of the object store. Every other run goes through a proxy that delays and fails puts."""
    url, store_url = urls
    async with contextlib.AsyncExitStack() as stack:
        faults = await stack.enter_async_context(proxy.FaultProxy(url)) if seed % 2 else None
        endpoint = faults.endpoint_url if faults is not None else url
        shared = await stack.enter_async_context(shared_fleet.made(folder, kinesis, endpoint, store_url, shards=4))
        crew = scaling.Crew(shared, stack)
        run = scaling.Run(seed, shared, crew, faults)
        run.happened = happened
        loop = asyncio.create_task(
            scaling_loop.run(shared.fleet.path, shared.control, url, crew.is_leaving, scaling.SILENT_AFTER_MS)
        )
        try:
            work = asyncio.create_task(run.go())
            await asyncio.wait((work, loop), return_when=asyncio.FIRST_COMPLETED)
            if loop.done():
                work.cancel()
                await asyncio.wait((work,))
                loop.result()
            work.result()
            last = crew.workers[scaling.LAST]
            await catching_up.caught_up(shared.fleet, last)
            await run.settled()
            before = await scaling_judge.asked(shared, last, scaling.LAST, run.devices)
            stop_s = await last.stop()
        finally:
            loop.cancel()
            await asyncio.wait((loop,))
        judgement = await scaling_judge.judged(shared, scaling.LAST, before)
        if stop_s > scaling.STOP_S_MAX:
            judgement.problems.append(f"took {stop_s:.1f} s to stop")
        return judgement
