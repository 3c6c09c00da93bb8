"""Twins as columns of a table that anyone can query, from which the very same bytes come back.

Every field of a row is a column of its own. What most rows have twice is written once: the id's digest isn't there (it is the id's
MD5), and a Telemetry of the usual layout is its columns (time, three readings, location, firmware) instead of bytes. Whatever doesn't fit
these columns exactly, bit by bit, goes along as bytes: nothing is approximated. It knows nothing of files; `checkpoint_format` does.
"""

from __future__ import annotations

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
PLAIN_FIELDS = (
    "late_last_ms", "commit", "subsequence", "samples", "late", "late_span_ms", "battery_idle_ms", "battery_drop",
    "flags", "gaps", "late_run", "spike_run", "offline_repeats",
)  # fmt: skip
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


EXTRA_COLUMNS = _extra_columns()
COUNTED = [f"{metric}_{name}" for metric in twins.METRICS for name in STATISTICS]
READINGS = twins.METRICS
"""The last accepted sample, as the device sent it."""


def encode(rows: commits.TwinRows) -> pa.Table:
    """A table of n twins."""
    import pyarrow as pa

    count = len(rows.device_ids)
    values = rows.rows
    exact = _inexact(values)
    telemetry = kept_telemetry.KeptTelemetry.of(rows.device_ids, rows.telemetry)
    usual = usual_telemetry.split(telemetry.rests, telemetry.forms == kept_telemetry.WITHOUT_ID)
    with np.errstate(over="ignore", invalid="ignore"):
        agrees = (_bits(usual.readings.astype(np.float32)) == _bits(values["last"])).all(axis=1)
    is_usual = usual.fits & agrees & ~exact
    forms = np.where(is_usual, USUAL, telemetry.forms)
    readings = np.where(is_usual[:, None], usual.readings, values["last"].astype(np.float64))

    columns: dict[str, Any] = {"device_id": pa.array(ids.encoded(rows.device_ids), type=pa.string())}
    for field, name in TIMES.items():
        # 0 stands for never, which a table says by having nothing.
        column = np.ascontiguousarray(values[field])
        columns[name] = pa.array(column, mask=column == 0).cast(pa.timestamp("ms", tz="UTC"))
    for at, name in enumerate(READINGS):
        columns[name] = pa.array(np.ascontiguousarray(readings[:, at]))
    columns["location"] = pa.array(_only(usual.locations, is_usual), type=pa.string())
    columns["firmware"] = pa.array(_only(usual.firmware, is_usual), type=pa.string())
    for name, flag in SHOWN_FLAGS.items():
        columns[name] = pa.array(values["flags"] & np.uint16(flag) != 0)
    for name in PLAIN_FIELDS:
        columns[name] = pa.array(np.ascontiguousarray(values[name]))
    for at, name in enumerate(SEQUENCE):
        columns[name] = pa.array(np.ascontiguousarray(values["sequence"][:, at]))
    for at, metric in enumerate(twins.METRICS):
        for name in STATISTICS:
            columns[f"{metric}_{name}"] = pa.array(np.ascontiguousarray(values[name][:, at]))
    columns["spare"] = pa.array(np.ascontiguousarray(values["spare"]).view(np.uint16).ravel())
    columns |= _encode_extras(values, rows.extras)
    columns["telemetry_form"] = pa.array(forms)
    columns["telemetry_ms"] = pa.array(usual.timestamp_ms, mask=~is_usual)
    has_bytes = ~is_usual & (forms != kept_telemetry.NONE)
    columns["telemetry"] = pa.array(_only(telemetry.rests, has_bytes), type=pa.binary())
    exact_rows: list[bytes | None] = [None] * count
    for index in np.flatnonzero(exact).tolist():
        exact_rows[index] = values[index].tobytes()
    columns["exact"] = pa.array(exact_rows, type=pa.binary())
    return pa.table(columns)


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def _inexact(values: NDArray[np.void]) -> NDArray[np.bool_]:
    """(n,) rows with a float32 that a table may show as another one of the same value: NaN, and zero with a sign."""
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)[:, FLOATS_AT]
    bits = np.ascontiguousarray(raw).view(np.uint32)
    found: NDArray[np.bool_] = ((bits & 0x7FFFFFFF > 0x7F800000) | (bits == 0x80000000)).any(axis=1)
    return found


def _only(texts: Sequence[bytes], wanted: NDArray[np.bool_]) -> Sequence[bytes | None]:
    if wanted.all():
        return texts
    if not wanted.any():
        return [None] * len(texts)
    return [text if here else None for text, here in zip(texts, wanted.tolist(), strict=True)]


def _encode_extras(values: NDArray[np.void], extras: dict[int, bytes]) -> dict[str, Any]:
    import pyarrow as pa

    has = values["flags"] & np.uint16(twins.Flag.EXTRA) != 0
    at = np.flatnonzero(has)
    details = np.zeros(len(values), dtype=twins.EXTRA_DTYPE)
    details[at] = np.frombuffer(b"".join([extras[index] for index in at.tolist()]), dtype=twins.EXTRA_DTYPE)
    return {
        name: pa.array(np.ascontiguousarray(_member(details, field, index)), mask=~has)
        for name, field, index in EXTRA_COLUMNS
    }


def _member(details: NDArray[np.void], field: str, index: tuple[int, ...]) -> NDArray[Any]:
    """(n,) one number of each, writable through."""
    member: NDArray[Any] = details[field]
    for at in index:
        member = member[:, at]
    return member


# ── and back ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decode(table: pa.Table) -> commits.TwinRows:
    """The twins of a table that `encode` made. A missing column is a KeyError."""
    count = table.num_rows
    encoded = _texts(table, "device_id")
    device_ids = ids.IdColumn.of_encoded(encoded)
    digests = np.frombuffer(bytearray().join([_md5(name).digest() for name in encoded]), dtype="V16")
    values = np.zeros(count, dtype=twins.TWIN_DTYPE)
    for field, name in TIMES.items():
        values[field] = table[name].cast("int64").fill_null(0).to_numpy()
    readings = np.empty((count, len(READINGS)))
    for at, name in enumerate(READINGS):
        readings[:, at] = table[name].to_numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        values["last"] = readings
    for name in PLAIN_FIELDS:
        values[name] = table[name].to_numpy()
    for at, name in enumerate(SEQUENCE):
        values["sequence"][:, at] = table[name].to_numpy()
    for at, metric in enumerate(twins.METRICS):
        for name in STATISTICS:
            values[name][:, at] = table[f"{metric}_{name}"].to_numpy()
    values["spare"] = np.ascontiguousarray(table["spare"].to_numpy()).view(np.uint8).reshape(-1, 2)
    exact = table["exact"]
    if exact.null_count < count:
        for index, raw in enumerate(exact.to_pylist()):
            if raw is not None:
                values[index] = np.frombuffer(raw, dtype=twins.TWIN_DTYPE)[0]
    return commits.TwinRows(
        digests, device_ids, values, _decode_extras(table, values), _decode_telemetry(table, device_ids, readings)
    )


_md5 = hashlib.md5


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
    table: pa.Table, device_ids: ids.IdColumn, readings: NDArray[np.float64]
) -> kept_telemetry.KeptTelemetry:
    forms = np.array(table["telemetry_form"].to_numpy(), dtype=np.uint8)
    is_usual = forms == USUAL
    rests = _texts(table, "telemetry")
    if is_usual.any():
        timestamp_ms = table["telemetry_ms"].fill_null(0).to_numpy()
        joined = usual_telemetry.join(timestamp_ms, readings, _texts(table, "location"), _texts(table, "firmware"))
        rests = joined if is_usual.all() else list(map(_chosen, is_usual.tolist(), joined, rests))
        forms[is_usual] = kept_telemetry.WITHOUT_ID
    return kept_telemetry.KeptTelemetry(device_ids, forms, rests)


def _chosen(first: bool, one: bytes, other: bytes) -> bytes:
    return one if first else other
