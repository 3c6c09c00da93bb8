"""`fleet-twin bench engine`: decode, rules and durable commits in one process, beside decoding the same records alone.

The measured code is the worker's pipeline with the real store; only the two ends are the bench's own: a source that reads a tape and
a sink that acknowledges at once. The pipeline reads as if it were behind, so it commits as a worker does that catches up. What
the source spends on reading the tape is measured and left out. Each repetition runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import lmdb

from fleet_cli import loop, parent_death
from fleet_cli.bench import kernel
from fleet_cli.bench import tape as tapes
from fleet_model import partition, rules, spec
from fleet_worker import metrics, pipeline, ports, reading, surroundings
from fleet_worker.adapters import clock, kinesis_sink, lmdb_store
from fleet_worker.core import commits, deaggregate, decode, effects, records

Answer = TypeVar("Answer")

FLEET = spec.FleetSpec(
    namespace="default",
    name="bench",
    streams=spec.Streams(
        telemetry=spec.TelemetryStream(name="device-telemetry"),
        alerts=spec.EffectStream("device-alerts"),
        commands=spec.EffectStream("device-commands"),
    ),
)
STEPS = ("decode", "rules", "collect", "commit")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """tapes: folder. data: folder for LMDB, emptied before and after. batch: records an answer. cpu: the one to run on, None = any.
    twins_in_memory_max: 0 = no bound."""

    tapes: pathlib.Path
    data: pathlib.Path
    batch: int
    cpu: int | None
    twins_in_memory_max: int


class Meter:
    """CPU seconds by step, each counted in the thread that spends them."""

    def __init__(self) -> None:
        self.cpu_s = dict.fromkeys((*STEPS, "input"), 0.0)
        self.calls = dict.fromkeys(self.cpu_s, 0)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.thread_time()
        try:
            yield
        finally:
            self.cpu_s[name] += time.thread_time() - started
            self.calls[name] += 1

    def timed(self, name: str, function: Callable[..., Answer]) -> Callable[..., Answer]:
        def measured(*args: Any, **named: Any) -> Answer:
            with self.step(name):
                return function(*args, **named)

        return measured


class Gate:
    """Opens when every partition is restored and asks for its first records: there the measurement starts."""

    def __init__(self, partitions: int) -> None:
        self._missing = partitions
        self._open = asyncio.Event()
        self.wall = self.cpu = 0.0

    async def arrive(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self.wall, self.cpu = time.perf_counter(), time.process_time()
            self._open.set()
        await self._open.wait()


@dataclasses.dataclass(frozen=True, slots=True)
class Ends:
    """What the sources of a run share. batch: records an answer."""

    meter: Meter
    gate: Gate
    batch: int


class TapeSource:
    """ports.ShardSource over part of a tape, always behind until its last answer. on_end: what happens after that: the
    shard ends (None), or the function is called and no more comes."""

    def __init__(self, tape: tapes.Tape, part: range, ends: Ends, on_end: Callable[[], None] | None) -> None:
        self._tape = tape
        self._first, self._next, self._last = part.start, part.start, part.stop
        self._ends = ends
        self._on_end = on_end
        self._arrived = False

    @property
    def given(self) -> int:
        """Records so far."""
        return self._next - self._first

    async def read(self) -> records.ShardBatch:
        if not self._arrived:
            self._arrived = True
            await self._ends.gate.arrive()
        with self._ends.meter.step("input"):
            if self._next < self._last or self._on_end is None:
                return self._answer()
        self._on_end()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def _answer(self) -> records.ShardBatch:
        first, last = self._next, min(self._next + self._ends.batch, self._last)
        self._next = last
        batch = answer(self._tape, first, last)
        ended = last == self._last and self._on_end is None
        return dataclasses.replace(batch, millis_behind=0 if last == self._last else 60_000, shard_ended=ended)


def answer(tape: tapes.Tape, first: int, last: int) -> records.ShardBatch:
    """Records first to last (excluded) as a GetRecords answer brings them."""
    arrival_ms = tape.arrival_ms[first:last].copy()
    return records.ShardBatch(
        sequence_numbers=tape.sequence_numbers(first, last),
        arrival_ms=arrival_ms,
        data=tape.slice(first, last),
        millis_behind=0,
        poll_ms=int(arrival_ms[-1]) if len(arrival_ms) else 0,
    )


class AcknowledgingSink:
    """ports.EffectSink that has everything at once."""

    def __init__(self) -> None:
        self.published = 0

    async def publish(
        self, entries: Sequence[effects.OutboxEntry], may_go_on: Callable[[], bool] = ports.always
    ) -> kinesis_sink.Published:
        self.published += len(entries)
        return kinesis_sink.Published(acknowledged=[entry.number for entry in entries])


class MeteredStore(lmdb_store.LmdbTwinStore):
    """The real store; its commits are timed."""

    meter = Meter()

    def commit(self, commit: commits.Commit) -> None:
        with self.meter.step("commit"):
            super().commit(commit)


# ── one repetition, in a process of its own ──────────────────────────────────────────────────────────────────────────


def repetition(options: Options) -> dict[str, Any]:
    """The bound, then the engine: first each device's first record (not measured), then the rest of the tape."""
    if options.cpu is not None:
        kernel.pin(os.getpid(), {options.cpu})
    found = tapes.read(options.tapes)
    bound = measure_bound(found, options, usual_layout=False)
    own = measure_bound(found, options, usual_layout=True)
    shutil.rmtree(options.data, ignore_errors=True)
    try:
        loop.run(_run(found, options, measured=False))
        result = loop.run(_run(found, options, measured=True))
        result |= disk_use([options.data / tapes.shard_id(tape.number) for tape in found])
    finally:
        shutil.rmtree(options.data, ignore_errors=True)
    return (
        result
        | {f"bound_{name}": value for name, value in bound.items()}
        | {f"own_{name}": v for name, v in own.items()}
    )


def measure_bound(found: Sequence[tapes.Tape], options: Options, usual_layout: bool) -> dict[str, Any]:
    """The records that the engine will be measured with, decoded into columns in the same batches, nothing else.

    usual_layout False: by protobuf's own parser, the yardstick that doesn't move; True: as the engine decodes.
    """
    cpu_s = wall_s = 0.0
    count = 0
    for tape in found:
        high_arrival_ms = 0
        for first in range(tape.devices, len(tape), options.batch):
            batch = answer(tape, first, min(first + options.batch, len(tape)))
            wall, cpu = time.perf_counter(), time.thread_time()
            for part in deaggregate.chunks(batch):
                options_now = decode.Options(high_arrival_ms=high_arrival_ms, usual_layout=usual_layout)
                columns = decode.decode(part, options_now)
                high_arrival_ms = columns.high_arrival_ms
                count += len(columns)
            cpu_s += time.thread_time() - cpu
            wall_s += time.perf_counter() - wall
    return {"cpu_s": cpu_s, "wall_s": wall_s, "records": count}


async def _run(found: Sequence[tapes.Tape], options: Options, measured: bool) -> dict[str, Any]:
    sink, meter, settled = AcknowledgingSink(), Meter(), asyncio.Event()
    settled.set()
    MeteredStore.meter = meter
    ends = Ends(meter, Gate(len(found)), options.batch)
    with clock.RealClock() as real_clock, _replaced_decode(meter):
        # The gate holds every partition's first read until all have begun, so all need a place at once.
        places = reading.Places(max(reading.PLACES, len(found)))
        around = surroundings.Surroundings(
            real_clock, sink, metrics.Metrics(), FLEET, 86_400_000, settled, places=places
        )
        started_at = time.perf_counter()
        parts = [_Partition.open(around, tape, options.data, ends, measured) for tape in found]
        try:
            for part in parts:
                part.running.residency.rows_max = options.twins_in_memory_max // len(parts)
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part.running.run(part.stop))
            wall_s = time.perf_counter() - ends.gate.wall - meter.cpu_s["input"]
            cpu_s = time.process_time() - ends.gate.cpu - meter.cpu_s["input"]
            anonymous_bytes = kernel.anonymous_bytes(os.getpid())
            twins = sum(part.store.count() for part in parts)
        finally:
            for part in parts:
                part.store.close()
    return {
        "records": sum(len(tape) - tape.devices for tape in found),
        "twins": twins,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "restore_s": ends.gate.wall - started_at,
        "steps_cpu_s": {step: meter.cpu_s[step] for step in STEPS},
        "commits": meter.calls["commit"],
        "effects": sink.published,
        "anonymous_bytes": anonymous_bytes,
    }


@contextlib.contextmanager
def _replaced_decode(meter: Meter) -> Iterator[None]:
    """The pipeline's decode is a function of a module, so that is where it is timed."""
    original = decode.decode
    decode.decode = meter.timed("decode", original)
    try:
        yield
    finally:
        decode.decode = original


@dataclasses.dataclass(frozen=True, slots=True)
class _Partition:
    running: pipeline.PartitionPipeline
    store: lmdb_store.LmdbTwinStore
    stop: asyncio.Event

    @classmethod
    def open(
        cls, around: surroundings.Surroundings, tape: tapes.Tape, data: pathlib.Path, ends: Ends, measured: bool
    ) -> _Partition:
        shard_id = tapes.shard_id(tape.number)
        identity = partition.PartitionIdentity("default", "bench", "device-telemetry", shard_id, tape.hash_key_range)
        store = MeteredStore.open(data / shard_id, identity, around.fleet.storage, "bench")
        stop = asyncio.Event()
        part = range(tape.devices, len(tape)) if measured else range(tape.devices)
        source = TapeSource(tape, part, ends, None if measured else stop.set)
        running = pipeline.PartitionPipeline(around, identity, store, source, [rules.RulesGeneration()])
        twin_engine = running.engine
        for step, owner, name in (
            ("rules", twin_engine, "apply"),
            ("rules", twin_engine, "advance"),
            ("collect", twin_engine.table, "take_dirty"),
            ("collect", twin_engine.table, "committed"),
        ):
            setattr(owner, name, ends.meter.timed(step, getattr(owner, name)))
        return cls(running, store, stop)


def disk_use(folders: Sequence[pathlib.Path]) -> dict[str, int]:
    """live_bytes: LMDB's pages of the twins. file_bytes: what the files take on the disk, free pages included."""
    live = file = 0
    for folder in folders:
        path = folder / "environment"
        file += (path / "data.mdb").stat().st_blocks * 512
        with lmdb.open(str(path), readonly=True, max_dbs=8, lock=False) as environment, environment.begin() as view:
            stat = view.stat(environment.open_db(b"twins", txn=view, create=False))
            live += stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
    return {"live_bytes": live, "file_bytes": file}


# ── all repetitions, and what they say ───────────────────────────────────────────────────────────────────────────────


def measure(options: Options, repetitions: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """The best of each, bound and engine, so that a busy moment of the machine hits neither."""
    context = multiprocessing.get_context("spawn")
    done: list[dict[str, Any]] = []
    for number in range(repetitions):
        tell(f"measuring, {number + 1} of {repetitions}")
        with concurrent.futures.ProcessPoolExecutor(1, context, parent_death.end_with_parent) as process:
            done.append(process.submit(repetition, options).result())
    best = min(done, key=lambda result: result["cpu_s"])
    bound_cpu_s = min(result["bound_cpu_s"] for result in done)
    bound_wall_s = min(result["bound_wall_s"] for result in done)
    own_cpu_s = min(result["own_cpu_s"] for result in done)
    count, twins = best["records"], best["twins"]
    each_us = {step: best["steps_cpu_s"][step] / count * 1e6 for step in STEPS}
    each_us["rest"] = best["cpu_s"] / count * 1e6 - sum(each_us.values())
    assert best["bound_records"] == count
    return {
        "records": count,
        "twins": twins,
        "records_per_s": count / best["wall_s"],
        "records_per_cpu_s": count / best["cpu_s"],
        "bound_records_per_s": count / bound_wall_s,
        "bound_records_per_cpu_s": count / bound_cpu_s,
        "ratio": bound_cpu_s / best["cpu_s"],
        "ratio_by_wall": bound_wall_s / best["wall_s"],
        "own_decoder_records_per_cpu_s": count / own_cpu_s,
        "ratio_to_own_decoder": own_cpu_s / best["cpu_s"],
        "cpu_us_a_record": best["cpu_s"] / count * 1e6,
        "cpu_us_a_record_by_step": each_us,
        "commits": best["commits"],
        "effects": best["effects"],
        "restore_s": best["restore_s"],
        "disk_bytes_a_twin": best["live_bytes"] / twins,
        "file_bytes_a_twin": best["file_bytes"] / twins,
        "anonymous_bytes": best["anonymous_bytes"],
    }
