"""`fleet-twin bench checkpoint`: what a checkpoint costs, what it weighs, how fast it comes back, and what the records beside it notice.

Everything is the worker's own code, with the real store; the object store is in memory, so what a network takes isn't in the figures. The
measurement runs in a process of its own, and twins come from the simulator's records by way of the pipeline.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fleet_cli import loop, parent_death
from fleet_cli.bench import engine, kernel
from fleet_cli.bench import tape as tapes
from fleet_model import manifest, partition, rules, spec
from fleet_worker import checkpointing, custody, metrics, pipeline, reading, restoring, surroundings
from fleet_worker.adapters import clock, lmdb_codec, lmdb_snapshot, lmdb_store, memory_objects
from fleet_worker.core import checkpoint_format

CHANGED_SHARE = 0.1
"""Of the devices that speak between a base and the delta that is measured."""
TRIES = 3
"""The best of them counts, so that a busy moment of the machine doesn't."""
QUIET_SHARE = 0.4
"""Of the records beside which no checkpoint is taken; the first part of them warms up."""
WARM_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """tapes: folder of one tape: each device's first record, its second, a tenth of the devices' third, and what is measured with. data:
    folder for LMDB, emptied before and after. cpu: the one to run on, None = any."""

    tapes: pathlib.Path
    data: pathlib.Path
    cpu: int | None


def records_needed(devices: int, beside: int) -> int:
    """How long the tape has to be; beside: records with which the hot path is measured."""
    return 2 * devices + int(CHANGED_SHARE * devices) + beside


def measure(options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    tell("measuring the checkpoint, the restore, and the records beside")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, parent_death.end_with_parent) as process:
        return process.submit(_measured, options).result()


def _measured(options: Options) -> dict[str, Any]:
    if options.cpu is not None:
        kernel.pin(os.getpid(), {options.cpu})
    (tape,) = tapes.read(options.tapes)
    shutil.rmtree(options.data, ignore_errors=True)
    try:
        return loop.run(_Bench(tape, options.data).run())
    finally:
        shutil.rmtree(options.data, ignore_errors=True)


class _Bench:
    def __init__(self, tape: tapes.Tape, data: pathlib.Path) -> None:
        self._tape = tape
        self._data = data
        shard_id = tapes.shard_id(tape.number)
        self._identity = partition.PartitionIdentity(
            "default", "bench", "device-telemetry", shard_id, tape.hash_key_range
        )

    async def run(self) -> dict[str, Any]:
        tape = self._tape
        changed = int(CHANGED_SHARE * tape.devices)
        with clock.RealClock() as self._clock:
            bucket = memory_objects.Bucket(self._clock)
            self._objects = memory_objects.MemoryObjects(bucket, self._clock)
            self._custody = custody.Custody(
                custody.Manifests(self._objects), self._identity, (), "bench", "0" * 16, self._clock, 1e9
            )
            await self._custody.claim(1)
            await self._fed(range(2 * tape.devices))
            result = await self._base()
            result |= await self._restored()
            await self._fed(range(2 * tape.devices, 2 * tape.devices + changed))
            result |= await self._delta()
            result |= await self._beside(range(2 * tape.devices + changed, len(tape)))
        return result

    # ── one after the other ──────────────────────────────────────────────────────────────────────────────────────

    async def _base(self) -> dict[str, Any]:
        checkpoint_format.warm_up()
        store = self._opened("twins")
        live_bytes = store.figures()[0]
        before = kernel.anonymous_bytes(os.getpid())
        tries = []
        for _ in range(TRIES):
            wall, cpu = time.perf_counter(), time.process_time()
            base = await self._new_checkpointer(store).take(final=True)
            tries.append((time.process_time() - cpu, time.perf_counter() - wall))
            await self._custody.resume()
        cpu_s, wall_s = min(tries)
        grown = kernel.anonymous_bytes(os.getpid()) - before
        twins, size = store.count(), sum(part.size for part in base.parts)
        store.close()
        return {
            "twins": twins,
            "base_cpu_s": cpu_s,
            "base_wall_s": wall_s,
            "base_cpu_s_a_million": cpu_s / twins * 1e6,
            "base_bytes": size,
            "base_bytes_a_million": size / twins * 1e6,
            "base_files": len(base.parts),
            "base_memory_bytes": max(grown, 0),
            "stored_bytes": live_bytes,
        }

    async def _restored(self) -> dict[str, Any]:
        store = self._opened("copy")
        tries = []
        for _ in range(TRIES):
            wall, cpu = time.perf_counter(), time.process_time()
            await restoring.restore(self._objects, self._custody.manifest, store, self._clock)
            tries.append((time.process_time() - cpu, time.perf_counter() - wall))
        count = store.count()
        store.close()
        cpu_s, wall_s = min(tries)
        return {"restored_twins_per_s": count / wall_s, "restored_twins_per_cpu_s": count / cpu_s}

    async def _delta(self) -> dict[str, Any]:
        store = self._opened("twins")
        before = self._custody.manifest.checkpoint
        assert before is not None
        changed, stored_bytes = _changed(store, before.commit_number)
        cpu = time.process_time()
        taken = await self._new_checkpointer(store, before).take(final=True)
        cpu_s = time.process_time() - cpu
        await self._custody.resume()
        store.close()
        parts = [part for part in taken.parts if part not in before.parts]
        assert all(part.kind is manifest.Kind.DELTA for part in parts), parts
        assert sum(part.rows for part in parts) == changed, f"{parts} for {changed} rows"
        size = sum(part.size for part in parts)
        return {
            "delta_rows": changed,
            "delta_bytes": size,
            "delta_stored_bytes": stored_bytes,
            "delta_ratio": size / stored_bytes,
            "delta_cpu_s": cpu_s,
        }

    # ── beside the records ───────────────────────────────────────────────────────────────────────────────────────

    async def _beside(self, part: range) -> dict[str, Any]:
        """Records/s of a pipeline that is behind, first alone and then with one base after the other being taken."""
        counted: list[tuple[float, int]] = []
        takes: list[float] = []
        shares: list[float] = []

        async def follow(source: engine.TapeSource, store: lmdb_store.LmdbTwinStore) -> None:
            async def reached(share: float) -> None:
                while source.given < share * len(part):
                    await self._clock.sleep(0.01)
                counted.append((time.perf_counter(), source.given))

            await reached(WARM_SHARE)
            await reached(QUIET_SHARE)
            file_bytes = store.figures()[1]
            while source.given < len(part):
                pace = checkpointing.Pace(lambda: True)
                checkpointer = checkpointing.Checkpointer(
                    self._objects, store, self._custody, self._clock, self._metrics, pace
                )
                began = time.perf_counter()
                taking = asyncio.create_task(checkpointer.take())
                while not taking.done() and source.given < len(part):
                    await asyncio.wait((taking,), timeout=0.05)
                counted.append((time.perf_counter(), source.given))
                if not taking.done():
                    taking.cancel()
                    await asyncio.wait((taking,))
                else:
                    taking.result()
                    takes.append(time.perf_counter() - began)
            shares.append(store.figures()[1] - file_bytes)

        await self._fed(part, follow)
        (warm_s, warm), (quiet_s, quiet), (last_s, last) = counted[0], counted[1], counted[-1]
        alone, beside = (quiet - warm) / (quiet_s - warm_s), (last - quiet) / (last_s - quiet_s)
        return {
            "records_per_s_alone": alone,
            "records_per_s_beside": beside,
            "kept": beside / alone,
            "beside_takes": len(takes),
            "beside_take_s": float(np.mean(takes)) if takes else None,
            "beside_file_growth_bytes": shares[0],
        }

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _fed(self, part: range, follow: Callable[..., Any] | None = None) -> None:
        """Runs a part of the tape through the pipeline into the store."""
        sink, settled, stop = engine.AcknowledgingSink(), asyncio.Event(), asyncio.Event()
        settled.set()
        around = surroundings.Surroundings(
            self._clock,
            sink,
            metrics.Metrics(),
            engine.FLEET,
            86_400_000,
            settled,
            places=reading.Places(reading.PLACES),
        )
        self._metrics = around.metrics
        store = self._opened("twins")
        ends = engine.Ends(engine.Meter(), engine.Gate(1), 10_000)
        source = engine.TapeSource(self._tape, part, ends, lambda: None)
        running = pipeline.PartitionPipeline(around, self._identity, store, source, [rules.RulesGeneration()])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(running.run(stop))
                group.create_task(self._stopped_after(len(part), stop))
                if follow is not None:
                    group.create_task(follow(source, store))
        finally:
            store.close()

    async def _stopped_after(self, records: int, stop: asyncio.Event) -> None:
        applied = self._metrics.partition(self._identity.shard_id).records
        while next(iter(applied.collect())).samples[0].value < records:
            await self._clock.sleep(0.05)
        stop.set()

    def _opened(self, name: str) -> lmdb_store.LmdbTwinStore:
        return lmdb_store.LmdbTwinStore.open(self._data / name, self._identity, spec.Storage(), "bench")

    def _new_checkpointer(
        self, store: lmdb_store.LmdbTwinStore, continues: manifest.Checkpoint | None = None
    ) -> checkpointing.Checkpointer:
        return checkpointing.Checkpointer(
            self._objects, store, self._custody, self._clock, metrics.Metrics(), continues=continues
        )


def _changed(store: lmdb_store.LmdbTwinStore, since: int) -> tuple[int, int]:
    """Twins above that commit number, and the bytes of their keys and values in LMDB."""
    count = size = 0
    with store.snapshot() as snapshot:
        start = b""
        while pairs := snapshot.pairs(start, lmdb_snapshot.WHOLE_RANGE):
            start = pairs[-1][0] + b"\0"
            is_changed = lmdb_codec.twin_rows(pairs).rows["commit"] > since
            for at in np.flatnonzero(is_changed).tolist():
                count += 1
                size += len(pairs[at][0]) + len(pairs[at][1])
    return count, size
