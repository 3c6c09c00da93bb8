"""Judges a fleet that has come to rest: what it left, held against the independent model of the rules.

The model reads every shard of the stream in order, children after their parents, and knows nothing of workers, epochs or checkpoints:
whoever judged a record, and however often, the twins, the effects by id, each device's order, what was put again and what was a dead
letter have to come out the same.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import orjson

from fleet_model import partition, rules
from fleet_worker.adapters import memory_store, memory_stream
from fleet_worker.core import twins
from tests.reference import judge, model, raw
from tests.reference.words import Effect, Event

Place = tuple[str, str, int]
"""Shard, sequence number, sub-sequence number."""
Parts = tuple[np.void, np.void | None, bytes | None]
DOUBTFUL_MS = 60_000
"""So close to a day ahead of its arrival, this judge doesn't say whether a record is a dead letter: the model does, in the twins."""


@dataclasses.dataclass(frozen=True, slots=True)
class Left:
    """What is left of a partition. where: for messages. is_final: nobody was at work any more when it was left."""

    where: str
    clock_ms: int
    position: str
    rows: Mapping[str, Parts]
    outbox: int = 0
    is_final: bool = True


def left(where: str, contents: memory_store.Contents) -> Left:
    """Of a store's contents."""
    rows: dict[str, Parts] = {}
    for (_, device_id), twin in contents.twins.items():
        row = np.frombuffer(twin.row, dtype=twins.TWIN_DTYPE)[0]
        extra = None if twin.extra is None else np.frombuffer(twin.extra, dtype=twins.EXTRA_DTYPE)[0]
        rows[device_id] = (row, extra, twin.telemetry)
    state = contents.state
    return Left(where, state.clock_ms, state.position.sequence_number, rows, len(contents.entries))


@dataclasses.dataclass(frozen=True, slots=True)
class Streams:
    """Everything on the streams at the end. shards: of the telemetry, parents before children."""

    shards: Sequence[memory_stream.Shard]
    alerts: Sequence[bytes]
    commands: Sequence[bytes]
    dead_letters: Sequence[bytes]


@dataclasses.dataclass(slots=True)
class Judgement:
    """problems: in words; none is a pass. repeated: effects that came again."""

    problems: list[str] = dataclasses.field(default_factory=list)
    records: int = 0
    twins: int = 0
    effects: int = 0
    repeated: int = 0
    misrouted: int = 0


@dataclasses.dataclass(slots=True)
class _Partition:
    shard: memory_stream.Shard
    events: list[Event]
    model: model.ReferenceFleet


def judged(
    fleet: tuple[str, str, str],
    streams: Streams,
    generations: Sequence[rules.RulesGeneration],
    lefts: Mapping[str, Sequence[Left]],
    retention_ms: int,
) -> Judgement:
    """fleet: namespace, name, stream. lefts: by shard, each judged when the model has come to its clock."""
    found = Judgement()
    partitions: dict[str, _Partition] = {}
    expected: list[Effect] = []
    for shard in streams.shards:
        events = raw.events_of(
            raw.RawRecord(str(record.sequence_number), record.arrival_ms, record.data) for record in shard.records
        )
        identity = partition.PartitionIdentity(*fleet, shard.shard_id, shard.hash_key_range)
        one = _Partition(shard, events, model.ReferenceFleet(identity, generations, retention_ms))
        parents = [partitions[parent].model for parent in shard.parents if parent in partitions]
        if parents:
            expected += one.model.inherit(parents)
            # It may be judged before anything moved its clock; until then that is the slowest parent's.
            one.model.clock_ms = min(parent.clock_ms for parent in parents)
        expected += one.model.apply(events)
        half_scanned: list[tuple[Left, str]] = []
        for entry in sorted(lefts.get(shard.shard_id, ()), key=lambda entry: entry.clock_ms):
            expected += one.model.advance(entry.clock_ms)
            found.problems += _left_problems(one, entry, half_scanned)
        found.problems += _not_explained(one, half_scanned)
        partitions[shard.shard_id] = one
        found.records += len(shard.records)
        found.twins += len(one.model.twins)
    verdict = judge.judge_effects(expected, streams.alerts, streams.commands, any_offline_shard=True)
    found.effects, found.repeated = verdict.expected, verdict.repeated
    if not verdict.is_good:
        found.problems.append(str(verdict))
    found.misrouted, wrong = _misrouted(list(partitions.values()))
    found.problems += wrong
    found.problems += _dead_letters(list(partitions.values()), streams.dead_letters)
    return found


def _left_problems(one: _Partition, entry: Left, half_scanned: list[tuple[Left, str]]) -> list[str]:
    """half_scanned: gets the devices that a commit may have caught in the middle of a scan, whose clock comes only with its end."""
    found = []
    last = str(one.shard.records[-1].sequence_number) if one.shard.records else ""
    if last and entry.position != last:
        found.append(f"{entry.where}: stands at {entry.position or 'nothing'}, its last record is {last}")
    if entry.outbox:
        found.append(f"{entry.where}: {entry.outbox} effects are left in the outbox")
    rows, twins_now = entry.rows, one.model.twins
    found += [f"{entry.where}: {device_id!r} expected, isn't there" for device_id in twins_now.keys() - rows.keys()]
    found += [f"{entry.where}: {device_id!r} is there, not expected" for device_id in rows.keys() - twins_now.keys()]
    for device_id in sorted(rows.keys() & twins_now.keys()):
        wrong = judge.judge_twin(twins_now[device_id], *rows[device_id])
        if _are_of_a_scan(wrong) and not entry.is_final:
            half_scanned.append((entry, device_id))
        else:
            found += [f"{entry.where}: {device_id!r}: {text}" for text in wrong]
    return found


def _are_of_a_scan(wrong: Sequence[str]) -> bool:
    return bool(wrong) and all(text.startswith(("offline_repeats ", "flags ")) for text in wrong)


def _not_explained(one: _Partition, half_scanned: Sequence[tuple[Left, str]]) -> list[str]:
    """Those that aren't on their way to what the model says a little later."""
    found = []
    for entry, device_id in half_scanned:
        later, row = one.model.twins.get(device_id), entry.rows[device_id]
        reached = int(row[0]["offline_repeats"])
        if later is None or not _are_of_a_scan(judge.judge_twin(later, *row)) or reached > later.offline_repeats:
            wrong = ["gone by now"] if later is None else judge.judge_twin(later, *row)
            if wrong:
                found.append(f"{entry.where}: {device_id!r}, offline ahead of its clock: {wrong}")
    return found


# Records put again


def _misrouted(partitions: Sequence[_Partition]) -> tuple[int, list[str]]:
    """Each misrouted record has to be on the stream again under its origin, and none beside them."""
    again: dict[Place, Event] = {}
    for one in partitions:
        for event in one.events:
            if event.origin is not None and not event.reason and _is_a_shard(event.origin.shard_id, partitions):
                origin = event.origin
                again[origin.shard_id, origin.sequence_number, origin.subsequence_number] = event
    expected = {_place(one, event): event for one in partitions for event in one.model.misrouted}
    wrong = []
    for place, event in expected.items():
        copy = again.get(place)
        if copy is None:
            wrong.append(f"misrouted, never put again: {event}")
        elif _said(copy) != _said(event):
            wrong.append(f"misrouted: {event} was put again as {copy}")
    made_up = [
        event for place, event in again.items() if place not in expected and not _is_drawn(event, place, partitions)
    ]
    wrong += [f"put again without need: {event}" for event in made_up]
    return len(expected), wrong


def _is_a_shard(shard_id: str, partitions: Sequence[_Partition]) -> bool:
    return any(one.shard.shard_id == shard_id for one in partitions)


def _is_drawn(event: Event, place: Place, partitions: Sequence[_Partition]) -> bool:
    """A schedule may draw records with an origin of its own making: of a place that holds no record."""
    numbers = {
        record.sequence_number for one in partitions if one.shard.shard_id == place[0] for record in one.shard.records
    }
    return int(place[1]) not in numbers


def _said(event: Event) -> tuple[str, bytes, str]:
    telemetry = model.parsed(event.telemetry) if event.control is None else b""
    return event.device_id, telemetry, event.control.instruction if event.control else ""


def _place(one: _Partition, event: Event) -> Place:
    return one.shard.shard_id, event.sequence_number, event.subsequence_number


# Dead letters


def _dead_letters(partitions: Sequence[_Partition], published: Iterable[bytes]) -> list[str]:
    """Each is on its stream at least once, with its reason, and no other."""
    expected: dict[Place, str] = {}
    doubtful: set[Place] = set()
    for one in partitions:
        second_hops = {_place(one, event) for event in one.model.second_hops}
        for event in one.events:
            place = _place(one, event)
            if event.reason or place in second_hops:
                expected[place] = event.reason or "second_hop"
            elif abs(_ahead_ms(event) - model.AHEAD_MS_MAX) < DOUBTFUL_MS:
                doubtful.add(place)
            elif _ahead_ms(event) > model.AHEAD_MS_MAX:
                expected[place] = "bad_control" if event.control else "timestamp_ahead"
    came: dict[Place, str] = {}
    wrong = []
    for data in published:
        envelope = orjson.loads(data)
        base64.b64decode(envelope["data_base64"], validate=True)
        place = (envelope["shard_id"], envelope["sequence_number"], envelope["subsequence_number"])
        if came.setdefault(place, envelope["reason"]) != envelope["reason"]:
            wrong.append(f"dead letter {place} came with two reasons")
    wrong += [f"dead letter {place} ({expected[place]}) never came" for place in expected.keys() - came.keys()]
    wrong += [
        f"dead letter {place} ({came[place]}) came, unexpected" for place in came.keys() - expected.keys() - doubtful
    ]
    wrong += [
        f"dead letter {place}: expected {expected[place]}, came {came[place]}"
        for place in expected.keys() & came.keys()
        if expected[place] != came[place]
    ]
    return sorted(wrong)


def _ahead_ms(event: Event) -> int:
    origin_ms = event.origin.arrival_ms if event.origin else event.arrival_ms
    return (event.control.issued_ms if event.control else event.timestamp_ms) - origin_ms
