"""`fleet-twin bench move`: partitions that change hands while records come, watched at the Kinesis endpoint.

    planned:   the second worker is to leave, and to come back, over and over: every partition that it has moves, each time
    takeover:  the second worker dies with its disk; once without warm standbys, once with
    restart:   a worker is killed and started again on the same disk

What happens is read at the endpoint (`handing`) and from the control folder, never asked of the workers.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

from fleet_cli.bench import handing, pair, replay
from fleet_cli.bench import tape as tapes

MOVED_S_MAX = 300.0
BEFORE_S = 20.0
"""Of undisturbed running, to compare with."""
AFTER_S = 3.0


def seconds_needed(moves: int, at_once: int, interval_s: int) -> float:
    """How long it may take, with time to spare."""
    return 240.0 + 2 * interval_s + moves * 8.0 / at_once


async def measure(
    options: pair.Options, found: list[tapes.Tape], interval_s: float, tell: Callable[[str], None]
) -> list[tuple[str, dict[str, Any]]]:
    """(phase, figures) one after another. interval_s: of a device's samples in the tapes."""
    async with pair.running(options, tell) as bench:
        shards = len(found)
        first_ms = min(int(tape.arrival_ms[0]) for tape in found)
        await bench.ask(f"begin?shift_ms={_now_ms() - first_ms - int(interval_s * 1000)}")
        for name in (pair.FIRST, pair.SECOND):
            bench.crew.start(name)
        await bench.until("starting", lambda known: pair.spread(known, shards))
        await bench.until(
            "waiting for a checkpoint of every partition",
            lambda known: all(entry.status.checkpoint is not None for entry in known.values()),
            2 * options.interval_s + pair.READY_S_MAX,
        )
        await bench.caught_up()
        results = [("planned", await _planned(bench, options, shards))]
        results.append(("takeover", await _takeover(bench, shards, standbys=0)))
        results.append(("takeover-warm", await _takeover(bench, shards, standbys=1)))
        results.append(("restart", await _restart(bench, shards)))
        told = await bench.ask("report")
        if told["available"] == sum(map(len, found)):
            raise replay.BenchError("The input ended before the measurement: ask for a longer one")
        return results


# ── phases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _planned(bench: pair.Bench, options: pair.Options, shards: int) -> dict[str, Any]:
    """Moves of everything that the second worker has, there and back."""
    bench.tell("measuring without moves")
    before = await bench.ask("mark")
    await asyncio.sleep(BEFORE_S)
    undisturbed = await bench.ask("report")
    begun_ms = undisturbed["at_ms"]
    latency_before = replay.latencies(undisturbed["latency_ms"])
    reads_before = await bench.ask("reads")
    await bench.ask("mark")
    moved = 0
    while moved < options.moves:
        movers = {shard_id for shard_id, entry in bench.crew.partitions().items() if entry.spec.worker == pair.SECOND}
        bench.crew.leaving.add(pair.SECOND)
        await bench.until(
            f"moving: {moved} of {options.moves} done", lambda known: pair.all_at(known, pair.FIRST), MOVED_S_MAX
        )
        bench.crew.leaving.discard(pair.SECOND)
        await bench.until(
            f"moving: {moved + len(movers)} of {options.moves} done",
            lambda known: pair.spread(known, shards),
            MOVED_S_MAX,
        )
        moved += 2 * len(movers)
    await asyncio.sleep(AFTER_S)
    ended = await bench.ask("report")
    seen = await bench.ask("reads")
    changes = handing.changes(seen["reads"], seen["begun"], begun_ms)
    pauses = sorted(change.pause_ms for change in changes)
    span_before, span = (before["at_ms"], begun_ms), (begun_ms, ended["at_ms"])
    gaps_before = handing.gaps_ms(reads_before["reads"], span_before)
    latency = replay.latencies(ended["latency_ms"])
    return {
        "moves": len(changes),
        "seconds": (span[1] - span[0]) / 1000,
        "pause_p50_ms": handing.percentile(pauses, 50),
        "pause_p99_ms": handing.percentile(pauses, 99),
        "pause_max_ms": max(pauses, default=None),
        "between_reads_p50_ms_before": handing.percentile(gaps_before, 50),
        "between_reads_p99_ms_before": handing.percentile(gaps_before, 99),
        "others_between_reads_p99_ms": handing.percentile(handing.gaps_ms(seen["reads"], span, changes), 99),
        "others_lost": handing.others_lost(seen["reads"], span, changes),
        "others_lost_before": handing.others_lost(reads_before["reads"], span_before, ()),
        "records_twice": sum(change.again for change in changes),
        "records_per_s_before": (undisturbed["served"] - before["served"]) * 1000 / (begun_ms - before["at_ms"]),
        "records_per_s": (ended["served"] - undisturbed["served"]) * 1000 / (ended["at_ms"] - begun_ms),
        "alert_latency_p99_ms_before": latency_before["alert_latency_p99_ms"],
        "alert_latency_p50_ms": latency["alert_latency_p50_ms"],
        "alert_latency_p99_ms": latency["alert_latency_p99_ms"],
        "alerts": latency["alerts"],
    }


async def _takeover(bench: pair.Bench, shards: int, standbys: int) -> dict[str, Any]:
    """The second worker dies with its disk, and comes back with an empty one only when all is taken over."""
    bench.crew.want_standbys(standbys)
    wanted = functools.partial(pair.is_warm, shards=shards, standbys=standbys)
    await bench.until("waiting until all is well" + " and warm" * bool(standbys), wanted, MOVED_S_MAX)
    await bench.caught_up()
    lost = {shard_id for shard_id, entry in bench.crew.partitions().items() if entry.spec.worker == pair.SECOND}
    await bench.ask("mark")
    killed_ms = _now_ms()
    bench.crew.kill(pair.SECOND)
    bench.crew.remove_disk(pair.SECOND)
    known = await bench.until("taking over", lambda known: pair.all_at(known, pair.FIRST), MOVED_S_MAX)
    granted = {shard_id: known[shard_id].spec.assigned_ms for shard_id in lost}
    seen = await bench.ask("reads")
    first = handing.first_reads(seen["reads"], seen["begun"], killed_ms)
    waits = sorted(first[shard_id] - granted[shard_id] for shard_id in lost & first.keys())
    await bench.caught_up()
    caught_up_ms = _now_ms()
    bench.crew.want_standbys(0)
    bench.crew.start(pair.SECOND)
    await bench.until("coming back", lambda known: pair.spread(known, shards), MOVED_S_MAX)
    return {
        "partitions": len(waits),
        "granted_after_ms": max(granted.values(), default=killed_ms) - killed_ms,
        "first_record_p50_ms": handing.percentile(waits, 50),
        "first_record_max_ms": max(waits, default=None),
        "caught_up_after_grant_ms": caught_up_ms - min(granted.values(), default=killed_ms),
    }


async def _restart(bench: pair.Bench, shards: int) -> dict[str, Any]:
    """kill -9 and started at once on the same disk, then the same after SIGTERM."""
    result: dict[str, Any] = {}
    for how in ("killed", "stopped"):
        await bench.until("waiting until all is well", lambda known: pair.spread(known, shards), MOVED_S_MAX)
        await bench.caught_up()
        own = {shard_id for shard_id, entry in bench.crew.partitions().items() if entry.spec.worker == pair.SECOND}
        if how == "killed":
            bench.crew.kill(pair.SECOND)
        else:
            result["stop_s"] = await asyncio.to_thread(bench.crew.children.pop(pair.SECOND).stop)
        await bench.ask("mark")
        started_ms = _now_ms()
        bench.crew.start(pair.SECOND)
        deadline = time.monotonic() + pair.READY_S_MAX
        bench.tell("restarting")
        first: dict[str, int] = {}
        while not own <= first.keys():
            if time.monotonic() > deadline:
                raise replay.BenchError(
                    f"{sorted(own - first.keys())} isn't read {pair.READY_S_MAX:.0f} s after a restart"
                )
            await asyncio.sleep(pair.LOOK_S)
            seen = await bench.ask("reads")
            first = handing.first_reads(seen["reads"], seen["begun"], started_ms)
        waits = sorted(first[shard_id] - started_ms for shard_id in own)
        result |= {f"{how}_first_record_ms": waits[0], f"{how}_last_partition_ms": waits[-1]}
    return result


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
