"""Takes an engine through a history, cut into batches in any way, and holds the result against the reference.

The whole way is tested: record bytes → decode → columns → engine → the messages that would be published.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fleet_model import spec
from fleet_proto import fleet_pb2
from fleet_worker.core import decode, effects, engine, records
from tests.property.histories import History, Idle
from tests.reference import judge, model, raw
from tests.reference.words import Effect, Event

TwinParts = tuple[np.void, np.void | None, bytes | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What an engine made of a history. effects: all of them, in order. twins: those that are left, by device id."""

    effects: list[effects.Effect]
    twins: dict[str, TwinParts]
    engine: engine.TwinEngine


class Cutting:
    """Where a history is cut into batches, which idle polls happen, whether a scan follows a batch, and when a later
    generation becomes known. dice None: one batch, every idle poll."""

    def __init__(self, dice: random.Random | None) -> None:
        self.dice = dice
        self.cut_percent = dice.choice((0, 10, 50, 100)) if dice else 0
        self.keeps_idles = dice.randint(0, 2) != 1 if dice else True

    def chance(self, percent: int) -> bool:
        return self.dice is not None and self.dice.randint(0, 99) < percent


def run(history: History, cutting: Cutting) -> Outcome:
    driver = _Driver(history, cutting)
    batch: list[raw.RawRecord] = []
    for step in history.steps:
        if isinstance(step, Idle):
            if cutting.keeps_idles or not history.strict:
                driver.apply(batch)
                batch = []
                driver.advance(step.clock_ms)
            continue
        batch.append(step)
        if cutting.chance(cutting.cut_percent):
            driver.apply(batch)
            batch = []
    driver.apply(batch)
    driver.advance(history.final_clock_ms)
    return driver.outcome()


class _Driver:
    def __init__(self, history: History, cutting: Cutting) -> None:
        self.history = history
        self.cutting = cutting
        self.high_arrival_ms = 0
        self.effects: list[effects.Effect] = []
        settings = engine.Settings(
            identity=history.identity,
            alert_format=spec.Format.PROTOBUF,
            command_format=spec.Format.PROTOBUF,
            retention_ms=history.retention_ms,
        )
        self.known = len(history.generations)
        if cutting.chance(50):
            self.known = 1
        self.engine = engine.TwinEngine(settings, history.generations[: self.known])

    def apply(self, batch: Sequence[raw.RawRecord]) -> None:
        if not batch:
            return
        shard_batch = records.ShardBatch(
            sequence_numbers=[record.sequence_number for record in batch],
            arrival_ms=np.array([record.arrival_ms for record in batch], dtype=np.int64),
            data=[record.data for record in batch],
            millis_behind=0,
            poll_ms=batch[-1].arrival_ms,
        )
        self._learn(max(record.arrival_ms for record in batch))
        options = decode.Options(format=spec.Format.AUTO, high_arrival_ms=self.high_arrival_ms, with_firmware=True)
        columns = decode.decode(shard_batch, options)
        self.high_arrival_ms = columns.high_arrival_ms
        self.effects += self.engine.apply(columns)
        if self.cutting.chance(50):
            self.effects += self.engine.advance(self.high_arrival_ms)

    def advance(self, clock_ms: int) -> None:
        self._learn(clock_ms)
        self.effects += self.engine.advance(clock_ms)

    def _learn(self, time_ms: int) -> None:
        """Later generations are known at the latest when their time comes."""
        needed = sum(generation.effective_ms <= time_ms for generation in self.history.generations)
        if needed > self.known or (self.known < len(self.history.generations) and self.cutting.chance(10)):
            generations = self.history.generations
            tracked = engine.needs_firmware(generations[: self.known])
            self.known = max(needed, self.known + 1)
            if engine.needs_firmware(generations[: self.known]) and not tracked:
                self._start_firmware()
            self.engine.set_generations(generations[: self.known])

    def _start_firmware(self) -> None:
        """As the worker does when the rules begin to look at firmware: it is read from the last Telemetry of each twin."""
        self.engine.start_firmware(
            {
                device_id: fleet_pb2.Telemetry.FromString(telemetry).firmware
                for device_id, (_, _, telemetry) in self._twins().items()
                if telemetry
            }
        )

    def _twins(self) -> dict[str, TwinParts]:
        device_ids = {
            event.device_id
            for step in self.history.steps
            if not isinstance(step, Idle)
            for event in raw.events_of([step])
            if event.device_id
        }
        twins = {}
        for device_id in device_ids:
            snapshot = self.engine.table.snapshot(device_id)
            if snapshot is not None:
                twins[device_id] = (snapshot.row, snapshot.extra, snapshot.telemetry)
        return twins

    def outcome(self) -> Outcome:
        return Outcome(self.effects, self._twins(), self.engine)


def reference(history: History) -> tuple[model.ReferenceFleet, list[Effect]]:
    """The reference taken through the history, every idle poll included."""
    fleet = model.ReferenceFleet(history.identity, history.generations, history.retention_ms)
    expected: list[Effect] = []
    for step in history.steps:
        expected += fleet.advance(step.clock_ms) if isinstance(step, Idle) else fleet.apply(raw.events_of([step]))
    expected += fleet.advance(history.final_clock_ms)
    return fleet, expected


def disagreements(history: History, outcome: Outcome) -> list[str]:
    """Everything in which the engine differs from the reference, in words. Empty: they agree."""
    fleet, expected = reference(history)
    found = []
    alerts = [effect.data for effect in outcome.effects if effect.target == effects.Target.ALERTS]
    commands = [effect.data for effect in outcome.effects if effect.target == effects.Target.COMMANDS]
    verdict = judge.judge_effects(expected, alerts, commands)
    if not verdict.is_good or verdict.repeated:
        found.append(str(verdict))
    found += judge.judge_twins(fleet.twins, outcome.twins)
    if not found:
        found += _order(expected, outcome.effects) + _labels(expected, outcome.effects)
    refused = [letter.device_id for letter in outcome.engine.counts.second_hops]
    if refused != [event.device_id for event in fleet.second_hops]:
        found.append(f"second hops: expected {fleet.second_hops}, came {refused}")
    return found + _misrouted(fleet.misrouted, outcome.effects, history)


def _order(expected: Sequence[Effect], came: Sequence[effects.Effect]) -> list[str]:
    """Alerts and commands of a device together, in one order."""
    mine: dict[str, list[str]] = defaultdict(list)
    theirs: dict[str, list[str]] = defaultdict(list)
    for wanted in expected:
        mine[wanted.device_id].append(wanted.effect_id)
    for effect in came:
        if effect.target in (effects.Target.ALERTS, effects.Target.COMMANDS):
            theirs[effect.partition_key].append(effect.effect_id)
    return [f"{device_id!r}: effects out of order" for device_id in mine if mine[device_id] != theirs[device_id]]


def _labels(expected: Sequence[Effect], came: Sequence[effects.Effect]) -> list[str]:
    """What an Effect says of itself beside its message."""
    wanted = {effect.effect_id: effect for effect in expected}
    found = []
    for effect in came:
        if effect.target in (effects.Target.ALERTS, effects.Target.COMMANDS):
            meant = wanted[effect.effect_id]
            mine = (meant.device_id, meant.trigger, meant.timestamp_ms)
            if mine != (effect.partition_key, effect.trigger, effect.arrival_ms):
                found.append(f"{meant}: labelled {effect.partition_key!r}, {effect.trigger}, {effect.arrival_ms}")
    return found


def _misrouted(expected: Sequence[Event], came: Sequence[effects.Effect], history: History) -> list[str]:
    again = [effect for effect in came if effect.target == effects.Target.TELEMETRY]
    found = []
    if [event.device_id for event in expected] != [effect.partition_key for effect in again]:
        found.append(f"misrouted: expected {len(expected)} put again, came {len(again)}")
        return found
    if len({effect.effect_id for effect in again}) != len(again):
        found.append("misrouted: ids repeat")
    high_arrival_ms = 0
    arrivals = {}
    for step in history.steps:
        if not isinstance(step, Idle):
            high_arrival_ms = max(high_arrival_ms, step.arrival_ms)
            arrivals[step.sequence_number] = high_arrival_ms
    for event, effect in zip(expected, again, strict=True):
        message = fleet_pb2.Telemetry.FromString(effect.data)
        origin = fleet_pb2.Origin(
            shard_id=history.identity.shard_id,
            sequence_number=event.sequence_number,
            subsequence_number=event.subsequence_number,
            arrival_ms=arrivals[event.sequence_number],
            hop=1,
        )
        if message.origin != origin:
            found.append(f"misrouted: origin expected {origin}, is {message.origin}")
        message.ClearField("origin")
        mine = raw.control_message(event.device_id, event.control) if event.control else None
        if event.control is None and message != fleet_pb2.Telemetry.FromString(event.telemetry):
            found.append(f"misrouted: {event} put again as {message}")
        if mine is not None and message.control.WhichOneof("instruction") != mine.control.WhichOneof("instruction"):
            found.append(f"misrouted: {event} put again as {message}")
    return found
