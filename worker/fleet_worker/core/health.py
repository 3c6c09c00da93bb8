"""The health score: how well a device does, as one number from 0 to 100 that says where each lost point went.

    score = max(0, 100 − (temperature_margin + battery + battery_slope + recency + alerts))

Each part takes away points, none at all while nothing is wrong, at most its maximum (`PARTS`), and linearly between:

    temperature_margin   0 at 10 °C or more below the threshold, 30 at the threshold or above
    battery              0 at 40 % charge or more, 25 at 0 %
    battery_slope        0 at half of the allowed drop an hour or less, 15 at the allowed drop or more; 0 as long as less
                         idle time was seen than the battery rule asks for
    recency              0 while silent for at most half of the offline limit, 30 at the limit or beyond
    alerts               open ones: temperature 20, battery 15, offline 30, half of that when acknowledged; together at most 50

A rule that is disabled takes no points for its part. A twin without an accepted sample, and a forgotten one, have no score
(NaN): nothing is known of them. The weights are this project's choice; they are documented here and in the API's page.

Computed when asked, by the partition clock, never stored: recency changes while nothing arrives.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from fleet_model import rules
from fleet_worker.core import limits, twins

Float64s = NDArray[np.float64]

SCORE_MAX = 100.0
TEMPERATURE_MARGIN_C = 10.0
BATTERY_COMFORT_PCT = 40.0
SLOPE_FREE_SHARE = 0.5
"""Share of the allowed drop an hour that costs nothing."""
SILENCE_FREE_SHARE = 0.5
"""Share of the offline limit that a device may be silent for nothing."""

TEMPERATURE_POINTS = 30.0
BATTERY_POINTS = 25.0
SLOPE_POINTS = 15.0
RECENCY_POINTS = 30.0
ALERTS_POINTS = 50.0
ALERT_POINTS = (20.0, 15.0, 30.0)
"""By rule number: temperature, battery, offline."""
ACKNOWLEDGED_SHARE = 0.5

PARTS = {
    "temperature_margin": TEMPERATURE_POINTS,
    "battery": BATTERY_POINTS,
    "battery_slope": SLOPE_POINTS,
    "recency": RECENCY_POINTS,
    "alerts": ALERTS_POINTS,
}
"""The parts in their order, with the most that each takes away."""

OPEN_FLAGS = (twins.Flag.OPEN_TEMPERATURE, twins.Flag.OPEN_BATTERY, twins.Flag.OPEN_OFFLINE)
ACKNOWLEDGED_FLAGS = (
    twins.Flag.ACKNOWLEDGED_TEMPERATURE,
    twins.Flag.ACKNOWLEDGED_BATTERY,
    twins.Flag.ACKNOWLEDGED_OFFLINE,
)

_HOUR_MS = 3_600_000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """The limits that hold for n twins, each (n,) float64, infinite where the rule is disabled.

    temperature: °C. battery: % an hour. offline: ms. observation: idle ms that the battery rule asks for.
    """

    temperature: Float64s
    battery: Float64s
    offline: Float64s
    observation: Float64s


@dataclasses.dataclass(frozen=True, slots=True)
class Health:
    """score: (n,) float64, 0 to 100, NaN where there is none. lost: (n, 5) float64, points by part, in PARTS' order."""

    score: Float64s
    lost: Float64s


def held(
    judging: limits.Limits, profiles: NDArray[np.uint8], flags: NDArray[np.uint16], overrides: NDArray[np.float64]
) -> Held:
    """The limits in force for n twins. profiles: (n,) profile indices. flags: (n,). overrides: (n, 3), EXTRA_DTYPE's
    `override`, read only where the row's flag says that there is one."""

    def of_rule(rule: int, enabled: NDArray[np.bool_], by_profile: NDArray[np.generic]) -> Float64s:
        overridden = (flags & limits.OVERRIDE_FLAGS[rule]) != 0
        value = np.where(overridden, overrides[:, rule], by_profile[profiles].astype(np.float64))
        return np.where(enabled[profiles], value, np.inf)

    return Held(
        temperature=of_rule(rules.TEMPERATURE, judging.temperature_enabled, judging.temperature_threshold),
        battery=of_rule(rules.BATTERY, judging.battery_enabled, judging.battery_drop),
        offline=of_rule(rules.OFFLINE, judging.offline_enabled, judging.offline_after_ms),
        observation=judging.battery_observation_ms[profiles].astype(np.float64),
    )


def assess(rows: NDArray[np.void], limit: Held, clock_ms: int) -> Health:
    """The health of n twins. rows: (n,) TWIN_DTYPE. clock_ms: the partition clock. Formula: this module's docstring."""
    last = rows["last"].astype(np.float64)
    silence_ms = (clock_ms - rows["last_arrival_ms"]).astype(np.float64)
    lost = np.stack(
        [
            TEMPERATURE_POINTS
            * _share((TEMPERATURE_MARGIN_C - (limit.temperature - last[:, 0])) / TEMPERATURE_MARGIN_C),
            BATTERY_POINTS * _share((BATTERY_COMFORT_PCT - last[:, 1]) / BATTERY_COMFORT_PCT),
            SLOPE_POINTS * _slope(rows, limit),
            RECENCY_POINTS * _beyond(silence_ms / limit.offline, SILENCE_FREE_SHARE),
            _alerts(rows["flags"]),
        ],
        axis=1,
    )
    known = (rows["samples"] > 0) & (rows["flags"] & twins.Flag.FORGOTTEN == 0)
    score = np.where(known, np.maximum(0.0, SCORE_MAX - lost.sum(axis=1)), np.nan)
    return Health(score, lost)


def drop_per_hour(rows: NDArray[np.void]) -> Float64s:
    """(n,) the battery curve's rate, % an hour over idle time; NaN where no idle time was seen. Formula: rules page, step 5."""
    idle_ms = rows["battery_idle_ms"].astype(np.float64)
    rate = np.full(len(rows), np.nan)
    np.divide(rows["battery_drop"].astype(np.float64) * _HOUR_MS, idle_ms, out=rate, where=idle_ms > 0)
    return rate


def _slope(rows: NDArray[np.void], limit: Held) -> Float64s:
    rate = np.nan_to_num(drop_per_hour(rows), nan=0.0)
    # A limit of 0 %/h allows no drop at all: any drop is then beyond it.
    share = np.where(rate > 0, np.inf, 0.0)
    np.divide(rate, limit.battery, out=share, where=limit.battery > 0)
    seen = rows["battery_idle_ms"] >= limit.observation
    return np.where(seen, _beyond(share, SLOPE_FREE_SHARE), 0.0)


def _alerts(flags: NDArray[np.uint16]) -> Float64s:
    lost = np.zeros(len(flags))
    for points, opened, acknowledged in zip(ALERT_POINTS, OPEN_FLAGS, ACKNOWLEDGED_FLAGS, strict=True):
        weight = np.where(flags & acknowledged, ACKNOWLEDGED_SHARE, 1.0)
        lost += np.where(flags & opened, points * weight, 0.0)
    return np.minimum(lost, ALERTS_POINTS)


def _share(values: Float64s) -> Float64s:
    return np.clip(values, 0.0, 1.0)


def _beyond(share: Float64s, free: float) -> Float64s:
    """0 up to the free share, 1 from the whole on."""
    return _share((share - free) / (1.0 - free))
