"""A checkpoint in the object store, read: its twins as one sorted run over base and deltas, its outbox, its dead letters.

Only the row groups that a key range needs are fetched, and each is verified before it is used. A few groups are in memory at once,
never a partition. It writes nothing and decides nothing: restoring, inspecting and exporting are built on it.
"""

from __future__ import annotations

import asyncio
import bisect
import collections
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypeVar

from fleet_model import hashing, manifest
from fleet_worker import errors, ports
from fleet_worker.core import checkpoint_format, commits, effects, records, twin_rows

Read = TypeVar("Read")
TWINS = (manifest.Kind.BASE, manifest.Kind.DELTA)
WHOLE_RANGE = hashing.HashKeyRange()


async def twins(
    objects: ports.ObjectStore,
    shard_id: str,
    parts: Iterable[manifest.Part],
    clock: ports.Clock,
    key_range: hashing.HashKeyRange = WHOLE_RANGE,
) -> AsyncIterator[commits.TwinRows]:
    """The twins of the range that a checkpoint's parts (others than twins' are passed over) hold together, in the order of their keys,
    each once: what a delta has of a twin wins over what was before. Wrap it in contextlib.aclosing where it may not be read to its end.

    Raises CheckpointBrokenError (also when a file is gone), ObjectStoreUnavailableError, ObjectStoreRefusedError.
    """
    layers = [_Layer(objects, shard_id, files, clock, key_range) for files in layers_of(parts)]
    try:
        while True:
            for layer in layers:
                await layer.fill()
            layers = [layer for layer in layers if layer.rows is not None]
            if not layers:
                return
            # What lies beyond some layer's rows in hand may still be in that layer's next group.
            bounds = [layer.last_key() for layer in layers if layer.has_more]
            lots = [layer.taken(min(bounds, default=None)) for layer in layers]
            rows = await clock.in_thread(functools.partial(twin_rows.overlaid, lots))
            if len(rows.device_ids):
                yield rows
    finally:
        for layer in layers:
            layer.stop()


async def outbox(
    objects: ports.ObjectStore, shard_id: str, checkpoint: manifest.Checkpoint, clock: ports.Clock
) -> list[effects.OutboxEntry]:
    """Raises as twins."""
    return await _listed(objects, shard_id, checkpoint, clock, manifest.Kind.OUTBOX, checkpoint_format.read_outbox)


async def dead_letters(
    objects: ports.ObjectStore, shard_id: str, checkpoint: manifest.Checkpoint, clock: ports.Clock
) -> list[records.DeadLetter]:
    """Newest first. Raises as twins."""
    read = checkpoint_format.read_dead_letters
    return await _listed(objects, shard_id, checkpoint, clock, manifest.Kind.DEAD_LETTERS, read)


def layers_of(parts: Iterable[manifest.Part]) -> list[list[manifest.Part]]:
    """The files of the base, then those of each delta: what lies one over the other."""
    of_twins = (part for part in parts if part.kind in TWINS)
    return [list(files) for _, files in itertools.groupby(of_twins, key=lambda part: (part.kind, part.through))]


def twin_parts(checkpoint: manifest.Checkpoint) -> list[manifest.Part]:
    return [part for part in checkpoint.parts if part.kind in TWINS]


async def whole(objects: ports.ObjectStore, shard_id: str, part: manifest.Part) -> bytes:
    """A file's bytes, verified."""
    found = await objects.get(f"{shard_id}/{part.name}")
    if found is None:
        raise _gone(shard_id, part)
    checkpoint_format.check(found.data, part.sha256, part.size, f"{shard_id}/{part.name}")
    return found.data


async def _listed(
    objects: ports.ObjectStore,
    shard_id: str,
    checkpoint: manifest.Checkpoint,
    clock: ports.Clock,
    kind: manifest.Kind,
    read: Callable[[manifest.Part, bytes], list[Read]],
) -> list[Read]:
    found: list[Read] = []
    for part in checkpoint.parts:
        if part.kind is kind:
            data = await whole(objects, shard_id, part)
            found += await clock.in_thread(functools.partial(read, part, data))
    return found


def _gone(shard_id: str, part: manifest.Part) -> errors.CheckpointBrokenError:
    return errors.CheckpointBrokenError(
        f"{shard_id}/{part.name} is gone, though the manifest names it; bring it back, if the bucket keeps versions"
    )


class _Layer:
    """A base or one delta, group by group. rows: those in hand, None when there are no more."""

    def __init__(
        self,
        objects: ports.ObjectStore,
        shard_id: str,
        files: Sequence[manifest.Part],
        clock: ports.Clock,
        key_range: hashing.HashKeyRange,
    ) -> None:
        self.rows: commits.TwinRows | None = None
        self._objects = objects
        self._shard_id = shard_id
        self._clock = clock
        self._range = key_range
        self._wanted = collections.deque(
            (part, number)
            for part in files
            for number, group in enumerate(part.groups)
            if key_range.overlaps(hashing.HashKeyRange(int(group.first, 16), int(group.last, 16)))
        )
        self._reader: tuple[manifest.Part, checkpoint_format.TwinsReader] | None = None
        self._coming: asyncio.Task[bytes] | None = None

    @property
    def has_more(self) -> bool:
        """Beyond the rows in hand."""
        return bool(self._wanted)

    async def fill(self) -> None:
        """Takes the next group in hand when nothing is."""
        while self.rows is None and self._wanted:
            part, number = self._wanted.popleft()
            reader = await self._opened(part)
            data = await (self._coming or self._fetch(part, number))
            self._coming = None
            if self._wanted:  # the next one comes while this one is worked on
                self._coming = asyncio.create_task(self._fetch(*self._wanted[0]))
            rows = await self._clock.in_thread(functools.partial(self._clipped, reader, number, data))
            self.rows = rows if len(rows.device_ids) else None

    def last_key(self) -> bytes:
        assert self.rows is not None
        return _key(self.rows, len(self.rows.device_ids) - 1)

    def taken(self, bound: bytes | None) -> commits.TwinRows:
        """The rows in hand up to the key, out of hand; None: all of them."""
        assert self.rows is not None
        rows, count = self.rows, len(self.rows.device_ids)
        last = count if bound is None else bisect.bisect_right(range(count), bound, key=functools.partial(_key, rows))
        self.rows = twin_rows.cut(rows, last, count) if last < count else None
        return twin_rows.cut(rows, 0, last)

    def stop(self) -> None:
        if self._coming is not None:
            self._coming.cancel()

    async def _opened(self, part: manifest.Part) -> checkpoint_format.TwinsReader:
        if self._reader is None or self._reader[0] is not part:
            footer = await self._bytes(part, *checkpoint_format.footer_range(part))
            opened = functools.partial(checkpoint_format.TwinsReader, part, footer)
            self._reader = part, await self._clock.in_thread(opened)
        return self._reader[1]

    async def _fetch(self, part: manifest.Part, number: int) -> bytes:
        group = part.groups[number]
        return await self._bytes(part, group.start, group.stop)

    async def _bytes(self, part: manifest.Part, start: int, stop: int) -> bytes:
        try:
            return await self._objects.get_range(f"{self._shard_id}/{part.name}", start, stop)
        except errors.ObjectMissingError as error:
            raise _gone(self._shard_id, part) from error

    def _clipped(self, reader: checkpoint_format.TwinsReader, number: int, data: bytes) -> commits.TwinRows:
        rows = reader.group(number, data)
        count = len(rows.device_ids)
        digest = functools.partial(_digest, rows)
        first = bisect.bisect_left(range(count), self._range.first_key, key=digest)
        last = bisect.bisect_right(range(count), self._range.last_key, key=digest)
        return rows if (first, last) == (0, count) else twin_rows.cut(rows, first, last)


def _digest(rows: commits.TwinRows, index: int) -> bytes:
    digest: bytes = rows.digests[index].tobytes()
    return digest


def _key(rows: commits.TwinRows, index: int) -> bytes:
    return _digest(rows, index) + rows.device_ids[index].encode()
