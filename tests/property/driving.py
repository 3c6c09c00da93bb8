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
from fleet_worker.core import commits, decode, effects, engine, records, twins
from tests.property import stores
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
    second_hops: list[records.DeadLetter]


class Cutting:
    """Where a history is cut into batches, which idle polls happen, whether a scan follows a batch, and when a later
    generation becomes known. With a store: when commits happen and fail, which rows leave the table, and when the process
    dies. dice None: one batch, every idle poll, no store."""

    def __init__(self, dice: random.Random | None, has_store: bool = False) -> None:
        self.dice = dice
        self.has_store = has_store
        self.cut_percent = dice.choice((0, 10, 50, 100)) if dice else 0
        self.keeps_idles = dice.randint(0, 2) != 1 if dice else True
        self.deaths_left = 3

    def chance(self, percent: int) -> bool:
        return self.dice is not None and self.dice.randint(0, 99) < percent


def run(history: History, cutting: Cutting) -> Outcome:
    driver = _Driver(history, cutting)
    batch: list[raw.RawRecord] = []
    at = 0
    while at < len(history.steps):
        step = history.steps[at]
        at += 1
        if isinstance(step, Idle):
            if cutting.keeps_idles or not history.strict:
                driver.apply(batch)
                batch = []
                driver.advance(step.clock_ms)
                at = driver.commit(at)
            continue
        batch.append(step)
        if cutting.chance(cutting.cut_percent):
            driver.apply(batch)
            batch = []
            at = driver.commit(at)
    driver.apply(batch)
    driver.advance(history.final_clock_ms)
    return driver.outcome()


@dataclasses.dataclass(frozen=True, slots=True)
class _Committed:
    """What a commit makes durable beside twins: where reading goes on, the shard's time, effects to publish."""

    at: int = 0
    clock_ms: int = 0
    high_arrival_ms: int = 0
    effects: int = 0


class _Driver:
    def __init__(self, history: History, cutting: Cutting) -> None:
        self.history = history
        self.cutting = cutting
        self.high_arrival_ms = 0
        self.clock_ms = 0
        self.effects: list[effects.Effect] = []
        self.second_hops: list[records.DeadLetter] = []
        self.store = stores.Store()
        self.in_flight: tuple[commits.Commit, _Committed] | None = None
        self.committed = _Committed()
        self.commit_number = 0
        self.known = 1 if cutting.chance(50) else len(history.generations)
        self.engine = self._new_engine()

    def _new_engine(self) -> engine.TwinEngine:
        settings = engine.Settings(
            identity=self.history.identity,
            alert_format=spec.Format.PROTOBUF,
            command_format=spec.Format.PROTOBUF,
            retention_ms=self.history.retention_ms,
        )
        return engine.TwinEngine(settings, self.history.generations[: self.known])

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
        self.store.load_into(self.engine, self.engine.missing(columns))
        self.store.load_due(self.engine, self.high_arrival_ms)
        self.effects += self.engine.apply(columns)
        self._settle_commit()
        if self.cutting.chance(50):
            self._advance(self.high_arrival_ms)

    def advance(self, clock_ms: int) -> None:
        self._learn(clock_ms)
        self._advance(clock_ms)
        self._settle_commit()

    def _advance(self, clock_ms: int) -> None:
        self.clock_ms = max(self.clock_ms, clock_ms)
        self.store.load_due(self.engine, clock_ms)
        if self.cutting.chance(50):
            self.effects += self.engine.advance(clock_ms)
            return
        # The same in turns, as a loop does it that mustn't stand still while a whole fleet is silent.
        while (start_ms := self.engine.next_start_ms) is not None and start_ms <= clock_ms:
            self._scan_in_turns(start_ms)
            self.engine.start_next_generation()
        self._scan_in_turns(clock_ms)

    def _scan_in_turns(self, time_ms: int) -> None:
        effects_max = 2 if self.cutting.chance(50) else 1
        while True:
            found = self.engine.scan(time_ms, effects_max)
            self.effects += found
            if len(found) < effects_max:
                return

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
            # The page's one exception: whoever is offline and outside the table when repeats begin isn't reported again.
            self.store.load_into(self.engine, self.store.twins)

    def _start_firmware(self) -> None:
        """As the worker does when the rules begin to look at firmware: it is read from the last Telemetry of each twin."""
        firmware = {device_id: self.store.firmware(device_id) for device_id in self.store.twins}
        for device_id, (_, _, telemetry) in self._twins_in_table().items():
            if telemetry is not None:  # else the store has it
                firmware[device_id] = fleet_pb2.Telemetry.FromString(telemetry).firmware
        self.engine.start_firmware(firmware)

    # The store

    def commit(self, at: int) -> int:
        """Between batches: a commit may start, a process may die. Returns the step to go on with."""
        if not self.cutting.has_store:
            return at
        if self.cutting.deaths_left and self.history.strict and self.cutting.chance(4):
            self.cutting.deaths_left -= 1
            return self._die()
        if self.in_flight is None and self.cutting.chance(40):
            self._start_commit(at)
            if self.cutting.chance(50):
                self._settle_commit()
        return at

    def _start_commit(self, at: int) -> None:
        self.commit_number += 1
        leaving = self.engine.table.coldest(3 if self.cutting.chance(50) else 1) if self.cutting.chance(60) else None
        commit = self.engine.table.take_dirty(self.commit_number, leaving)
        self.in_flight = (commit, _Committed(at, self.clock_ms, self.high_arrival_ms, len(self.effects)))

    def _settle_commit(self) -> None:
        if self.in_flight is None:
            return
        commit, facts = self.in_flight
        self.in_flight = None
        if self.cutting.chance(20):
            self.engine.table.not_committed(commit)
            return
        self.store.commit(commit)
        self.committed = facts
        self.engine.table.committed()

    def _die(self) -> int:
        self.in_flight = None
        self.clock_ms, self.high_arrival_ms = self.committed.clock_ms, self.committed.high_arrival_ms
        del self.effects[self.committed.effects :]
        self.second_hops += self.engine.counts.second_hops
        self.engine = self._new_engine()
        self.engine.resume(max(self.clock_ms, self.high_arrival_ms))
        self.engine.table.stored_elsewhere = len(self.store.twins)
        self.store.load_into(
            self.engine, [device_id for device_id in self.store.twins if device_id not in self.store.index]
        )
        return self.committed.at

    def _twins_in_table(self) -> dict[str, TwinParts]:
        twins = {}
        for device_id in self._device_ids():
            snapshot = self.engine.table.snapshot(device_id)
            if snapshot is not None:
                twins[device_id] = (snapshot.row, snapshot.extra, snapshot.telemetry)
        return twins

    def _device_ids(self) -> set[str]:
        return {
            event.device_id
            for step in self.history.steps
            if not isinstance(step, Idle)
            for event in raw.events_of([step])
            if event.device_id
        }

    def outcome(self) -> Outcome:
        self.second_hops += self.engine.counts.second_hops
        twins_found = self._twins_in_table()
        if self.cutting.has_store:
            while self.in_flight:
                self._settle_commit()
            self.store.commit(self.engine.table.take_dirty(self.commit_number + 1))
            self.engine.table.committed()
            for device_id, (row, extra, telemetry) in self.store.twins.items():
                parts = None if extra is None else np.frombuffer(extra, dtype=twins.EXTRA_DTYPE)[0]
                in_table = twins_found.get(device_id)
                twins_found[device_id] = (row, parts, telemetry)
                if in_table is not None:
                    assert _is_same(in_table, twins_found[device_id]), f"{device_id}: stored isn't what the table has"
            for device_id in set(twins_found) - set(self.store.twins):
                raise AssertionError(f"{device_id}: in the table, not stored")
        return Outcome(self.effects, twins_found, self.engine, self.second_hops)


def _is_same(one: TwinParts, other: TwinParts) -> bool:
    names = [name for name in twins.TWIN_DTYPE.names or () if name != "commit"]
    if any(one[0][name].tolist() != other[0][name].tolist() for name in names):
        return False
    return (None if one[1] is None else one[1].tobytes()) == (None if other[1] is None else other[1].tobytes())


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
    refused = {(letter.sequence_number, letter.subsequence_number) for letter in outcome.second_hops}
    if refused != {(event.sequence_number, event.subsequence_number) for event in fleet.second_hops}:
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
