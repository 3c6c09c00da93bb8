"""A twin as a JSON-able dict: what the API, the CLI and the web page show of it.

Made from a row, its details and its last Telemetry; the rules in force and the partition clock make the rest. Every time is
in milliseconds since the epoch, every number a plain int or float (32-bit ones in their shortest decimal form). Nothing is
looked up or judged here: the rules have done that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from fleet_model import partition, rules
from fleet_proto import fleet_pb2
from fleet_worker.core import effects, health, limits, records, twins

Json = dict[str, Any]

STATISTICS = ("last", "mean", "variance", "deviation", "minimum", "maximum")
"""What is told of each metric, in this order."""
DEFAULT_PROFILE = "default"
"""Shown for a device that no profile matches."""


@dataclasses.dataclass(frozen=True, slots=True)
class Standpoint:
    """From where a twin is seen: its partition and the rules in force there. position: the last applied record.
    clock_ms: the partition clock."""

    identity: partition.PartitionIdentity
    epoch: int
    position: partition.Position
    clock_ms: int
    judging: limits.Limits


@dataclasses.dataclass(frozen=True, slots=True)
class Twins:
    """n twins to show. rows: (n,) TWIN_DTYPE. extras: (n,) EXTRA_DTYPE, all zero where a twin has none.
    profiles: (n,) uint8, profile indices. telemetry: last raw Telemetry, b"" = none."""

    device_ids: Sequence[str]
    rows: NDArray[np.void]
    extras: NDArray[np.void]
    profiles: NDArray[np.uint8]
    telemetry: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.device_ids)

    def part(self, first: int, end: int) -> Twins:
        part = slice(first, end)
        return Twins(
            self.device_ids[part], self.rows[part], self.extras[part], self.profiles[part], self.telemetry[part]
        )


def twin_views(shown: Twins, standpoint: Standpoint) -> list[Json]:
    """Each twin as the API's page describes it. About 50 µs a twin: callers on an event loop give at most a few dozen."""
    limit = health.held(standpoint.judging, shown.profiles, shown.rows["flags"], shown.extras["override"])
    conditions = _health(health.assess(shown.rows, limit, standpoint.clock_ms))
    statistics = _statistics(shown.rows)
    rates = health.drop_per_hour(shown.rows)
    views: list[Json] = []
    for at, device_id in enumerate(shown.device_ids):
        row, profile = shown.rows[at], int(shown.profiles[at])
        views.append(
            {
                "device_id": device_id,
                "last_seen_ms": int(row["last_arrival_ms"]) or None,
                "telemetry": telemetry_view(shown.telemetry[at]),
                "health": conditions[at],
                "alerts": alert_views(device_id, row, shown.extras[at], profile, standpoint),
                "statistics": _statistics_view(row, statistics[at]),
                "battery": _battery(row, float(rates[at]), float(limit.observation[at])),
                "limits": {
                    "temperature_c": _finite(limit.temperature[at]),
                    "battery_pct_per_hour": _finite(limit.battery[at]),
                    "offline_after_ms": _whole(limit.offline[at]),
                },
                "overrides": _overrides(row, shown.extras[at]),
                "counters": {"samples": int(row["samples"]), "late": int(row["late"]), "gaps": int(row["gaps"])},
                "partition": {
                    "shard_id": standpoint.identity.shard_id,
                    "epoch": standpoint.epoch,
                    "clock_ms": standpoint.clock_ms,
                    "position": _position(standpoint.position),
                    "last_heard": _position(heard_position(row)),
                },
                "rules": {
                    "generation": standpoint.judging.generation.generation,
                    "profile": profile_name(standpoint.judging, profile),
                },
            }
        )
    return views


def alert_views(device_id: str, row: np.void, extra: np.void, profile: int, standpoint: Standpoint) -> list[Json]:
    """A twin's open alerts, by rule number. last_fired_ms: when it last fired (a row keeps no older firing); repeats:
    firings in this open episode; generation: of the rules that fired it last, None for offline (a row doesn't keep it)."""
    flags = int(row["flags"])
    if not flags & twins.Flag.ANY_OPEN:
        return []
    judging = standpoint.judging.rules[profile]
    severities = (judging.temperature.severity, judging.battery.severity, judging.offline.severity)
    opened: list[Json] = []
    for rule, trigger in enumerate(rules.TRIGGERS):
        if not flags & health.OPEN_FLAGS[rule]:
            continue
        if rule == rules.OFFLINE:
            limit_ms = int(extra["override"][rule]) if flags & limits.OVERRIDE_FLAGS[rule] else judging.offline.after_ms
            details = _offline_details(
                device_id, row, limit_ms, judging.offline.repeat_interval_ms, standpoint.identity
            )
        else:
            details = {
                "alert_id": "".join(f"{int(half):016x}" for half in extra["alert_id"][rule]),
                "last_fired_ms": int(extra["alert_ms"][rule]),
                "repeats": int(extra["repeats"][rule]),
                "generation": int(extra["alert_generation"][rule]),
            }
        acknowledged = bool(flags & health.ACKNOWLEDGED_FLAGS[rule])
        opened.append({"trigger": trigger, "severity": severities[rule], "acknowledged": acknowledged, **details})
    return opened


def heard_position(row: np.void) -> partition.Position:
    """Of the last record heard of the device."""
    return partition.Position(records.sequence_string(row["sequence"]), int(row["subsequence"]))


def _position(position: partition.Position) -> Json:
    return {"sequence_number": position.sequence_number, "subsequence_number": position.subsequence_number}


def profile_name(judging: limits.Limits, profile: int) -> str:
    return judging.generation.profiles[profile - 1].name if profile else DEFAULT_PROFILE


def telemetry_view(raw: bytes) -> Json | None:
    """The last accepted Telemetry under its wire names, as the device sent it; None when there is none."""
    if not raw:
        return None
    message = fleet_pb2.Telemetry.FromString(raw)
    return {
        "timestamp": message.timestamp,
        "temperature_c": message.temperature_c,
        "battery_pct": message.battery_pct,
        "cpu_load": message.cpu_load,
        "location": message.location,
        "firmware": message.firmware,
    }


def firmware(raw: bytes) -> str:
    """The firmware that a raw Telemetry tells, "" when there is none."""
    return str(fleet_pb2.Telemetry.FromString(raw).firmware) if raw else ""


def _offline_details(
    device_id: str, row: np.void, limit_ms: int, repeat_interval_ms: int, identity: partition.PartitionIdentity
) -> Json:
    """The id of the last firing in this silence, recomputed: it depends on the last record heard alone (rules page)."""
    repeats_before = max(0, int(row["offline_repeats"]) - 1)
    return {
        "alert_id": effects.effect_id(
            identity, device_id, "alert", rules.TRIGGERS[rules.OFFLINE], "firing", heard_position(row), repeats_before
        ),
        "last_fired_ms": int(row["last_arrival_ms"]) + limit_ms + repeats_before * repeat_interval_ms,
        "repeats": int(row["offline_repeats"]),
        "generation": None,
    }


def _statistics(rows: NDArray[np.void]) -> list[list[list[float]]]:
    """By twin and metric the values of STATISTICS. Through JSON and back, since that writes 32-bit floats in the fewest
    digits that tell them apart, all of them at once."""
    values = np.stack(
        [
            rows["last"],
            rows["mean"],
            rows["variance"],
            np.sqrt(rows["variance"]),
            np.minimum(rows["minimum"], rows["previous_minimum"]),
            np.maximum(rows["maximum"], rows["previous_maximum"]),
        ],
        axis=2,
    )
    shortest: list[list[list[float]]] = orjson.loads(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))
    return shortest


def _statistics_view(row: np.void, values: list[list[float]]) -> Json | None:
    if not row["samples"]:
        return None
    view: Json = {
        "window_ms": twins.STATISTICS_WINDOW_MS,
        "extremes_window_ms": [twins.HALF_WINDOW_MS, 2 * twins.HALF_WINDOW_MS],
        "until_ms": int(row["last_timestamp_ms"]),
    }
    for metric, told in zip(twins.METRICS, values, strict=True):
        view[metric] = dict(zip(STATISTICS, told, strict=True))
    return view


def _battery(row: np.void, rate: float, observation_ms: float) -> Json:
    idle_ms = int(row["battery_idle_ms"])
    return {
        "rate_pct_per_hour": None if math.isnan(rate) else _short(rate),
        "drop_pct": _short(float(row["battery_drop"])),
        "idle_ms": idle_ms,
        "observed_enough": idle_ms >= observation_ms,
    }


def _health(condition: health.Health) -> list[Json]:
    lost = np.round(condition.lost, 1).tolist()
    scores = np.round(condition.score, 1).tolist()
    return [
        {"score": None, "lost": None}
        if math.isnan(score)
        else {"score": score, "lost": dict(zip(health.PARTS, points, strict=True))}
        for score, points in zip(scores, lost, strict=True)
    ]


def _overrides(row: np.void, extra: np.void) -> Json:
    """By rule as control records name them; offline in seconds, as they give it."""
    flags = int(row["flags"])
    if not flags & twins.Flag.ANY_OVERRIDE:
        return {}
    view: Json = {}
    for rule, name in ((rules.TEMPERATURE, "temperature"), (rules.BATTERY, "battery"), (rules.OFFLINE, "offline")):
        if flags & limits.OVERRIDE_FLAGS[rule]:
            value = float(extra["override"][rule])
            threshold = value / 1000 if rule == rules.OFFLINE else value
            view[name] = {"threshold": threshold, "issued_ms": int(extra["override_issued_ms"][rule])}
    return view


def _short(value: float) -> float:
    """A 32-bit float has 7 significant decimal digits; more would show digits that it never held."""
    return float(f"{value:.7g}")


def _finite(value: np.float64) -> float | None:
    return float(value) if math.isfinite(value) else None


def _whole(value: np.float64) -> int | None:
    return int(value) if math.isfinite(value) else None
