"""The twin as a row: its dtype, flags and version. The rules that move it are in `rules`.

A row's bytes are also its durable form, so a change of TWIN_DTYPE or EXTRA_DTYPE is a change of ROW_VERSION and needs
a migration in the store.
"""

from __future__ import annotations

import enum

import numpy as np

ROW_VERSION = 1

METRICS = ("temperature_c", "battery_pct", "cpu_load")
"""Order of the columns in the statistics' (3,) fields."""

STATISTICS_WINDOW_MS = 3_600_000
"""Time constant of the rolling mean and variance."""
HALF_WINDOW_MS = 1_800_000
"""Minimum and maximum cover the current and the previous half hour of the device's time."""
HOLD_MS_MAX = 300_000
"""A longer step between two samples is a gap: it counts in `gaps`, weighs this much, and no battery stretch spans it."""
BATTERY_WINDOW_MS = 3_600_000
"""The battery curve forgets idle time beyond this."""
LATE_RUN_RECORDS = 10
LATE_RUN_SPAN_MS = 300_000
"""So many late records in a row, rising over this span, are a clock set back."""
OFFLINE_REPEATS_MAX = 24

TWIN_DTYPE = np.dtype(
    [
        ("last_arrival_ms", "i8"),  # of the last heard record; 0 = never heard
        ("last_timestamp_ms", "i8"),  # device time of the last accepted sample; forgotten: time of the instruction
        ("sequence", "u8", (3,)),  # limbs of the last heard record's sequence number
        ("late_last_ms", "i8"),  # device time of the last record of a late run
        ("commit", "u4"),  # number of the commit that last changed this row
        ("subsequence", "u4"),  # of the last heard record
        ("samples", "u4"),  # accepted
        ("late", "u4"),  # late or duplicate records
        ("late_span_ms", "u4"),  # from the first to the last record of a late run
        ("battery_idle_ms", "u4"),  # idle time in the battery curve
        ("battery_drop", "f4"),  # % of charge lost over that idle time
        ("last", "f4", (3,)),  # last accepted sample, in the order of METRICS
        ("mean", "f4", (3,)),
        ("variance", "f4", (3,)),
        ("minimum", "f4", (3,)),  # of the half hour of last_timestamp_ms
        ("maximum", "f4", (3,)),
        ("previous_minimum", "f4", (3,)),  # of the half hour before
        ("previous_maximum", "f4", (3,)),
        ("flags", "u2"),  # of Flag
        ("spare", "u1", (2,)),
        ("gaps", "u1"),
        ("late_run", "u1"),
        ("spike_run", "u1"),
        ("offline_repeats", "u1"),  # offline alerts fired in this silence
    ]
)

EXTRA_DTYPE = np.dtype(
    [
        ("override", "f8", (3,)),  # by rule: °C, %/h, ms; meaningful where its Flag is set
        ("override_issued_ms", "i8", (3,)),  # issue time of the last override or clearing, by rule
        ("acknowledge_issued_ms", "i8"),
        ("alert_ms", "i8", (2,)),  # arrival time of the last firing, temperature and battery
        ("alert_generation", "u4", (2,)),
        ("repeats", "u4", (2,)),  # firings in this open episode
        ("alert_id", "u8", (2, 2)),  # of the last firing, big-endian halves
    ]
)
"""What only some twins have (Flag.EXTRA): overrides, and details of open temperature and battery alerts."""


class Flag(enum.IntFlag):
    """Bits of a row's `flags`. The rule bits are 1 << rule number, shifted by the group's first bit."""

    OPEN_TEMPERATURE = 1
    OPEN_BATTERY = 2
    OPEN_OFFLINE = 4
    ACKNOWLEDGED_TEMPERATURE = 8
    ACKNOWLEDGED_BATTERY = 16
    ACKNOWLEDGED_OFFLINE = 32
    OVERRIDE_TEMPERATURE = 64
    OVERRIDE_BATTERY = 128
    OVERRIDE_OFFLINE = 256
    EXTRA = 512
    FORGOTTEN = 1024

    ANY_OPEN = 7
    ANY_ACKNOWLEDGED = 56
    ANY_OVERRIDE = 448
