"""Judges stopped workers by what they left: partitions on their disks or in checkpoints, and everything on the streams, held against
the reference.

It takes the rules generations that were kept and the clock that each partition reached; everything else is the raw
records' and the reference's. It needs workers that have ended cleanly.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import orjson

from fleet_model import partition, rules
from fleet_worker import ports
from fleet_worker.adapters import lmdb_store, local_folder
from fleet_worker.core import records, twins
from tests.reference import judge, model, raw
from tests.reference.words import Effect, Event
from tests.support import live_fleet, streams

BOOT_ID = "the judge's"
"""Unlike the worker's, so that only an environment that was closed cleanly is read."""
Place = tuple[str, str, int]
"""Shard, sequence number, sub-sequence number."""


@dataclasses.dataclass
class Judgement:
    """problems: what is wrong, in words; none is a pass. The counts are for whoever reads the test's output."""

    problems: list[str] = dataclasses.field(default_factory=list)
    records: int = 0
    twins: int = 0
    effects: int = 0
    repeated: int = 0
    generations: int = 0
    misrouted: int = 0
    dead_letters: int = 0
    expected: list[Effect] = dataclasses.field(default_factory=list)

    def add(self, other: Judgement) -> None:
        """The counts together."""
        for field in dataclasses.fields(Judgement):
            if field.type == "int":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        return (
            f"{self.records} records, {self.twins} twins, {self.effects} effects expected, {self.repeated} repeated ids, "
            f"{self.generations} generations, {self.misrouted} misrouted, {self.dead_letters} dead letters"
        )


@dataclasses.dataclass
class Partition:
    """What is known of one shard. left: None where the worker never opened it."""

    identity: partition.PartitionIdentity
    events: list[Event]
    left: Left | None
    model: model.ReferenceFleet
    expected: list[Effect] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Left:
    """What a partition's store holds."""

    clock_ms: int
    position: partition.Position
    rows: dict[str, tuple[np.void, np.void | None, bytes | None]]
    dead_letters: list[records.DeadLetter]
    outbox: int


async def judged(fleet: live_fleet.LiveFleet, retention_ms: int = 86_400_000) -> Judgement:
    """One worker's, by its data folder."""
    with local_folder.LocalFolder(fleet.data_folder, fleet.spec().namespace, fleet.spec().name) as folder:
        shards = await fleet.streams.shards(fleet.stream(live_fleet.TELEMETRY))
        there = folder.partitions()
        lefts = {shard.shard_id: left_on_disk(fleet, folder, shard) for shard in shards if shard.shard_id in there}
        return await judged_by(fleet, folder.generations, lefts, retention_ms)


async def judged_by(
    fleet: live_fleet.LiveFleet,
    generations: Sequence[rules.RulesGeneration],
    lefts: Mapping[str, Left],
    retention_ms: int = 86_400_000,
) -> Judgement:
    """lefts: what is left of each partition that was ever opened, by shard id, wherever that lay."""
    kinesis = fleet.streams
    shards = await kinesis.shards(fleet.stream(live_fleet.TELEMETRY))
    telemetry = await kinesis.read(fleet.stream(live_fleet.TELEMETRY))
    found = Judgement(generations=len(generations))
    partitions: dict[str, Partition] = {}
    for shard in shards:
        read = telemetry[shard.shard_id]
        left = lefts.get(shard.shard_id)
        one = _modelled(fleet.identity(shard), read, left, generations, retention_ms)
        parents = [partitions[parent].model for parent in shard.parents if parent in partitions]
        if parents:
            one.expected += one.model.inherit(parents)
        one.expected += one.model.apply(one.events)
        if left is not None:
            one.expected += one.model.advance(left.clock_ms)
        partitions[shard.shard_id] = one
        found.records += len(read)
        found.twins += len(one.model.twins)
        found.problems += _position(one, read) + _twins(one)
    found.expected = [effect for one in partitions.values() for effect in one.expected]
    await _judge_effects(fleet, found, resharded=any(shard.parents for shard in shards))
    found.misrouted, wrong = _misrouted(partitions.values())
    found.problems += wrong
    await _judge_dead_letters(fleet, partitions.values(), found)
    return found


def _modelled(
    identity: partition.PartitionIdentity,
    read: Sequence[streams.Record],
    left: Left | None,
    generations: Sequence[rules.RulesGeneration],
    retention_ms: int,
) -> Partition:
    events = raw.events_of(raw.RawRecord(record.sequence_number, record.arrival_ms, record.data) for record in read)
    return Partition(identity, events, left, model.ReferenceFleet(identity, generations, retention_ms))


def left_on_disk(fleet: live_fleet.LiveFleet, folder: local_folder.LocalFolder, shard: partition.Shard) -> Left:
    """Of a worker that ended cleanly."""
    store = lmdb_store.LmdbTwinStore.open(
        folder.partition_folder(shard.shard_id), fleet.identity(shard), fleet.spec().storage, BOOT_ID
    )
    try:
        assert store.discarded is None, f"{shard.shard_id}: {store.discarded}"
        return left_in(store)
    finally:
        store.close()


def left_in(store: ports.TwinStore) -> Left:
    """What a store holds, wherever it came from."""
    rows = {}
    for chunk in store.scan():
        for index, device_id in enumerate(chunk.device_ids):
            extra = chunk.extras.get(index)
            unpacked = None if extra is None else np.frombuffer(extra, dtype=twins.EXTRA_DTYPE)[0]
            rows[device_id] = (chunk.rows[index], unpacked, chunk.telemetry[index])
    state = store.state
    return Left(state.clock_ms, state.position, rows, store.dead_letters(10_000), len(store.outbox()))


def _position(one: Partition, read: Sequence[streams.Record]) -> list[str]:
    last = read[-1].sequence_number if read else ""
    if one.left is None:
        return [f"{one.identity.shard_id}: never opened, and it holds {len(read)} records"] if read else []
    wrong = []
    if last and one.left.position.sequence_number != last:
        wrong.append(
            f"{one.identity.shard_id}: stands at {one.left.position.sequence_number}, its last record is {last}"
        )
    if one.left.outbox:
        wrong.append(f"{one.identity.shard_id}: {one.left.outbox} effects are left in the outbox")
    return wrong


def _twins(one: Partition) -> list[str]:
    """To be asked before children go on with the same twins."""
    if one.left is None:
        return []
    return [f"{one.identity.shard_id}: {text}" for text in judge.judge_twins(one.model.twins, one.left.rows)]


async def _judge_effects(fleet: live_fleet.LiveFleet, found: Judgement, resharded: bool) -> None:
    alerts = await fleet.streams.read_all(fleet.stream(live_fleet.ALERTS))
    commands = await fleet.streams.read_all(fleet.stream(live_fleet.COMMANDS))
    verdict = judge.judge_effects(
        found.expected, [record.data for record in alerts], [record.data for record in commands], resharded
    )
    found.effects, found.repeated = verdict.expected, verdict.repeated
    if not verdict.is_good:
        found.problems.append(str(verdict))


# Records put again


def _misrouted(partitions: Iterable[Partition]) -> tuple[int, list[str]]:
    """Each misrouted record has to be on the stream again under its origin, and none beside them."""
    partitions = list(partitions)
    again: dict[Place, Event] = {}
    for one in partitions:
        for event in one.events:
            if event.origin is not None and event.reason == "":
                origin = event.origin
                again[origin.shard_id, origin.sequence_number, origin.subsequence_number] = event
    wrong = []
    expected = {_place(one, event): event for one in partitions for event in one.model.misrouted}
    for place, event in expected.items():
        copy = again.get(place)
        if copy is None:
            wrong.append(f"misrouted, never put again: {event}")
        elif _said(copy) != _said(event):
            wrong.append(f"misrouted: {event} was put again as {copy}")
    wrong += [f"put again without need: {event}" for place, event in again.items() if place not in expected]
    return len(expected), wrong


def _said(event: Event) -> tuple[str, bytes, str]:
    telemetry = model.parsed(event.telemetry) if event.control is None else b""
    return event.device_id, telemetry, event.control.instruction if event.control else ""


def _place(one: Partition, event: Event) -> Place:
    return one.identity.shard_id, event.sequence_number, event.subsequence_number


# Dead letters


async def _judge_dead_letters(fleet: live_fleet.LiveFleet, partitions: Iterable[Partition], found: Judgement) -> None:
    """Each kept exactly once, and on the stream at least once, with the same reason in both places."""
    expected: dict[Place, str] = {}
    kept: dict[Place, str] = {}
    for one in partitions:
        for event in (*one.events, *one.model.second_hops):
            if event.reason or event in one.model.second_hops:
                expected[_place(one, event)] = event.reason or "second_hop"
            elif _is_ahead(event):
                expected[_place(one, event)] = "timestamp_ahead"
        for letter in one.left.dead_letters if one.left else ():
            place = (one.identity.shard_id, letter.sequence_number, letter.subsequence_number)
            if place in kept:
                found.problems.append(f"dead letter kept twice: {place} {letter.reason}")
            kept[place] = letter.reason.value
    published: dict[Place, str] = {}
    for record in await fleet.streams.read_all(fleet.stream(live_fleet.DEAD_LETTERS)):
        envelope = orjson.loads(record.data)
        base64.b64decode(envelope["data_base64"], validate=True)
        place = (envelope["shard_id"], envelope["sequence_number"], envelope["subsequence_number"])
        if published.setdefault(place, envelope["reason"]) != envelope["reason"]:
            found.problems.append(f"dead letter {place} came with two reasons")
    found.dead_letters = len(expected)
    for where, told in (("kept", kept), ("on the stream", published)):
        found.problems += [
            f"dead letter {place} ({expected[place]}) isn't {where}" for place in expected.keys() - told.keys()
        ]
        found.problems += [
            f"dead letter {place} ({told[place]}) is {where}, unexpected" for place in told.keys() - expected.keys()
        ]
    found.problems += [
        f"dead letter {place}: {kept[place]} kept, {published[place]} published"
        for place in kept.keys() & published.keys()
        if kept[place] != published[place]
    ]


def _is_ahead(event: Event) -> bool:
    """Told with a minute to spare on either side; tests draw nothing in between."""
    origin_ms = event.origin.arrival_ms if event.origin else event.arrival_ms
    told_ms = event.control.issued_ms if event.control else event.timestamp_ms
    return told_ms > origin_ms + model.AHEAD_MS_MAX
