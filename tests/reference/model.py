"""The rules page read aloud, one record at a time: the independent judge of the engine.

Slow and obvious on purpose. Written from docs/reference/rules.md alone; it shares with the worker only the rules' frozen
values, which are its input. The constants are written down here once more, so that a slip there can't hide. It never looks
at how the engine does it, and nothing in the worker may import it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from fleet_model import partition, rules
from fleet_proto import fleet_pb2
from tests.reference.words import (
    BATTERY,
    EVERY_RULE,
    OFFLINE,
    TEMPERATURE,
    TRIGGERS,
    Control,
    Effect,
    Event,
    Kind,
    Twin,
)

STATISTICS_WINDOW_MS = 3_600_000
HALF_WINDOW_MS = 1_800_000
BATTERY_WINDOW_MS = 3_600_000
HOLD_MS_MAX = 300_000
LATE_RUN_RECORDS = 10
LATE_RUN_SPAN_MS = 300_000
OFFLINE_REPEATS_MAX = 24
SKEW_MS_MAX = 300_000
AHEAD_MS_MAX = 86_400_000
COUNT_MAX = 2**32 - 1


def single(value: float) -> float:
    """Rounded as a 32-bit float stores it."""
    return float(np.float32(value))


def effect_id(identity: partition.PartitionIdentity, parts: Sequence[str]) -> str:
    """BLAKE2b-128 over namespace, fleet, stream and the parts, each after its length in two bytes, as hex."""
    hashing = hashlib.blake2b(digest_size=16)
    for part in (identity.namespace, identity.fleet, identity.stream, *parts):
        encoded = part.encode()
        hashing.update(bytes([len(encoded) // 256, len(encoded) % 256]) + encoded)
    return hashing.hexdigest()


def seconds_text(milliseconds: int) -> str:
    whole, rest = divmod(milliseconds, 1000)
    return str(whole) if rest == 0 else f"{whole}.{rest:03d}".rstrip("0")


def parsed(telemetry: bytes) -> bytes:
    """A Telemetry message as it came, in the one form that can be compared."""
    return fleet_pb2.Telemetry.FromString(telemetry).SerializeToString(deterministic=True)


AnyRule = rules.TemperatureRule | rules.BatteryRule | rules.OfflineRule


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """What an effect's id and time come from."""

    sequence_number: str
    subsequence_number: int
    repeat: int
    when_ms: int


class ReferenceFleet:
    """One partition's twins and what its records bring about.

    generations: every edit there will be, sorted; later ones do nothing before their time. retention_ms: the stream's.
    After any number of apply and advance, `twins`, `misrouted` and `skewed` tell the state; each call returns its effects.
    """

    def __init__(
        self,
        identity: partition.PartitionIdentity,
        generations: Sequence[rules.RulesGeneration],
        retention_ms: int = 86_400_000,
    ) -> None:
        self.identity = identity
        self.generations = list(generations)
        self.retention_ms = retention_ms
        self.twins: dict[str, Twin] = {}
        self.high_arrival_ms = 0
        self.clock_ms = 0
        self.misrouted: list[Event] = []
        self.second_hops: list[Event] = []
        self.skewed = 0
        self._generation = [entry for entry in generations if entry.effective_ms == generations[0].effective_ms][-1]
        self._effects: list[Effect] = []

    def apply(self, events: Iterable[Event]) -> list[Effect]:
        self._effects = []
        for event in events:
            self._take(event)
        return self._effects

    def advance(self, clock_ms: int) -> list[Effect]:
        """The partition clock moves there (never back), and a scan runs at it."""
        self._effects = []
        self.clock_ms = max(self.clock_ms, clock_ms)
        self._pass_generations(self.clock_ms)
        self._scan(self.clock_ms)
        return self._effects

    def inherit(self, parents: Sequence[ReferenceFleet]) -> list[Effect]:
        """Starts as the child of these, read to their ends: their twins inside the own range, their time. Before the first
        record only. Where one parent reached a generation that another didn't, that one's twins are still to be scanned
        at its start."""
        self._effects = []
        reached_ms = min(max(parent.high_arrival_ms, parent.clock_ms) for parent in parents)
        reached = [entry for entry in self.generations if entry.effective_ms <= reached_ms]
        self._generation = reached[-1] if reached else self._generation
        for parent in parents:
            self.high_arrival_ms = max(self.high_arrival_ms, parent.high_arrival_ms)
            self.clock_ms = max(self.clock_ms, parent.clock_ms)
            for device_id, twin in parent.twins.items():
                if self._is_ours(device_id):
                    self.twins[device_id] = twin
        self._pass_generations(max(self.high_arrival_ms, self.clock_ms))
        return self._effects

    # Time

    def _pass_generations(self, time_ms: int) -> None:
        for start_ms in sorted({entry.effective_ms for entry in self.generations}):
            if self._generation.effective_ms < start_ms <= time_ms:
                self._scan(start_ms)
                self._generation = [entry for entry in self.generations if entry.effective_ms == start_ms][-1]

    def _scan(self, time_ms: int) -> None:
        for device_id in list(self.twins):
            self._purge(device_id, time_ms)
            if device_id in self.twins:
                self._settle(device_id, self.twins[device_id], time_ms)

    def _purge(self, device_id: str, time_ms: int) -> None:
        twin = self.twins.get(device_id)
        if twin is None or not twin.forgotten:
            return
        if any(override is not None for override in twin.overrides):
            return
        if time_ms - twin.last_arrival_ms >= self.retention_ms:
            del self.twins[device_id]

    # A record

    def _is_ours(self, device_id: str) -> bool:
        key = int(hashlib.md5(device_id.encode()).hexdigest(), 16)
        return self.identity.hash_key_range.start <= key <= self.identity.hash_key_range.end

    def _take(self, event: Event) -> None:
        arrival_ms = self.high_arrival_ms = max(self.high_arrival_ms, event.arrival_ms)
        self._pass_generations(arrival_ms)
        kind = event.kind
        came_ms = self._first_arrival_ms(event, arrival_ms)
        if kind == Kind.TELEMETRY and event.timestamp_ms > came_ms + AHEAD_MS_MAX:
            kind = Kind.HEARD  # a dead letter for its timestamp, but its id is readable
        if event.control is not None and event.control.issued_ms > came_ms + AHEAD_MS_MAX:
            return  # a dead letter, and not sent by the device
        if kind == Kind.UNREADABLE:
            return
        if not self._is_ours(event.device_id):
            if kind != Kind.HEARD:
                (self.second_hops if event.origin else self.misrouted).append(event)
            return
        self._purge(event.device_id, arrival_ms)
        twin = self.twins.get(event.device_id)
        if twin is None:
            if event.control is not None and event.control.instruction in ("clear_override", "acknowledge"):
                return
            twin = self.twins[event.device_id] = Twin()
        self._settle(event.device_id, twin, arrival_ms)
        if event.control is not None:
            self._control(event, event.control, arrival_ms)
        elif kind == Kind.HEARD:
            self._hear(event, twin, arrival_ms, None)
        else:
            self._telemetry(event, twin, arrival_ms)

    def _hear(self, event: Event, twin: Twin, arrival_ms: int, telemetry: bytes | None) -> None:
        """telemetry: what a resolved offline alert tells of the device; None: what its twin tells."""
        if twin.open[OFFLINE]:
            twin.open[OFFLINE] = twin.acknowledged[OFFLINE] = False
            twin.offline_repeats = 0
            if self._rules(event.device_id, twin.firmware).offline.resolved_notice:
                last = self._told_by_twin(event.device_id, twin) if telemetry is None else parsed(telemetry)
                self._resolve(event, OFFLINE, arrival_ms, "telemetry is back", last)
        twin.last_arrival_ms = max(twin.last_arrival_ms, arrival_ms)
        twin.sequence_number = event.sequence_number
        twin.subsequence_number = event.subsequence_number
        twin.forgotten = False

    def _telemetry(self, event: Event, twin: Twin, arrival_ms: int) -> None:
        if event.timestamp_ms > self._first_arrival_ms(event, arrival_ms) + SKEW_MS_MAX:
            self.skewed += 1
        time_ms = self._usable(event.timestamp_ms, event, arrival_ms)
        was_forgotten = twin.forgotten
        late = (twin.samples > 0 or was_forgotten) and time_ms <= twin.last_timestamp_ms
        if not (late and was_forgotten):
            self._hear(event, twin, arrival_ms, None if late else event.telemetry)
        if late:
            self._count_late(twin, time_ms)
            if twin.late_run < LATE_RUN_RECORDS or twin.late_span_ms < LATE_RUN_SPAN_MS:
                return
            if was_forgotten:
                self._hear(event, twin, arrival_ms, None)
        limits = self._rules(event.device_id, event.firmware)
        stretch_counts = self._accept(event, twin, time_ms, late, limits.battery.idle_below_cpu_load)
        if stretch_counts:
            self._battery_rule(event, twin, arrival_ms, limits.battery)
        self._temperature_rule(event, twin, arrival_ms, limits.temperature)

    @staticmethod
    def _first_arrival_ms(event: Event, arrival_ms: int) -> int:
        """When the record came to the stream: a record put again tells it."""
        if event.origin is not None and 0 < event.origin.arrival_ms <= arrival_ms:
            return event.origin.arrival_ms
        return arrival_ms

    def _usable(self, time_ms: int, event: Event, arrival_ms: int) -> int:
        """A sender's time, believed unless it is missing or ahead of what the clock of the stream can explain."""
        came_ms = self._first_arrival_ms(event, arrival_ms)
        return time_ms if 0 < time_ms <= came_ms + SKEW_MS_MAX else came_ms

    @staticmethod
    def _count_late(twin: Twin, time_ms: int) -> None:
        twin.late = min(twin.late + 1, COUNT_MAX)
        if twin.late_run > 0 and time_ms > twin.late_last_ms:
            twin.late_span_ms = min(twin.late_span_ms + time_ms - twin.late_last_ms, COUNT_MAX)
            twin.late_run = min(twin.late_run + 1, 255)
        else:
            twin.late_run = 1
            twin.late_span_ms = 0
        twin.late_last_ms = time_ms

    def _accept(self, event: Event, twin: Twin, time_ms: int, baseline: bool, idle_below: float) -> bool:
        """Step 5. Whether the stretch since the last sample counts for the battery."""
        sample = [event.temperature_c, event.battery_pct, event.cpu_load]
        first = twin.samples == 0
        joined = not first and not baseline
        step_ms = time_ms - twin.last_timestamp_ms if joined else 0
        gap = step_ms > HOLD_MS_MAX
        if gap:
            twin.gaps = min(twin.gaps + 1, 255)
        weight_ms = min(step_ms, HOLD_MS_MAX)
        twin.samples = min(twin.samples + 1, COUNT_MAX)
        half = time_ms // HALF_WINDOW_MS - twin.last_timestamp_ms // HALF_WINDOW_MS
        for metric, value in enumerate(sample):
            self._statistics(twin, metric, value, first, weight_ms)
            self._extremes(twin, metric, value, half if joined else None)
        stretch_counts = (
            joined
            and not gap
            and twin.last[2] < idle_below
            and event.cpu_load < idle_below
            and single(event.battery_pct) <= twin.last[1]
        )
        if stretch_counts:
            drop = twin.battery_drop + (twin.last[1] - single(event.battery_pct))
            idle_ms = twin.battery_idle_ms + step_ms
            if idle_ms > BATTERY_WINDOW_MS:
                drop *= BATTERY_WINDOW_MS / idle_ms
                idle_ms = BATTERY_WINDOW_MS
            twin.battery_drop = single(drop)
            twin.battery_idle_ms = idle_ms
        twin.late_run = twin.late_span_ms = twin.late_last_ms = 0
        twin.last = [single(value) for value in sample]
        twin.last_timestamp_ms = time_ms
        twin.telemetry = event.telemetry
        twin.firmware = event.firmware
        return stretch_counts

    @staticmethod
    def _statistics(twin: Twin, metric: int, value: float, first: bool, weight_ms: int) -> None:
        if first:
            twin.mean[metric] = single(value)
            twin.variance[metric] = 0.0
            return
        share = weight_ms / (STATISTICS_WINDOW_MS + weight_ms)
        distance = value - twin.mean[metric]
        twin.variance[metric] = single((1 - share) * (twin.variance[metric] + share * distance * distance))
        twin.mean[metric] = single(twin.mean[metric] + share * distance)

    @staticmethod
    def _extremes(twin: Twin, metric: int, value: float, half: int | None) -> None:
        """half: how many half hours lie between the last sample's and this one's; None: nothing to join."""
        if half == 0:
            twin.minimum[metric] = single(min(twin.minimum[metric], value))
            twin.maximum[metric] = single(max(twin.maximum[metric], value))
            return
        if half == 1:
            twin.previous_minimum[metric] = twin.minimum[metric]
            twin.previous_maximum[metric] = twin.maximum[metric]
        else:
            twin.previous_minimum[metric] = twin.previous_maximum[metric] = single(value)
        twin.minimum[metric] = twin.maximum[metric] = single(value)

    # The rules

    def _rules(self, device_id: str, firmware: str) -> rules.Rules:
        for profile in self._generation.profiles:
            if profile.match.matches(device_id, firmware):
                return profile.rules
        return self._generation.default

    def _battery_rule(self, event: Event, twin: Twin, arrival_ms: int, rule: rules.BatteryRule) -> None:
        if not rule.enabled or twin.battery_idle_ms < rule.min_observation_ms:
            return
        override = twin.overrides[BATTERY]
        limit = rule.max_drop_per_hour if override is None else override
        rate = twin.battery_drop / twin.battery_idle_ms * 3_600_000
        explanation = f"battery dropping {rate:.1f}%/h while idle"
        if rate > limit:
            waited = rule.repeat_interval_ms > 0 and arrival_ms - twin.alert_ms[BATTERY] >= rule.repeat_interval_ms
            if not twin.open[BATTERY] or (not twin.acknowledged[BATTERY] and waited):
                self._fire(event, twin, arrival_ms, rule, explanation)
        elif twin.open[BATTERY] and rate <= limit - rule.hysteresis:
            self._clear(event, twin, arrival_ms, rule, explanation)

    def _temperature_rule(self, event: Event, twin: Twin, arrival_ms: int, rule: rules.TemperatureRule) -> None:
        if not rule.enabled:
            twin.spike_run = 0
            return
        override = twin.overrides[TEMPERATURE]
        limit = rule.threshold if override is None else override
        value = event.temperature_c
        twin.spike_run = min(twin.spike_run + 1, 255) if value > limit else 0
        if twin.spike_run >= rule.consecutive_samples:
            twin.spike_run = 0
            waited = arrival_ms - twin.alert_ms[TEMPERATURE] >= rule.repeat_interval_ms
            if not twin.open[TEMPERATURE] or (not twin.acknowledged[TEMPERATURE] and waited):
                explanation = f"temperature {value!r}°C above {limit!r} for {rule.consecutive_samples} samples"
                self._fire(event, twin, arrival_ms, rule, explanation)
        if twin.open[TEMPERATURE] and value <= limit - rule.hysteresis:
            self._clear(event, twin, arrival_ms, rule, f"temperature back to {value!r}°C")

    def _fire(
        self,
        event: Event,
        twin: Twin,
        arrival_ms: int,
        rule: rules.TemperatureRule | rules.BatteryRule,
        explanation: str,
    ) -> None:
        number = TEMPERATURE if isinstance(rule, rules.TemperatureRule) else BATTERY
        cause = Cause(event.sequence_number, event.subsequence_number, twin.repeats[number], arrival_ms)
        alert = self._alert(event.device_id, number, "firing", cause, explanation, parsed(event.telemetry))
        override = twin.overrides[TEMPERATURE]
        parameters = "{}"
        if isinstance(rule, rules.TemperatureRule):
            limit = rule.threshold if override is None else override
            parameters = f'{{"target_c":{limit - 5!r}}}'
        self._publish(alert, number, rule, cause, parameters)
        twin.extra = True
        twin.open[number] = True
        twin.repeats[number] += 1
        twin.alert_ms[number] = arrival_ms
        twin.alert_generation[number] = self._generation.generation
        twin.alert_id[number] = alert.effect_id

    def _clear(
        self,
        event: Event,
        twin: Twin,
        arrival_ms: int,
        rule: rules.TemperatureRule | rules.BatteryRule,
        explanation: str,
    ) -> None:
        number = TEMPERATURE if isinstance(rule, rules.TemperatureRule) else BATTERY
        twin.open[number] = twin.acknowledged[number] = False
        twin.repeats[number] = 0
        if rule.resolved_notice:
            self._resolve(event, number, arrival_ms, explanation, parsed(event.telemetry))

    def _settle(self, device_id: str, twin: Twin, time_ms: int) -> None:
        """Offline, evaluated at a time until nothing is due."""
        rule = self._rules(device_id, twin.firmware).offline
        if not rule.enabled or twin.last_arrival_ms == 0 or twin.forgotten:
            return
        override = twin.overrides[OFFLINE]
        limit_ms = rule.after_ms if override is None else int(override)
        while True:
            repeats = twin.offline_repeats if twin.open[OFFLINE] else 0
            silence_ms = limit_ms + repeats * rule.repeat_interval_ms
            if time_ms - twin.last_arrival_ms < silence_ms:
                return
            if twin.open[OFFLINE] and (
                twin.acknowledged[OFFLINE] or rule.repeat_interval_ms == 0 or repeats >= OFFLINE_REPEATS_MAX
            ):
                return
            twin.open[OFFLINE] = True
            twin.offline_repeats = repeats + 1
            when_ms = twin.last_arrival_ms + silence_ms
            cause = Cause(twin.sequence_number, twin.subsequence_number, repeats, when_ms)
            explanation = f"no telemetry for {seconds_text(silence_ms)} s"
            alert = self._alert(device_id, OFFLINE, "firing", cause, explanation, self._told_by_twin(device_id, twin))
            self._publish(alert, OFFLINE, rule, cause, "{}")

    # Control

    def _control(self, event: Event, control: Control, arrival_ms: int) -> None:
        twin = self.twins[event.device_id]
        issued_ms = self._usable(control.issued_ms, event, arrival_ms)
        if control.instruction in ("update_threshold", "clear_override"):
            self._override(twin, control, issued_ms)
        elif control.instruction == "acknowledge":
            self._acknowledge(event.device_id, twin, control, issued_ms)
        elif control.instruction == "forget_device":
            spoke_after = (twin.samples > 0 or twin.forgotten) and issued_ms < twin.last_timestamp_ms
            if spoke_after or (twin.forgotten and issued_ms == twin.last_timestamp_ms):
                return
            stamp = Twin(forgotten=True, last_timestamp_ms=issued_ms, last_arrival_ms=arrival_ms)
            self.twins[event.device_id] = stamp
        else:
            raise AssertionError(control)

    @staticmethod
    def _override(twin: Twin, control: Control, issued_ms: int) -> None:
        for rule in (TEMPERATURE, BATTERY, OFFLINE) if control.rule == EVERY_RULE else (control.rule,):
            if issued_ms < twin.override_issued_ms[rule]:
                continue
            twin.extra = True
            twin.override_issued_ms[rule] = issued_ms
            if control.instruction == "clear_override":
                twin.overrides[rule] = None
            elif rule == OFFLINE:
                twin.overrides[rule] = max(1000.0, float(round(control.threshold * 1000)))
            else:
                twin.overrides[rule] = control.threshold

    def _acknowledge(self, device_id: str, twin: Twin, control: Control, issued_ms: int) -> None:
        if issued_ms < twin.acknowledge_issued_ms:
            return
        for rule in (TEMPERATURE, BATTERY, OFFLINE):
            if twin.open[rule] and control.alert_id == self._open_alert_id(device_id, twin, rule):
                twin.acknowledged[rule] = True
                twin.acknowledge_issued_ms = issued_ms
                twin.extra = True

    def _open_alert_id(self, device_id: str, twin: Twin, rule: int) -> str:
        if rule != OFFLINE:
            return twin.alert_id[rule]
        cause = Cause(twin.sequence_number, twin.subsequence_number, twin.offline_repeats - 1, 0)
        return self._id(device_id, "alert", OFFLINE, "firing", cause)

    # Effects

    def _id(self, device_id: str, kind: str, rule: int, state: str, cause: Cause) -> str:
        position = (cause.sequence_number, str(cause.subsequence_number))
        return effect_id(self.identity, (device_id, kind, TRIGGERS[rule], state, *position, str(cause.repeat)))

    @staticmethod
    def _told_by_twin(device_id: str, twin: Twin) -> bytes:
        last = fleet_pb2.Telemetry(device_id=device_id)
        if twin.samples > 0:
            last.timestamp = twin.last_timestamp_ms
            last.temperature_c, last.battery_pct, last.cpu_load = (float(f"{value:.7g}") for value in twin.last)
        return last.SerializeToString(deterministic=True)

    def _alert(self, device_id: str, rule: int, state: str, cause: Cause, explanation: str, last: bytes) -> Effect:
        return Effect(
            kind="alert",
            effect_id=self._id(device_id, "alert", rule, state, cause),
            device_id=device_id,
            trigger=TRIGGERS[rule],
            state=state,
            severity="info",
            explanation=explanation,
            timestamp_ms=cause.when_ms,
            fleet=f"{self.identity.namespace}/{self.identity.fleet}",
            generation=self._generation.generation,
            shard_id=self.identity.shard_id,
            sequence_number=cause.sequence_number,
            subsequence_number=cause.subsequence_number,
            last=last,
        )

    def _resolve(self, event: Event, rule: int, arrival_ms: int, explanation: str, last: bytes) -> None:
        cause = Cause(event.sequence_number, event.subsequence_number, 0, arrival_ms)
        self._effects.append(self._alert(event.device_id, rule, "resolved", cause, explanation, last))

    def _publish(self, alert: Effect, number: int, rule: AnyRule, cause: Cause, parameters: str) -> None:
        """A firing: the alert and, where the rule has one, its command."""
        self._effects.append(dataclasses.replace(alert, severity=rule.severity))
        if not rule.command:
            return
        self._effects.append(
            dataclasses.replace(
                alert,
                kind="command",
                effect_id=self._id(alert.device_id, "command", number, "firing", cause),
                command=rule.command,
                parameters=parameters,
            )
        )
