"""Telemetry messages of the usual layout as columns: time, three readings, location, firmware, each field once and in order.

What `split` says fits, `join` makes again byte by byte; anything else (a field more, a number written longer than it must be, text that is
no UTF-8) doesn't fit. It is for storing messages; reading them for the rules is `decode`'s.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TIMESTAMP_TAG, LOCATION_TAG, FIRMWARE_TAG = 0x10, 0x32, 0x3A
READING_TAGS = (0x19, 0x21, 0x29)
VARINT_BYTES = 6
"""Of a time from 1971 to 2109 in milliseconds."""
HEAD_BYTES = 1 + VARINT_BYTES + 9 * len(READING_TAGS)
GROUP_WEIGHTS = 128 ** np.arange(VARINT_BYTES)
READINGS_AT = [1 + VARINT_BYTES + 1 + 9 * number for number in range(len(READING_TAGS))]
TEXT_BYTES_MAX = 127
"""Longer ones have a length of two bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Texts:
    """n texts end to end. length: (n,) int64, bytes of each. data: (sum,) uint8, UTF-8."""

    length: NDArray[np.int64]
    data: NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Usual:
    """n messages, meaningful where fits (n,) is true. timestamp_ms: (n,) int64. readings: (n, 3) float64. locations, firmware: empty
    where the message has none or doesn't fit."""

    fits: NDArray[np.bool_]
    timestamp_ms: NDArray[np.int64]
    readings: NDArray[np.float64]
    locations: Texts
    firmware: Texts


def split(messages: Sequence[bytes], wanted: NDArray[np.bool_]) -> Usual:
    """messages: n, without their device ids. wanted: (n,), those to look at."""
    count = len(messages)
    # Room for looking beyond a short message: what is found there doesn't fit, as its length tells.
    joined = b"".join((*messages, bytes(HEAD_BYTES + 2 * TEXT_BYTES_MAX + 4)))
    buffer = np.frombuffer(joined, dtype=np.uint8)
    length = np.fromiter(map(len, messages), dtype=np.int64, count=count)
    start = np.cumsum(length) - length
    head = np.array(messages, dtype=f"S{HEAD_BYTES}").view(np.uint8).reshape(count, HEAD_BYTES)
    fits = wanted & (length >= HEAD_BYTES) & (head[:, 0] == TIMESTAMP_TAG)
    fits &= head[:, VARINT_BYTES] - np.uint8(1) < 127
    groups = head[:, 1 : 1 + VARINT_BYTES].astype(np.int64)
    fits &= (groups[:, :-1] >= 128).all(axis=1)
    timestamp_ms = (groups & 127) @ GROUP_WEIGHTS
    readings = np.empty((count, len(READING_TAGS)))
    for number, (tag, at) in enumerate(zip(READING_TAGS, READINGS_AT, strict=True)):
        fits &= head[:, at - 1] == tag
        readings[:, number] = np.ascontiguousarray(head[:, at : at + 8]).view("<f8").ravel()

    location_first, location_last, fits = _text(buffer, start + HEAD_BYTES, LOCATION_TAG, fits)
    firmware_first, firmware_last, fits = _text(buffer, location_last, FIRMWARE_TAG, fits)
    fits &= firmware_last == start + length
    texts = []
    for first, last in ((location_first, location_last), (firmware_first, firmware_last)):
        text = _gathered(buffer, first, np.where(fits, last - first, 0))
        if not _is_text(text):
            fits &= [_decodes(joined[begin:end]) for begin, end in zip(first.tolist(), last.tolist(), strict=True)]
            return split(messages, fits)
        texts.append(text)
    return Usual(fits, timestamp_ms, readings, *texts)


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


def _gathered(buffer: NDArray[np.uint8], first: NDArray[np.int64], length: NDArray[np.int64]) -> Texts:
    begins = np.cumsum(length) - length
    total = int(length.sum())
    return Texts(length, buffer[np.arange(total) + np.repeat(first - begins, length)])


def _is_text(texts: Texts) -> bool:
    """Whether each of them is UTF-8: all of it is, and none begins inside a character."""
    begins = (np.cumsum(texts.length) - texts.length)[texts.length > 0]
    return not (texts.data[begins] & 0xC0 == 0x80).any() and _decodes(texts.data.tobytes())


def _decodes(text: bytes) -> bool:
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
    before = [b"", *(bytes([LOCATION_TAG, size]) for size in range(1, TEXT_BYTES_MAX + 1))]
    known = _FirmwareFields()  # a fleet has few versions
    with_location = map(operator.add, map(operator.add, heads, map(before.__getitem__, map(len, locations))), locations)
    return list(map(operator.add, with_location, map(known.__getitem__, firmware)))


class _FirmwareFields(dict[bytes, bytes]):
    """Text → a message's field."""

    def __missing__(self, text: bytes) -> bytes:
        self[text] = field = bytes([FIRMWARE_TAG, len(text)]) + text if text else b""
        return field
