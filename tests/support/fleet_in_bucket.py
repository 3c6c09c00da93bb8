"""A small fleet's checkpoints in a bucket, made by the real checkpointer: two partitions with base, deltas, outbox, dead letters.

Its devices are sensor-0 … and truck-0 …; what is special about some of them is named below. For tests of what reads a bucket.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import AsyncIterator, Sequence

import numpy as np
import yaml

from fleet_cli.checkpoints import bucket
from fleet_model import hashing, manifest, parse, partition, spec
from fleet_proto import fleet_pb2
from fleet_worker import checkpointing, custody, metrics, ports
from fleet_worker.adapters import clock, memory_objects, memory_store
from fleet_worker.core import commits, twins
from tests.support import checkpoints, fleets
from tests.support import commits as build

FIRST, SECOND = "shardId-000000000000", "shardId-000000000001"
RANGES = dict(zip((FIRST, SECOND), checkpoints.halves(), strict=True))
SENSORS, TRUCKS = 300, 60
DEVICES = [*(f"sensor-{at}" for at in range(SENSORS)), *(f"truck-{at}" for at in range(TRUCKS))]
FORGOTTEN = "sensor-7"
HOT = "sensor-8"
"""Has an open temperature alert, and a limit of its own of 75.5 °C."""
ODD = "sensor-9"
"""Sent a field that nobody knows, so that its message isn't of the usual layout."""
SILENT = "truck-3"
"""Is offline."""
CHANGED = [*DEVICES[:20], SILENT]
"""Have a row in a delta: temperatures 30 °C higher."""
ARRIVAL_MS = build.FIRST_ARRIVAL_MS
BUCKET = "checkpoints"


def temperature_of(device_id: str) -> float:
    return round(20 + DEVICES.index(device_id) / 10, 1) + (30 if device_id in CHANGED else 0)


def fleet_of(endpoint_url: str | None = None, **checkpoint: object) -> dict[str, object]:
    """The fleet file's document."""
    document = fleets.smallest()
    document["spec"]["checkpoint"] = {"bucket": BUCKET, **checkpoint}
    document["spec"]["aws"] = {"region": "us-east-1", **({"endpointURL": endpoint_url} if endpoint_url else {})}
    return document


def write_fleet_file(folder: pathlib.Path, document: dict[str, object]) -> pathlib.Path:
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def settings(document: dict[str, object]) -> spec.FleetSpec:
    return parse.parse(document)


def _telemetry(device_id: str, temperature_c: float) -> bytes:
    message = fleet_pb2.Telemetry(
        device_id=device_id,
        timestamp=ARRIVAL_MS - 250,
        temperature_c=temperature_c,
        battery_pct=64.5,
        cpu_load=0.25,
        location="51.34,12.37",
        firmware="1.4.2",
    )
    return message.SerializeToString() + (b"\xf8\x3f\x01" if device_id == ODD else b"")


def rows_of(device_ids: Sequence[str], number: int, *, warmer_by: float = 0.0) -> commits.TwinRows:
    """As commit `number` writes them."""
    extra = np.zeros((), dtype=twins.EXTRA_DTYPE)
    extra["override"][0], extra["override_issued_ms"][0] = 75.5, ARRIVAL_MS - 60_000
    extra["alert_ms"][0], extra["alert_generation"][0], extra["repeats"][0] = ARRIVAL_MS, 3, 2
    extra["alert_id"][0] = 0xAB, 0xCD
    readings = {name: round(20 + DEVICES.index(name) / 10, 1) + warmer_by for name in device_ids}
    built = build.twin_rows(
        device_ids,
        commit_number=number,
        telemetry={name: _telemetry(name, readings[name]) for name in device_ids},
        extras={name: extra.tobytes() for name in device_ids if name == HOT},
    )
    rows = built.rows
    rows["last_timestamp_ms"] = ARRIVAL_MS - 250
    rows["sequence"][:, 2] = 17
    for at, name in enumerate(built.device_ids):
        rows["last"][at] = rows["mean"][at] = readings[name], 64.5, 0.25
        rows["minimum"][at] = rows["previous_minimum"][at] = rows["last"][at] - 1
        rows["maximum"][at] = rows["previous_maximum"][at] = rows["last"][at] + 1
        if name == FORGOTTEN:
            rows["flags"][at] = twins.Flag.FORGOTTEN
            rows["samples"][at] = 0
        elif name == HOT:
            rows["flags"][at] |= twins.Flag.OPEN_TEMPERATURE | twins.Flag.OVERRIDE_TEMPERATURE
        elif name == SILENT and warmer_by:
            rows["flags"][at] |= twins.Flag.OPEN_OFFLINE
    return built


def identity_of(fleet: spec.FleetSpec, shard_id: str, key_range: hashing.HashKeyRange) -> partition.PartitionIdentity:
    stream = fleet.streams.telemetry.stream_name
    return partition.PartitionIdentity(fleet.namespace, fleet.name, stream, shard_id, key_range)


async def claim(
    objects: ports.ObjectStore, identity: partition.PartitionIdentity, real: ports.Clock, parents: tuple[str, ...] = ()
) -> custody.Custody:
    nonce = f"{hashing.hash_key(identity.shard_id) % 2**64:016x}"
    mine = custody.Custody(custody.Manifests(objects), identity, parents, "worker-0", nonce, real, 120.0)
    await mine.claim(1)
    return mine


async def fill(
    objects: ports.ObjectStore, fleet: spec.FleetSpec, real: ports.Clock, *, final: bool = False
) -> dict[str, manifest.Manifest]:
    """Both partitions; the first has an outbox and a dead letter. final: drained at their shards' ends."""
    made: dict[str, manifest.Manifest] = {}
    for shard_id, key_range in RANGES.items():
        identity = identity_of(fleet, shard_id, key_range)
        ours = [name for name in DEVICES if hashing.hash_key(name) in key_range]
        store = memory_store.MemoryTwinStore(identity)
        mine = await claim(objects, identity, real)
        checkpointer = checkpointing.Checkpointer(objects, store, mine, real, metrics.Metrics())
        store.commit(build.commit(rows_of(ours, 1), number=1))
        await checkpointer.take()
        changed = [name for name in CHANGED if name in ours]
        half = len(changed) // 2
        store.commit(build.commit(rows_of(changed[:half], 2, warmer_by=30), number=2))
        await checkpointer.take()
        outbox = [build.outbox_entry(number, HOT) for number in (1, 2, 3)] if shard_id == FIRST else []
        letters = [build.dead_letter(1)] if shard_id == FIRST else []
        warmer = rows_of(changed[half:], 3, warmer_by=30)
        store.commit(build.commit(warmer, number=3, outbox=(outbox, []), dead_letters=letters))
        await checkpointer.take(final=final, ended=final)
        made[shard_id] = mine.manifest
    return made


class InMemory:
    """The bucket, and what opens it in place of S3: monkeypatch `bucket.open_fleet` with `open_fleet`."""

    def __init__(self, real: clock.RealClock) -> None:
        self.clock = real
        self.bucket = memory_objects.Bucket(real)
        self.plan: memory_objects.Plan = memory_objects.no_faults

    def objects(self, fleet: spec.FleetSpec) -> memory_objects.MemoryObjects:
        prefix = f"{fleet.checkpoint.prefix}/{fleet.namespace}/{fleet.name}/"
        return memory_objects.MemoryObjects(self.bucket, self.clock, self.plan, prefix)

    @contextlib.asynccontextmanager
    async def open_fleet(self, fleet: spec.FleetSpec) -> AsyncIterator[bucket.Opened]:
        async def neighbours() -> list[str]:
            return sorted({"/".join(key.split("/")[1:3]) for key in self.bucket.contents()})

        where = f"s3://{BUCKET}/{fleet.checkpoint.prefix}/{fleet.namespace}/{fleet.name}/"
        yield bucket.Opened(self.objects(fleet), self.clock, where, neighbours)
