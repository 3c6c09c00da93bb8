"""Fills `observed.Look` for one fleet: from the cache, from what is known of its stream, and from what its workers answered.

It asks the API server only where the cache can't know: whether a name that is to be taken is somebody else's. What it finds may be a little
old; every write is conditional or may be repeated, so that costs a round and nothing else. Decides nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleet_model import generations, loads, rules, sections, twin_partition, twin_partition_document
from fleet_operator import (
    clock,
    errors,
    history,
    kinds,
    naming,
    observed,
    pod_template,
    probing,
    stream_watch,
    workers,
)
from fleet_operator.cache import Cache, Found
from fleet_operator.kinds import FleetKey, Kind

log = logging.getLogger(__name__)

PUBLISH_MS_FIRST, PUBLISH_MS_MAX = 200, 4_000
"""From the look to the moment when a new rules generation stands in the fleet's status, at most: `acting` holds the write to it. A
generation starts this, LATE_MS and generations.AHEAD_MS after the look, so workers have all of AHEAD_MS to hear of it. Twice as much after a write that
came too late, so that an edit gets through where the API server or this operator is slow; half of it after one that came in time."""
LATE_MS = 150
"""The API server counts a write's time from when the write has reached it: one may stand so much later than it should."""
GONE_S_MAX = 600.0
"""So long it is known when a worker was last heard of that has no pod any more."""
REPLAY_MARGIN_MS = 600_000
"""Rules are kept so much longer than the stream keeps records."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    get: Callable[[Kind, str, str], Mapping[str, Any]]
    """From the API server itself. Raises OperatorError."""
    cache: Cache
    streams: stream_watch.StreamWatch
    probing: probing.Probing
    clock: clock.Clock
    defaults: pod_template.Defaults


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """A look, the fleet's document that it was taken of, and what is known of its stream. is_early: that isn't known yet; the look is
    without the children that only the API server knows then, and nothing is to be planned by it."""

    look: observed.Look
    document: Found
    stream: stream_watch.Seen
    publish_by_s: float
    """By the monotonic clock: until then a generation that is stamped by this look must stand in the fleet's status."""
    is_early: bool = False

    def without_stamping(self) -> Taken:
        """The same, but that no new rules generation can be stamped by it."""
        rules_ = dataclasses.replace(self.look.rules, effective_ms=None)
        return dataclasses.replace(self, look=dataclasses.replace(self.look, rules=rules_))


@dataclasses.dataclass(slots=True)
class _Known:
    """Of one fleet, from one look to the next: what was read of objects that haven't changed since, and when (by the monotonic clock) workers
    were heard of. told: a partition's status, and when it became so; None = it stood there when we began. heard: workers' last signs of life."""

    reading: tuple[dict[str, Any], observed.Reading] | None = None
    partitions: dict[str, tuple[Found, twin_partition.TwinPartition]] = dataclasses.field(default_factory=dict)
    revisions: tuple[Sequence[Found], Mapping[str, rules.RulesGeneration]] = ((), {})
    published: history.Published = history.Published()
    told: dict[str, tuple[twin_partition.Status, float | None]] = dataclasses.field(default_factory=dict)
    heard: dict[str, float] = dataclasses.field(default_factory=dict)
    publish_ms: int = PUBLISH_MS_FIRST
    loads: loads.Loads = dataclasses.field(default_factory=loads.Loads)


class Looking:
    def __init__(self, sources: Sources) -> None:
        self._from = sources
        self._known: dict[FleetKey, _Known] = {}
        self.watching_since_s = 0.0
        """Since when this operator looks at anything, by the monotonic clock; set when it begins to act."""

    def look(self, fleet: FleetKey, refusals: Sequence[str]) -> Taken | None:
        """None: there is no such fleet. refusals: of the last round. Raises OperatorError."""
        source = self._from
        document = source.cache.get(kinds.FLEET, *fleet)
        if document is None:
            return None
        known = self._known.setdefault(fleet, _Known())
        now_ms, now_s = source.clock.now_ms(), source.clock.monotonic()
        metadata = document["metadata"]
        status = document.get("status") or {}
        owner = naming.Owner(metadata["name"], metadata["uid"], int(metadata.get("generation") or 1))
        deletion = _deletion(metadata)
        reading = _reading(known, document)
        if reading.fleet is not None:
            source.streams.follow(fleet, reading.fleet)
        pods = self._pods(fleet)
        partitions, unreadable = self._partitions(fleet, owner, known)
        if unreadable and deletion is None:
            # Nothing that we wrote: the API server's schema is the parser's own. To pass it over would make another of its shard.
            raise errors.RefusedError(f"TwinPartition {unreadable[0]}; delete it or mend it")
        stream = source.streams.seen(fleet)
        is_early = reading.fleet is not None and deletion is None and not stream.is_asked
        signs = workers.Signs(
            self._answers(fleet, pods), self._told_ms(known, partitions), source.probing.nodes_ms(pods)
        )
        look = observed.Look(
            now_ms=now_ms,
            namespace=fleet[0],
            owner=owner,
            reading=reading,
            defaults=source.defaults,
            has_finalizer=naming.FINALIZER in (metadata.get("finalizers") or ()),
            deletion=deletion,
            status=status,
            children=self._children(fleet, () if is_early or deletion is not None else _names(reading)),
            claims=self._claims(fleet),
            pods=pods,
            signs=self._with_those_gone(known, pods, signs, now_ms),
            partitions=partitions,
            unreadable=unreadable,
            shards=stream.shards,
            stream_why=stream.why,
            rules=self._rules(fleet, owner, history.packed_in(status), stream, now_ms),
            refusals=refusals,
            watching_since_ms=clock.wall_ms(source.clock, self.watching_since_s),
        )
        return Taken(look, document, stream, now_s + known.publish_ms / 1_000, is_early)

    def stamped(self, fleet: FleetKey, in_time: bool) -> float:
        """A new generation was published within the time for it, or wasn't; the seconds that the next one gets."""
        known = self._known[fleet]
        wanted_ms = known.publish_ms // 2 if in_time else known.publish_ms * 2
        known.publish_ms = min(max(wanted_ms, PUBLISH_MS_FIRST), PUBLISH_MS_MAX)
        return known.publish_ms / 1_000

    def forget(self, fleet: FleetKey) -> None:
        self._known.pop(fleet, None)

    # ── what is there ────────────────────────────────────────────────────────────────────────────────────────────

    def _pods(self, fleet: FleetKey) -> list[workers.Pod]:
        found = (
            workers.pod(each, fleet[1], _created_ms(each["metadata"]))
            for each in self._from.cache.of_fleet(kinds.POD, fleet)
        )
        return [pod for pod in found if pod is not None]

    def _partitions(
        self, fleet: FleetKey, owner: naming.Owner, known: _Known
    ) -> tuple[list[twin_partition.TwinPartition], list[str]]:
        """And those that can't be read, each with why."""
        made, unreadable, before = [], [], known.partitions
        known.partitions = {}
        for found in self._from.cache.of_fleet(kinds.PARTITION, fleet):
            if _is_over(found, owner):
                continue
            name = found["metadata"]["name"]
            entry = before.get(name)
            try:
                if entry is None or entry[0] is not found:
                    entry = found, twin_partition_document.parse_document(found)
            except sections.InvalidFleetError as error:
                unreadable.append(f"{name} can't be read: {error}")
                continue
            known.partitions[name] = entry
            made.append(entry[1])
        return made, unreadable

    def _children(self, fleet: FleetKey, names: Sequence[tuple[Kind, str]]) -> dict[tuple[str, str], Found]:
        """Ours by the cache. A name of ours that it doesn't know may be somebody else's, who doesn't label things as we do."""
        children = {
            (kind.name, found["metadata"]["name"]): found
            for kind in kinds.CHILDREN
            for found in self._from.cache.of_fleet(kind, fleet)
        }
        for kind, name in names:
            if (kind.name, name) not in children:
                try:
                    children[kind.name, name] = self._from.get(kind, fleet[0], name)
                except errors.MissingError:
                    continue
        return children

    def _claims(self, fleet: FleetKey) -> list[observed.Claim]:
        """Of workers; a claim that is on its way out grows no more."""
        prefix = f"{pod_template.DATA_VOLUME}-"
        return [
            observed.Claim(found["metadata"]["name"], found["spec"]["resources"]["requests"]["storage"])
            for found in self._from.cache.of_fleet(kinds.CLAIM, fleet)
            if not found["metadata"].get("deletionTimestamp")
            and found["metadata"]["name"].startswith(prefix)
            and naming.ordinal(fleet[1], found["metadata"]["name"].removeprefix(prefix)) is not None
        ]

    def _answers(self, fleet: FleetKey, pods: Sequence[workers.Pod]) -> dict[str, workers.Answer]:
        """With smooth loads: by those of the last seconds, partitions would go back and forth."""
        answers = self._from.probing.answers(pods)
        told: dict[str, float] = {}
        for answer in answers.values():
            for shard_id, load in answer.load.items():
                told[shard_id] = told.get(shard_id, 0.0) + load
        smooth = self._known[fleet].loads.see(self._from.clock.monotonic(), told)
        return {
            name: dataclasses.replace(
                answer, load={shard_id: smooth[shard_id] for shard_id in answer.load if shard_id in smooth}
            )
            for name, answer in answers.items()
        }

    def _told_ms(self, known: _Known, partitions: Sequence[twin_partition.TwinPartition]) -> dict[str, int]:
        """When a worker last wrote a status, by when we saw it change. What stood there when we began was written before."""
        now_s, before = self._from.clock.monotonic(), known.told
        known.told = {}
        told: dict[str, float] = {}
        for entry in partitions:
            said = dataclasses.replace(entry.status, standby=())  # standbys write their entries themselves
            kept = before.get(entry.name)
            if kept is None or kept[0] != said:
                kept = said, now_s if kept is not None else None
            known.told[entry.name] = kept
            if said.worker and kept[1] is not None:
                told[said.worker] = max(kept[1], told.get(said.worker, kept[1]))
        return {worker: clock.wall_ms(self._from.clock, moment_s) for worker, moment_s in told.items()}

    def _with_those_gone(
        self, known: _Known, pods: Sequence[workers.Pod], signs: workers.Signs, now_ms: int
    ) -> workers.Signs:
        """An evicted worker has no pod until the next one is made: it was heard of when its pod was seen to live last. While there is a
        pod, that one alone says how it is."""
        now_s = self._from.clock.monotonic()
        kept = {name: moment_s for name, moment_s in known.heard.items() if now_s - moment_s < GONE_S_MAX}
        there = {pod.name: now_s - (now_ms - workers.heard_ms(pod, signs, now_ms)) / 1000 for pod in pods}
        known.heard = kept | there
        gone = {
            name: max(clock.wall_ms(self._from.clock, kept[name]), signs.told_ms.get(name, 0))
            for name in kept.keys() - there.keys()
        }
        return dataclasses.replace(signs, told_ms={**signs.told_ms, **gone})

    # ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _rules(
        self, fleet: FleetKey, owner: naming.Owner, packed: str, stream: stream_watch.Seen, now_ms: int
    ) -> observed.Rules:
        known, broken = self._known[fleet], ""
        found = [each for each in self._from.cache.of_fleet(kinds.REVISION, fleet) if not _is_over(each, owner)]
        revisions: Mapping[str, rules.RulesGeneration] = {}
        try:
            if not _are_the_same(known.revisions[0], found):
                known.revisions = found, history.read_revisions(found)
            revisions = known.revisions[1]
            if known.published.packed != packed:
                known.published = history.published(packed)
        except history.BrokenHistoryError as error:
            broken = str(error)
        if stream.now_ms is None:
            return observed.Rules(revisions, None, 0, broken, known.published)
        reached_ms = max(now_ms, stream.now_ms)
        oldest_ms = min(now_ms, stream.now_ms) - stream.retention_ms - REPLAY_MARGIN_MS
        ahead_ms = reached_ms + known.publish_ms + LATE_MS + generations.AHEAD_MS
        return observed.Rules(revisions, ahead_ms, oldest_ms, broken, known.published)


def _are_the_same(some: Sequence[Found], others: Sequence[Found]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _reading(known: _Known, document: Mapping[str, Any]) -> observed.Reading:
    """What its users wrote is mostly the same at every look."""
    written = _read_by_users(document)
    if known.reading is None or known.reading[0] != written:
        known.reading = written, observed.read(written)
    return known.reading[1]


def _read_by_users(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the parser reads of a fleet; the rest changes with each status."""
    metadata = document["metadata"]
    return {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": document.get("spec") or {},
    }


def _names(reading: observed.Reading) -> list[tuple[Kind, str]]:
    """Every name that the fleet takes."""
    fleet = reading.fleet
    if fleet is None:
        return []
    account = naming.worker_account(fleet.name)
    return [
        *(() if fleet.service_account_name else ((kinds.ACCOUNT, account),)),
        (kinds.ROLE, account),
        (kinds.BINDING, account),
        (kinds.SERVICE, naming.workers_service(fleet.name)),
        (kinds.SERVICE, naming.api_service(fleet.name)),
        (kinds.BUDGET, fleet.name),
        (kinds.STATEFUL_SET, fleet.name),
    ]


def _is_over(found: Found, owner: naming.Owner) -> bool:
    """On its way out: deleted, or left by a fleet of the same name that is gone."""
    metadata = found["metadata"]
    controllers = [entry for entry in metadata.get("ownerReferences") or () if entry.get("controller")]
    return bool(metadata.get("deletionTimestamp")) or any(entry.get("uid") != owner.uid for entry in controllers)


def _deletion(metadata: Mapping[str, Any]) -> observed.Deletion | None:
    if not metadata.get("deletionTimestamp"):
        return None
    annotations = metadata.get("annotations") or {}
    return observed.Deletion(
        since_ms=clock.time_ms(metadata["deletionTimestamp"]), at_once=annotations.get(naming.FORCE_DELETION) == "true"
    )


def _created_ms(metadata: Mapping[str, Any]) -> int:
    told = metadata.get("creationTimestamp")
    return clock.time_ms(told) if told else 0
