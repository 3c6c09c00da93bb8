"""The rules of a fleet as frozen values: what fires when, and with which effect.

A `RulesGeneration` is one edit of the rules. It takes effect at an arrival time and never changes after that, so a
replay judges every record by the generation that judged it the first time. Parsing and validation live in `spec`.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

from fleet_model import patterns

SEVERITIES = ("info", "warning", "critical")

TEMPERATURE, BATTERY, OFFLINE = 0, 1, 2
"""Rule numbers, in the order of the control record's enum `Rule` minus one."""

TRIGGERS = ("temp_spike", "battery_drop", "offline")
"""Trigger names by rule number, as the seed's `DeviceAlert.trigger` spells them."""


@dataclasses.dataclass(frozen=True, slots=True)
class TemperatureRule:
    """Fires when the temperature is above the threshold for several samples in a row.

    threshold: °C. consecutive_samples: 1 to 255. repeat_interval_ms: while the alert is open it fires again at most
    this often; 0 = each time the run completes. hysteresis: °C below the threshold at which the alert clears.
    command: sent with the alert, None = none. resolved_notice: whether clearing publishes a resolved alert.
    """

    enabled: bool = True
    threshold: float = 60.0
    consecutive_samples: int = 3
    repeat_interval_ms: int = 0
    hysteresis: float = 2.0
    severity: str = "critical"
    command: str | None = "cool_down"
    resolved_notice: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BatteryRule:
    """Fires when charge drops faster than the limit over idle time.

    max_drop_per_hour: % of charge an hour. idle_below_cpu_load: 0 to 1. min_observation_ms: idle time that must have
    been seen, at most an hour (the curve's window). repeat_interval_ms: while open it fires again at most this often;
    0 = never. hysteresis: %/h below the limit at which the alert clears.
    """

    enabled: bool = True
    max_drop_per_hour: float = 10.0
    idle_below_cpu_load: float = 0.3
    min_observation_ms: int = 600_000
    repeat_interval_ms: int = 3_600_000
    hysteresis: float = 1.0
    severity: str = "warning"
    command: str | None = "reduce_duty"
    resolved_notice: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class OfflineRule:
    """Fires when no telemetry arrived for the limit, by the partition clock.

    after_ms: the limit. repeat_interval_ms: while the device stays silent it fires again each such interval, at most
    24 times; 0 = never. resolved_notice: whether its return publishes a resolved alert of severity info.
    """

    enabled: bool = True
    after_ms: int = 300_000
    repeat_interval_ms: int = 0
    severity: str = "warning"
    command: str | None = "ping"
    resolved_notice: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """One complete set: the fleet's default, or a profile's (default with the profile's fields laid over it)."""

    temperature: TemperatureRule = TemperatureRule()
    battery: BatteryRule = BatteryRule()
    offline: OfflineRule = OfflineRule()


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """Which devices a profile is for. Every field that is set must match; at least one is set.

    device_id_regex matches the whole id.
    """

    device_id_prefix: str | None = None
    device_id_regex: str | None = None
    firmware: str | None = None

    def matches(self, device_id: str, firmware: str) -> bool:
        if self.device_id_prefix is not None and not device_id.startswith(self.device_id_prefix):
            return False
        if self.device_id_regex is not None and not patterns.matches_whole(self.device_id_regex, device_id):
            return False
        return self.firmware is None or firmware == self.firmware


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """A named group of devices with rules of their own. Of several that match, the first in the spec wins."""

    name: str
    match: Match
    rules: Rules


@dataclasses.dataclass(frozen=True, slots=True)
class RulesGeneration:
    """One edit of the rules: `generation` counts edits from 1, `effective_ms` is the arrival time it starts at.

    effective_ms of a fleet's first generation is 0: it judges everything that came before the second.
    """

    generation: int = 1
    effective_ms: int = 0
    default: Rules = Rules()
    profiles: tuple[Profile, ...] = ()

    @property
    def matches_firmware(self) -> bool:
        """Whether a device's firmware can decide its profile."""
        return any(profile.match.firmware is not None for profile in self.profiles)

    def profile_index(self, device_id: str, firmware: str) -> int:
        """0 for the fleet's default, else 1 + the index of the first profile that matches."""
        for index, profile in enumerate(self.profiles):
            if profile.match.matches(device_id, firmware):
                return index + 1
        return 0

    def rules(self, profile_index: int) -> Rules:
        return self.profiles[profile_index - 1].rules if profile_index else self.default


def generation_index(generations: Sequence[RulesGeneration], arrival_ms: int) -> int:
    """Index of the generation that judges a record with this arrival time: the last with effective_ms <= arrival_ms.

    `generations` is sorted by effective_ms, the first one's being 0.
    """
    return max(0, bisect.bisect_right(generations, arrival_ms, key=lambda entry: entry.effective_ms) - 1)
