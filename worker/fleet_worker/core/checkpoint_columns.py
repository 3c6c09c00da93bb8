"""Twins as columns of a table that anyone can query, from which the very same bytes come back.

Every field of a row is a column of its own. What most rows have twice is written once: the id's digest isn't there (it is the id's
MD5), and a Telemetry of the usual layout is its columns (time, three readings, location, firmware) instead of bytes. Whatever doesn't fit
these columns exactly, bit by bit, goes along as bytes: nothing is approximated. It knows nothing of files; `checkpoint_format` does.
"""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fleet_worker.core import commits, ids, kept_telemetry, twins, usual_telemetry

if TYPE_CHECKING:
    import pyarrow as pa

STATISTICS = ("mean", "variance", "minimum", "maximum", "previous_minimum", "previous_maximum")
TIMES = {"last_arrival_ms": "last_arrival", "last_timestamp_ms": "last_timestamp"}
"""Fields that are shown as times."""
SEQUENCE = ("sequence_high", "sequence_middle", "sequence_low")
SHOWN_FLAGS = {
    "temperature_alert": twins.Flag.OPEN_TEMPERATURE,
    "battery_alert": twins.Flag.OPEN_BATTERY,
    "offline": twins.Flag.OPEN_OFFLINE,
    "forgotten": twins.Flag.FORGOTTEN,
}
"""Bits of `flags` with a column of their own, for whoever queries; they aren't read back."""
RULES = ("temperature", "battery", "offline")
USUAL = np.uint8(16)
"""A form of telemetry beside those of kept_telemetry: it is in the columns."""
FLOATS_AT = slice(twins.TWIN_DTYPE.fields["battery_drop"][1], twins.TWIN_DTYPE.fields["flags"][1])  # type: ignore[index]
"""Where a row's float32 fields are."""


def _extra_columns() -> list[tuple[str, str, tuple[int, ...]]]:
    """(column, field of EXTRA_DTYPE, index in it)."""
    alerts = RULES[:2]
    return [
        *((f"{rule}_override", "override", (at,)) for at, rule in enumerate(RULES)),
        *((f"{rule}_override_issued_ms", "override_issued_ms", (at,)) for at, rule in enumerate(RULES)),
        ("acknowledge_issued_ms", "acknowledge_issued_ms", ()),
        *((f"{rule}_alert_ms", "alert_ms", (at,)) for at, rule in enumerate(alerts)),
        *((f"{rule}_alert_generation", "alert_generation", (at,)) for at, rule in enumerate(alerts)),
        *((f"{rule}_alert_repeats", "repeats", (at,)) for at, rule in enumerate(alerts)),
        *((f"{rule}_alert_id_{half}", "alert_id", (at, number)) for at, rule in enumerate(alerts)
          for number, half in enumerate(("high", "low"))),
    ]  # fmt: skip


def _field_columns() -> list[tuple[str, str, tuple[int, ...]]]:
    """(column, field of TWIN_DTYPE, index in it): one for every number of a row but `last` and `spare`, which have their own ways."""
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for field in twins.TWIN_DTYPE.names or ():
        if field == "sequence":
            found += [(name, field, (at,)) for at, name in enumerate(SEQUENCE)]
        elif field in STATISTICS:
            found += [(f"{metric}_{field}", field, (at,)) for at, metric in enumerate(twins.METRICS)]
        elif field not in ("last", "spare"):
            found.append((TIMES.get(field, field), field, ()))
    return found


EXTRA_COLUMNS = _extra_columns()
FIELD_COLUMNS = _field_columns()
READINGS = twins.METRICS
"""The last accepted sample, as the device sent it."""
COLUMNS = [
    "device_id",
    *TIMES.values(),
    *READINGS,
    "location",
    "firmware",
    *SHOWN_FLAGS,
    *(name for name, _, _ in FIELD_COLUMNS if name not in TIMES.values()),
    *(name for name, _, _ in EXTRA_COLUMNS),
    "telemetry_form",
    "telemetry_ms",
    "telemetry",
    "spare",
    "exact",
]
"""What a human asks for first; at the end, what only restoring needs."""
CACHED_ROWS = 2_500


class TableMaker:
    """Makes one table of many rows, lot by lot: few enough at a time that they stay in the processor's cache."""

    def __init__(self) -> None:
        self.rows = 0
        self._numbers: dict[str, list[NDArray[Any]]] = collections.defaultdict(list)
        self._texts: dict[str, list[bytes | None]] = {name: [] for name in ("device_id", "telemetry", "exact")}
        self._usual_texts: dict[str, list[usual_telemetry.Texts]] = {"location": [], "firmware": []}

    def add(self, rows: commits.TwinRows) -> None:
        values = rows.rows
        exact = _inexact(values)
        telemetry = kept_telemetry.KeptTelemetry.of(rows.device_ids, rows.telemetry)
        usual = usual_telemetry.split(telemetry.rests, (telemetry.forms == kept_telemetry.WITHOUT_ID) & ~exact)
        with np.errstate(over="ignore", invalid="ignore"):
            agrees = (_bits(usual.readings.astype(np.float32)) == _bits(values["last"])).all(axis=1)
            last = values["last"].astype(np.float64)
        if not agrees[usual.fits].all():
            usual = usual_telemetry.split(telemetry.rests, usual.fits & agrees)
        readings = usual.readings
        if not usual.fits.all():
            readings = np.where(usual.fits[:, None], readings, last)

        numbers = self._numbers
        for name, field, index in FIELD_COLUMNS:
            numbers[name].append(np.ascontiguousarray(_member(values, field, index)))
        for at, name in enumerate(READINGS):
            numbers[name].append(np.ascontiguousarray(readings[:, at]))
        numbers["spare"].append(np.ascontiguousarray(values["spare"]).view(np.uint16).ravel())
        numbers["telemetry_form"].append(np.where(usual.fits, USUAL, telemetry.forms))
        numbers["telemetry_ms"].append(usual.timestamp_ms)
        numbers["details"].append(_details(values, rows.extras))
        self._usual_texts["location"].append(usual.locations)
        self._usual_texts["firmware"].append(usual.firmware)
        self._texts["device_id"] += ids.encoded(rows.device_ids)
        self._texts["telemetry"] += _only(telemetry.rests, ~usual.fits & (telemetry.forms != kept_telemetry.NONE))
        whole: list[bytes | None] = [None] * len(values)
        for at in np.flatnonzero(exact).tolist():
            whole[at] = values[at].tobytes()
        self._texts["exact"] += whole
        self.rows += len(values)

    def table(self) -> pa.Table:
        """Of all rows so far."""
        import pyarrow as pa

        joined = {name: np.concatenate(lots) for name, lots in self._numbers.items()}
        details, flags = joined.pop("details"), joined["flags"]
        is_usual = joined["telemetry_form"] == USUAL
        columns: dict[str, Any] = {}
        for name, texts in self._texts.items():
            columns[name] = pa.array(texts, type=pa.string() if name == "device_id" else pa.binary())
        for name, lots in self._usual_texts.items():
            columns[name] = _text_column(lots, is_usual)
        for name, column in joined.items():
            columns[name] = pa.array(column)
        for name in TIMES.values():
            # 0 stands for never, which a table says by having nothing.
            columns[name] = pa.array(joined[name], mask=joined[name] == 0).cast(pa.timestamp("ms", tz="UTC"))
        # Nearly always the time of the last accepted sample, which is there already.
        told = is_usual & (joined["telemetry_ms"] != joined["last_timestamp"])
        columns["telemetry_ms"] = pa.array(joined["telemetry_ms"], mask=~told)
        for name, flag in SHOWN_FLAGS.items():
            columns[name] = pa.array(flags & np.uint16(flag) != 0)
        lacks = flags & np.uint16(twins.Flag.EXTRA) == 0
        for name, field, index in EXTRA_COLUMNS:
            kind = pa.from_numpy_dtype(_member(details[:0], field, index).dtype)
            if len(details):
                columns[name] = pa.array(_spread(_member(details, field, index), ~lacks), mask=lacks)
            else:
                columns[name] = pa.nulls(self.rows, kind)
        return pa.table({name: columns[name] for name in COLUMNS})


def _text_column(lots: Sequence[usual_telemetry.Texts], has: NDArray[np.bool_]) -> pa.Array:
    """Texts of all lots, nothing where they have none to tell. has: (n,)."""
    import pyarrow as pa

    offsets = np.zeros(len(has) + 1, dtype=np.int32)
    np.cumsum(np.concatenate([lot.length for lot in lots]), out=offsets[1:])
    data = np.concatenate([lot.data for lot in lots])
    known = None if has.all() else pa.py_buffer(np.packbits(has, bitorder="little"))
    return pa.StringArray.from_buffers(len(has), pa.py_buffer(offsets), pa.py_buffer(data), known)


def _spread(numbers: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
    """The numbers at those places, 0 elsewhere."""
    spread = np.zeros(len(where), dtype=numbers.dtype)
    spread[where] = numbers
    return spread


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def _inexact(values: NDArray[np.void]) -> NDArray[np.bool_]:
    """(n,) rows with a float32 that a table may show as another one of the same value: NaN, and zero with a sign."""
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)[:, FLOATS_AT]
    bits = np.ascontiguousarray(raw).view(np.uint32)
    found: NDArray[np.bool_] = ((bits & 0x7FFFFFFF > 0x7F800000) | (bits == 0x80000000)).any(axis=1)
    return found


def _only(texts: list[bytes], wanted: NDArray[np.bool_]) -> Sequence[bytes | None]:
    if wanted.all():
        return texts
    if not wanted.any():
        return [None] * len(texts)
    return [text if here else None for text, here in zip(texts, wanted.tolist(), strict=True)]


def _details(values: NDArray[np.void], extras: dict[int, bytes]) -> NDArray[np.void]:
    """EXTRA_DTYPE of the rows that have some."""
    at = np.flatnonzero(values["flags"] & np.uint16(twins.Flag.EXTRA))
    return np.frombuffer(b"".join([extras[index] for index in at.tolist()]), dtype=twins.EXTRA_DTYPE)


def _member(details: NDArray[np.void], field: str, index: tuple[int, ...]) -> NDArray[Any]:
    """(n,) one number of each, writable through."""
    member: NDArray[Any] = details[field]
    for at in index:
        member = member[:, at]
    return member


# ── and back ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decode(table: pa.Table) -> commits.TwinRows:
    """The twins of a table that TableMaker made. Raises KeyError (a column is missing), ValueError."""
    count = table.num_rows
    device_ids = ids.EncodedIds(_texts(table, "device_id"))
    digests = np.frombuffer(bytearray().join([_md5(name).digest() for name in device_ids.texts]), dtype="V16")
    columns = {name: _numbers(table, name) for name, _, _ in FIELD_COLUMNS}
    columns |= {name: _numbers(table, name) for name in (*READINGS, "spare")}
    values = np.zeros(count, dtype=twins.TWIN_DTYPE)
    readings = np.stack([columns[name] for name in READINGS], axis=1) if count else np.empty((0, len(READINGS)))
    spare = np.ascontiguousarray(columns["spare"]).view(np.uint8).reshape(-1, 2)
    for first in range(0, count, CACHED_ROWS):
        part = slice(first, first + CACHED_ROWS)
        some = values[part]
        for name, field, index in FIELD_COLUMNS:
            _member(some, field, index)[:] = columns[name][part]
        with np.errstate(over="ignore", invalid="ignore"):
            some["last"] = readings[part]
        some["spare"] = spare[part]
    exact = table["exact"]
    if exact.null_count < count:
        for at, raw in enumerate(exact.to_pylist()):
            if raw is not None:
                values[at] = np.frombuffer(raw, dtype=twins.TWIN_DTYPE)[0]
    telemetry = _decode_telemetry(table, device_ids, columns["last_timestamp"], readings)
    return commits.TwinRows(digests, device_ids, values, _decode_extras(table, values), telemetry)


_md5 = functools.partial(hashlib.md5, usedforsecurity=False)


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of numbers, 0 where there is nothing."""
    column = table[name]
    if name in TIMES.values():
        column = column.cast("int64").fill_null(0)
    numbers: NDArray[Any] = column.to_numpy()
    return numbers


def _texts(table: pa.Table, name: str) -> list[bytes]:
    """A column of text or bytes, b"" where there is nothing."""
    column = table[name]
    if column.null_count == table.num_rows:
        return [b""] * table.num_rows
    if column.null_count:
        column = column.fill_null(b"" if str(column.type) == "binary" else "")
    texts: list[bytes] = column.cast("binary").to_numpy(zero_copy_only=False).tolist()
    return texts


def _decode_extras(table: pa.Table, values: NDArray[np.void]) -> dict[int, bytes]:
    at = np.flatnonzero(values["flags"] & np.uint16(twins.Flag.EXTRA))
    if not len(at):
        return {}
    details = np.zeros(len(at), dtype=twins.EXTRA_DTYPE)
    some = table.select([name for name, _, _ in EXTRA_COLUMNS]).take(at)
    for name, field, index in EXTRA_COLUMNS:
        if some[name].null_count:
            raise ValueError(f"{name} is missing in a twin that has details")
        _member(details, field, index)[:] = some[name].to_numpy()
    return {index: detail.tobytes() for index, detail in zip(at.tolist(), details, strict=True)}


def _decode_telemetry(
    table: pa.Table, device_ids: ids.EncodedIds, last_timestamp_ms: NDArray[np.int64], readings: NDArray[np.float64]
) -> kept_telemetry.KeptTelemetry:
    forms = np.array(table["telemetry_form"].to_numpy(), dtype=np.uint8)
    is_usual = forms == USUAL
    rests = _texts(table, "telemetry")
    if is_usual.any():
        told = table["telemetry_ms"]
        timestamp_ms = last_timestamp_ms
        if told.null_count < len(told):
            timestamp_ms = np.where(told.is_null().to_numpy(), timestamp_ms, told.fill_null(0).to_numpy())
        joined = usual_telemetry.join(timestamp_ms, readings, _texts(table, "location"), _texts(table, "firmware"))
        rests = joined if is_usual.all() else list(map(_chosen, is_usual.tolist(), joined, rests))
        forms[is_usual] = kept_telemetry.WITHOUT_ID
    return kept_telemetry.KeptTelemetry(device_ids, forms, rests)


def _chosen(first: bool, one: bytes, other: bytes) -> bytes:
    return one if first else other
