"""Telemetry messages of the usual layout as columns: time, three readings, location, firmware, each field once and in order.

What `split` says fits, `join` makes again byte by byte; anything else (a field more, a number written longer than it must be, text that is
no UTF-8) doesn't fit. It is for storing messages; reading them for the rules is `decode`'s.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TIMESTAMP_TAG, LOCATION_TAG, FIRMWARE_TAG = 0x10, 0x32, 0x3A
READING_TAGS = (0x19, 0x21, 0x29)
VARINT_BYTES = 6
"""Of a time from 1971 to 2109 in milliseconds."""
HEAD_BYTES = 1 + VARINT_BYTES + 9 * len(READING_TAGS)
READINGS_AT = [1 + VARINT_BYTES + 1 + 9 * number for number in range(len(READING_TAGS))]
TEXT_BYTES_MAX = 127
"""Longer ones have a length of two bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Usual:
    """n messages, meaningful where fits (n,) is true. timestamp_ms: (n,) int64. readings: (n, 3) float64. locations, firmware: n, b""
    where the message has none."""

    fits: NDArray[np.bool_]
    timestamp_ms: NDArray[np.int64]
    readings: NDArray[np.float64]
    locations: list[bytes]
    firmware: list[bytes]


def split(messages: Sequence[bytes], wanted: NDArray[np.bool_]) -> Usual:
    """messages: n, without their device ids. wanted: (n,), those to look at."""
    count = len(messages)
    joined = b"".join(messages)
    # Room for looking beyond a short message: what is found there doesn't fit, as its length tells.
    buffer = np.frombuffer(joined + bytes(HEAD_BYTES + 2 * TEXT_BYTES_MAX + 4), dtype=np.uint8)
    length = np.fromiter(map(len, messages), dtype=np.int64, count=count)
    start = np.cumsum(length) - length
    head = buffer[start[:, None] + np.arange(HEAD_BYTES)]
    fits = wanted & (length >= HEAD_BYTES) & (head[:, 0] == TIMESTAMP_TAG)
    fits &= (head[:, 1:VARINT_BYTES] >= 128).all(axis=1) & (head[:, VARINT_BYTES] - np.uint8(1) < 127)
    readings = np.empty((count, len(READING_TAGS)))
    for number, (tag, at) in enumerate(zip(READING_TAGS, READINGS_AT, strict=True)):
        fits &= head[:, at - 1] == tag
        readings[:, number] = np.ascontiguousarray(head[:, at : at + 8]).view("<f8").ravel()
    groups = (head[:, 1 : 1 + VARINT_BYTES] & 127).astype(np.int64)
    timestamp_ms = (groups << np.arange(0, 7 * VARINT_BYTES, 7)).sum(axis=1)

    location_first, location_last, fits = _text(buffer, start + HEAD_BYTES, LOCATION_TAG, fits)
    firmware_first, firmware_last, fits = _text(buffer, location_last, FIRMWARE_TAG, fits)
    fits &= firmware_last == start + length
    cut = functools.partial(map, joined.__getitem__)
    locations = list(cut(map(slice, location_first.tolist(), location_last.tolist())))
    firmware = list(cut(map(slice, firmware_first.tolist(), firmware_last.tolist())))
    for texts in (locations, firmware):
        fits &= _are_text(texts)
    return Usual(fits, timestamp_ms, readings, locations, firmware)


def _text(
    buffer: NDArray[np.uint8], at: NDArray[np.int64], tag: int, fits: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where a text field begins and ends that may begin at `at`; an empty one is left out by whoever encodes canonically."""
    inside = np.where(fits, at, 0)
    has = buffer[inside] == tag
    size = np.where(has, buffer[inside + 1], 0).astype(np.int64)
    fits = fits & (size <= TEXT_BYTES_MAX) & (~has | (size > 0))
    first = inside + np.where(has, 2, 0)
    return first, first + np.where(fits, size, 0), fits


def _are_text(texts: Sequence[bytes]) -> NDArray[np.bool_]:
    """(n,) which of them are UTF-8."""
    try:
        b"\n".join(texts).decode()  # A line's end can't be inside a character, so all of it is text if each one is.
    except UnicodeDecodeError:
        return np.array([_is_text(text) for text in texts], dtype=bool)
    return np.ones(len(texts), dtype=bool)


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def join(
    timestamp_ms: NDArray[np.int64],
    readings: NDArray[np.float64],
    locations: Sequence[bytes],
    firmware: Sequence[bytes],
) -> list[bytes]:
    """The n messages again, without their device ids."""
    head = np.empty((len(timestamp_ms), HEAD_BYTES), dtype=np.uint8)
    head[:, 0] = TIMESTAMP_TAG
    groups = (timestamp_ms[:, None] >> np.arange(0, 7 * VARINT_BYTES, 7)) & 127
    head[:, 1 : 1 + VARINT_BYTES] = groups
    head[:, 1:VARINT_BYTES] |= 128
    for number, (tag, at) in enumerate(zip(READING_TAGS, READINGS_AT, strict=True)):
        head[:, at - 1] = tag
        head[:, at : at + 8] = np.ascontiguousarray(readings[:, number]).view(np.uint8).reshape(-1, 8)
    heads = head.view(f"V{HEAD_BYTES}").ravel().tolist()
    tails = map(operator.add, map(_field(LOCATION_TAG), locations), map(_field(FIRMWARE_TAG), firmware))
    return list(map(operator.add, heads, tails))


@functools.lru_cache(maxsize=2)
def _field(tag: int) -> _Fields:
    return _Fields(tag)


class _Fields:
    """Text as a message's field; b"" as none."""

    def __init__(self, tag: int) -> None:
        self._before = [b"", *(bytes([tag, size]) for size in range(1, TEXT_BYTES_MAX + 1))]

    def __call__(self, text: bytes) -> bytes:
        return self._before[len(text)] + text
