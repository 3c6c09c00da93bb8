"""Looks at every write that a run makes, at the moment it is made, and says what must never happen.

It knows the written invariants alone: who wrote a manifest, over what, and when; what the control plane was made to say; who published for
which partition after another had claimed it. The run's judge looks at the end; this one makes sure that nothing was right by luck.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence

from fleet_model import hashing, manifest, twin_partition
from fleet_proto import fleet_pb2
from tests.sim import processes

STILL_S = 10.0
"""A process whose loop stood still for longer has to verify its claim before it publishes."""
SURE_S = 45.0
"""What a publishing that began verified may take beyond the two intervals: thirty seconds of tries, and slow calls."""
UNCOVERED_S_MAX = 60.0
MANIFEST = "/manifest.json"


@dataclasses.dataclass(slots=True)
class Claimed:
    """A partition's manifest as it stands. by: the process that wrote its nonce. since_s: when."""

    manifest: manifest.Manifest
    by: processes.Process | None
    since_s: float


@dataclasses.dataclass(slots=True)
class Lost:
    """A process' claim that another one has replaced. at_s: when."""

    at_s: float


class Watch:
    """problems: in words. digest: of everything that was written, in order: two runs are the same if theirs are."""

    def __init__(self, now_s: Callable[[], float], interval_s: float) -> None:
        self.problems: list[str] = []
        self.went_on_s: dict[processes.Process, float] = {}
        self.claims = 0
        self.takeovers = 0
        self.fenced_publishes = 0
        self._digest = hashlib.sha256()
        self._now_s = now_s
        self._hold_s = 2 * interval_s
        self._standing: dict[str, Claimed] = {}
        self._nonces: dict[str, set[str]] = {}
        self._mine: dict[tuple[processes.Process, str], str] = {}
        self._lost: dict[tuple[processes.Process, str], Lost] = {}
        self._granted: set[tuple[str, int]] = set()
        self._uncovered_since_s: float | None = None

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def note(self, what: str) -> None:
        self._digest.update(f"{self._now_s():.6f} {what}\n".encode())

    def problem(self, what: str) -> None:
        self.problems.append(f"at {self._now_s():.2f} s: {what}")

    def paused_for(self, process: processes.Process, seconds: float) -> None:
        """It goes on now."""
        if seconds > STILL_S:
            self.went_on_s[process] = self._now_s()

    # ── manifests ────────────────────────────────────────────────────────────────────────────────────────────────

    def written(self, key: str, before: bytes | None, after: bytes, objects: Mapping[str, object]) -> None:
        """An object was put. objects: all there are now."""
        self.note(f"put {key} {hashlib.sha256(after).hexdigest()}")
        if not key.endswith(MANIFEST):
            if before is not None:
                self.problem(f"{key} was written twice")
            return
        now = manifest.parse(after)
        shard_id = now.identity.shard_id
        folder = key.removesuffix("manifest.json")
        writer = processes.running()
        if before is None:
            self._begun(now)
        else:
            for why in _wrong_step(manifest.parse(before), now, self._granted):
                self.problem(f"{shard_id}: manifest by {writer}: {why}")
        for part in now.checkpoint.parts if now.checkpoint is not None else ():
            if folder + part.name not in objects:
                self.problem(f"{shard_id}: its manifest names {part.name}, which isn't there")
        self._stands(shard_id, now, writer)

    def _stands(self, shard_id: str, now: manifest.Manifest, writer: processes.Process | None) -> None:
        standing = self._standing.get(shard_id)
        if standing is not None and standing.manifest.nonce == now.nonce:
            standing.manifest = now
            return
        seen = self._nonces.setdefault(shard_id, set())
        if now.nonce in seen:
            self.problem(f"{shard_id}: {writer} claims it with the nonce {now.nonce}, which was there before")
        seen.add(now.nonce)
        self.claims += 1
        if standing is not None:
            if not standing.manifest.final:
                self.takeovers += 1
            if standing.by is not None:
                self._lost[standing.by, shard_id] = Lost(self._now_s())
        if writer is not None:
            self._mine[writer, shard_id] = now.nonce
            self._lost.pop((writer, shard_id), None)
        self._standing[shard_id] = Claimed(now, writer, self._now_s())

    def _begun(self, now: manifest.Manifest) -> None:
        """The first manifest of a partition: each parent that ever was one is read to its end (design invariant 5)."""
        for parent in now.parents:
            known = self._standing.get(parent)
            if known is None or not (known.manifest.final and known.manifest.ended):
                self.problem(f"{now.identity.shard_id} begins before its parent {parent} is closed")

    def deleted(self, key: str) -> None:
        self.note(f"delete {key}")
        folder, _, name = key.rpartition("/")
        for shard_id, standing in self._standing.items():
            if not folder.endswith(shard_id):
                continue
            current = standing.manifest.checkpoint
            names = {part.name for part in current.parts} if current is not None else set()
            if name == "manifest.json" or name in names or any(name in kept for kept in standing.manifest.kept):
                self.problem(f"{key} was deleted, and the manifest names it")

    def manifests(self) -> dict[str, manifest.Manifest]:
        return {shard_id: standing.manifest for shard_id, standing in self._standing.items()}

    # ── the control plane ────────────────────────────────────────────────────────────────────────────────────────

    def told(self, before: twin_partition.TwinPartition | None, now: twin_partition.TwinPartition) -> None:
        """An object of the control plane was stored."""
        spec, shard_id = now.spec, now.spec.shard_id
        self.note(f"object {now}")
        if spec.takeover == spec.epoch:
            self._granted.add((shard_id, spec.epoch))
        if before is None:
            return
        if spec.epoch < before.spec.epoch:
            self.problem(f"{shard_id}: its epoch falls from {before.spec.epoch} to {spec.epoch}")
        if spec.worker != before.spec.worker and spec.epoch <= before.spec.epoch:
            self.problem(f"{shard_id}: {spec.worker} is named at epoch {spec.epoch}, which {before.spec.worker} had")

    def look_at_ranges(self, objects: Mapping[str, twin_partition.TwinPartition], is_judged: bool) -> None:
        """Design invariant 6. is_judged: the control loop could do something about a hole."""
        overlap, covered = _cover(objects)
        if overlap:
            self.problem(f"partitions overlap: {overlap}")
        if covered or not is_judged:
            self._uncovered_since_s = None
        elif self._uncovered_since_s is None:
            self._uncovered_since_s = self._now_s()
        elif self._now_s() - self._uncovered_since_s > UNCOVERED_S_MAX:
            self.problem(f"the hash space has had a hole for {UNCOVERED_S_MAX:g} s")
            self._uncovered_since_s = None

    # ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────

    def published(self, process: processes.Process, sent_at_s: float, alerts: Sequence[bytes]) -> None:
        """Alerts arrived that the process sent."""
        for data in alerts:
            shard_id = fleet_pb2.DeviceAlert.FromString(data).shard_id
            lost, standing = self._lost.get((process, shard_id)), self._standing.get(shard_id)
            if lost is None or sent_at_s <= lost.at_s or (standing is not None and standing.manifest.ended):
                continue  # what a closed partition left in its outbox is published by whoever has its children
            self.fenced_publishes += 1
            went_on_s = self.went_on_s.get(process, -1.0)
            if lost.at_s <= went_on_s <= sent_at_s:
                self.problem(
                    f"{process} publishes for {shard_id} after it stood still, though it was claimed by another at {lost.at_s:.2f} s"
                )
            elif sent_at_s - lost.at_s > self._hold_s + SURE_S:
                self.problem(f"{process} still publishes for {shard_id}, which was claimed at {lost.at_s:.2f} s")


def _wrong_step(before: manifest.Manifest, now: manifest.Manifest, granted: set[tuple[str, int]]) -> list[str]:
    wrong = []
    shard_id = now.identity.shard_id
    if now.identity != before.identity:
        wrong.append(f"is of {now.identity}, was of {before.identity}")
    if now.epoch < before.epoch:
        wrong.append(f"its epoch falls from {before.epoch} to {now.epoch}")
    if now.revision != before.revision + 1:
        wrong.append(f"revision {now.revision} after {before.revision}")
    if now.nonce == before.nonce:
        if now.worker != before.worker:
            wrong.append(f"{now.worker} writes with the nonce of {before.worker}")
    else:
        is_free = before.final or before.worker == now.worker or (shard_id, now.epoch) in granted
        if not is_free:
            wrong.append(
                f"{now.worker} claims it at epoch {now.epoch}, though {before.worker} has it and nobody granted that"
            )
        if now.checkpoint != before.checkpoint:
            wrong.append("a claim changes the checkpoint")
        if now.epoch == before.epoch and now.worker != before.worker:
            wrong.append(f"{now.worker} and {before.worker} both claim epoch {now.epoch}")
    if before.checkpoint is not None:
        if now.checkpoint is None:
            wrong.append("its checkpoint is gone")
        elif now.checkpoint != before.checkpoint:
            if now.checkpoint.number <= before.checkpoint.number:
                wrong.append(f"checkpoint {now.checkpoint.number} after {before.checkpoint.number}")
            if now.checkpoint.position.key() < before.checkpoint.position.key():
                wrong.append("its position goes back")
            if now.checkpoint.clock_ms < before.checkpoint.clock_ms:
                wrong.append("its clock goes back")
    return wrong


def _cover(objects: Mapping[str, twin_partition.TwinPartition]) -> tuple[str, bool]:
    """(an overlap, told; whether the space is covered) by the partitions that aren't Closed and wait for nobody."""
    open_ones = {
        shard_id for shard_id, entry in objects.items() if entry.status.phase is not twin_partition.Phase.CLOSED
    }

    def has_open_ancestor(shard_id: str) -> bool:
        parents = objects[shard_id].spec.parents if shard_id in objects else ()
        return any(parent in open_ones or has_open_ancestor(parent) for parent in parents)

    ranges = sorted(
        (objects[shard_id].spec.hash_key_range, shard_id) for shard_id in open_ones if not has_open_ancestor(shard_id)
    )
    for (lower, first), (upper, second) in itertools.pairwise(ranges):
        if lower.end >= upper.start:
            return f"{first} and {second}", True
    return "", hashing.covers([key_range for key_range, _ in ranges], hashing.HashKeyRange())
