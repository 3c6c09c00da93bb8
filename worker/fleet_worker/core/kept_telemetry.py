"""The last raw Telemetry of many twins as a column: as it is kept, without the device id that the twin's key has already.

A message is a Python object of its own only when somebody asks for it; what copies a million of them (a checkpoint, a restore)
passes the column on. It parses nothing beyond a message's first field.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fleet_worker.core import ids

NONE, WHOLE, WITHOUT_ID = range(3)
"""Forms: no message is kept; it is kept as it came; without its first field, the device id."""
ID_BYTES_MAX = 256
"""As decoding allows."""
DEVICE_ID_TAG = b"\x0a"
FIRST_FIELDS = [
    DEVICE_ID_TAG + (bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7]))
    for length in range(ID_BYTES_MAX + 1)
]
"""Tag and length of Telemetry.device_id, canonically encoded, by the id's length in bytes."""


class KeptTelemetry(Sequence[bytes | None]):
    """n messages. forms: (n,) uint8. rests: what is kept of each, b"" where NONE. device_ids: n, whose messages they are."""

    __slots__ = ("device_ids", "forms", "rests")

    def __init__(self, device_ids: Sequence[str], forms: NDArray[np.uint8], rests: list[bytes]) -> None:
        self.device_ids = device_ids
        self.forms = forms
        self.rests = rests

    @classmethod
    def of(cls, device_ids: Sequence[str], telemetry: Sequence[bytes | None]) -> KeptTelemetry:
        if isinstance(telemetry, KeptTelemetry):
            return telemetry
        if None not in telemetry:
            return cls(device_ids, *pack(device_ids, telemetry))  # type: ignore[arg-type]
        forms, rests = pack(device_ids, [raw or b"" for raw in telemetry])
        forms[[raw is None for raw in telemetry]] = NONE
        return cls(device_ids, forms, rests)

    def __len__(self) -> int:
        return len(self.rests)

    @overload
    def __getitem__(self, row: int) -> bytes | None: ...
    @overload
    def __getitem__(self, row: slice) -> KeptTelemetry: ...
    def __getitem__(self, row: int | slice) -> bytes | KeptTelemetry | None:
        if isinstance(row, slice):
            return KeptTelemetry(self.device_ids[row], self.forms[row], self.rests[row])
        form = int(self.forms[row])
        if form == WITHOUT_ID:
            return _with_id(self.device_ids[row].encode(), self.rests[row])
        return self.rests[row] if form == WHOLE else None

    def __iter__(self) -> Iterator[bytes | None]:
        return map(unpack, ids.encoded(self.device_ids), self.forms.tolist(), self.rests)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def take(self, rows: Sequence[int], device_ids: Sequence[str]) -> KeptTelemetry:
        """Those rows; device_ids: of those."""
        return KeptTelemetry(device_ids, self.forms.take(rows), [self.rests[row] for row in rows])


def pack(device_ids: Iterable[str], telemetry: Sequence[bytes]) -> tuple[NDArray[np.uint8], list[bytes]]:
    """Forms and what is kept of n messages."""
    encoded = ids.encoded(device_ids)
    first_fields = map(operator.add, map(FIRST_FIELDS.__getitem__, map(len, encoded)), encoded)
    rests = list(map(bytes.removeprefix, telemetry, first_fields))
    shortened = _lengths(rests) != _lengths(telemetry)
    return np.where(shortened, np.uint8(WITHOUT_ID), np.uint8(WHOLE)), rests


def unpack(encoded_id: bytes, form: int, rest: bytes) -> bytes | None:
    """One message; encoded_id: the device id as UTF-8."""
    if form == WITHOUT_ID:
        return _with_id(encoded_id, rest)
    return rest if form == WHOLE else None


def _with_id(encoded_id: bytes, rest: bytes) -> bytes:
    return FIRST_FIELDS[len(encoded_id)] + encoded_id + rest


def _lengths(parts: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
