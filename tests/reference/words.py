"""The plain values of the reference: a record as an event, an effect as it is expected, a twin as a dataclass.

They share nothing with the worker's columns and rows, so that a mistake there can't hide here. Comparing the two is the
business of `judge`.
"""

from __future__ import annotations

import dataclasses
import enum

TEMPERATURE, BATTERY, OFFLINE = 0, 1, 2
EVERY_RULE = -1
TRIGGERS = ("temp_spike", "battery_drop", "offline")


class Kind(enum.StrEnum):
    TELEMETRY = "telemetry"
    HEARD = "heard"
    CONTROL = "control"
    UNREADABLE = "unreadable"


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """issued_ms 0: missing. rule: TEMPERATURE, BATTERY, OFFLINE or EVERY_RULE. threshold: as sent (offline: seconds)."""

    instruction: str
    issued_ms: int = 0
    rule: int = TEMPERATURE
    threshold: float = 0.0
    alert_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    shard_id: str
    sequence_number: str
    subsequence_number: int
    arrival_ms: int
    hop: int


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One user record as it came: its own time and Kinesis' arrival, neither repaired yet (timestamp_ms 0: missing).

    telemetry: the Telemetry message that alerts carry, protobuf. reason: why a refused record was refused.
    """

    kind: Kind
    device_id: str
    arrival_ms: int
    sequence_number: str
    subsequence_number: int = 0
    timestamp_ms: int = 0
    temperature_c: float = 0.0
    battery_pct: float = 0.0
    cpu_load: float = 0.0
    firmware: str = ""
    telemetry: bytes = b""
    control: Control | None = None
    origin: Origin | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Effect:
    """An alert or a command, every field that its message carries, and for a command also its alert's trigger, state and
    cause (which no message carries: the judge leaves them out). last: a Telemetry message, serialised deterministically."""

    kind: str
    effect_id: str
    device_id: str
    trigger: str
    state: str
    severity: str
    explanation: str
    timestamp_ms: int
    fleet: str
    generation: int
    shard_id: str
    sequence_number: str
    subsequence_number: int
    last: bytes = b""
    command: str = ""
    parameters: str = ""


def zeros() -> list[float]:
    return [0.0, 0.0, 0.0]


@dataclasses.dataclass(slots=True)
class Twin:
    """Lists of three are by metric (temperature_c, battery_pct, cpu_load) or by rule, as their names say; the alert details
    have two entries, temperature and battery. overrides: the number in force, or None."""

    last_arrival_ms: int = 0
    last_timestamp_ms: int = 0
    sequence_number: str = ""
    subsequence_number: int = 0
    samples: int = 0
    late: int = 0
    late_run: int = 0
    late_span_ms: int = 0
    late_last_ms: int = 0
    gaps: int = 0
    battery_idle_ms: int = 0
    battery_drop: float = 0.0
    spike_run: int = 0
    offline_repeats: int = 0
    forgotten: bool = False
    extra: bool = False
    last: list[float] = dataclasses.field(default_factory=zeros)
    mean: list[float] = dataclasses.field(default_factory=zeros)
    variance: list[float] = dataclasses.field(default_factory=zeros)
    minimum: list[float] = dataclasses.field(default_factory=zeros)
    maximum: list[float] = dataclasses.field(default_factory=zeros)
    previous_minimum: list[float] = dataclasses.field(default_factory=zeros)
    previous_maximum: list[float] = dataclasses.field(default_factory=zeros)
    open: list[bool] = dataclasses.field(default_factory=lambda: [False, False, False])
    acknowledged: list[bool] = dataclasses.field(default_factory=lambda: [False, False, False])
    overrides: list[float | None] = dataclasses.field(default_factory=lambda: [None, None, None])
    override_issued_ms: list[int] = dataclasses.field(default_factory=lambda: [0, 0, 0])
    acknowledge_issued_ms: int = 0
    alert_ms: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    alert_id: list[str] = dataclasses.field(default_factory=lambda: ["", ""])
    alert_generation: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    repeats: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    telemetry: bytes | None = None
    firmware: str = ""
