"""The demo's figures, and the arithmetic on what a worker's /metrics and the output streams tell. Pure."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import orjson
from google.protobuf import message as protobuf
from prometheus_client import parser

from fleet_cli.control import moves
from fleet_proto import fleet_pb2

KEPT_EVENTS = 40
MOVES_KEPT = 1_000
RATE_WINDOW_S = 10.0
TRIGGERS = ("temp_spike", "battery_drop", "offline")


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """An alert or a command as the view shows it. time_ms: of its cause. kind: trigger or command."""

    time_ms: int
    device_id: str
    kind: str
    text: str
    severity: str = ""
    state: str = ""
    generation: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Worker:
    """state: "ready", "starting", "leaving" or what else is worth a word. rate: records/s."""

    name: str
    state: str
    partitions: int
    rate: float


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """whose: its worker, and where it is on its way to. checkpoint_age_s: None = there is none."""

    shard_id: str
    whose: str
    phase: str
    epoch: int
    twins: int
    checkpoint_age_s: float | None
    message: str


@dataclasses.dataclass(slots=True)
class Figures:
    """All that is known so far. Times in seconds, latencies None until there is an alert. started_s: 0 = it has yet to begin."""

    started_s: float = 0.0
    elapsed_s: float = 0.0
    records: int = 0
    effects: int = 0
    published: int = 0
    dead_letters: int = 0
    twins: int = 0
    lag_s: float = 0.0
    open_alerts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(TRIGGERS, 0))
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    generation: int = 0
    rules_error: str = ""
    fired: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    resolved: int = 0
    commands: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    alerts_seen: collections.deque[Event] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=KEPT_EVENTS)
    )
    commands_seen: collections.deque[Event] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=KEPT_EVENTS)
    )
    sent: int = 0
    lost: int = 0
    obeyed: int = 0
    late_s: float = 0.0
    note: str = ""
    shard_twins: dict[str, float] = dataclasses.field(default_factory=dict)
    shard_checkpoint_s: dict[str, float] = dataclasses.field(default_factory=dict)
    workers: list[Worker] = dataclasses.field(default_factory=list)
    partitions: list[Partition] = dataclasses.field(default_factory=list)
    workers_wanted: int = 1
    happened: collections.deque[tuple[float, str]] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=KEPT_EVENTS)
    )
    happened_count: int = 0
    moved: list[moves.Move] = dataclasses.field(default_factory=list)
    moves_count: int = 0
    worker_deaths: int = 0
    history: collections.deque[tuple[float, int, int]] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=120)
    )

    _counters: dict[tuple[str, ...], Counter] = dataclasses.field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Whether all that was sent has come in, and all alerts and commands that went out were seen."""
        seen = sum(self.fired.values()) + self.resolved + sum(self.commands.values())
        return self.records >= self.sent and seen >= self.published

    def rates(self) -> tuple[float, float]:
        """(records/s, effects/s) over the last RATE_WINDOW_S."""
        if len(self.history) < 2:
            return 0.0, 0.0
        last = self.history[-1]
        first = next(entry for entry in self.history if entry[0] >= last[0] - RATE_WINDOW_S)
        span_s = last[0] - first[0]
        if span_s <= 0.0:
            return 0.0, 0.0
        return (last[1] - first[1]) / span_s, (last[2] - first[2]) / span_s

    def happen(self, words: str, now_s: float) -> None:
        """now_s: by the clock of started_s."""
        self.happened.appendleft((max(0.0, now_s - self.started_s) if self.started_s else 0.0, words))
        self.happened_count += 1

    def happened_since(self, count: int) -> list[tuple[float, str]]:
        """What happened after the first `count` things, the oldest first, as far as it is kept."""
        return list(self.happened)[: self.happened_count - count][::-1]

    def move(self, move: moves.Move, now_s: float) -> None:
        """A move that is over."""
        self.happen(f"move: {move.words}", now_s)
        self.moves_count += 1
        self.moved = [*self.moved[-MOVES_KEPT + 1 :], move]

    def count(self, name: str, text: str) -> list[Sample]:
        """Takes the counters of a worker's page, for example of one that is about to end. Returns the whole page."""
        samples = _samples(text)
        for sample in samples:
            if sample.name.endswith(("_total", "_bucket")):
                key = (name, sample.name, *(f"{label}={value}" for label, value in sorted(sample.labels.items())))
                self._counters.setdefault(key, Counter(sample.name, dict(sample.labels))).take(sample.value)
        return samples

    def take_metrics(self, texts: Mapping[str, str], elapsed_s: float) -> None:
        """What workers' /metrics tell, by worker, each start of one under a name of its own. Counters of those that are gone, and of
        partitions that have gone elsewhere, count on."""
        read = {name: self.count(name, text) for name, text in texts.items()}
        counted, told = _Sums(self._counters.values()), _Sums(sample for samples in read.values() for sample in samples)
        self.elapsed_s = elapsed_s
        self.records = int(counted.total("fleet_twin_records_total"))
        self.effects = int(counted.total("fleet_twin_effects_total"))
        self.published = sum(
            int(counted.total("fleet_twin_effects_total", "target", target)) for target in ("alerts", "commands")
        )
        self.dead_letters = int(counted.total("fleet_twin_dead_letters_total"))
        self.twins = int(told.total("fleet_twin_twins"))
        self.shard_twins = told.by_shard("fleet_twin_twins")
        self.shard_checkpoint_s = told.by_shard("fleet_twin_checkpoint_time_seconds")
        self.lag_s = told.highest("fleet_twin_lag_seconds")
        self.generation = int(told.highest("fleet_twin_rules_generation"))
        for trigger in TRIGGERS:
            self.open_alerts[trigger] = int(told.total("fleet_twin_alerts_open", "trigger", trigger))
        buckets = counted.buckets("fleet_twin_alert_latency_seconds_bucket")
        self.latency_p50_s, self.latency_p99_s = quantile(buckets, 0.5), quantile(buckets, 0.99)
        self.history.append((elapsed_s, self.records, self.effects))

    def take_alerts(self, records: Iterable[bytes]) -> None:
        for data in records:
            event = alert_event(data)
            if event is None:
                continue
            if event.state == "firing":
                self.fired[event.kind] += 1
            else:
                self.resolved += 1
            self.alerts_seen.appendleft(event)

    def take_commands(self, records: Iterable[bytes]) -> None:
        for data in records:
            event = command_event(data)
            if event is not None:
                self.commands[event.kind] += 1
                self.commands_seen.appendleft(event)

    def take_simulator(self, line: bytes) -> None:
        """A line of `fleet-twin simulate --json`."""
        try:
            told = orjson.loads(line)
            self.sent, self.lost = int(told["records"]), int(told["lost"])
            self.obeyed, self.late_s = int(told["obeyed"]), float(told["late_s"])
        except (ValueError, KeyError, TypeError):
            return


class Sample(Protocol):
    """One number of a Prometheus page."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def value(self) -> float: ...


@dataclasses.dataclass(slots=True)
class Counter:
    """A Sample of which one only ever hears now and then, and which begins anew when what it counts comes back."""

    name: str
    labels: Mapping[str, str]
    value: float = 0.0
    _last: float = 0.0

    def take(self, told: float) -> None:
        self.value += told - self._last if told >= self._last else told
        self._last = told


def _samples(text: str) -> list[Sample]:
    return [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]


class _Sums:
    """Samples, by name."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples: dict[str, list[tuple[Mapping[str, str], float]]] = collections.defaultdict(list)
        for sample in samples:
            self._samples[sample.name].append((sample.labels, sample.value))

    def total(self, name: str, label: str = "", value: str = "") -> float:
        return sum(number for labels, number in self._samples[name] if not label or labels.get(label) == value)

    def highest(self, name: str) -> float:
        return max((number for _, number in self._samples[name]), default=0.0)

    def by_shard(self, name: str) -> dict[str, float]:
        return {labels["shard"]: number for labels, number in self._samples[name]}

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """(upper bound, how many up to it), summed over all other labels, rising."""
        found: dict[float, float] = collections.defaultdict(float)
        for labels, number in self._samples[name]:
            found[float(labels["le"])] += number
        return sorted(found.items())


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """The quantile of a histogram's cumulative buckets, straight within a bucket; None when it is empty. In the last,
    open bucket it is that bucket's lower bound."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted = share * buckets[-1][1]
    below, count_below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            if bound == float("inf") or count == count_below:
                return below
            return below + (bound - below) * (wanted - count_below) / (count - count_below)
        below, count_below = bound, count
    return below


def alert_event(data: bytes) -> Event | None:
    """A DeviceAlert, protobuf or JSON; None when it is neither."""
    try:
        if data[:1] == b"{":
            told = orjson.loads(data)
            state = str(told.get("state", "firing")).lower()
        else:
            alert = fleet_pb2.DeviceAlert.FromString(data)
            told = _members(alert, ("timestamp", "device_id", "trigger", "explanation", "severity", "generation"))
            state = fleet_pb2.AlertState.Name(alert.state).lower()
        return Event(
            int(told["timestamp"]),
            told["device_id"],
            told["trigger"],
            told["explanation"],
            told["severity"],
            state,
            int(told.get("generation", 0)),
        )
    except (protobuf.DecodeError, ValueError, KeyError, TypeError):
        return None


def command_event(data: bytes) -> Event | None:
    """A DeviceCommand, protobuf or JSON; None when it is neither."""
    try:
        if data[:1] == b"{":
            told = orjson.loads(data)
        else:
            told = _members(
                fleet_pb2.DeviceCommand.FromString(data), ("timestamp", "device_id", "command", "parameters")
            )
        parameters = told.get("parameters") or ""
        return Event(int(told["timestamp"]), told["device_id"], told["command"], str(parameters))
    except (protobuf.DecodeError, ValueError, KeyError, TypeError):
        return None


def _members(message: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names}
