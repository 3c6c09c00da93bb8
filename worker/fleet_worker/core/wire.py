"""Reads Telemetry messages of the usual layout, thousands at a time, as columns of bytes.

The usual layout is what every protobuf library writes for a plain sample: the fields in the order of their numbers,
each at most once, zeros left out, nothing unknown, a time of this century, strings below 128 bytes of ASCII. Whatever
looks different by one byte is left to protobuf's own parser; nothing is refused here. For a message of this layout both
give the same values (the property tests compare them).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_worker.core import ids, records

PADDING = bytes(512)
"""Goes after the last message, so that no read leaves the buffer: a message of this layout is at most 421 bytes long,
and one that is cut off is never followed further than that."""

Bools = NDArray[np.bool_]

_TAG_DEVICE_ID, _TAG_TIMESTAMP, _TAG_LOCATION, _TAG_FIRMWARE = 0x0A, 0x10, 0x32, 0x3A
_TAGS_NUMBERS = (0x19, 0x21, 0x29)
_VARINT_BYTES = 6
"""A varint of six bytes holds the milliseconds from 1971 to 2109."""
_CONTINUATION_MASK = np.uint64(0x8080_8080_8080)
_CONTINUATION = np.uint64(0x0080_8080_8080)
_HIGH_BITS = np.uint64(0x8080_8080_8080_8080)
_BYTES_OF_WORD = np.array([2 ** (8 * count) - 1 for count in range(9)], dtype=np.uint64)
"""By number of bytes: a mask of a word's first bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Usual:
    """What was read. fits: (n,) bool, whether the message has the usual layout; elsewhere all else is meaningless.
    timestamp_ms: (n,) int64. numbers: (3, n) float64. device_ids: n. firmware: n strings (None unless asked
    for), those that don't fit ""."""

    fits: Bools
    timestamp_ms: records.Int64s
    numbers: records.Float64s
    device_ids: ids.IdColumn
    firmware: list[str] | None


def read(joined: bytes, start: records.Int64s, end: records.Int64s, with_firmware: bool) -> Usual:
    """joined: the messages one after another, then PADDING. start, end: (n,) their borders in it."""
    byte = np.frombuffer(joined, dtype=np.uint8)
    word = _overlapping(joined, "<u8")
    double = _overlapping(joined, "<f8")

    id_length = byte[start + 1].astype(np.int64)
    fits = (byte[start] == _TAG_DEVICE_ID) & (id_length > 0) & (id_length < 128)
    id_start = start + 2
    id_end = id_start + np.where(fits, id_length, 0)

    varint = word[id_end + 1]
    fits &= (byte[id_end] == _TAG_TIMESTAMP) & ((varint & _CONTINUATION_MASK) == _CONTINUATION)
    at = id_end + (1 + _VARINT_BYTES)

    numbers = np.zeros((len(_TAGS_NUMBERS), len(start)))
    for index, tag in enumerate(_TAGS_NUMBERS):
        there = byte[at] == tag
        np.copyto(numbers[index], double[at + 1], where=there)
        at += there * 9
    strings_start = at
    _, at, fits = _string(byte, at, _TAG_LOCATION, fits)
    firmware_start, at, fits = _string(byte, at, _TAG_FIRMWARE, fits)
    fits &= at == end

    fits &= _ascii(word, id_start, id_end, fits)
    fits &= _ascii(word, strings_start, end, fits)
    return Usual(
        fits=fits,
        timestamp_ms=_seven_bit_groups(varint),
        numbers=numbers,
        device_ids=_device_ids(joined, word, id_start, np.where(fits, id_length, 0)),
        firmware=_cut(joined, firmware_start, at, fits) if with_firmware else None,
    )


def _overlapping(joined: bytes, dtype: str) -> NDArray[Any]:
    """The buffer as numbers of eight bytes, one at each offset."""
    return np.ndarray((len(joined) - 7,), dtype=dtype, buffer=joined, strides=(1,))


def _seven_bit_groups(varint: records.UInt64s) -> records.Int64s:
    value = varint & np.uint64(0x7F)
    for group in range(1, _VARINT_BYTES):
        value |= (varint >> np.uint64(group)) & np.uint64(0x7F << (7 * group))
    return value.view(np.int64)


def _string(
    byte: NDArray[np.uint8], at: records.Int64s, tag: int, fits: Bools
) -> tuple[records.Int64s, records.Int64s, Bools]:
    """A string field that may be absent at `at`: its first byte, the byte after it, and who still fits."""
    there = byte[at] == tag
    length = byte[at + 1]
    fits = fits & ~(there & ((length == 0) | (length > 127)))
    first = at + there * 2
    return first, first + np.where(there & fits, length, 0), fits


def _ascii(word: records.UInt64s, first: records.Int64s, last: records.Int64s, fits: Bools) -> Bools:
    """Whether no byte from first to last (excluded) has its high bit set. Rows that don't fit are True."""
    left = np.where(fits, last - first, 0)
    seen = np.zeros(len(first), dtype=np.uint64)
    for offset in range(0, int(left.max(initial=0)), 8):
        # A row's last word may begin past its end, never past the padding: the longest row ends before that.
        seen |= word[first + np.minimum(offset, left)] & _BYTES_OF_WORD[np.clip(left - offset, 0, 8)]
    clean: Bools = (seen & _HIGH_BITS) == 0
    return clean


def _device_ids(joined: bytes, word: records.UInt64s, first: records.Int64s, length: records.Int64s) -> ids.IdColumn:
    column = ids.IdColumn.cut(word, first, length)
    for row in np.flatnonzero(length > ids.WIDTH).tolist():
        column[row] = joined[first[row] : first[row] + length[row]].decode("ascii")
    return column


def _cut(joined: bytes, first: records.Int64s, last: records.Int64s, fits: Bools) -> list[str]:
    """The strings between the borders, "" for rows that don't fit."""
    if not fits.all():
        first, last = np.where(fits, first, 0), np.where(fits, last, 0)
    text = joined.decode("latin-1")  # only ASCII is cut out, for which Latin-1 is UTF-8
    return [text[begin:finish] for begin, finish in zip(first.tolist(), last.tolist(), strict=True)]
