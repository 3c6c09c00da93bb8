"""The `DeviceFleet` spec as frozen settings. The parser of the YAML and its validator are in `parse`."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from fleet_model import rules as fleet_rules


class Format(enum.StrEnum):
    """How a stream's records are encoded. AUTO (telemetry only) decides record by record."""

    AUTO = "Auto"
    PROTOBUF = "Protobuf"
    JSON = "JSON"


class StartPosition(enum.StrEnum):
    LATEST = "Latest"
    TRIM_HORIZON = "TrimHorizon"
    AT_TIMESTAMP = "AtTimestamp"


class Sync(enum.StrEnum):
    """INTERVAL: an fsync every sync_interval_ms; COMMIT: one per commit."""

    INTERVAL = "Interval"
    COMMIT = "Commit"


@dataclasses.dataclass(frozen=True, slots=True)
class Aws:
    """Where AWS is. region None: the environment's. endpoint_url None: AWS' own."""

    region: str | None = None
    endpoint_url: str | None = None
    credentials_secret: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TelemetryStream:
    """The stream the devices write to. name or arn (exactly one is given; the other is None)."""

    name: str | None = None
    arn: str | None = None
    format: Format = Format.AUTO
    start_position: StartPosition = StartPosition.LATEST
    start_time_ms: int | None = None

    @property
    def stream_name(self) -> str:
        return self.name if self.name is not None else str(self.arn).rpartition("/")[2]


@dataclasses.dataclass(frozen=True, slots=True)
class EffectStream:
    """A stream the fleet writes to. format is PROTOBUF or JSON."""

    name: str
    format: Format = Format.PROTOBUF


@dataclasses.dataclass(frozen=True, slots=True)
class Streams:
    telemetry: TelemetryStream
    alerts: EffectStream
    commands: EffectStream
    control: str | None = None
    dead_letter: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """The volume, and how twins are kept on it.

    twins_in_memory_max: rows a worker's tables hold together, 0 = no bound. map_size_bytes: of each LMDB
    environment, virtual. sync_interval_ms: between fsyncs with Sync.INTERVAL.
    """

    size: str = "10Gi"
    storage_class_name: str | None = None
    retention_policy: str = "Retain"
    twins_in_memory_max: int = 0
    map_size_bytes: int = 64 * 2**30
    sync: Sync = Sync.INTERVAL
    sync_interval_ms: int = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where checkpoints go. bucket None: none are made (outside Kubernetes only)."""

    bucket: str | None = None
    prefix: str = "fleet-twin"
    interval_ms: int = 60_000


@dataclasses.dataclass(frozen=True, slots=True)
class Rebalance:
    max_concurrent_moves: int = 2
    drain_timeout_ms: int = 60_000


@dataclasses.dataclass(frozen=True, slots=True)
class FleetSpec:
    """One `DeviceFleet` object, complete with defaults. `rules` and `profiles` become a RulesGeneration.

    template: the workers' pod template as plain data, laid over the operator's own; {} = none. Not part of the hash.
    """

    namespace: str
    name: str
    streams: Streams
    aws: Aws = Aws()
    rules: fleet_rules.Rules = fleet_rules.Rules()
    profiles: tuple[fleet_rules.Profile, ...] = ()
    replicas: int = 3
    image: str | None = None
    suspend: bool = False
    storage: Storage = Storage()
    checkpoint: Checkpoint = Checkpoint()
    rebalance: Rebalance = Rebalance()
    standby_replicas: int = 0
    service_account_name: str | None = None
    template: Mapping[str, object] = dataclasses.field(default_factory=dict, hash=False)
