"""A schedule: everything that is done to a fleet in one run, drawn from a seed before the run begins.

It is plain data. An event stands for itself, with its own end where it has one, so any of them can be left out and the rest still means
the same: that is how a failing schedule is made smaller.
"""

from __future__ import annotations

import dataclasses
import enum
import random
from collections.abc import Callable, Sequence

from fleet_model import hashing, rules
from fleet_proto import fleet_pb2
from tests.property import histories
from tests.reference import raw
from tests.reference.words import Control
from tests.support import virtual_time

WORKERS_MAX = 4
ACTION_S = (70.0, 110.0, 170.0)
"""How long events fall."""


class Kind(enum.StrEnum):
    """What happens. A worker that dies starts again after `seconds`."""

    PUT = "put"
    ACKNOWLEDGE = "acknowledge"  # by an operator: the newest alert that the stream shows of a device
    KILL = "kill"  # kill -9: memory is lost, the disk is as committed
    MACHINE = "machine"  # a crash of the machine: what wasn't closed cleanly isn't trusted
    DISK_LOSS = "disk loss"  # it comes back with an empty disk
    STOP = "stop"  # a clean stop, as a rolling update does it
    PAUSE = "pause"  # the process stands still, then goes on as if nothing had been
    TWIN = "twin"  # force-deleted: it lives on beside its successor of the same name, which has a disk of its own
    CUT_OBJECTS = "cut from S3"
    CUT_CONTROL = "cut from the control plane"
    CUT_KINESIS = "cut from Kinesis"
    OBJECTS_AWAY = "S3 away"  # for all
    KINESIS_AWAY = "Kinesis away"
    EFFECTS_AWAY = "effects' streams away"  # PutRecords is throttled for all; reading goes on
    CONTROL_AWAY = "control plane away"
    LOOP_PAUSE = "control loop paused"
    LOOP_KILL = "control loop killed"
    DISK_FULL = "disk full"
    DISK_ERROR = "disk error"
    SCALE = "scale"
    SPLIT = "split"
    MERGE = "merge"
    EDIT = "rules edit"
    STORM = "storm"  # calls go wrong much more often


TROUBLES = tuple(kind for kind in Kind if kind not in (Kind.PUT, Kind.ACKNOWLEDGE))


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """who: a worker's ordinal; of a split or merge, the place of the shard among the open ones. count: of workers, for SCALE.
    key, data, hash_key: of a record (hash_key: explicit). rule: of an EDIT."""

    at_s: float
    kind: Kind
    who: int = 0
    seconds: float = 0.0
    count: int = 0
    key: str = ""
    data: bytes = b""
    hash_key: int | None = None
    rule: rules.RulesGeneration | None = None

    def __str__(self) -> str:
        line = f"{self.at_s:8.2f} s  {self.kind.value}"
        match self.kind:
            case Kind.PUT:
                told = [
                    f"{event.kind.value if not event.control else event.control.instruction} {event.device_id} "
                    f"t={event.timestamp_ms - virtual_time.EPOCH_MS if event.timestamp_ms else 0:+d} "
                    f"{event.temperature_c:g}°C"
                    for event in raw.events_of([raw.RawRecord("1", 0, self.data)])
                ]
                return f"{line} under {self.key}: {'; '.join(told)}" + (" (explicit key)" if self.hash_key else "")
            case Kind.ACKNOWLEDGE:
                return f"{line} {self.key}"
            case Kind.SCALE:
                return f"{line} to {self.count}"
            case Kind.EDIT:
                return f"{line}: {histories.told(self.rule.default) if self.rule else ''}"
        return f"{line} {self.who}" + (f" for {self.seconds:g} s" if self.seconds else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Weather:
    """How many of a hundred calls go wrong, by what: slow ones, refused ones (throttled, 503), lost replies, parts of PutRecords,
    conflicts (409), late writes, expired iterators, empty answers."""

    slow: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    partial: float = 0.0
    conflict: float = 0.0
    late: float = 0.0
    expired: float = 0.0
    empty: float = 0.0


STORM = Weather(slow=20, refused=25, lost=20, partial=30, conflict=15, late=12, expired=10, empty=20)


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """generations: the first. rows_max: bound of the table, 0 = none. ends_s: when events end and everything heals."""

    seed: int
    shards: int
    workers: int
    interval_s: float
    standby_replicas: int
    weather: Weather
    generation: rules.RulesGeneration
    ends_s: float
    drain_s: float
    clock_offset_ms: int
    list_lag_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    setting: Setting
    events: tuple[Event, ...]

    def without(self, left_out: Sequence[int]) -> Schedule:
        gone = set(left_out)
        return dataclasses.replace(
            self, events=tuple(event for place, event in enumerate(self.events) if place not in gone)
        )

    def __str__(self) -> str:
        lines = [f"seed {self.setting.seed}: {histories.told(self.setting)}"]
        return "\n".join([*lines, *(f"  {event}" for event in self.events)])


def draw(seed: int, kinds: Sequence[Kind] = TROUBLES) -> Schedule:
    """The seed's schedule. kinds: of trouble that may happen."""
    return _Drawing(random.Random(seed), kinds).schedule(seed)


class _Drawing:
    def __init__(self, dice: random.Random, kinds: Sequence[Kind]) -> None:
        self.dice = dice
        self.kinds = kinds

    def chance(self, percent: int) -> bool:
        return self.dice.randrange(100) < percent

    def schedule(self, seed: int) -> Schedule:
        dice = self.dice
        setting = Setting(
            seed=seed,
            shards=dice.choice((1, 2, 2, 3)),
            workers=dice.choice((1, 2, 2, 3)),
            interval_s=dice.choice((20.0, 40.0, 60.0)),
            standby_replicas=dice.choice((0, 0, 0, 1)),
            weather=self._weather(),
            generation=histories.draw_generations(dice)[0],
            ends_s=dice.choice(ACTION_S),
            drain_s=dice.choice((5.0, 15.0)),
            clock_offset_ms=dice.choice((0, 0, -5_000, 1_500)),
            list_lag_s=dice.choice((0.0, 0.0, 3.0)),
        )
        events = self._troubles(setting) + self._records(setting)
        return Schedule(setting, tuple(sorted(events, key=lambda event: event.at_s)))

    def _weather(self) -> Weather:
        if self.chance(30):
            return Weather()
        rate = self.dice.choice((1.0, 3.0, 6.0))
        fields = [field.name for field in dataclasses.fields(Weather)]
        return Weather(**{name: rate for name in fields if self.chance(60)})

    # ── troubles ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _troubles(self, setting: Setting) -> list[Event]:
        """A few kinds a run, so that a run has a subject, and pairs of kinds meet over many runs."""
        kinds = self.dice.sample(self.kinds, min(len(self.kinds), self.dice.choice((1, 2, 3, 4, 6))))
        events = []
        for kind in kinds:
            for _ in range(self.dice.choice((1, 1, 2, 3))):
                events.append(self._trouble(kind, setting))
        if self.chance(25):  # two at once, on one worker
            first, second = self._trouble(Kind.PAUSE, setting), self._trouble(self.dice.choice(self.kinds), setting)
            events += [
                first,
                dataclasses.replace(second, at_s=first.at_s + self.dice.choice((0.1, 5, 25)), who=first.who),
            ]
        return events

    def _trouble(self, kind: Kind, setting: Setting) -> Event:
        dice = self.dice
        at_s = round(dice.uniform(5.0, setting.ends_s), 2)
        who = dice.randrange(WORKERS_MAX)
        match kind:
            case Kind.KILL | Kind.MACHINE | Kind.DISK_LOSS:
                seconds = dice.choice((1.0, 3.0, 12.0, 40.0, 90.0))
            case Kind.STOP:
                seconds = dice.choice((1.0, 8.0, 45.0))
            case Kind.PAUSE | Kind.TWIN | Kind.LOOP_PAUSE:
                seconds = dice.choice((4.0, 11.0, 15.0, 30.0, 60.0, 120.0))
            case Kind.LOOP_KILL:
                seconds = dice.choice((1.0, 20.0))
            case Kind.SCALE:
                return Event(at_s, kind, count=dice.randint(1, WORKERS_MAX))
            case Kind.EDIT:
                return Event(at_s, kind, rule=dice.choice(histories.draw_generations(dice)))
            case Kind.SPLIT | Kind.MERGE | Kind.DISK_ERROR:
                return Event(at_s, kind, who)
            case _:
                seconds = dice.choice((3.0, 15.0, 40.0, 90.0))
        return Event(at_s, kind, who, seconds)

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _records(self, setting: Setting) -> list[Event]:
        messages = _Messages(self.dice, self.dice.randint(5, 16))
        events = []
        for at_s in sorted(round(self.dice.uniform(0.5, setting.ends_s), 3) for _ in range(self.dice.randint(25, 80))):
            messages.now_ms = messages.high_arrival_ms = virtual_time.EPOCH_MS + round(at_s * 1000)
            if self.chance(6):
                events.append(Event(at_s, Kind.ACKNOWLEDGE, key=self.dice.choice(messages.devices).device_id))
                continue
            for key, data in messages.burst():
                hash_key = self.dice.randint(1, hashing.HASH_KEY_MAX) if self.chance(4) else None
                events.append(Event(at_s, Kind.PUT, key=key, data=data, hash_key=hash_key))
        return events


class _Messages(histories._Drawing):
    """What devices send, as in the histories of one shard, at given times."""

    def __init__(self, dice: random.Random, devices: int) -> None:
        super().__init__(dice)
        self.reference = _NobodyToAsk()  # type: ignore[assignment]
        self.devices = [histories._Device(f"truck-{number}") for number in range(devices)]
        for device in self.devices:
            if self.chance(15):
                device.clock_offset_ms = dice.choice((-histories.HOUR_MS, 100_000, 300_001, -5_000))

    def burst(self) -> list[tuple[str, bytes]]:
        """(partition key, data) of one moment. Now and then a device gets hot, and sends at once what an alert takes."""
        if self.chance(8):
            parts = [self._message(self.dice.choice(self.devices)) for _ in range(self.dice.randint(1, 5))]
            return [(parts[0][0], raw.aggregated(parts))]
        if self.chance(15):
            device = self.dice.choice(self.devices)
            return [self._hot(device, number) for number in range(self.dice.choice((3, 4)))]
        return [self._message(self.dice.choice(self.devices))]

    def _hot(self, device: histories._Device, number: int) -> tuple[str, bytes]:
        message = fleet_pb2.Telemetry(
            device_id=device.device_id,
            timestamp=self.now_ms + device.clock_offset_ms + number,
            temperature_c=75.0 + number,
            battery_pct=80.0,
            cpu_load=0.5,
        )
        device.last_sent_ms = message.timestamp
        return device.device_id, message.SerializeToString()

    def _control(self, device: histories._Device) -> Control:
        """Acknowledgements are events of their own: only a run knows which alerts there are."""
        while True:
            control = super()._control(device)
            if control.instruction != "acknowledge":
                return control


class _NobodyToAsk:
    def advance(self, clock_ms: int) -> list[object]:
        return []


def smaller(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Leaves out events, many at once and then one by one, for as long as it still fails."""
    size = max(1, len(schedule.events) // 2)
    while size:
        start = 0
        while start < len(schedule.events):
            fewer = schedule.without(range(start, min(start + size, len(schedule.events))))
            if fails(fewer):
                schedule = fewer
            else:
                start += size
        size //= 2
    return schedule
