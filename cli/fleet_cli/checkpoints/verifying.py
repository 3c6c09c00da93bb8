"""Reads checkpoints to the last byte and tells everything that is wrong with them, not only the first thing.

Of each file: size and checksum, of the whole and of each row group; rows as many as told; keys rising, in the partition's range, changed by
the commits that the file is for. Of each checkpoint: deltas that build on one another, twins as many as told, outbox numbers that rise. A
row group of each file under way is in memory, and 16 bytes for each row of a partition's deltas. It repairs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_cli.checkpoints import bucket, progress
from fleet_model import hashing, manifest
from fleet_worker import checkpoint_reading, errors
from fleet_worker.core import checkpoint_format, commits, ids, twins

ROUNDS_MAX = 3
"""Of a partition whose owner replaces the checkpoint while it is read."""
DECODED_AT_ONCE = 2
MARK_BYTES = len(checkpoint_format.MARK)


@dataclasses.dataclass(frozen=True, slots=True)
class Damage:
    """file: "" = the checkpoint as a whole."""

    shard_id: str
    file: str
    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Of one partition, by its checkpoint of this number (0: it has none)."""

    shard_id: str
    number: int
    twins: int
    files: int
    bytes: int
    damage: tuple[Damage, ...]


@dataclasses.dataclass(slots=True)
class _File:
    """What reading one file of twins found. keys: (n,) V16, of deltas only. forgotten: rows of devices that were."""

    damage: list[Damage]
    rows: int = 0
    forgotten: int = 0
    keys: list[NDArray[np.void]] = dataclasses.field(default_factory=list)


class Verifier:
    """at_once: files that are read at the same time."""

    def __init__(self, opened: bucket.Opened, at_once: int, advance: progress.Advance) -> None:
        self._opened = opened
        self._objects = opened.objects
        self._reading = asyncio.Semaphore(at_once)
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)
        self._partitions = asyncio.Semaphore(at_once)
        self._advance = advance

    async def verify(self, entry: bucket.Partition) -> Verdict:
        """Raises ObjectStoreUnavailableError, ObjectStoreRefusedError: then nothing is known."""
        async with self._partitions:
            for _ in range(ROUNDS_MAX):
                verdict = await self._verdict(entry)
                if not verdict.damage:
                    break
                # An owner at work replaces checkpoints, and in the end clears away their files.
                again = await bucket.read(self._opened, entry.shard_id)
                if again.checkpoint == entry.checkpoint:
                    break
                entry = again
            return verdict

    async def _verdict(self, entry: bucket.Partition) -> Verdict:
        if entry.manifest is None:
            return Verdict(entry.shard_id, 0, 0, 0, 0, (Damage(entry.shard_id, "manifest.json", entry.trouble),))
        checkpoint = entry.checkpoint
        if checkpoint is None:
            return Verdict(entry.shard_id, 0, 0, 0, 0, ())
        damage = [Damage(entry.shard_id, "", what) for what in chain_mistakes(checkpoint)]
        deltas = [part for part in checkpoint.parts if part.kind is manifest.Kind.DELTA]
        bases = [part for part in checkpoint.parts if part.kind is manifest.Kind.BASE]
        others = [part for part in checkpoint.parts if part.kind not in checkpoint_reading.TWINS]
        none = np.zeros(0, dtype="V16")
        found = await bucket.all_of(self._twins(entry.manifest, part, None) for part in deltas)
        keys = [lot for file in found for lot in file.keys]
        in_deltas = np.unique(np.concatenate(keys).view("S16")) if keys else none.view("S16")
        found += await bucket.all_of(self._twins(entry.manifest, part, in_deltas) for part in bases)
        damage += [each for file in found for each in file.damage]
        for part in others:
            damage += await self._listed(entry.shard_id, checkpoint, part)
        if not damage:
            counted = len(in_deltas) + sum(file.rows for file in found[len(deltas) :])
            forgotten = sum(file.forgotten for file in found)
            damage += await self._count_mistakes(entry.shard_id, checkpoint, counted, forgotten)
        sizes = sum(part.size for part in checkpoint.parts)
        return Verdict(entry.shard_id, checkpoint.number, checkpoint.twins, len(checkpoint.parts), sizes, tuple(damage))

    async def _count_mistakes(
        self, shard_id: str, checkpoint: manifest.Checkpoint, counted: int, forgotten: int
    ) -> list[Damage]:
        """A forgotten device's stamp that is gone stays in older files: so many twins more than told are right."""
        if checkpoint.twins <= counted <= checkpoint.twins + forgotten:
            return []
        # Two devices of one MD5 were counted as one: before it is called damage, count by whole ids.
        exact = 0
        merged = checkpoint_reading.twins(self._objects, shard_id, checkpoint.parts, self._opened.clock)
        async with contextlib.aclosing(merged):  # type: ignore[type-var]
            async for rows in merged:
                exact += len(rows.device_ids)
        if checkpoint.twins <= exact <= checkpoint.twins + forgotten:
            return []
        return [Damage(shard_id, "", f"its files have {exact:,} twins, its manifest says {checkpoint.twins:,}")]

    # ── one file ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _listed(self, shard_id: str, checkpoint: manifest.Checkpoint, part: manifest.Part) -> list[Damage]:
        """Outbox or dead letters: small files, read whole."""
        only = dataclasses.replace(checkpoint, parts=(part,))
        try:
            async with self._reading:
                if part.kind is manifest.Kind.DEAD_LETTERS:
                    await checkpoint_reading.dead_letters(self._objects, shard_id, only, self._opened.clock)
                    return []
                entries = await checkpoint_reading.outbox(self._objects, shard_id, only, self._opened.clock)
        except errors.CheckpointBrokenError as error:
            return [_damage(shard_id, part, error)]
        finally:
            self._advance(part.size)
        numbers = [entry.number for entry in entries]
        if numbers != sorted(set(numbers)):
            return [Damage(shard_id, part.name, "the numbers of its effects don't rise")]
        if numbers and numbers[-1] >= checkpoint.outbox_next:
            what = f"has effect {numbers[-1]:,}, though the next one is to be {checkpoint.outbox_next:,}"
            return [Damage(shard_id, part.name, what)]
        return []

    async def _twins(self, of: manifest.Manifest, part: manifest.Part, in_deltas: NDArray[np.bytes_] | None) -> _File:
        """in_deltas: rows of these devices aren't counted, as a newer file has them; None: keep the keys."""
        shard_id = of.identity.shard_id
        file = _File([Damage(shard_id, part.name, what) for what in layout_mistakes(part, of.identity.hash_key_range)])
        whole = hashlib.sha256()
        fetched = 0
        async with self._reading:
            try:
                footer = await self._bytes(shard_id, part, *checkpoint_format.footer_range(part))
                reader = await self._worked(functools.partial(checkpoint_format.TwinsReader, part, footer))
            except errors.CheckpointBrokenError as error:
                self._advance(part.size)
                file.damage.append(_damage(shard_id, part, error))
                return file
            whole.update(await self._bytes(shard_id, part, 0, MARK_BYTES))
            last_key = b""
            for number, group in enumerate(part.groups):
                data = await self._bytes(shard_id, part, group.start, group.stop)
                self._advance(len(data))
                fetched += len(data)
                try:
                    async with self._decoding:
                        whole.update(data)
                        rows = await self._opened.clock.in_thread(functools.partial(reader.group, number, data))
                        look = functools.partial(_look, of, part, rows, last_key, in_deltas)
                        last_key, seen = await self._opened.clock.in_thread(look)
                except errors.CheckpointBrokenError as error:
                    file.damage.append(_damage(shard_id, part, error))
                    last_key = b""
                    continue
                file.damage += [Damage(shard_id, part.name, what) for what in seen.mistakes]
                file.rows += seen.counted
                file.forgotten += seen.forgotten
                if in_deltas is None:
                    file.keys.append(rows.digests)
            whole.update(footer)
            self._advance(max(0, part.size - fetched))
        if not file.damage and whole.hexdigest() != part.sha256:
            file.damage.append(Damage(shard_id, part.name, "the checksum of the whole file is wrong"))
        return file

    async def _worked(
        self, function: functools.partial[checkpoint_format.TwinsReader]
    ) -> checkpoint_format.TwinsReader:
        async with self._decoding:
            return await self._opened.clock.in_thread(function)

    async def _bytes(self, shard_id: str, part: manifest.Part, start: int, stop: int) -> bytes:
        try:
            return await self._objects.get_range(f"{shard_id}/{part.name}", start, stop)
        except errors.ObjectMissingError as error:
            raise errors.CheckpointBrokenError("is gone, though the manifest names it") from error


# ── what can be wrong ────────────────────────────────────────────────────────────────────────────────────────────────


def chain_mistakes(checkpoint: manifest.Checkpoint) -> list[str]:
    """Of a checkpoint's files together, by what the manifest says of them. A delta without rows has no file, so the next one may begin
    later than the one before ends, but never earlier."""
    layers = checkpoint_reading.layers_of(checkpoint.parts)
    found: list[str] = []
    if not layers:
        return [] if checkpoint.twins == 0 else [f"names no file of twins, though it has {checkpoint.twins:,}"]
    if layers[0][0].kind is not manifest.Kind.BASE:
        found.append("begins with a delta: its base is missing")
    if any(files[0].kind is manifest.Kind.BASE for files in layers[1:]):
        found.append("has more than one base")
    through = layers[0][0].through
    for files in layers[1:]:
        first = files[0]
        if first.since < through or first.through <= first.since:
            found.append(
                f"its chain doesn't connect: {first.name} has commits {first.since:,} to {first.through:,}, the file before it ends with "
                f"{through:,}"
            )
        through = max(through, first.through)
    if through > checkpoint.commit_number:
        found.append(f"its files go on to commit {through:,}, the checkpoint only to {checkpoint.commit_number:,}")
    for files in layers:
        ends = [(part.groups[0].first, part.groups[-1].last) for part in files if part.groups]
        if any(later[0] < earlier[1] for earlier, later in itertools.pairwise(ends)):
            found.append(f"the files of {files[0].kind} {files[0].through:,} overlap")
    return found


def layout_mistakes(part: manifest.Part, key_range: hashing.HashKeyRange) -> list[str]:
    """Of one file of twins, by what the manifest says of it."""
    found: list[str] = []
    at, last = MARK_BYTES, ""
    for group in part.groups:
        if group.start != at or group.stop <= group.start:
            found.append(f"its row groups don't follow one another: one begins at byte {group.start}, not {at}")
        if not last <= group.first <= group.last:
            found.append(f"its row groups are out of order at byte {group.start}")
        if int(group.first, 16) not in key_range or int(group.last, 16) not in key_range:
            found.append(f"has twins outside the partition's hash key range, at byte {group.start}")
        at, last = group.stop, group.last
    if sum(group.rows for group in part.groups) != part.rows:
        found.append(f"its row groups have {sum(group.rows for group in part.groups):,} rows, the file {part.rows:,}")
    return found


def _damage(shard_id: str, part: manifest.Part, error: errors.CheckpointBrokenError) -> Damage:
    """The file is named beside the words already."""
    words = str(error).replace(f"{shard_id}/", "").replace(f" of {part.name}", "").replace(part.name, "")
    return Damage(shard_id, part.name, words.lstrip(" :,"))


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    mistakes: list[str]
    counted: int
    forgotten: int


def _look(
    of: manifest.Manifest,
    part: manifest.Part,
    rows: commits.TwinRows,
    last_key: bytes,
    in_deltas: NDArray[np.bytes_] | None,
) -> tuple[bytes, _Seen]:
    """The last key of a group of at least one row, and what was seen in it. Digests are made from the ids, so they agree."""
    mistakes: list[str] = []
    halves = rows.digests.view(">u8").reshape(-1, 2)
    later = (halves[1:, 0] > halves[:-1, 0]) | ((halves[1:, 0] == halves[:-1, 0]) & (halves[1:, 1] > halves[:-1, 1]))
    names = ids.encoded(rows.device_ids)
    for at in np.flatnonzero(~later).tolist():
        if (rows.digests[at].tobytes(), names[at]) >= (rows.digests[at + 1].tobytes(), names[at + 1]):
            mistakes.append(f"its twins are out of order at {names[at + 1].decode()!r}")
            break
    first, last = rows.digests[0].tobytes() + names[0], rows.digests[-1].tobytes() + names[-1]
    if first <= last_key:
        mistakes.append(f"its twins are out of order at {names[0].decode()!r}")
    changed = rows.rows["commit"]
    beyond = (changed > part.through) | (changed <= part.since if part.kind is manifest.Kind.DELTA else False)
    if beyond.any():
        at = int(np.flatnonzero(beyond)[0])
        mistakes.append(
            f"{int(beyond.sum()):,} twins were changed by commits that it isn't for (the first: {names[at].decode()!r} by "
            f"{int(changed[at]):,})"
        )
    counted = len(names)
    if in_deltas is not None and len(in_deltas):
        keys = rows.digests.view("S16")
        at_most = np.minimum(np.searchsorted(in_deltas, keys), len(in_deltas) - 1)
        counted -= int(np.count_nonzero(in_deltas[at_most] == keys))
    forgotten = int(np.count_nonzero(rows.rows["flags"] & np.uint16(twins.Flag.FORGOTTEN)))
    return last, _Seen(mistakes, counted, forgotten)


def document(verdicts: Sequence[Verdict], damage: Sequence[Damage]) -> dict[str, Any]:
    """As JSON."""
    return {
        "ok": not damage,
        "partitions": [
            {
                "shard_id": verdict.shard_id,
                "checkpoint": verdict.number or None,
                "twins": verdict.twins,
                "files": verdict.files,
                "bytes": verdict.bytes,
                "ok": not verdict.damage,
            }
            for verdict in verdicts
        ],
        "damage": [
            {"shard_id": each.shard_id or None, "file": each.file or None, "what": each.what} for each in damage
        ],
    }
