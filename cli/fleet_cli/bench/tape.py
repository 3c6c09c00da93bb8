"""The input of the benchmarks, made before anything is measured: a simulated fleet's telemetry, one tape a partition.

A tape lies in files, so that reading it costs the measured process neither the simulator's CPU nor its memory. Each device speaks
once an interval, and the order within each interval is shuffled anew, as a real stream's is: no batch meets the twins in an order
that some cache would like. This module measures nothing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fleet_cli import parent_death
from fleet_cli.simulator import devices, encoding, faults
from fleet_model import hashing, partition

FAULTS = faults.Shares(hot=0.01, drain=0.005)
"""A few alerts, as a healthy fleet has them. Nobody is silent: the length of a benchmark decides how many would be found."""
ARRIVAL_DELAY_MS = 80
"""From a device's sample to its arrival in Kinesis."""
CHUNK_DEVICES = 50_000
SEQUENCE_BASE = 49_600_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000
"""Sequence numbers have 56 digits, as Kinesis' have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to make. records: over all partitions; the first `devices` of them are each device's first. interval_s: of a device's
    samples. start_ms: arrival of the first record."""

    devices: int
    records: int
    partitions: int
    start_ms: int
    interval_s: float = 10.0
    seed: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Tape:
    """One partition's records in order. devices: how many it has; its first so many records are each one's first.
    data: the records' bytes, joined. ends: (n,) int64, where each ends in data. arrival_ms: (n,) int64, rising. All three
    are mapped files."""

    number: int
    devices: int
    hash_key_range: hashing.HashKeyRange
    data: NDArray[np.uint8]
    ends: NDArray[np.int64]
    arrival_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def slice(self, first: int, last: int) -> list[bytes]:
        """The bytes of records first to last (excluded)."""
        start = int(self.ends[first - 1]) if first else 0
        joined = self.data[start : int(self.ends[last - 1])].tobytes()
        borders = (self.ends[first:last] - start).tolist()
        return [joined[begin:end] for begin, end in zip([0, *borders], borders, strict=False)]

    def sequence_numbers(self, first: int, last: int) -> list[str]:
        return list(map(str, range(SEQUENCE_BASE + first, SEQUENCE_BASE + last)))


def ranges(partitions: int) -> list[hashing.HashKeyRange]:
    """The hash space cut evenly, as CreateStream does it."""
    cuts = [2**128 * number // partitions for number in range(partitions + 1)]
    return [hashing.HashKeyRange(low, high - 1) for low, high in itertools.pairwise(cuts)]


def shard_id(number: int) -> str:
    return f"shardId-{number:012d}"


def shards(tapes: list[Tape]) -> list[partition.Shard]:
    return [partition.Shard(shard_id(tape.number), tape.hash_key_range) for tape in tapes]


def make(plan: Plan, folder: pathlib.Path, tell: Callable[[int], None]) -> list[Tape]:
    """Makes the tapes in another process, telling how many records there are so far, and opens them."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, parent_death.end_with_parent) as process:
        making = process.submit(_make, plan, folder)
        while not making.done():
            concurrent.futures.wait([making], timeout=0.2)
            tell(sum(path.stat().st_size for path in folder.glob("*.arrival")) // 8)
        making.result()
    return read(folder)


def read(folder: pathlib.Path) -> list[Tape]:
    """The tapes in a folder."""
    described = json.loads((folder / "tapes.json").read_text())
    return [
        Tape(
            number=number,
            devices=described["devices"][number],
            hash_key_range=hash_key_range,
            data=_mapped(folder / f"{number}.data", "u1"),
            ends=_mapped(folder / f"{number}.ends", "i8"),
            arrival_ms=_mapped(folder / f"{number}.arrival", "i8"),
        )
        for number, hash_key_range in enumerate(ranges(described["partitions"]))
    ]


def _mapped(path: pathlib.Path, dtype: str) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)


def _make(plan: Plan, folder: pathlib.Path) -> None:
    generator = np.random.default_rng(plan.seed)
    settings = devices.Settings(plan.devices, plan.interval_s, plan.seed, shares=FAULTS)
    fleet = devices.Fleet(settings, devices.Limits.same(plan.devices))
    digests = b"".join(map(hashing.digest, fleet.ids))
    highest = np.frombuffer(digests, dtype=">u4")[::4].astype(np.int64)
    owner = highest * plan.partitions >> 32
    files = [_Files(folder, number) for number in range(plan.partitions)]
    made, interval = 0, 0
    while made < plan.records:
        count = min(plan.devices, plan.records - made)
        order = generator.permutation(plan.devices)[:count]
        at_s = (interval + np.arange(count) / plan.devices) * plan.interval_s
        for first in range(0, count, CHUNK_DEVICES):
            chunk = slice(first, first + CHUNK_DEVICES)
            samples = fleet.measure(order[chunk], at_s[chunk], generator)
            records = encoding.records(fleet, samples, plan.start_ms, generator)
            assert len(records) == len(samples)
            arrival_ms = plan.start_ms + ARRIVAL_DELAY_MS + (samples.at_s * 1000).astype(np.int64)
            owners = owner[samples.index]
            for number, file in enumerate(files):
                rows = np.flatnonzero(owners == number)
                file.add([records[row][1] for row in rows.tolist()], arrival_ms[rows])
        made, interval = made + count, interval + 1
    for file in files:
        file.close()
    described = {"partitions": plan.partitions, "devices": np.bincount(owner, minlength=plan.partitions).tolist()}
    (folder / "tapes.json").write_text(json.dumps(described))


class _Files:
    """A tape being written."""

    def __init__(self, folder: pathlib.Path, number: int) -> None:
        self._end = 0
        self._data: BinaryIO = (folder / f"{number}.data").open("wb")
        self._ends: BinaryIO = (folder / f"{number}.ends").open("wb")
        self._arrival: BinaryIO = (folder / f"{number}.arrival").open("wb")

    def add(self, records: list[bytes], arrival_ms: NDArray[np.int64]) -> None:
        ends = self._end + np.cumsum(np.fromiter(map(len, records), dtype=np.int64, count=len(records)))
        self._end = int(ends[-1]) if len(ends) else self._end
        self._data.write(b"".join(records))
        self._ends.write(ends.tobytes())
        self._arrival.write(arrival_ms.tobytes())

    def close(self) -> None:
        for file in (self._data, self._ends, self._arrival):
            file.close()
