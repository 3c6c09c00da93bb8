"""The twins of checkpoints as tables: each device once, as its base and deltas have it together, without the forgotten ones.

Partitions are read ahead of the one that is written, as many as their twins let fit in memory, and come out in the order of their hash
ranges: an export of the same checkpoints is the same. What becomes of the tables is `writers`'.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fleet_cli.checkpoints import bucket, columns, progress
from fleet_model import hashing, manifest
from fleet_worker import checkpoint_reading, errors
from fleet_worker.core import checkpoint_format, commits, ids, twin_rows, twins

if TYPE_CHECKING:
    import pyarrow as pa

AHEAD_MAX = 8
AHEAD_ROWS_MAX = 400_000
"""In memory of all partitions that are read ahead."""
LOOKED_UP_MAX = 16
"""More devices than this of one partition are found by reading it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """All that is given must hold. devices: UTF-8, none = every one."""

    prefix: bytes = b""
    devices: frozenset[bytes] = frozenset()
    open_alerts: bool = False

    @property
    def passes_all(self) -> bool:
        return not (self.prefix or self.devices or self.open_alerts)

    def of(self, rows: commits.TwinRows) -> NDArray[np.int64]:
        """Which rows pass."""
        flags = rows.rows["flags"]
        wanted = flags & np.uint16(twins.Flag.FORGOTTEN) == 0
        if self.open_alerts:
            wanted &= flags & np.uint16(twins.Flag.ANY_OPEN) != 0
        if self.prefix or self.devices:
            names = ids.encoded(rows.device_ids)
            for at in np.flatnonzero(wanted).tolist():
                name = names[at]
                if not name.startswith(self.prefix) or (self.devices and name not in self.devices):
                    wanted[at] = False
        return np.flatnonzero(wanted)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """What is read of a partition. whole: the range that its checkpoint is the newest word for; ranges: those of it that are looked at."""

    entry: bucket.Partition
    whole: hashing.HashKeyRange
    ranges: tuple[hashing.HashKeyRange, ...]

    @property
    def checkpoint(self) -> manifest.Checkpoint:
        assert self.entry.manifest is not None
        assert self.entry.manifest.checkpoint is not None
        return self.entry.manifest.checkpoint

    @property
    def rows_ahead(self) -> int:
        """At most in memory while it is read: a row group of each layer, and the table that waits."""
        layers = checkpoint_reading.layers_of(self.checkpoint.parts)
        return sum(min(sum(part.rows for part in files), 2 * checkpoint_format.BASE_GROUP_ROWS) for files in layers)

    @property
    def rows(self) -> int:
        """About so many will have been read."""
        if self.ranges != (self.whole,):
            return len(self.ranges)
        known = self.entry.manifest
        assert known is not None
        return round(self.checkpoint.twins * self.whole.size / known.identity.hash_key_range.size)


def pieces(found: Sequence[bucket.Partition], wanted: Filter) -> list[Piece]:
    """What has to be read, in the order of hash ranges."""
    hash_keys = sorted(int.from_bytes(hashing.digest(name.decode()), "big") for name in wanted.devices)
    told: list[Piece] = []
    for entry, whole in bucket.standing(found):
        if not wanted.devices:
            told.append(Piece(entry, whole, (whole,)))
            continue
        inside = [key for key in hash_keys if key in whole]
        if len(inside) > LOOKED_UP_MAX:
            told.append(Piece(entry, whole, (whole,)))
        elif inside:
            told.append(Piece(entry, whole, tuple(hashing.HashKeyRange(key, key) for key in inside)))
    return told


async def tables(
    opened: bucket.Opened, read: Sequence[Piece], wanted: Filter, names: tuple[str, ...], advance: progress.Advance
) -> AsyncIterator[tuple[Piece, pa.Table]]:
    """The twins that pass, as tables of at least one row. Wrap it in contextlib.aclosing.

    Raises CheckpointBrokenError, ObjectStoreUnavailableError, ObjectStoreRefusedError: what came before is not all.
    """
    waiting = collections.deque(read)
    under_way: collections.deque[_Reading] = collections.deque()
    try:
        while waiting or under_way:
            while waiting and _has_room([reading.piece for reading in under_way], waiting[0]):
                under_way.append(_Reading(opened, waiting.popleft(), wanted, names, advance))
            reading = under_way[0]
            async for table in reading.tables():
                yield reading.piece, table
            under_way.popleft()
    finally:
        for reading in under_way:
            await reading.stop()


def _has_room(under_way: Sequence[Piece], piece: Piece) -> bool:
    if not under_way:
        return True
    rows = piece.rows_ahead + sum(other.rows_ahead for other in under_way)
    return len(under_way) < AHEAD_MAX and rows <= AHEAD_ROWS_MAX


class _Reading:
    """One piece being read; a table of it waits at most."""

    def __init__(
        self,
        opened: bucket.Opened,
        piece: Piece,
        wanted: Filter,
        names: tuple[str, ...],
        advance: progress.Advance,
    ) -> None:
        self.piece = piece
        self._opened = opened
        self._wanted = wanted
        self._names = names
        self._advance = advance
        self._ready: asyncio.Queue[pa.Table | None] = asyncio.Queue(maxsize=1)
        self._task = asyncio.create_task(self._read())

    async def tables(self) -> AsyncIterator[pa.Table]:
        while True:
            table = await self._ready.get()
            if table is None:
                await self._task
                return
            yield table

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.exception()  # another one ended the export before

    async def _read(self) -> None:
        try:
            for key_range in self.piece.ranges:
                await self._read_range(key_range)
        except errors.CheckpointBrokenError as error:
            raise await self._told(error) from error
        finally:
            # Nobody may be there any more to take it, when this is the end of a cancelled export.
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                await self._ready.put(None)

    async def _read_range(self, key_range: hashing.HashKeyRange) -> None:
        opened, shard_id = self._opened, self.piece.entry.shard_id
        merged = checkpoint_reading.twins(
            opened.objects, shard_id, self.piece.checkpoint.parts, opened.clock, key_range
        )
        async with contextlib.aclosing(merged):  # type: ignore[type-var]
            async for rows in merged:
                table = await opened.clock.in_thread(functools.partial(self._table, rows))
                self._advance(len(rows.device_ids))
                if len(table):
                    await self._ready.put(table)

    def _table(self, rows: commits.TwinRows) -> pa.Table:
        at = self._wanted.of(rows)
        if len(at) < len(rows.device_ids):
            rows = twin_rows.take(rows, at)
        return columns.table(columns.Batch(self.piece.entry.shard_id, rows), self._names)

    async def _told(self, error: errors.CheckpointBrokenError) -> errors.CheckpointBrokenError:
        """A checkpoint may be replaced, and later cleared away, while it is read."""
        again = await bucket.read(self._opened, self.piece.entry.shard_id)
        if again.checkpoint is not None and again.checkpoint != self.piece.checkpoint:
            return errors.CheckpointBrokenError(
                f"partition {self.piece.entry.shard_id}: its checkpoint was replaced while it was read, and cleared away; export again "
                f"({error})"
            )
        return errors.CheckpointBrokenError(
            f"partition {self.piece.entry.shard_id}: {error}\n`fleet-twin checkpoint verify` tells more."
        )
