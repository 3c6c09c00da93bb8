"""Histories of a shard: records, times at which a poll found nothing, and edits of the rules, drawn so that a few devices
do in hours everything that a fleet does in years.

One generator serves both uses: given `random.Random(seed)` it makes bulk runs that a seed replays, given hypothesis'
`randoms` the same histories shrink. It runs the reference beside it only to learn the alert ids that an operator would
acknowledge. It decides nothing about what is right.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from hypothesis import strategies

from fleet_model import hashing, partition, rules
from fleet_proto import fleet_pb2
from tests.reference import model, raw
from tests.reference.words import EVERY_RULE, OFFLINE, Control, Effect

BASE_MS = 1_750_000_000_000
BASE_SEQUENCE = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898
HOUR_MS = 3_600_000
RETENTION_MS = 6 * HOUR_MS
DEVICES = ("truck-1", "truck-2", "drone-7", "zähler-3", "m")
FIRMWARES = ("", "1.0", "2.0")
TEMPERATURES = (60.0, 60.0000001, 61.0, 75.0, 58.0, 57.9, 20.0, -0.0, 59.99999999999999, 1e9, -1e9, 0.1)
LOADS = (0.0, 0.1, 0.2999999999, 0.3, 0.3000001, 0.5, 1.0)
CALM_STEPS_MS = (30_000, 60_000, 90_000, 90_000, 90_000, 120_000, 149_000)
STEPS_MS = (0, 0, 1, 7, 999, 1000, 10_000, 10_000, 10_000, 29_999, 30_000, 60_000, 120_000, 300_000, 300_001, 1_200_000)
RARE_STEPS_MS = (HOUR_MS // 2, HOUR_MS, 3 * HOUR_MS, RETENTION_MS - 1, RETENTION_MS, 25 * HOUR_MS)


@dataclasses.dataclass(frozen=True, slots=True)
class Idle:
    """A poll without records moved the partition clock here."""

    clock_ms: int


Step = raw.RawRecord | Idle


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """steps in stream order. final_clock_ms: not before any of them, where two judges compare. strict: no record arrives
    behind the partition clock, so leaving idle polls out changes nothing."""

    identity: partition.PartitionIdentity
    generations: tuple[rules.RulesGeneration, ...]
    steps: tuple[Step, ...]
    final_clock_ms: int
    retention_ms: int = RETENTION_MS
    strict: bool = True

    def __repr__(self) -> str:
        lines = [f"History(strict={self.strict}, final clock +{self.final_clock_ms - BASE_MS}, {told(self.identity)}"]
        lines += [f"  {told(generation)}" for generation in self.generations]
        for step in self.steps:
            if isinstance(step, Idle):
                lines.append(f"  idle, clock +{step.clock_ms - BASE_MS}")
                continue
            for event in raw.events_of([step]):
                lines.append(f"  {event.sequence_number}.{event.subsequence_number}: {told(event)}")
        return "\n".join([*lines, ")"])


def told(value: object) -> str:
    """A dataclass's fields that aren't as by default, times counted from BASE_MS."""
    if isinstance(value, tuple):
        return f"({', '.join(told(entry) for entry in value)})"
    if not dataclasses.is_dataclass(value):
        since = isinstance(value, int) and value > BASE_MS // 2
        return f"+{value - BASE_MS}" if since else repr(value)  # type: ignore[operator]
    shown = [
        f"{field.name}={told(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
        and field.name not in ("telemetry", "sequence_number", "subsequence_number", "hash_key_range")
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


@dataclasses.dataclass(slots=True)
class _Device:
    """What a simulated device is up to."""

    device_id: str
    clock_offset_ms: int = 0
    last_sent_ms: int = 0
    hot: bool = False
    battery: float = 80.0
    idle: bool = True
    firmware: str = ""
    rising_late_ms: int = 0
    drain: float = 0.0


def draw(dice: random.Random, records_max: int = 60, crowd: int = 0) -> History:
    """A history of at most this many Kinesis records. crowd: devices beside the usual few, to fill tables and rounds."""
    return _Drawing(dice).history(records_max, crowd)


def randoms() -> strategies.SearchStrategy[random.Random]:
    return strategies.randoms(use_true_random=False)


@strategies.composite
def histories(draw_from: Callable[..., random.Random], records_max: int = 40) -> History:
    return draw(draw_from(randoms()), records_max)


class _Drawing:
    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.now_ms = BASE_MS
        self.clock_ms = 0
        self.high_arrival_ms = 0
        self.sequence = BASE_SEQUENCE
        self.alert_ids: dict[str, list[str]] = {}
        self.is_crowded = self.is_calm = False

    def chance(self, percent: int) -> bool:
        """Shrinks to False."""
        return self.dice.randint(0, 99) >= 100 - percent

    def history(self, records_max: int, crowd: int) -> History:
        self.is_crowded = crowd > 0
        self.is_calm = not crowd and self.chance(25)  # a device or two, idle for hours: what the battery rule looks at
        strict = not self.chance(15)
        devices = [_Device(device_id) for device_id in DEVICES[: self.dice.randint(1, 2 if self.is_calm else 5)]]
        devices += [_Device(f"truck-{number}") for number in range(1000, 1000 + crowd)]
        for device in devices:
            if self.chance(10 if self.is_calm else 25):
                device.clock_offset_ms = self.dice.choice((-HOUR_MS, HOUR_MS, 100_000, 300_000, 300_001, -5_000))
        key_range = hashing.HashKeyRange()
        if self.chance(10):
            key_range = hashing.HashKeyRange(0, hashing.HASH_KEY_MAX // 2)
        identity = partition.PartitionIdentity("default", "trucks", "telemetry", "shardId-000000000001", key_range)
        generations = draw_generations(self.dice)
        self.reference = model.ReferenceFleet(identity, generations, RETENTION_MS)
        steps: list[Step] = []
        for _ in range(records_max if crowd or self.is_calm else self.dice.randint(1, records_max)):
            self._pass_time()
            if self.chance(1 if self.is_crowded else 10):
                steps.append(self._idle())
            steps.append(self._record(devices, strict))
        final_clock_ms = max(self.now_ms, self.high_arrival_ms, self.clock_ms)
        final_clock_ms += self.dice.choice((0, 1000, 30_000, 300_000, HOUR_MS, RETENTION_MS))
        return History(identity, generations, tuple(steps), final_clock_ms, RETENTION_MS, strict)

    def _pass_time(self) -> None:
        if self.is_crowded and not self.chance(2):
            self.now_ms += self.dice.choice((0, 1, 7, 200))
            return
        if self.is_calm and not self.chance(3):
            self.now_ms += self.dice.choice(CALM_STEPS_MS)
            return
        rare = self.chance(6)
        self.now_ms += self.dice.choice(RARE_STEPS_MS if rare else STEPS_MS)

    def _idle(self) -> Idle:
        self.clock_ms = max(self.clock_ms, self.high_arrival_ms, self.now_ms - self.dice.choice((0, 0, 1, 2000)))
        self._learn(self.reference.advance(self.clock_ms))
        return Idle(self.clock_ms)

    def _learn(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if effect.kind == "alert" and effect.state == "firing":
                self.alert_ids.setdefault(effect.device_id, []).append(effect.effect_id)

    def _record(self, devices: list[_Device], strict: bool) -> raw.RawRecord:
        arrival_ms = self.now_ms - (self.dice.choice((1, 40, 3000)) if self.chance(10) else 0)
        if strict and self.high_arrival_ms < self.clock_ms:
            arrival_ms = max(arrival_ms, self.clock_ms)
        self.high_arrival_ms = max(self.high_arrival_ms, arrival_ms)
        self.sequence += self.dice.choice((1, 2, 10**20, 10**38))
        if self.chance(8):
            parts = [self._message(self.dice.choice(devices)) for _ in range(self.dice.randint(1, 6))]
            data = raw.aggregated([(device_id, data) for device_id, data in parts])
        else:
            _, data = self._message(self.dice.choice(devices))
        record = raw.RawRecord(str(self.sequence), arrival_ms, data)
        self._learn(self.reference.apply(raw.events_of([record])))
        return record

    def _message(self, device: _Device) -> tuple[str, bytes]:
        kind = self.dice.randint(0, 99)
        if kind < (90 if self.is_calm else 82):
            message = self._telemetry(device)
        elif kind < 94:
            message = raw.control_message(device.device_id, self._control(device))
        else:
            return device.device_id, self._poison(device)
        if self.chance(3):
            message.origin.CopyFrom(self._origin())
            return device.device_id, message.SerializeToString()
        return device.device_id, raw.as_json(message) if self.chance(15) else message.SerializeToString()

    def _origin(self) -> fleet_pb2.Origin:
        """As a worker writes it that put the record again."""
        return fleet_pb2.Origin(
            shard_id="shardId-000000000000",
            sequence_number=str(BASE_SEQUENCE - self.dice.randint(1, 99)),
            arrival_ms=self.high_arrival_ms - self.dice.choice((1, 1000, HOUR_MS)),
            hop=1,
        )

    def _telemetry(self, device: _Device) -> fleet_pb2.Telemetry:
        dice = self.dice
        if self.chance(10):
            device.hot = not device.hot
        if self.chance(2 if self.is_calm else 8):
            device.idle = not device.idle
        if self.chance(6):
            device.drain = dice.choice((0.0, 0.01, 0.25, 0.25, 1.5))
        if self.chance(6):
            device.firmware = dice.choice(FIRMWARES)
        if self.chance(0 if self.is_calm else 3):
            device.clock_offset_ms -= HOUR_MS  # set back
        if self.is_calm:
            device.battery -= device.drain if device.idle else -1.0
        elif device.idle:
            device.battery -= dice.choice((0.0, 0.01, 0.123456789, 1.0, 3.0))
        else:
            device.battery += dice.choice((-1.0, 0.0, 0.5, 2.0))
        if not 0 <= device.battery <= 100:
            device.battery = 100.0 if self.is_calm else 80.0
        temperature = dice.choice((61.0, 75.0, 60.0000001) if device.hot else (20.0, 57.0, 58.0, 60.0))
        if self.chance(15):
            temperature = dice.choice(TEMPERATURES) if self.chance(70) else dice.randint(-500_000, 900_000) / 10_007
        load = dice.choice((0.0, 0.1, 0.2999999999)) if device.idle else dice.choice(LOADS)
        return fleet_pb2.Telemetry(
            device_id=device.device_id,
            timestamp=self._timestamp(device),
            temperature_c=temperature,
            battery_pct=device.battery,
            cpu_load=load,
            location="52.5,13.4" if self.chance(10) else "",
            firmware=device.firmware,
        )

    def _timestamp(self, device: _Device) -> int:
        normal = self.now_ms + device.clock_offset_ms
        kind = 0 if self.is_calm and not self.chance(5) else self.dice.randint(0, 99)
        if device.rising_late_ms:  # a run of late records, each later than the one before
            device.rising_late_ms += self.dice.choice((1, 20_000, 40_000))
            if 0 < kind < 90:
                return device.rising_late_ms
            device.rising_late_ms = 0
        if kind < 80:
            device.last_sent_ms = normal
            return normal
        if kind < 84:
            return 0
        if kind < 88:
            return device.last_sent_ms
        if kind < 91:
            return normal - self.dice.choice((1, 60_000, HOUR_MS, 10**12))
        if kind < 94:
            device.rising_late_ms = max(1, device.last_sent_ms - self.dice.choice((1, HOUR_MS, 10**12)))
            return device.rising_late_ms
        ahead = (300_000, 300_001, HOUR_MS, 24 * HOUR_MS, 24 * HOUR_MS + 1, 10**13)
        return self.high_arrival_ms + self.dice.choice(ahead) if kind < 99 else -5

    def _control(self, device: _Device) -> Control:
        dice = self.dice
        issued_ms = dice.choice(
            (0, self.now_ms, self.now_ms, device.last_sent_ms, self.now_ms - HOUR_MS, self.now_ms - 1)
        )
        if self.chance(15):
            issued_ms = self.now_ms + dice.choice((1, 60_000, 300_001, 2 * HOUR_MS, 25 * HOUR_MS, -(10**13)))
        instruction = dice.choice(("acknowledge", "update_threshold", "clear_override", "forget_device", "acknowledge"))
        if instruction == "update_threshold":
            rule = dice.choice((0, 1, OFFLINE))
            thresholds = ((40.0, 60.0, 74.9, -3.0), (0.1, 3.0, 10.0, 60.0), (0.0001, 10, 30.0005, 59.9996, 300, 4000))[
                rule
            ]
            return Control(instruction, issued_ms, rule, dice.choice(thresholds))
        if instruction == "clear_override":
            return Control(instruction, issued_ms, dice.choice((EVERY_RULE, 0, 1, OFFLINE)))
        if instruction == "acknowledge":
            self._learn(self.reference.advance(self.high_arrival_ms))  # an offline alert may be due just now
            own, every = self.alert_ids.get(device.device_id, []), [*self.alert_ids.values()]
            ids = [*own[-1:] * 4, *own[-4:], *(ids[-1] for ids in every), "0" * 32]
            return Control(instruction, issued_ms, alert_id=dice.choice(ids))
        return Control(instruction, issued_ms)

    def _poison(self, device: _Device) -> bytes:
        message = fleet_pb2.Telemetry(device_id=device.device_id, timestamp=self.now_ms, temperature_c=75)
        kind = self.dice.randint(0, 6)
        if kind == 0:
            message.temperature_c = float("nan")
        elif kind == 1:
            message.location = "x" * 1025
        elif kind == 2:
            message.battery_pct = 1.1e9
        elif kind == 3:
            return b'{"device_id": "%s", "cpu_load": "high"}' % device.device_id.encode()
        elif kind == 4:
            message.device_id = ""
        elif kind == 5:
            return message.SerializeToString()[:-3]
        else:
            message.control.acknowledge.alert_id = "short"
        return message.SerializeToString()


# Rules


def draw_generations(dice: random.Random) -> tuple[rules.RulesGeneration, ...]:
    generations = []
    effective_ms = 0
    for number in range(dice.choice((1, 1, 2, 3, 5))):
        if number:
            effective_ms = max(effective_ms, BASE_MS) + dice.choice((0, 1, 1000, 30_000, 300_000, HOUR_MS, 3 * HOUR_MS))
        default = draw_rules(dice) if number or dice.randint(0, 99) >= 30 else rules.Rules()
        profiles = tuple(
            rules.Profile(f"profile-{index}", draw_match(dice), draw_rules(dice))
            for index in range(dice.choice((0, 0, 1, 3)))
        )
        generations.append(rules.RulesGeneration(number + 1, effective_ms, default, profiles))
    return tuple(generations)


def draw_match(dice: random.Random) -> rules.Match:
    kind = dice.randint(0, 3)
    prefix = dice.choice(("truck", "drone-", "m")) if kind == 0 else None
    regex = dice.choice((r".*-\d", "m", r"truck-1|z.*")) if kind == 1 else None
    firmware = dice.choice(FIRMWARES) if kind >= 2 else None
    return rules.Match(prefix, regex, firmware)


def draw_rules(dice: random.Random) -> rules.Rules:
    def often(usual: bool) -> bool:
        return usual if dice.randint(0, 99) < 80 else not usual

    return rules.Rules(
        rules.TemperatureRule(
            enabled=often(True),
            threshold=dice.choice((60.0, 55.5, 0.1, 70.0)),
            consecutive_samples=dice.choice((3, 1, 2, 4)),
            repeat_interval_ms=dice.choice((0, 1, 30_000, HOUR_MS)),
            hysteresis=dice.choice((2.0, 0.0, 5.0)),
            severity=dice.choice(rules.SEVERITIES),
            command=dice.choice(("cool_down", "reboot", None)),
            resolved_notice=dice.choice((True, False)),
        ),
        rules.BatteryRule(
            enabled=often(True),
            max_drop_per_hour=dice.choice((10.0, 1.0, 0.5, 100.0)),
            idle_below_cpu_load=dice.choice((0.3, 0.30000001192092896, 1.0, 0.1)),
            min_observation_ms=dice.choice((600_000, 0, 20_000, HOUR_MS)),
            repeat_interval_ms=dice.choice((HOUR_MS, 0, 60_000)),
            hysteresis=dice.choice((1.0, 0.0)),
            severity=dice.choice(rules.SEVERITIES),
            command=dice.choice(("reduce_duty", None)),
            resolved_notice=dice.choice((True, False)),
        ),
        rules.OfflineRule(
            enabled=often(True),
            after_ms=dice.choice((300_000, 30_000, 60_500, 1000, HOUR_MS)),
            repeat_interval_ms=dice.choice((0, 0, 60_000, 300_000, HOUR_MS)),
            severity=dice.choice(rules.SEVERITIES),
            command=dice.choice(("ping", None)),
            resolved_notice=often(True),
        ),
    )


# Making a failing history smaller


def smaller(history: History, fails: Callable[[History], bool]) -> History:
    """Leaves out steps, generations and profiles for as long as it still fails."""
    size = max(1, len(history.steps) // 2)
    while size:
        start = 0
        while start < len(history.steps):
            fewer = dataclasses.replace(history, steps=history.steps[:start] + history.steps[start + size :])
            if fails(fewer):
                history = fewer
            else:
                start += size
        size //= 2
    for index in range(len(history.generations) - 1, 0, -1):
        fewer = dataclasses.replace(history, generations=history.generations[:index] + history.generations[index + 1 :])
        history = fewer if fails(fewer) else history
    for index, generation in enumerate(history.generations):
        for plainer in (
            dataclasses.replace(generation, default=rules.Rules()),
            dataclasses.replace(generation, profiles=()),
            dataclasses.replace(generation, default=rules.Rules(), profiles=()),
        ):
            replaced = (*history.generations[:index], plainer, *history.generations[index + 1 :])
            fewer = dataclasses.replace(history, generations=replaced)
            history = fewer if fails(fewer) else history
    return history
