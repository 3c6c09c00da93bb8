"""A round of records that devices sent: who was heard, what is late, what is accepted (docs/reference/rules.md, steps 3 to 7).

    late? → heard (an open offline alert is resolved) → accepted: core/observe, then the rules of core/judge

It takes copied rows of different devices and writes them back; slots, generations and time are the engine's.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_model import partition
from fleet_proto import fleet_pb2
from fleet_worker.core import contexts, effects, emit, judge, observe, offline, records, table, twins

FORGOTTEN = np.uint16(twins.Flag.FORGOTTEN)
NOT_ACKNOWLEDGED = ~np.uint16(twins.Flag.ACKNOWLEDGED_OFFLINE)
COUNT_MAX = 2**32 - 1
"""`late` and `late_span_ms` are held at this."""
LATE_RUN_MAX = 255


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Telemetry and heard records of n different devices. at: (n,) indices into columns. slots: (n,). rows: (n,)
    TWIN_DTYPE, copied from the table and changed in place."""

    columns: records.Columns
    at: records.Int64s
    slots: NDArray[np.int64]
    rows: NDArray[np.void]


def hear(context: contexts.Context, part: Part, out: list[effects.Effect]) -> None:
    """Steps 3 to 7; the rows are written back to the table."""
    columns, at, rows = part.columns, part.at, part.rows
    timestamp_ms = columns.timestamp_ms[at]
    flags = rows["flags"]
    is_sample = None if columns.all_telemetry else columns.kind[at] == records.Kind.TELEMETRY
    late = (timestamp_ms <= rows["last_timestamp_ms"]) & ((rows["samples"] > 0) | (flags & FORGOTTEN != 0))
    if is_sample is not None:
        late &= is_sample
    baseline: NDArray[np.bool_] | None = None
    accepted = is_sample
    heard: NDArray[np.bool_] | None = None
    if late.any():
        baseline = _late(context.counts, rows, late, timestamp_ms)
        accepted = ~late | baseline if is_sample is None else is_sample & (~late | baseline)
        silent = late & ~baseline & (flags & FORGOTTEN != 0)
        heard = ~silent if silent.any() else None
    _resolve_offline(context, part, ~late if is_sample is None else is_sample & ~late, heard, out)
    _mark_heard(part, heard)

    if accepted is None or accepted.all():
        _accept(context, part, baseline, out)
    elif accepted.any():
        index = np.flatnonzero(accepted)
        some = Part(columns, at[index], part.slots[index], rows.take(index))
        _accept(context, some, None if baseline is None else baseline[index], out)
        rows.view(table.RAW_ROW)[index] = some.rows.view(table.RAW_ROW)
    context.table.write(part.slots, rows)


def _late(
    counts: contexts.Counts, rows: NDArray[np.void], late: NDArray[np.bool_], timestamp_ms: records.Int64s
) -> NDArray[np.bool_]:
    """Counts late records; (n,) where the device's clock was set back, so that the sample is a new baseline."""
    index = np.flatnonzero(late)
    time_ms = timestamp_ms[index]
    some = rows.take(index)
    rising = (some["late_run"] > 0) & (time_ms > some["late_last_ms"])
    step_ms = np.where(rising, time_ms - some["late_last_ms"], 0)
    span_ms = np.where(rising, np.minimum(some["late_span_ms"] + step_ms, COUNT_MAX), 0)
    run = np.where(rising, np.minimum(some["late_run"].astype(np.int64) + 1, LATE_RUN_MAX), 1)
    some["late_run"], some["late_span_ms"], some["late_last_ms"] = run, span_ms, time_ms
    some["late"] += some["late"] < COUNT_MAX
    rows.view(table.RAW_ROW)[index] = some.view(table.RAW_ROW)
    baseline = np.zeros(len(rows), dtype=np.bool_)
    baseline[index] = (run >= twins.LATE_RUN_RECORDS) & (span_ms >= twins.LATE_RUN_SPAN_MS)
    counts.late += len(index)
    counts.baselines += int(np.count_nonzero(baseline))
    return baseline


def _resolve_offline(
    context: contexts.Context,
    part: Part,
    fresh: NDArray[np.bool_],
    heard: NDArray[np.bool_] | None,
    out: list[effects.Effect],
) -> None:
    """Devices that are back. fresh: (n,) samples that aren't late, which the notice shows as they came."""
    columns, rows = part.columns, part.rows
    back = rows["flags"] & offline.OPEN != 0
    if heard is not None:
        back &= heard
    for index in np.flatnonzero(back).tolist():
        record = int(part.at[index])
        device_id = columns.device_ids[record]
        cause = emit.Cause(
            device_id=device_id,
            time_ms=int(columns.arrival_ms[record]),
            last=(
                fleet_pb2.Telemetry.FromString(columns.payload[record])
                if fresh[index]
                else emit.row_telemetry(device_id, rows[index])
            ),
            position=partition.Position(
                records.sequence_string(columns.sequence[record]), int(columns.subsequence[record])
            ),
            generation=context.limits.generation.generation,
            repeat=0,
        )
        offline.resolve(context, int(part.slots[index]), cause, out)
        rows["flags"][index] &= ~offline.OPEN & NOT_ACKNOWLEDGED
        rows["offline_repeats"][index] = 0


def _mark_heard(part: Part, heard: NDArray[np.bool_] | None) -> None:
    """heard: (n,), None = all of them."""
    columns, at, rows = part.columns, part.at, part.rows
    if heard is None:
        rows["last_arrival_ms"] = np.maximum(rows["last_arrival_ms"], columns.arrival_ms[at])
        rows["sequence"] = columns.sequence[at]
        rows["subsequence"] = columns.subsequence[at]
        rows["flags"] &= ~FORGOTTEN
        return
    arrival_ms = columns.arrival_ms[at[heard]]
    rows["last_arrival_ms"][heard] = np.maximum(rows["last_arrival_ms"][heard], arrival_ms)
    rows["sequence"][heard] = columns.sequence[at[heard]]
    rows["subsequence"][heard] = columns.subsequence[at[heard]]
    rows["flags"][heard] &= ~FORGOTTEN


def _accept(
    context: contexts.Context, part: Part, baseline: NDArray[np.bool_] | None, out: list[effects.Effect]
) -> None:
    columns, at, slots, rows = part.columns, part.at, part.slots, part.rows
    twin_table, payload = context.table, columns.payload
    indices = at.tolist()
    twin_table.telemetry.update(zip(slots.tolist(), [payload[index] for index in indices], strict=True))
    if columns.firmware is not None and twin_table.firmware is not None:
        _note_firmware(context, columns.firmware, indices, slots)
    profile = twin_table.profile[slots]
    readings = np.empty((len(at), 3))
    readings[:, 0] = columns.temperature_c[at]
    readings[:, 1] = columns.battery_pct[at]
    readings[:, 2] = columns.cpu_load[at]
    idle_below = context.limits.battery_idle_below[profile]
    stretches = observe.accept(rows, columns.timestamp_ms[at], readings, baseline, idle_below)
    samples = judge.Samples(columns, at, slots, rows, profile, columns.arrival_ms[at])
    judge.battery(context, samples, stretches, out)
    judge.temperature(context, samples, readings[:, 0], out)


def _note_firmware(
    context: contexts.Context, versions: Sequence[str], indices: Sequence[int], slots: NDArray[np.int64]
) -> None:
    """Keeps each device's firmware; a new version may bring it into another profile."""
    twin_table, generation = context.table, context.limits.generation
    kept = twin_table.firmware
    assert kept is not None
    for index, slot in zip(indices, slots.tolist(), strict=True):
        version = versions[index]
        if kept[slot] != version:
            kept[slot] = sys.intern(version)
            twin_table.profile[slot] = generation.profile_index(twin_table.device_ids[slot], version)
