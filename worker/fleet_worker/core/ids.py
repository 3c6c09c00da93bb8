"""Device ids as columns of bytes, and the index that finds their slots: thousands in a few NumPy operations.

A Python string and a dict entry an id would cost a million twins 150 MB, and each look-up three cache misses that nothing
overlaps. An id of up to WIDTH bytes is kept as words, padded with zeros, beside its length; longer ones are rare and live
in a dict. Equality is always that of all bytes; the hash only says where to look.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fleet_worker.core import arrays

WIDTH = 40
"""Bytes; a UUID has 36."""
WORDS = WIDTH // 8
LONG = -1
"""In `length`: the id has more than WIDTH bytes."""
FREE, GONE = 0, -1
"""In the buckets; anything above is 1 + slot."""
BUCKETS_MIN = 1024
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)
_SHIFT = np.uint64(29)
_WORDS = struct.Struct(f"<{WORDS}Q")
_WORD_MAX = 2**64 - 1
_BYTES_OF_WORD = np.array([2 ** (8 * count) - 1 for count in range(9)], dtype=np.uint64)


class IdColumn(Sequence[str]):
    """n device ids. words: (n, WORDS) uint64, the UTF-8 bytes padded with zeros. length: (n,) int16, bytes, or LONG.
    long: ids of more than WIDTH bytes by row."""

    __slots__ = ("length", "long", "words")

    def __init__(self, words: NDArray[np.uint64], length: NDArray[np.int16], long: dict[int, str]) -> None:
        self.words = words
        self.length = length
        self.long = long

    @classmethod
    def empty(cls, count: int) -> IdColumn:
        """n times ""."""
        return cls(arrays.zeros((count, WORDS), np.uint64), np.zeros(count, dtype=np.int16), {})

    @classmethod
    def of(cls, device_ids: Sequence[str]) -> IdColumn:
        if isinstance(device_ids, IdColumn):
            return device_ids
        return cls.of_encoded(encoded(device_ids))

    @classmethod
    def of_encoded(cls, texts: list[bytes]) -> IdColumn:
        """Of ids as UTF-8 bytes."""
        length = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        words = np.array(texts, dtype=f"S{WIDTH}").view(np.uint64).reshape(-1, WORDS)
        too_long = np.flatnonzero(length > WIDTH)
        if len(too_long):
            words[too_long] = 0
            length[too_long] = LONG
        return cls(words, length.astype(np.int16), {row: texts[row].decode() for row in too_long.tolist()})

    @classmethod
    def cut(cls, word: NDArray[np.uint64], first: NDArray[np.int64], length: NDArray[np.int64]) -> IdColumn:
        """Out of a buffer seen as overlapping little-endian words, one at each byte offset; at least WIDTH bytes follow the
        last `first`. Rows longer than WIDTH come out as LONG with no text: the caller sets it."""
        words = np.zeros((len(first), WORDS), dtype=np.uint64)
        is_long = length > WIDTH
        for index in range(min(WORDS, (int(length.max(initial=0)) + 7) // 8)):
            words[:, index] = word[first + 8 * index] & _BYTES_OF_WORD[np.clip(length - 8 * index, 0, 8)]
        if is_long.any():
            words[is_long] = 0
        return cls(words, np.where(is_long, LONG, length).astype(np.int16), {})

    def __len__(self) -> int:
        return len(self.length)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> IdColumn: ...
    def __getitem__(self, row: int | slice) -> str | IdColumn:
        if isinstance(row, slice):
            first, last, step = row.indices(len(self))
            assert step == 1, "device ids are cut, not stepped through"
            long = {at - first: text for at, text in self.long.items() if first <= at < last} if self.long else {}
            return IdColumn(self.words[row], self.length[row], long)
        length = int(self.length[row])
        if length == LONG:
            return self.long[row]
        text: bytes = self.words[row].tobytes()
        return text[:length].decode()

    def __setitem__(self, row: int, device_id: str) -> None:
        encoded = device_id.encode()
        self.long.pop(row, None)
        if len(encoded) > WIDTH:
            self.words[row], self.length[row], self.long[row] = 0, LONG, device_id
        else:
            self.words[row] = np.frombuffer(encoded.ljust(WIDTH, b"\0"), dtype=np.uint64)
            self.length[row] = len(encoded)

    def fill(self, rows: Sequence[int], device_ids: Sequence[str]) -> None:
        """Gives those rows these ids; they had none."""
        given = IdColumn.of(device_ids)
        self.words[rows], self.length[rows] = given.words, given.length
        self.long |= {rows[at]: device_id for at, device_id in given.long.items()}

    def __iter__(self) -> Iterator[str]:
        return map(bytes.decode, self.encoded())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def take(self, rows: NDArray[np.int64]) -> IdColumn:
        """Those rows, copied."""
        long = {at: self.long[row] for at, row in enumerate(rows.tolist()) if row in self.long} if self.long else {}
        return IdColumn(self.words.take(rows, axis=0), self.length.take(rows), long)

    def encoded(self) -> list[bytes]:
        """The ids' UTF-8 bytes."""
        if not len(self):
            return []
        texts: list[bytes] = np.ascontiguousarray(self.words).view(f"S{WIDTH}").ravel().tolist()
        lengths = self.length.tolist()
        # NumPy leaves zeros at the end out; an id may end in one.
        if self.long or sum(map(len, texts)) != sum(lengths):
            texts = [
                self.long[row].encode() if length == LONG else text.ljust(length, b"\0")
                for row, (text, length) in enumerate(zip(texts, lengths, strict=True))
            ]
        return texts

    def hashes(self) -> NDArray[np.uint64]:
        """(n,) of the words and the length."""
        used = (int(self.length.max(initial=0)) + 7) // 8
        mixed = self.length.astype(np.uint64)
        for index in range(WORDS):
            if index < used:
                mixed ^= self.words[:, index]
            mixed *= _MULTIPLIERS[index]
            mixed ^= mixed >> _SHIFT
        return mixed


class EncodedIds(Sequence[str]):
    """n device ids as they are stored, for what only passes them on: nothing is decoded until somebody asks. texts: UTF-8."""

    __slots__ = ("texts",)

    def __init__(self, texts: list[bytes]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> EncodedIds: ...
    def __getitem__(self, row: int | slice) -> str | EncodedIds:
        return EncodedIds(self.texts[row]) if isinstance(row, slice) else self.texts[row].decode()

    def __iter__(self) -> Iterator[str]:
        return map(bytes.decode, self.texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class SlotIndex:
    """Device ids by slot, and slots by device id: an open-addressing hash table with linear probing.

    buckets: a power of two of int32, at most half of them in use. hashes, column: by slot.
    """

    def __init__(self) -> None:
        self.column = IdColumn.empty(0)
        self._hashes = np.zeros(0, dtype=np.uint64)
        self._buckets = np.zeros(BUCKETS_MIN, dtype=np.int32)
        self._filled = 0  # buckets that aren't FREE, GONE ones among them
        self._count = 0
        self._long: dict[str, int] = {}

    def __len__(self) -> int:
        """Ids in the index."""
        return self._count

    def __contains__(self, device_id: str) -> bool:
        return self.get(device_id) >= 0

    def get(self, device_id: str, default: int = -1) -> int:
        """One id's slot: `find` without NumPy, whose calls cost more than a few probes."""
        text = device_id.encode()
        if len(text) > WIDTH:
            return self._long.get(device_id, default)
        mixed = len(text)
        for word, multiplier in zip(_WORDS.unpack(text.ljust(WIDTH, b"\0")), _MULTIPLIERS.tolist(), strict=True):
            mixed = ((mixed ^ word) * multiplier) & _WORD_MAX
            mixed ^= mixed >> int(_SHIFT)
        mask = len(self._buckets) - 1
        bucket = mixed & mask
        while (entry := int(self._buckets[bucket])) != FREE:
            if entry > 0 and int(self._hashes[entry - 1]) == mixed and self.column[entry - 1] == device_id:
                return entry - 1
            bucket = (bucket + 1) & mask
        return default

    def find(self, wanted: IdColumn) -> NDArray[np.int64]:
        """(n,) slots, -1 where the index hasn't got the id."""
        slots = np.full(len(wanted), -1, dtype=np.int64)
        hashes = wanted.hashes()
        mask = np.uint64(len(self._buckets) - 1)
        bucket = hashes & mask
        rows: NDArray[np.int64] | None = None  # None: all of them
        while True:
            entry = self._buckets.take(bucket.view(np.int64))
            occupied = entry > 0
            candidate = np.where(occupied, entry - 1, 0) if len(self._hashes) else entry
            here = hashes if rows is None else hashes[rows]
            hit = occupied & (self._hashes.take(candidate) == here) if len(self._hashes) else occupied
            if hit.any():
                at = np.flatnonzero(hit)
                row = at if rows is None else rows[at]
                slot = candidate[at]
                same = (self.column.length.take(slot) == wanted.length.take(row)) & (
                    self.column.words.take(slot, axis=0) == wanted.words.take(row, axis=0)
                ).all(axis=1)
                slots[row[same]] = slot[same]
                hit[at[~same]] = False
            further = np.flatnonzero((entry != FREE) & ~hit)
            if not len(further):
                break
            rows = further if rows is None else rows[further]
            bucket = (bucket[further] + np.uint64(1)) & mask
        if wanted.long:
            for row_of_long, device_id in wanted.long.items():
                slots[row_of_long] = self._long.get(device_id, -1)
        return slots

    def put(self, slots: NDArray[np.int64], added: IdColumn) -> None:
        """Gives n slots their ids; none of the ids is in the index, no two are equal, the slots have none."""
        self.column.words[slots] = added.words
        self.column.length[slots] = added.length
        self._hashes[slots] = added.hashes()
        for at, device_id in added.long.items():
            self.column.long[int(slots[at])] = device_id
            self._long[device_id] = int(slots[at])
        self._count += len(added)
        short = slots[added.length != LONG]
        if (self._filled + len(short)) * 2 > len(self._buckets):
            self._rebuild()
        else:
            self._fill(short)

    def remove(self, slot: int) -> None:
        """The slot has no id any more."""
        if int(self.column.length[slot]) == LONG:
            del self._long[self.column.long[slot]]
        else:
            mask = len(self._buckets) - 1
            bucket = int(self._hashes[slot]) & mask
            while self._buckets[bucket] != slot + 1:
                assert self._buckets[bucket] != FREE, "every short id has its bucket"
                bucket = (bucket + 1) & mask
            self._buckets[bucket] = GONE
        self.column[slot] = ""
        self._hashes[slot] = 0
        self._count -= 1

    def make_room(self, slots: int) -> None:
        """For so many slots in all."""
        column = IdColumn.empty(slots)
        have = len(self.column)
        column.words[:have], column.length[:have] = self.column.words, self.column.length
        column.long = self.column.long
        hashes = arrays.zeros((slots,), np.uint64)
        hashes[:have] = self._hashes
        self.column, self._hashes = column, hashes

    def _rebuild(self) -> None:
        """Into buckets of the right number, without those that are gone."""
        size = BUCKETS_MIN
        while size < 4 * self._count:
            size *= 2
        self._buckets = arrays.zeros((size,), np.int32)
        self._filled = 0
        self._fill(np.flatnonzero(self.column.length > 0))

    def _fill(self, slots: NDArray[np.int64]) -> None:
        """Enters short ids: each round everyone tries its bucket, and who finds it taken goes on to the next one."""
        self._filled += len(slots)
        mask = np.uint64(len(self._buckets) - 1)
        bucket = self._hashes[slots] & mask
        while len(slots):
            at = bucket.view(np.int64)
            free = np.flatnonzero(self._buckets[at] == FREE)
            self._buckets[at[free]] = slots[free] + 1
            left = np.flatnonzero(self._buckets[at] != slots + 1)
            slots = slots[left]
            bucket = (bucket[left] + np.uint64(1)) & mask


def encoded(device_ids: Iterable[str]) -> list[bytes]:
    """UTF-8 bytes of ids in whatever form."""
    if isinstance(device_ids, IdColumn):
        return device_ids.encoded()
    return device_ids.texts if isinstance(device_ids, EncodedIds) else list(map(str.encode, device_ids))
