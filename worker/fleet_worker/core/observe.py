"""What an accepted sample does to a twin: rolling statistics, extremes and the battery curve, on columns.

The formulas are those of docs/reference/rules.md, step 5; nothing here fires anything.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from fleet_worker.core import records, twins

BATTERY, CPU = 1, 2
COUNT_MAX = np.uint32(2**32 - 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Stretches:
    """Idle stretches that counted. at: (k,) indices of their samples. rate: (k,) float64, % an hour over the curve.
    idle_ms: (k,) int64 in the curve."""

    at: records.Int64s
    rate: records.Float64s
    idle_ms: records.Int64s


def accept(
    rows: NDArray[np.void],
    timestamp_ms: records.Int64s,
    samples: records.Float64s,
    is_baseline: NDArray[np.bool_] | None,
    idle_below: records.Float64s,
) -> Stretches:
    """Takes one sample into each row, in place.

    rows: (n,) TWIN_DTYPE, of n different devices. timestamp_ms: (n,) int64. samples: (n, 3) float64 in the order of
    twins.METRICS. is_baseline: (n,) the clock was set back to this sample; None = nowhere. idle_below: (n,) float64.
    """
    count_before = rows["samples"]
    joined = count_before > 0
    if is_baseline is not None:
        joined &= ~is_baseline
    all_joined = bool(joined.all())
    last_ms = rows["last_timestamp_ms"]
    step_ms = timestamp_ms - last_ms
    if not all_joined:
        step_ms[~joined] = 0
    gap = step_ms > twins.HOLD_MS_MAX
    has_gap = bool(gap.any())
    weight = np.minimum(step_ms, twins.HOLD_MS_MAX) if has_gap else step_ms
    stored = samples.astype(np.float32)

    stretches = _battery(rows, step_ms, joined & ~gap if has_gap else joined, samples, stored, idle_below)
    _statistics(rows, weight, samples, count_before == 0 if not all_joined else None)
    _extremes(rows, timestamp_ms // twins.HALF_WINDOW_MS, last_ms // twins.HALF_WINDOW_MS, stored, joined)

    rows["last"] = stored
    rows["last_timestamp_ms"] = timestamp_ms
    rows["samples"] = count_before + (count_before < COUNT_MAX)
    if has_gap:
        rows["gaps"] += (gap & (rows["gaps"] < 255)).astype(np.uint8)
    rows["late_run"] = 0
    rows["late_span_ms"] = 0
    rows["late_last_ms"] = 0
    return stretches


def _statistics(
    rows: NDArray[np.void],
    weight_ms: records.Int64s,
    samples: records.Float64s,
    is_first: NDArray[np.bool_] | None,
) -> None:
    """Exponentially weighted mean and variance (T. Finch, 2009), the weight by a backward Euler step."""
    share = (weight_ms / (twins.STATISTICS_WINDOW_MS + weight_ms))[:, np.newaxis]
    mean = rows["mean"].astype(np.float64)
    distance = samples - mean
    moved = share * distance
    variance = (1 - share) * (rows["variance"] + moved * distance)
    mean += moved
    if is_first is not None:
        mean[is_first] = samples[is_first]
        variance[is_first] = 0.0
    rows["mean"] = mean
    rows["variance"] = variance


def _extremes(
    rows: NDArray[np.void],
    half_window: records.Int64s,
    half_window_before: records.Int64s,
    stored: NDArray[np.float32],
    joined: NDArray[np.bool_],
) -> None:
    """Minimum and maximum of the half hour the sample falls into, and of the one before."""
    same = joined & (half_window == half_window_before)
    if same.all():
        rows["minimum"] = np.minimum(rows["minimum"], stored)
        rows["maximum"] = np.maximum(rows["maximum"], stored)
        return
    following = joined & (half_window == half_window_before + 1)
    same_, following_ = same[:, np.newaxis], following[:, np.newaxis]
    for current, previous, pick in (
        ("minimum", "previous_minimum", np.minimum),
        ("maximum", "previous_maximum", np.maximum),
    ):
        before = rows[current].copy()
        rows[previous] = np.where(same_, rows[previous], np.where(following_, before, stored))
        rows[current] = np.where(same_, pick(before, stored), stored)


def _battery(
    rows: NDArray[np.void],
    step_ms: records.Int64s,
    may_count: NDArray[np.bool_],
    samples: records.Float64s,
    stored: NDArray[np.float32],
    idle_below: records.Float64s,
) -> Stretches:
    """Charge lost over idle time; charging and busy stretches don't count."""
    last = rows["last"]
    counts = may_count & (last[:, CPU] < idle_below) & (samples[:, CPU] < idle_below)
    counts &= stored[:, BATTERY] <= last[:, BATTERY]
    at = np.flatnonzero(counts)
    idle_ms = rows["battery_idle_ms"][at].astype(np.int64) + step_ms[at]
    lost = last[at, BATTERY].astype(np.float64) - stored[at, BATTERY]
    drop = rows["battery_drop"][at] + lost
    beyond = idle_ms > twins.BATTERY_WINDOW_MS
    if beyond.any():
        drop[beyond] *= twins.BATTERY_WINDOW_MS / idle_ms[beyond]
        idle_ms[beyond] = twins.BATTERY_WINDOW_MS
    kept = drop.astype(np.float32)
    rows["battery_drop"][at] = kept
    rows["battery_idle_ms"][at] = idle_ms
    with np.errstate(divide="ignore", invalid="ignore"):  # idle_ms is 0 only after a step of 0, which cannot join
        rate = kept / idle_ms * 3_600_000.0
    return Stretches(at, rate, idle_ms)
