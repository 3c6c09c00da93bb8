"""Judges a fleet that goes on running, whoever its workers are: by its streams and its checkpoints alone.

While no new telemetry comes, every partition's checkpoint soon holds all that the stream does. What is in it is held against the
reference, and the reference goes on from there when more has come: so a fleet can be judged after each thing that happened to it. It
reads records by itself and trusts no status; of the fleet it takes the rules generations and the clock in each checkpoint.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fleet_model import hashing, manifest, partition, rules
from fleet_worker import custody, ports, restoring
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import memory_store
from tests.reference import judge, model, raw
from tests.reference.words import Effect, Event
from tests.support import catching_up, live_judge, streams

CHECKPOINTED_S_MAX = 120.0
PUBLISHED_S_MAX = 30.0
LOOK_AGAIN_S = 0.5
SHOWN_MAX = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Fleet:
    """Where a fleet's traces are. generations: those that it judges by, asked for anew at each judgement. objects: its part of the
    bucket."""

    namespace: str
    name: str
    telemetry: str
    alerts: str
    commands: str
    kinesis: streams.Streams
    objects: ports.ObjectStore
    generations: Callable[[], Awaitable[Sequence[rules.RulesGeneration]]]


@dataclasses.dataclass(slots=True)
class Verdict:
    """problems: what is wrong, in words; none is a pass. delays_ms: from the record that caused an effect to the effect on its stream, of
    those that came since the last judgement: the longest is the pause that a user saw. expected, repeated: since the beginning."""

    problems: list[str] = dataclasses.field(default_factory=list)
    records: int = 0
    twins: int = 0
    expected: int = 0
    offline: int = 0
    repeated: int = 0
    delays_ms: list[int] = dataclasses.field(default_factory=list)
    took_s: float = 0.0

    def delay_ms(self, share: float) -> int:
        ordered = sorted(self.delays_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0

    def __str__(self) -> str:
        return (
            f"{self.records} records, {self.twins} twins, {self.expected} effects expected ({self.offline} of offline), "
            f"{self.repeated} repeated; effects after p50 {self.delay_ms(0.5)} ms, p99 {self.delay_ms(0.99)} ms, at most "
            f"{self.delay_ms(1.0)} ms; judged in {self.took_s:.1f} s"
        )


@dataclasses.dataclass(slots=True)
class _Shard:
    """What is known of one. waiting: read, not yet judged. left: of its newest checkpoint, once that holds everything. has_ended: judged
    to its end; its twins are its children's now."""

    shard: partition.Shard
    reader: streams.Reader
    waiting: list[Event] = dataclasses.field(default_factory=list)
    last: int = 0
    high_ms: int = 0
    records: int = 0
    reference: model.ReferenceFleet | None = None
    has_ended: bool = False


class FleetJudge:
    """One for the life of a fleet's streams."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._manifests = custody.Manifests(fleet.objects)
        self._shards: dict[str, _Shard] = {}
        self._expected: list[Effect] = []
        self._outputs: dict[str, list[streams.Record]] = collections.defaultdict(list)
        self._readers: dict[tuple[str, str], streams.Reader] = {}
        self._seen: set[str] = set()

    async def judged(self) -> Verdict:
        """While no telemetry is put. Raises AssertionError when checkpoints don't come to hold everything in time."""
        began = time.monotonic()
        kept = await self._all_is_checkpointed()
        generations = await self._fleet.generations()
        verdict = Verdict()
        with clocks.RealClock() as clock:
            for shard_id, one in self._shards.items():
                if one.has_ended:
                    continue
                found = kept[shard_id]
                left = await self._restored(found, clock)
                await asyncio.to_thread(self._judge_shard, one, found, left, generations, verdict)
        verdict.records = sum(one.records for one in self._shards.values())
        await self._judge_effects(kept, verdict)
        verdict.took_s = time.monotonic() - began
        return verdict

    async def manifests(self) -> dict[str, manifest.Manifest | None]:
        """Of every shard that the stream lists, as they are now."""
        found = {}
        for shard in await self._fleet.kinesis.shards(self._fleet.telemetry):
            read = await self._manifests.read(shard.shard_id)
            found[shard.shard_id] = None if read is None else read[0]
        return found

    # Until everything is in checkpoints

    async def _all_is_checkpointed(self) -> dict[str, manifest.Manifest]:
        deadline = time.monotonic() + CHECKPOINTED_S_MAX
        while True:
            await self._read_telemetry()
            kept, missing = {}, []
            for shard_id, one in self._shards.items():
                if one.has_ended:
                    continue
                read = await self._manifests.read(shard_id)
                why = "it has no manifest" if read is None else _why_not_yet(one, read[0])
                if read is not None and not why:
                    kept[shard_id] = read[0]
                else:
                    missing.append(f"{shard_id}: {why}")
            if not missing and not await self._read_telemetry():  # misrouted records may have come back to it
                return kept
            assert time.monotonic() < deadline, (
                f"checkpoints don't hold everything after {CHECKPOINTED_S_MAX} s: {'; '.join(missing)}"
            )
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _read_telemetry(self) -> int:
        """How many records came."""
        came = 0
        for shard in await self._fleet.kinesis.shards(self._fleet.telemetry):
            one = self._shards.get(shard.shard_id)
            if one is None:
                reader = streams.Reader(self._fleet.kinesis, self._fleet.telemetry, shard.shard_id)
                one = self._shards[shard.shard_id] = _Shard(shard, reader)
            one.shard = shard
            records = await one.reader.rest()
            if not records:
                continue
            came += len(records)
            one.records += len(records)
            one.last = int(records[-1].sequence_number)
            one.high_ms = max(one.high_ms, *(record.arrival_ms for record in records))
            one.waiting += await asyncio.to_thread(_events, records)
        return came

    async def _restored(self, found: manifest.Manifest, clock: clocks.RealClock) -> live_judge.Left:
        store = memory_store.MemoryTwinStore(found.identity)
        await restoring.restore(self._fleet.objects, found, store, clock)
        return await asyncio.to_thread(live_judge.left_in, store)

    # Twins

    def _judge_shard(
        self,
        one: _Shard,
        found: manifest.Manifest,
        left: live_judge.Left,
        generations: Sequence[rules.RulesGeneration],
        verdict: Verdict,
    ) -> None:
        """In a thread, which takes seconds. Parents come before their children."""
        reference = one.reference
        if reference is None:
            identity = partition.PartitionIdentity(
                self._fleet.namespace,
                self._fleet.name,
                self._fleet.telemetry,
                one.shard.shard_id,
                one.shard.hash_key_range,
            )
            reference = one.reference = model.ReferenceFleet(identity, generations)
            parents = [self._shards[parent].reference for parent in one.shard.parents if parent in self._shards]
            if parents:
                self._expect(reference.inherit([parent for parent in parents if parent is not None]))
        reference.generations = list(generations)
        self._expect(reference.apply(one.waiting))
        one.waiting = []
        self._expect(reference.advance(left.clock_ms))
        shard_id = one.shard.shard_id
        wrong = judge.judge_twins(reference.twins, left.rows)
        verdict.problems += [f"{shard_id}: {text}" for text in wrong[:SHOWN_MAX]]
        if len(wrong) > SHOWN_MAX:
            verdict.problems.append(f"{shard_id}: and {len(wrong) - SHOWN_MAX} more")
        one.has_ended = found.final and found.ended
        if not one.has_ended:
            verdict.twins += len(reference.twins)

    def _expect(self, effects: list[Effect]) -> None:
        self._expected += effects

    # Effects

    async def _judge_effects(self, kept: Mapping[str, manifest.Manifest], verdict: Verdict) -> None:
        """Until everything expected has come: what was committed is published in a moment."""
        clocks_ms = [(found.identity.hash_key_range, _checkpoint(found).clock_ms) for found in kept.values()]
        deadline = time.monotonic() + PUBLISHED_S_MAX
        while True:
            await self._read_outputs()
            told = await asyncio.to_thread(
                judge.judge_effects,
                self._expected,
                [record.data for record in self._outputs[self._fleet.alerts]],
                [record.data for record in self._outputs[self._fleet.commands]],
                True,
            )
            if not told.missing or time.monotonic() > deadline:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        unexpected = tuple(effect for effect in told.unexpected if not _is_later(effect, clocks_ms))
        told = dataclasses.replace(told, unexpected=unexpected)
        if not told.is_good:
            verdict.problems.append(str(told))
        verdict.expected, verdict.repeated = told.expected, told.repeated
        verdict.offline = sum(effect.kind == "alert" and effect.trigger == "offline" for effect in self._expected)
        verdict.delays_ms = self._delays()

    async def _read_outputs(self) -> None:
        for name in (self._fleet.alerts, self._fleet.commands):
            for shard in await self._fleet.kinesis.shards(name):
                reader = self._readers.setdefault(
                    (name, shard.shard_id), streams.Reader(self._fleet.kinesis, name, shard.shard_id)
                )
                self._outputs[name] += await reader.rest()

    def _delays(self) -> list[int]:
        """Of alerts that a record caused and that are new since the last time."""
        found = []
        for record in self._outputs[self._fleet.alerts]:
            effect = judge.effect_of_alert(record.data)
            if effect.effect_id not in self._seen:
                self._seen.add(effect.effect_id)
                if effect.trigger != "offline":
                    found.append(record.arrival_ms - effect.timestamp_ms)
        return found


def _events(records: Sequence[streams.Record]) -> list[Event]:
    return raw.events_of(raw.RawRecord(record.sequence_number, record.arrival_ms, record.data) for record in records)


def _checkpoint(found: manifest.Manifest) -> manifest.Checkpoint:
    assert found.checkpoint is not None
    return found.checkpoint


def _why_not_yet(one: _Shard, found: manifest.Manifest) -> str:
    """ "" = its checkpoint holds every record, and was scanned at its clock."""
    if found.checkpoint is None:
        return "it has no checkpoint"
    at = int(found.checkpoint.position.sequence_number or 0)
    if at < one.last:
        return f"its checkpoint ends at {at}, the stream at {one.last}"
    if one.shard.closed:
        return "" if found.final and found.ended else "its shard ended, and its checkpoint isn't final"
    if one.high_ms and found.checkpoint.clock_ms < one.high_ms + catching_up.SCANNED_MS:
        return f"its clock stands at {found.checkpoint.clock_ms}, the last record came at {one.high_ms}"
    return ""


def _is_later(effect: Effect, clocks_ms: Sequence[tuple[hashing.HashKeyRange, int]]) -> bool:
    """It belongs to a time that no checkpoint has reached yet: the fleet goes on while it is judged."""
    key = hashing.hash_key(effect.device_id)
    return any(key_range.start <= key <= key_range.end and effect.timestamp_ms > at for key_range, at in clocks_ms)
