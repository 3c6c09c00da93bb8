"""A partition for tests of what looks at partitions: a real engine, fed by records, and a real store when it is bounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fleet_model import hashing, partition, rules, spec
from fleet_proto import fleet_pb2
from fleet_worker.adapters import lmdb_store
from fleet_worker.api import directory
from fleet_worker.core import commits, decode, effects, engine, lifecycle, records

START_MS = 1_700_000_000_000
NAMESPACE, FLEET, STREAM = "default", "trucks", "telemetry"


@dataclasses.dataclass(slots=True)
class Reading:
    """One telemetry record; what isn't said is unremarkable."""

    device_id: str
    at_ms: int = START_MS
    temperature_c: float = 20.0
    battery_pct: float = 80.0
    cpu_load: float = 0.5
    firmware: str = "1.0"

    def message(self) -> fleet_pb2.Telemetry:
        return fleet_pb2.Telemetry(
            device_id=self.device_id,
            timestamp=self.at_ms,
            temperature_c=self.temperature_c,
            battery_pct=self.battery_pct,
            cpu_load=self.cpu_load,
            location="52.5,13.4",
            firmware=self.firmware,
        )


class SeenPartition:
    """directory.PartitionView. Tests set phase, epoch, message, lag_ms, outbox and letters at will."""

    def __init__(
        self,
        shard_id: str = "shardId-000000000000",
        key_range: hashing.HashKeyRange | None = None,
        generations: Sequence[rules.RulesGeneration] = (rules.RulesGeneration(),),
    ) -> None:
        self.identity = partition.PartitionIdentity(
            NAMESPACE, FLEET, STREAM, shard_id, key_range or hashing.HashKeyRange()
        )
        self.phase = lifecycle.Phase.RUNNING.value
        self.message = ""
        self.epoch = 3
        self.lag_ms: int | None = 0
        self.outbox = directory.Outbox(0, None)
        self.letters: list[records.DeadLetter] = []
        self.state = commits.PartitionState()
        self.engine = engine.TwinEngine(engine.Settings(self.identity), generations)
        self.store: lmdb_store.LmdbTwinStore | None = None
        self._sequence = 49_590_338_271_490_256_608_559_692_538

    def feed(self, *messages: Reading | fleet_pb2.Telemetry) -> list[effects.Effect]:
        """Applies records in order. A control record arrives at its issue time."""
        data, arrivals, numbers = [], [], []
        for entry in messages:
            message = entry.message() if isinstance(entry, Reading) else entry
            self._sequence += 1
            data.append(message.SerializeToString())
            arrivals.append(message.control.issued_ms if message.HasField("control") else message.timestamp)
            numbers.append(str(self._sequence))
        batch = records.ShardBatch(numbers, np.array(arrivals, dtype=np.int64), data, 0, arrivals[-1])
        options = decode.Options(
            high_arrival_ms=self.state.high_arrival_ms, with_firmware=self.engine.table.firmware is not None
        )
        columns = decode.decode(batch, options)
        caused = self.engine.apply(columns)
        self.state = dataclasses.replace(
            self.state,
            position=columns.position or self.state.position,
            high_arrival_ms=columns.high_arrival_ms,
            clock_ms=max(self.state.clock_ms, columns.high_arrival_ms),
        )
        return caused

    def advance(self, clock_ms: int) -> list[effects.Effect]:
        self.state = dataclasses.replace(self.state, clock_ms=clock_ms)
        return self.engine.advance(clock_ms)

    def commit(self, folder: Path, leaving: Sequence[str] = ()) -> None:
        """Makes everything durable in a store of its own, twice when rows are to leave the table: they have to be clean."""
        if self.store is None:
            settings = spec.Storage(map_size_bytes=2**28)
            self.store = lmdb_store.LmdbTwinStore.open(folder, self.identity, settings, "boot")
        for slots in (None, self.engine.table.lookup(leaving)) if leaving else (None,):
            number = self.state.commit_number + 1
            self.state = dataclasses.replace(self.state, commit_number=number)
            rows = self.engine.table.take_dirty(number, slots)
            self.store.commit(dataclasses.replace(rows, state=self.state))
            self.engine.table.committed()

    async def telemetry(self, device_ids: Sequence[str]) -> dict[str, bytes]:
        return {} if self.store is None else self.store.telemetry(device_ids)

    async def fetch(self, device_ids: Sequence[str]) -> commits.TwinRows:
        assert self.store is not None
        return self.store.fetch(device_ids)

    async def stored(self, key_range: hashing.HashKeyRange) -> directory.StoredRows:
        assert self.store is not None
        chunks = self.store.scan(key_range)
        first = next(chunks, None)
        if first is None:
            return directory.StoredRows(commits.no_rows(), complete=True)
        return directory.StoredRows(first, complete=next(chunks, None) is None)

    async def dead_letters(self, limit: int) -> list[records.DeadLetter]:
        return self.letters[:limit]


@dataclasses.dataclass(slots=True)
class SeenWorker:
    """directory.WorkerView."""

    mine: list[SeenPartition]
    name: str = "trucks-0"
    fleet: str = f"{NAMESPACE}/{FLEET}"
    rules_generation: int = 1
    last_rule_error: str | None = None
    can_take_partitions: bool = True
    control_trouble: str = ""
    load: Mapping[str, float] = dataclasses.field(default_factory=dict)
    others: list[directory.Elsewhere] = dataclasses.field(default_factory=list)
    reasons: list[str] = dataclasses.field(default_factory=list)

    def partitions(self) -> Sequence[SeenPartition]:
        return self.mine

    def elsewhere(self) -> Sequence[directory.Elsewhere]:
        return self.others

    def not_ready_because(self) -> Sequence[str]:
        return self.reasons


def control(device_id: str, issued_ms: int, **instruction: object) -> fleet_pb2.Telemetry:
    """A control record, say control("d", t, update_threshold=fleet_pb2.UpdateThreshold(threshold=40))."""
    return fleet_pb2.Telemetry(
        device_id=device_id,
        control=fleet_pb2.Control(issued_ms=issued_ms, **instruction),  # type: ignore[arg-type]
    )


def hot(device_id: str, from_ms: int = START_MS, samples: int = 3, **more: object) -> list[Reading]:
    """So many samples of 75 °C, a second apart: with the default rules three of them fire a temp_spike."""
    readings = [Reading(device_id, from_ms + 1_000 * k, temperature_c=75.0) for k in range(samples)]
    return [dataclasses.replace(reading, **more) for reading in readings]  # type: ignore[arg-type]
