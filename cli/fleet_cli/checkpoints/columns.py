"""Twins as columns that a human reads: what an export has, by name, each computed only when it is wanted.

Beside a checkpoint's own columns (`core/checkpoint_columns`, made for bringing the very same bytes back) these leave out what only
Fleet Twin needs, and say "nothing" where a row's number means nothing: no statistics before the first sample, no limit without an override.
Arrow arrays come out; how they become a file is `writers`'.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fleet_proto import fleet_pb2
from fleet_worker.core import commits, ids, kept_telemetry, records, twins, usual_telemetry

if TYPE_CHECKING:
    import pyarrow as pa

RULES = ("temperature", "battery", "offline")
ALERTS = RULES[:2]
"""Those whose details a twin keeps."""


class Batch:
    """Some twins of one partition."""

    def __init__(self, shard_id: str, rows: commits.TwinRows) -> None:
        self.shard_id = shard_id
        self.rows = rows.rows
        self._twins = rows

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def details(self) -> NDArray[np.void]:
        """(n,) EXTRA_DTYPE, zero where there are none."""
        found = np.zeros(len(self), dtype=twins.EXTRA_DTYPE)
        for at, raw in self._twins.extras.items():
            found[at] = np.frombuffer(raw, dtype=twins.EXTRA_DTYPE)[0]
        return found

    @functools.cached_property
    def has_samples(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.rows["samples"] > 0
        return found

    @functools.cached_property
    def told(self) -> tuple[NDArray[np.float64], pa.Array, pa.Array]:
        """The last accepted sample as the device sent it: readings (n, 3), locations, firmware."""
        kept = kept_telemetry.KeptTelemetry.of(self._twins.device_ids, self._twins.telemetry)
        usual = usual_telemetry.split(kept.rests, kept.forms == kept_telemetry.WITHOUT_ID)
        readings = np.where(usual.fits[:, None], usual.readings, self.rows["last"].astype(np.float64))
        locations, firmware = _texts(usual.locations), _texts(usual.firmware)
        others = np.flatnonzero(~usual.fits & (kept.forms != kept_telemetry.NONE)).tolist()
        if others:
            places, versions = locations.to_pylist(), firmware.to_pylist()
            for at in others:
                message = fleet_pb2.Telemetry.FromString(kept[at] or b"")
                readings[at] = message.temperature_c, message.battery_pct, message.cpu_load
                places[at], versions[at] = message.location or None, message.firmware or None
            locations, firmware = _array(places, kind="string"), _array(versions, kind="string")
        return readings, locations, firmware

    def encoded_ids(self) -> list[bytes]:
        return ids.encoded(self._twins.device_ids)

    def has(self, flag: int) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.rows["flags"] & np.uint16(flag) != 0
        return found


Make = Callable[[Batch], "pa.Array"]


def table(batch: Batch, names: tuple[str, ...]) -> pa.Table:
    """The named columns of the twins."""
    import pyarrow as pa

    return pa.table({name: COLUMNS[name](batch) for name in names})


def _texts(texts: usual_telemetry.Texts) -> pa.Array:
    """Nothing where a text is empty."""
    import pyarrow as pa

    offsets = np.zeros(len(texts.length) + 1, dtype=np.int32)
    np.cumsum(texts.length, out=offsets[1:])
    known = pa.py_buffer(np.packbits(texts.length > 0, bitorder="little"))
    return pa.StringArray.from_buffers(len(texts.length), pa.py_buffer(offsets), pa.py_buffer(texts.data), known)


def _array(values: Any, valid: NDArray[np.bool_] | None = None, kind: str | None = None) -> pa.Array:
    import pyarrow as pa

    array = np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
    return pa.array(array, mask=None if valid is None else ~valid, type=None if kind is None else getattr(pa, kind)())


def _time(values: NDArray[np.int64], valid: NDArray[np.bool_] | None = None) -> pa.Array:
    """0 stands for never."""
    import pyarrow as pa

    told = values != 0 if valid is None else valid & (values != 0)
    return _array(values, told).cast(pa.timestamp("ms", tz="UTC"))


def _bit(flag: twins.Flag) -> Make:
    return lambda batch: _array(batch.has(flag))


def _number(field: str) -> Make:
    """Signed, as unsigned numbers of Parquet are strange to Athena and Spark."""
    return lambda batch: _array(_signed(batch.rows[field]))


def _signed(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype.kind == "f" else values.astype(np.int64)


def _reading(at: int) -> Make:
    return lambda batch: _array(batch.told[0][:, at], batch.has_samples)


def _statistic(at: int, name: str) -> Make:
    def made(batch: Batch) -> pa.Array:
        rows = batch.rows
        match name:
            case "mean":
                values = rows["mean"]
            case "deviation":
                values = np.sqrt(rows["variance"])
            case "minimum":
                values = np.minimum(rows["minimum"], rows["previous_minimum"])
            case _:
                values = np.maximum(rows["maximum"], rows["previous_maximum"])
        return _array(values[:, at], batch.has_samples)

    return made


def _flag(kind: str, rule: str) -> twins.Flag:
    return twins.Flag[f"{kind}_{rule.upper()}"]


def _alert_time(at: int, rule: str) -> Make:
    return lambda batch: _time(batch.details["alert_ms"][:, at], batch.has(_flag("OPEN", rule)))


def _alert_detail(at: int, rule: str, field: str) -> Make:
    return lambda batch: _array(_signed(batch.details[field][:, at]), batch.has(_flag("OPEN", rule)))


def _alert_id(at: int, rule: str) -> Make:
    def made(batch: Batch) -> pa.Array:
        texts: list[str | None] = [None] * len(batch)
        halves = batch.details["alert_id"][:, at]
        for row in np.flatnonzero(batch.has(_flag("OPEN", rule))).tolist():
            texts[row] = "".join(f"{int(half):016x}" for half in halves[row])
        return _array(texts, kind="string")

    return made


def _override(at: int, rule: str) -> Make:
    return lambda batch: _array(batch.details["override"][:, at], batch.has(_flag("OVERRIDE", rule)))


def _override_issued(at: int, rule: str) -> Make:
    return lambda batch: _time(batch.details["override_issued_ms"][:, at], batch.has(_flag("OVERRIDE", rule)))


def _sequence_number(batch: Batch) -> pa.Array:
    return _array([records.sequence_string(limbs) or None for limbs in batch.rows["sequence"]], kind="string")


def _columns() -> dict[str, Make]:
    return {
        "device_id": lambda batch: _array(batch.encoded_ids(), kind="string"),
        "shard_id": lambda batch: _array([batch.shard_id] * len(batch), kind="string"),
        "last_arrival": lambda batch: _time(batch.rows["last_arrival_ms"]),
        "last_timestamp": lambda batch: _time(batch.rows["last_timestamp_ms"], batch.has_samples),
        **{metric: _reading(at) for at, metric in enumerate(twins.METRICS)},
        "location": lambda batch: batch.told[1],
        "firmware": lambda batch: batch.told[2],
        "temperature_alert": _bit(twins.Flag.OPEN_TEMPERATURE),
        "battery_alert": _bit(twins.Flag.OPEN_BATTERY),
        "offline": _bit(twins.Flag.OPEN_OFFLINE),
        **{
            f"{metric}_{name}": _statistic(at, name)
            for at, metric in enumerate(twins.METRICS)
            for name in ("mean", "deviation", "minimum", "maximum")
        },
        "battery_idle_ms": _number("battery_idle_ms"),
        "battery_drop_pct": _number("battery_drop"),
        "samples": _number("samples"),
        "late": _number("late"),
        "gaps": _number("gaps"),
        **{f"{rule}_acknowledged": _bit(_flag("ACKNOWLEDGED", rule)) for rule in RULES},
        **{f"{rule}_alert_last_fired": _alert_time(at, rule) for at, rule in enumerate(ALERTS)},
        **{f"{rule}_alert_repeats": _alert_detail(at, rule, "repeats") for at, rule in enumerate(ALERTS)},
        **{f"{rule}_alert_generation": _alert_detail(at, rule, "alert_generation") for at, rule in enumerate(ALERTS)},
        **{f"{rule}_alert_id": _alert_id(at, rule) for at, rule in enumerate(ALERTS)},
        "offline_repeats": _number("offline_repeats"),
        "temperature_override": _override(0, "temperature"),
        "battery_override": _override(1, "battery"),
        "offline_override_ms": _override(2, "offline"),
        **{f"{rule}_override_issued": _override_issued(at, rule) for at, rule in enumerate(RULES)},
        "sequence_number": _sequence_number,
        "subsequence": _number("subsequence"),
        "commit": _number("commit"),
    }


COLUMNS: dict[str, Make] = _columns()
"""By name, in the order of an export."""
