"""Walks through twins in key order (hash key, then device id), a page at a time, without stalling the event loop.

A page is found in two steps. First its keys: the table's columns are filtered block by block, and of each block only the
smallest keys after the cursor are kept, so nothing is sorted but a page, and no index goes stale. Twins that only the store
holds are read for the same stretch of keys in a thread and merged. Then the rows of those keys are copied, in one go, and
filtered once more, as the table may have moved on meanwhile. Between blocks the loop runs.

Because a cursor is a key, a walk is stable under change: a twin that stays and matches throughout is seen exactly once,
whatever comes, goes or moves between partitions. A page may hold fewer twins than asked for; the walk goes on while it
has a next key.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_model import hashing
from fleet_worker.api import directory, filters
from fleet_worker.core import commits, health, table, twins, views

Key = tuple[int, str]
"""(hash key, device id), the order of a walk."""

BLOCK_ROWS = 32_768
"""Rows filtered at once: a millisecond or two."""
HEALTH_BLOCK_ROWS = 8_192
"""The same where each row's health has to be assessed."""
WINDOWS_MAX = 8
"""Stretches of keys that one page may look at before it is handed out short."""
WINDOW_ROWS = 20_000
"""Stored rows that a filtered stretch aims at."""
LOOSE_KEYS = 2_000
"""Twins that are looked at together when a filter needs more than the table's columns."""
COPIES_MAX = 128
"""Twins copied without letting the loop run."""

BEFORE_ALL: Key = (0, "")

_NO_EXTRA = np.zeros(1, dtype=twins.EXTRA_DTYPE)[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """Matching twins of one partition, in key order, and the standpoint they were seen from."""

    standpoint: views.Standpoint
    found: views.Twins


@dataclasses.dataclass(frozen=True, slots=True)
class Hole:
    """A hash range that nobody serves here."""

    key_range: hashing.HashKeyRange
    owners: list[directory.Owner]


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """after: the key that the next page starts after, None at the end. holes: ranges left out, in order."""

    stretches: list[Stretch]
    after: Key | None
    holes: list[Hole]


def standpoint(partition: directory.PartitionView) -> views.Standpoint:
    state = partition.state
    return views.Standpoint(
        partition.identity, partition.epoch, state.position, state.clock_ms, partition.engine.context.limits
    )


async def page(
    worker: directory.WorkerView, wanted: filters.Wanted, after: Key, limit: int, *, across_holes: bool
) -> Page:
    """At most `limit` twins after the key. across_holes: ranges that nobody serves here are told and passed over; else the page ends
    before the first one, and one with nothing before it is that hole alone, up to where its owner may change."""
    stretches: list[Stretch] = []
    left_out: list[Hole] = []
    room, windows = limit, WINDOWS_MAX
    while after[0] <= hashing.HASH_KEY_MAX:
        if not room or not windows:
            return Page(stretches, after, left_out)
        running = [entry for entry in directory.serving(worker) if entry.identity.hash_key_range.end >= after[0]]
        start = running[0].identity.hash_key_range.start if running else hashing.HASH_KEY_MAX + 1
        if start > after[0] and not across_holes:
            if stretches:
                return Page(stretches, after, [])
            stretch_end = min(start - 1, directory.same_owners_until(worker, after[0]))
            return Page([], None, [_hole(worker, after[0], stretch_end)])
        if start > after[0]:
            left_out.append(_hole(worker, after[0], start - 1))
            after = (start, "")
            continue
        windows -= 1
        stretch, after = await _window(running[0], wanted, after, room)
        if len(stretch.found):
            room -= len(stretch.found)
            stretches.append(stretch)
    return Page(stretches, None, left_out)


def holes(worker: directory.WorkerView) -> list[Hole]:
    """Every hash range that nobody serves here, in order."""
    left_out: list[Hole] = []
    covered = 0
    for entry in directory.serving(worker):
        start = entry.identity.hash_key_range.start
        if start > covered:
            left_out.append(_hole(worker, covered, start - 1))
        covered = max(covered, entry.identity.hash_key_range.end + 1)
    if covered <= hashing.HASH_KEY_MAX:
        left_out.append(_hole(worker, covered, hashing.HASH_KEY_MAX))
    return left_out


def _hole(worker: directory.WorkerView, start: int, end: int) -> Hole:
    key_range = hashing.HashKeyRange(start, end)
    return Hole(key_range, directory.owners(worker, key_range))


async def open_alerts(partition: directory.PartitionView) -> list[int]:
    """How many twins in the table have each alert open, by rule number."""
    counts = [0, 0, 0]
    twin_table = partition.engine.table
    for first in range(0, len(twin_table.device_ids), BLOCK_ROWS):
        flags = twin_table.rows["flags"][first : first + BLOCK_ROWS]
        for rule, flag in enumerate(health.OPEN_FLAGS):
            counts[rule] += int(np.count_nonzero(flags & flag))
        await asyncio.sleep(0)
    return counts


async def _window(
    partition: directory.PartitionView, wanted: filters.Wanted, after: Key, room: int
) -> tuple[Stretch, Key]:
    """Matching twins of the next stretch of keys, and the key up to which nothing was left out."""
    twin_table = partition.engine.table
    until: Key = (partition.identity.hash_key_range.end + 1, "")
    stored: dict[Key, tuple[np.void, np.void]] = {}
    loose = wanted.firmware is not None
    if twin_table.stored_elsewhere:
        loose = loose or wanted.health_below is not None or wanted.profile is not None
        stored, until = await _stored(partition, wanted, after, LOOSE_KEYS if loose else room)
    goal = LOOSE_KEYS if loose else room
    keys = await _table_keys(partition, wanted, after, until, goal)
    keys = sorted({*keys, *(key for key in stored if after < key <= until)})
    if len(keys) > goal:
        keys = keys[:goal]
        until = keys[-1]
    found = await _take(partition, wanted, keys, stored)
    if len(found) > room:
        found = _some(found, np.arange(room))
        until = (hashing.hash_key(found.device_ids[-1]), found.device_ids[-1])
    return Stretch(standpoint(partition), found), until


async def _stored(
    partition: directory.PartitionView, wanted: filters.Wanted, after: Key, goal: int
) -> tuple[dict[Key, tuple[np.void, np.void]], Key]:
    """Rows and details that the store has after the key and that may match, and the key up to which it is all of them.

    Device ids spread evenly over the hash range, so its width decides how many rows are read.
    """
    twin_table, whole = partition.engine.table, partition.identity.hash_key_range
    aim = WINDOW_ROWS if wanted != filters.Wanted() else 2 * goal
    width = whole.size * aim // (len(twin_table) + twin_table.stored_elsewhere) + 1
    key_range = hashing.HashKeyRange(after[0], min(whole.end, after[0] + width))
    read = await partition.stored(key_range)
    rows = read.rows
    until: Key = (key_range.end + 1, "")
    if not read.complete:
        last = rows.device_ids[-1]
        until = (hashing.hash_key(last), last)
    matching = np.flatnonzero(filters.flags_match(wanted, rows.rows["flags"])).tolist()
    return {
        (hashing.hash_key(device_id), device_id): (rows.rows[at], _extra(rows, at))
        for at in matching
        for device_id in [rows.device_ids[at]]
        if device_id.startswith(wanted.prefix)
    }, until


async def _table_keys(
    partition: directory.PartitionView, wanted: filters.Wanted, after: Key, until: Key, goal: int
) -> list[Key]:
    """The smallest keys of matching twins in the table, after < key <= until, in order; more than `goal` when there are more."""
    kept: list[Key] = []
    twin_table = partition.engine.table
    block_rows = BLOCK_ROWS if wanted.health_below is None else HEALTH_BLOCK_ROWS
    first = 0
    while first < len(twin_table.device_ids):
        block = slice(first, min(first + block_rows, len(twin_table.device_ids)))
        matching = filters.matching_slots(partition, wanted, _slots_between(twin_table, block, after, until))
        kept = sorted({*kept, *_smallest_keys(twin_table, matching, (after, until), goal)})[: goal + 1]
        if len(kept) > goal:
            # What comes after the last of these can't be among the smallest any more.
            until = kept[-1]
        first = block.stop
        await asyncio.sleep(0)
    return kept


def _slots_between(twin_table: table.TwinTable, block: slice, after: Key, until: Key) -> NDArray[np.int64]:
    """Used slots of a block whose keys may lie in (after, until]: those at the very ends are looked at again."""
    high, low = twin_table.digests[block, 0], twin_table.digests[block, 1]
    after_high, after_low = _halves(after)
    inside = (high > after_high) | ((high == after_high) & (low >= after_low))
    inside &= high <= np.uint64(min(until[0], hashing.HASH_KEY_MAX) >> 64)
    inside &= twin_table.mark[block] != table.FREE
    slots: NDArray[np.int64] = np.flatnonzero(inside) + block.start
    return slots


def _smallest_keys(
    twin_table: table.TwinTable, slots: NDArray[np.int64], between: tuple[Key, Key], goal: int
) -> list[Key]:
    """Of these slots' keys in (after, until] at least the goal + 1 smallest, in any order."""
    after, until = between
    high, low = twin_table.digests[slots, 0], twin_table.digests[slots, 1]
    # Some that share the cursor's hash key are not after it, its own device to begin with: as many more are needed.
    enough = goal + 1 + int(np.count_nonzero(high == _halves(after)[0]))
    if len(slots) > enough:
        smallest = high <= np.partition(high, enough)[enough]
        slots, high, low = slots[smallest], high[smallest], low[smallest]
    device_ids = twin_table.device_ids.at(slots)
    keys = (
        (upper << 64 | lower, device_id)
        for upper, lower, device_id in zip(high.tolist(), low.tolist(), device_ids, strict=True)
    )
    return [key for key in keys if after < key <= until]


def _halves(key: Key) -> tuple[np.uint64, np.uint64]:
    high, low = divmod(key[0], 2**64)
    return np.uint64(high), np.uint64(low)


async def _take(
    partition: directory.PartitionView,
    wanted: filters.Wanted,
    keys: Sequence[Key],
    stored: dict[Key, tuple[np.void, np.void]],
) -> views.Twins:
    """The twins of these keys as they are now, without those that went or don't match any more."""
    engine = partition.engine
    stored = stored | await _strays(partition, [key for key in keys if key not in stored])
    device_ids: list[str] = []
    rows: list[np.void] = []
    extras: list[np.void] = []
    telemetry: list[bytes | None] = []
    for at, key in enumerate(keys):
        if at % COPIES_MAX == COPIES_MAX - 1:
            await asyncio.sleep(0)
        snapshot = engine.table.snapshot(key[1])
        if snapshot is None:
            if key not in stored:
                continue
            snapshot = table.Snapshot(*stored[key], telemetry=None)
        device_ids.append(key[1])
        rows.append(snapshot.row)
        extras.append(_NO_EXTRA if snapshot.extra is None else snapshot.extra)
        telemetry.append(snapshot.telemetry)
    missing = [device_id for device_id, raw in zip(device_ids, telemetry, strict=True) if raw is None]
    from_store = await partition.telemetry(missing) if missing else {}
    found = views.Twins(
        device_ids,
        np.array(rows, dtype=twins.TWIN_DTYPE),
        np.array(extras, dtype=twins.EXTRA_DTYPE),
        np.zeros(len(rows), dtype=np.uint8),
        [
            from_store.get(device_id, b"") if raw is None else raw
            for device_id, raw in zip(device_ids, telemetry, strict=True)
        ],
    )
    found.profiles[:] = _profiles(partition, found)
    return _some(found, np.flatnonzero(filters.matches(partition, wanted, found)))


async def _strays(partition: directory.PartitionView, keys: Sequence[Key]) -> dict[Key, tuple[np.void, np.void]]:
    """Twins that left the table after their keys were found."""
    slots = partition.engine.table.lookup([device_id for _, device_id in keys])
    gone = [key for key, slot in zip(keys, slots.tolist(), strict=True) if slot < 0]
    if not gone or not partition.engine.table.stored_elsewhere:
        return {}
    rows = await partition.fetch([key[1] for key in gone])
    return {
        (hashing.hash_key(device_id), device_id): (rows.rows[at], _extra(rows, at))
        for at, device_id in enumerate(rows.device_ids)
    }


async def one(partition: directory.PartitionView, device_id: str) -> Stretch | None:
    """The twin of a device, None when the partition has none."""
    key = (hashing.hash_key(device_id), device_id)
    found = await _take(partition, filters.Wanted(), [key], {})
    return Stretch(standpoint(partition), found) if len(found) else None


def _profiles(partition: directory.PartitionView, found: views.Twins) -> list[int]:
    """Profile indices: the table's, or for a twin outside of it determined as the engine does."""
    engine = partition.engine
    slots = engine.table.lookup(found.device_ids).tolist()
    generation = engine.context.limits.generation
    profiles: list[int] = []
    for slot, device_id, raw in zip(slots, found.device_ids, found.telemetry, strict=True):
        if slot >= 0:
            profiles.append(int(engine.table.profile[slot]))
        elif not generation.profiles:
            profiles.append(0)
        else:
            firmware = views.firmware(raw) if generation.matches_firmware else ""
            profiles.append(generation.profile_index(device_id, firmware))
    return profiles


def _some(found: views.Twins, index: NDArray[np.int64]) -> views.Twins:
    if len(index) == len(found):
        return found
    chosen = index.tolist()
    return views.Twins(
        [found.device_ids[at] for at in chosen],
        found.rows.take(index),
        found.extras.take(index),
        found.profiles[index],
        [found.telemetry[at] for at in chosen],
    )


def _extra(rows: commits.TwinRows, at: int) -> np.void:
    raw = rows.extras.get(at)
    extra: np.void = _NO_EXTRA if raw is None else np.frombuffer(raw, dtype=twins.EXTRA_DTYPE)[0]
    return extra
