"""The twin table: a partition's hot twins, one row a device, in NumPy arrays.

Arrays by slot (rows, digests, profile, mark) are what the rules work on; `slots` finds a device's slot. LMDB is the
durable copy, written behind: a row goes CLEAN → DIRTY → IN_FLIGHT → CLEAN (LEAVING on its way out), and DIRTY again when
touched meanwhile. The table decides nothing about devices and does no I/O: it hands out commits' rows and takes rows in.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fleet_worker.core import arrays, commits, ids, twins

FREE, CLEAN, DIRTY, IN_FLIGHT, LEAVING = range(5)
"""Marks of a slot. LEAVING: clean, and its offline index entry is part of the commit in flight."""

ROWS_MIN = 4096
EXTRA = np.uint16(twins.Flag.EXTRA)
RAW_ROW = f"V{twins.TWIN_DTYPE.itemsize}"


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """A twin as it stood: row of TWIN_DTYPE, extra of EXTRA_DTYPE or None, telemetry when the table holds it
    (since the last commit), else None: the store has it."""

    row: np.void
    extra: np.void | None
    telemetry: bytes | None


class SlotIds(Sequence[str]):
    """A table's device ids by slot, "" where free; as they are at the moment of asking."""

    __slots__ = ("_table",)

    def __init__(self, twin_table: TwinTable) -> None:
        self._table = twin_table

    def __len__(self) -> int:
        return self._table.used

    @overload
    def __getitem__(self, slot: int) -> str: ...
    @overload
    def __getitem__(self, slot: slice) -> Sequence[str]: ...
    def __getitem__(self, slot: int | slice) -> str | Sequence[str]:
        return self._table.slots.column[slot]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.slots.column[: self._table.used])

    def at(self, slots: NDArray[np.int64]) -> ids.IdColumn:
        """Those of (n,) slots, copied; far cheaper than one by one."""
        return self._table.slots.column.take(slots)


class TwinTable:
    """rows: (capacity,) TWIN_DTYPE. digests: (capacity, 2) uint64, big-endian halves of MD5. profile: (capacity,) uint8.
    mark: (capacity,) uint8. device_ids: by slot, "" where free. telemetry: slot → raw Telemetry not yet committed.
    firmware: by slot, kept only while a generation matches by it. version: changes when a device comes or goes."""

    def __init__(self, track_firmware: bool = False) -> None:
        self.slots = ids.SlotIndex()
        self.device_ids = SlotIds(self)
        self.used = 0  # slots below this are or were in use
        self.rows = np.zeros(0, dtype=twins.TWIN_DTYPE)
        self.digests = np.zeros((0, 2), dtype=np.uint64)
        self.profile = np.zeros(0, dtype=np.uint8)
        self.mark = np.zeros(0, dtype=np.uint8)
        self.extras = np.zeros(0, dtype=twins.EXTRA_DTYPE)
        self.extra_index = np.zeros(0, dtype=np.int32)  # 1 + index into extras, 0 = none
        self.telemetry: dict[int, bytes] = {}
        self.firmware: list[str] | None = [] if track_firmware else None
        self.stored_elsewhere = 0  # twins that only the store has
        self.stays = twins.Flag.OVERRIDE_OFFLINE | twins.Flag.FORGOTTEN  # flags of rows that don't leave
        self.version = 0
        self._in_flight_telemetry: dict[int, bytes] = {}
        self._deleted: set[str] = set()
        self._deleted_in_flight: set[str] = set()
        self._index_removed: dict[tuple[int, str], None] = {}  # each once, however often a scan meets it
        self._some_leave = False  # with the commit in flight
        self._free: list[int] = []
        self._free_extras: list[int] = []
        self._extras_used = 0

    def __len__(self) -> int:
        return len(self.slots)

    # ── finding and making rows ──────────────────────────────────────────────────────────────────────────────────

    def lookup(self, wanted: Sequence[str]) -> NDArray[np.int64]:
        """(n,) slots, -1 where the table has no row."""
        return self.slots.find(ids.IdColumn.of(wanted))

    def add(self, device_ids: Sequence[str], digests: Sequence[bytes]) -> NDArray[np.int64]:
        """New all-zero, dirty rows for n devices that have none; their slots."""
        slots = self._take_slots(len(device_ids))
        self.slots.put(slots, ids.IdColumn.of(device_ids))
        self.digests[slots] = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
        self.mark[slots] = DIRTY
        if self._deleted or self._deleted_in_flight:
            for slot, device_id in zip(slots.tolist(), device_ids, strict=True):
                if device_id in self._deleted or device_id in self._deleted_in_flight:
                    self._deleted.discard(device_id)
                    self.telemetry[slot] = b""  # the stored one isn't this twin's
        self.version += 1
        return slots

    def reserve(self, rows: int) -> None:
        """Makes room for so many rows at once, which spares copying the table while it fills."""
        if rows > len(self.rows):
            self._grow(rows)

    def load(self, loaded: commits.TwinRows, firmware: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Takes rows in from the store as clean ones; their slots. None of them may be in the table."""
        slots = self._take_slots(len(loaded.device_ids))
        self.slots.put(slots, ids.IdColumn.of(loaded.device_ids))
        if self.firmware is not None:
            for slot, version in zip(slots.tolist(), firmware or (), strict=False):
                self.firmware[slot] = sys.intern(version)
        self.write(slots, loaded.rows)
        self.digests[slots] = loaded.digests.view(">u8").reshape(-1, 2)
        self.mark[slots] = CLEAN
        for index, extra in loaded.extras.items():
            details = self.extra(int(slots[index]))  # first: it may move the array
            self.extras[details] = np.frombuffer(extra, dtype=twins.EXTRA_DTYPE)[0]
        self.version += 1
        return slots

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.void]:
        """(n,) rows, copied. take moves whole rows; indexing a structured array goes field by field, 25 times slower."""
        return self.rows.take(slots)

    def write(self, slots: NDArray[np.int64], rows: NDArray[np.void]) -> None:
        """Puts (n,) rows back into n different slots; as plain bytes, for the same reason."""
        self.rows.view(RAW_ROW)[slots] = rows.view(RAW_ROW)

    def extra(self, slot: int) -> int:
        """Index into `extras` of a twin's details, made (all zero) when it has none yet."""
        index = int(self.extra_index[slot])
        if index:
            return index - 1
        if self._free_extras:
            index = self._free_extras.pop()
        else:
            index = self._extras_used
            self._extras_used += 1
            if index >= len(self.extras):
                self.extras = _grown(self.extras, index + 1)
        self.extra_index[slot] = index + 1
        self.rows["flags"][slot] |= EXTRA
        return index

    def clear(self, slot: int) -> None:
        """All zero again, details and last Telemetry gone; the row stays, dirty."""
        self._drop_extra(slot)
        self.rows[slot] = np.zeros((), dtype=twins.TWIN_DTYPE)
        self.telemetry[slot] = b""
        if self.firmware is not None:
            self.firmware[slot] = ""
        self.mark[slot] = DIRTY

    def delete(self, slot: int) -> None:
        """The twin leaves the table, and with the next commit the store."""
        self._deleted.add(self.device_ids[slot])
        self._release(slot)

    def only_stored(self, wanted: Sequence[str]) -> list[str]:
        """Those of the ids that only the store may have. A twin whose deletion isn't durable yet is in neither."""
        if not self.stored_elsewhere:
            return []
        absent = {wanted[at] for at in np.flatnonzero(self.lookup(wanted) < 0).tolist()}
        return sorted(absent - self._deleted - self._deleted_in_flight - {""})

    def came_back(self, entries: Sequence[tuple[int, str]]) -> None:
        """Offline index entries that are no longer true: their rows are in the table again."""
        self._index_removed.update(dict.fromkeys(entries))

    # ── queries ──────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self, device_id: str) -> Snapshot | None:
        slot = self.slots.get(device_id, -1)
        if slot < 0:
            return None
        row: np.void = self.rows[slot : slot + 1].copy()[0]
        index = int(self.extra_index[slot])
        extra: np.void | None = self.extras[index - 1 : index].copy()[0] if index else None
        telemetry = self.telemetry.get(slot)
        return Snapshot(row, extra, self._in_flight_telemetry.get(slot) if telemetry is None else telemetry)

    def live_slots(self) -> NDArray[np.int64]:
        """Slots in use, ascending."""
        return np.flatnonzero(self.mark)

    @property
    def dirty_count(self) -> int:
        """Rows that the next commit writes. A scan of one byte a row."""
        return int(np.count_nonzero(self.mark == DIRTY))

    # ── write-behind ─────────────────────────────────────────────────────────────────────────────────────────────

    def take_dirty(self, commit_number: int, leaving: NDArray[np.int64] | None = None) -> commits.Commit:
        """Copies the dirty rows out, in key order, and marks them in flight; a Commit with only the twins' part filled.

        leaving: clean slots that leave the table once this commit is durable; their offline index entries are in it.
        """
        slots = np.flatnonzero(self.mark == DIRTY)
        if len(slots):
            slots = slots[_key_order(self.digests[slots])]
            self.rows["commit"][slots] = commit_number
        rows = self.read(slots)
        slot_list = slots.tolist()
        indices = self.extra_index[slots]
        extras = {
            int(at): self.extras[index - 1 : index].tobytes()
            for at in np.flatnonzero(indices)
            for index in [int(indices[at])]
        }
        telemetry = self.telemetry
        index_added: list[tuple[int, str]] = []
        if leaving is not None and len(leaving):
            self.mark[leaving] = LEAVING
            self._some_leave = True
            index_added = self._index_entries(leaving)
        commit = commits.Commit(
            state=commits.PartitionState(),
            twins=commits.TwinRows(
                digests=self.digests[slots].astype(">u8").view("V16").reshape(-1),
                device_ids=self.slots.column.take(slots),
                rows=rows,
                extras=extras,
                telemetry=list(map(telemetry.get, slot_list)),
            ),
            deleted=sorted(self._deleted),
            outbox_added=[],
            outbox_removed=[],
            dead_letters=[],
            index_added=index_added,
            index_removed=list(self._index_removed),
        )
        self.mark[slots] = IN_FLIGHT
        self._in_flight_telemetry, self.telemetry = telemetry, {}
        self._deleted_in_flight, self._deleted = self._deleted, set()
        self._index_removed = {}
        return commit

    def committed(self) -> None:
        """The commit in flight is durable: rows not touched meanwhile are clean, leaving ones go."""
        leaving = np.flatnonzero(self.mark == LEAVING)
        for slot in leaving.tolist():
            self._release(slot)
        self.stored_elsewhere += len(leaving)
        self.mark[self.mark == IN_FLIGHT] = CLEAN
        self._in_flight_telemetry = {}
        self._deleted_in_flight = set()
        self._some_leave = False

    def not_committed(self, commit: commits.Commit) -> None:
        """The commit in flight changed nothing: what it carried is dirty again."""
        self.mark[self.mark == IN_FLIGHT] = DIRTY
        self.mark[self.mark == LEAVING] = CLEAN
        self.telemetry = {**self._in_flight_telemetry, **self.telemetry}
        self._in_flight_telemetry = {}
        self._deleted |= {device_id for device_id in commit.deleted if device_id not in self.slots}
        self._deleted_in_flight = set()
        self._some_leave = False
        self._index_removed = dict.fromkeys([*commit.index_removed, *self._index_removed])

    def touch(self, slots: NDArray[np.int64]) -> None:
        """Marks rows dirty. One that was leaving stays: its index entry goes with the next commit."""
        if self._some_leave:
            leaving = slots[self.mark[slots] == LEAVING].tolist()
            arrival_ms = self.rows["last_arrival_ms"][leaving].tolist()
            self.came_back([(at_ms, self.device_ids[slot]) for at_ms, slot in zip(arrival_ms, leaving, strict=True)])
        self.mark[slots] = DIRTY

    def coldest(self, count: int, silent_before_ms: int = 0) -> NDArray[np.int64]:
        """At most `count` clean slots, those whose devices were silent for longest. Without those that must stay, and without
        those last heard before silent_before_ms, unless they are offline already."""
        flags = self.rows["flags"]
        clean = np.flatnonzero((self.mark == CLEAN) & (flags & self.stays == 0))
        arrival_ms = self.rows["last_arrival_ms"][clean]
        if silent_before_ms > 0:
            is_told = flags[clean] & twins.Flag.OPEN_OFFLINE != 0
            may_leave = is_told | (arrival_ms == 0) | (arrival_ms >= silent_before_ms)
            clean, arrival_ms = clean[may_leave], arrival_ms[may_leave]
        return clean if len(clean) <= count else clean[np.argpartition(arrival_ms, count)[:count]]

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _index_entries(self, slots: NDArray[np.int64]) -> list[tuple[int, str]]:
        rows = self.read(slots)
        watched = (rows["last_arrival_ms"] > 0) & (
            rows["flags"] & (twins.Flag.OPEN_OFFLINE | twins.Flag.FORGOTTEN) == 0
        )
        return [
            (int(rows["last_arrival_ms"][at]), self.device_ids[slot])
            for at, slot in enumerate(slots.tolist())
            if watched[at]
        ]

    def _release(self, slot: int) -> None:
        self._drop_extra(slot)
        self.slots.remove(slot)
        self.rows[slot] = np.zeros((), dtype=twins.TWIN_DTYPE)
        self.telemetry.pop(slot, None)
        self._in_flight_telemetry.pop(slot, None)  # the slot's next device must not inherit it
        self.mark[slot] = FREE
        self.profile[slot] = 0
        if self.firmware is not None:
            self.firmware[slot] = ""
        self._free.append(slot)
        self.version += 1

    def _drop_extra(self, slot: int) -> None:
        index = int(self.extra_index[slot])
        if index:
            self.extras[index - 1] = np.zeros((), dtype=twins.EXTRA_DTYPE)
            self._free_extras.append(index - 1)
            self.extra_index[slot] = 0

    def _take_slots(self, count: int) -> NDArray[np.int64]:
        """Free slots: given back ones first, then fresh ones."""
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        first, self.used = self.used, self.used + count - len(reused)
        if self.used > len(self.rows):
            self._grow(self.used)
        if self.firmware is not None:
            self.firmware.extend([""] * (self.used - first))
        return np.array([*reused, *range(first, self.used)], dtype=np.int64)

    def _grow(self, rows_min: int) -> None:
        self.rows = _grown(self.rows, rows_min)
        capacity = len(self.rows)
        self.digests = _grown(self.digests, capacity)
        self.profile = _grown(self.profile, capacity)
        self.mark = _grown(self.mark, capacity)
        self.extra_index = _grown(self.extra_index, capacity)
        self.slots.make_room(capacity)


def _key_order(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices that sort (n, 2) digests. The upper halves alone nearly always tell, at a quarter of the cost."""
    order = np.argsort(digests[:, 0])
    upper = digests[order, 0]
    return order if (upper[1:] != upper[:-1]).all() else np.lexsort((digests[:, 1], digests[:, 0]))


def _grown(array: NDArray[Any], rows_min: int) -> NDArray[Any]:
    """A copy with room for rows_min rows and at least twice as many as before, the new ones zero. Fresh zero pages cost
    memory only once they are written, so the spare room is free and doubling never wastes any."""
    grown = arrays.zeros((max(rows_min, 2 * len(array), ROWS_MIN), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
