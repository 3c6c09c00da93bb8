"""Which of a partition's twins are in the table: all of them, or, past the bound, those that spoke last.

Brings rows in from the store when their device speaks or may have gone offline, and picks those that leave. A row that
leaves keeps its last arrival in the store's offline index, so silence is noticed wherever a twin is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_proto import fleet_pb2
from fleet_worker import ports
from fleet_worker.core import commits, engine, twins

INDEX_CHUNK_ENTRIES = 5_000
"""Entries of the offline index, and rows with them, that are brought in at once."""
INDEX_ADDED_ENTRIES = 50_000
"""Entries of rows without room that a restart makes durable at once."""
LEAVE_ROWS_MAX = 50_000
"""Rows that leave with one commit; some tens of milliseconds on the event loop."""
FIRMWARE_ROWS = 10_000
SLACK = 20
"""A twentieth of the bound leaves beyond what must, so that not every commit has to choose."""
NOT_INDEXED = twins.Flag.OPEN_OFFLINE | twins.Flag.FORGOTTEN


class Residency:
    """rows_max: rows the table may hold after a commit, 0 = no bound; may be changed at any time."""

    def __init__(self, store: ports.TwinStore, twin_engine: engine.TwinEngine, clock: ports.Clock) -> None:
        self.rows_max = 0
        self._store = store
        self._engine = twin_engine
        self._clock = clock
        self._looked_before_ms = 0

    async def restore(self) -> AsyncIterator[list[tuple[int, str]]]:
        """Fills the table from the store. Gives, in portions, the offline index entries of the rows that found no room: each
        has to be committed before it goes on, and so before the clock moves."""
        table = self._engine.table
        stored = await self._clock.in_thread(self._store.count)
        table.reserve(min(stored, self.rows_max) if self.rows_max else stored)
        chunks = self._store.scan()
        index_added: list[tuple[int, str]] = []
        while (chunk := await self._clock.in_thread(lambda: next(chunks, None))) is not None:
            kept, left = self._fitting(chunk)
            if left is not None:
                table.stored_elsewhere += len(left.device_ids)
                index_added += _index_entries(left)
            if kept.device_ids:
                self._engine.load(kept, await self._firmware(kept.device_ids))
            if len(index_added) >= INDEX_ADDED_ENTRIES:
                yield index_added
                index_added = []
        if index_added:
            yield index_added

    async def bring_in(self, device_ids: Sequence[str]) -> None:
        """Loads those of the ids that only the store has."""
        if not device_ids:
            return
        rows = await self._clock.in_thread(lambda: self._store.fetch(device_ids))
        table = self._engine.table
        only_stored = set(table.only_stored(rows.device_ids))
        absent = [index for index, device_id in enumerate(rows.device_ids) if device_id in only_stored]
        if not absent:
            return
        if len(absent) < len(rows.device_ids):
            rows = _some(rows, absent)
        table.came_back(_index_entries(rows))
        self._engine.load(rows, await self._firmware(rows.device_ids))
        table.stored_elsewhere -= len(rows.device_ids)

    async def bring_in_silent(self, time_ms: int, after: tuple[int, str] | None = None) -> tuple[int, str] | None:
        """Loads rows outside the table that may be offline by time_ms, so that the engine's scan judges them: the next portion
        of them after this index entry. Returns the last one's entry, None when these were all."""
        table = self._engine.table
        if not table.stored_elsewhere:
            return None
        before_ms = time_ms - self._engine.offline_least_ms(time_ms) + 1
        self._looked_before_ms = before_ms
        entries = await self._clock.in_thread(lambda: self._store.index_before(before_ms, INDEX_CHUNK_ENTRIES, after))
        # Entries of rows that are back in the table, or have spoken since, aren't true any more: they go as well.
        table.came_back(entries)
        await self.bring_in([device_id for _, device_id in entries])
        return entries[-1] if len(entries) == INDEX_CHUNK_ENTRIES else None

    def leaving(self) -> NDArray[np.int64] | None:
        """Clean slots to leave with the next commit. Not those that were brought in for their silence and, by a longer limit of
        their own profile, aren't due yet: the next scan would only bring them in again."""
        table = self._engine.table
        excess = len(table) - self.rows_max
        if not self.rows_max or excess <= 0:
            return None
        return table.coldest(min(excess + self.rows_max // SLACK, LEAVE_ROWS_MAX), self._looked_before_ms)

    async def firmware_of_all(self) -> dict[str, str]:
        """Device id → firmware of its last accepted Telemetry, for every twin in the table."""
        table = self._engine.table
        device_ids = [device_id for device_id in table.device_ids if device_id]
        stored: dict[str, str] = {}
        for first in range(0, len(device_ids), FIRMWARE_ROWS):
            some = device_ids[first : first + FIRMWARE_ROWS]
            stored |= zip(some, await self._stored_firmware(some), strict=True)
        for slot, telemetry in table.telemetry.items():
            stored[table.device_ids[slot]] = fleet_pb2.Telemetry.FromString(telemetry).firmware
        return stored

    async def _firmware(self, device_ids: Sequence[str]) -> list[str] | None:
        return None if self._engine.table.firmware is None else await self._stored_firmware(device_ids)

    async def _stored_firmware(self, device_ids: Sequence[str]) -> list[str]:
        def read() -> list[str]:
            stored = self._store.telemetry(device_ids)
            return [fleet_pb2.Telemetry.FromString(stored.get(device_id, b"")).firmware for device_id in device_ids]

        return await self._clock.in_thread(read)

    def _fitting(self, chunk: commits.TwinRows) -> tuple[commits.TwinRows, commits.TwinRows | None]:
        """The part of a chunk that goes into the table, and the part that doesn't."""
        room = self.rows_max - len(self._engine.table)
        if not self.rows_max or room >= len(chunk.device_ids):
            return chunk, None
        stays = chunk.rows["flags"] & self._engine.table.stays != 0
        stays[np.flatnonzero(~stays)[: max(room, 0)]] = True
        return _some(chunk, np.flatnonzero(stays).tolist()), _some(chunk, np.flatnonzero(~stays).tolist())


def _some(rows: commits.TwinRows, indices: Sequence[int]) -> commits.TwinRows:
    at = np.array(indices, dtype=np.int64)
    return commits.TwinRows(
        digests=rows.digests[at],
        device_ids=[rows.device_ids[index] for index in indices],
        rows=rows.rows.take(at),
        extras={new: rows.extras[old] for new, old in enumerate(indices) if old in rows.extras},
        telemetry=[rows.telemetry[index] for index in indices],
    )


def _index_entries(rows: commits.TwinRows) -> list[tuple[int, str]]:
    arrival_ms = rows.rows["last_arrival_ms"]
    indexed = (arrival_ms > 0) & (rows.rows["flags"] & NOT_INDEXED == 0)
    return [(int(arrival_ms[index]), rows.device_ids[index]) for index in np.flatnonzero(indexed).tolist()]
