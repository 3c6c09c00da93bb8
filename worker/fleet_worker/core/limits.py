"""The limits that judge a device: a generation's rules by profile, as arrays, and overrides laid over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_model import rules
from fleet_worker.core import records, table, twins

OVERRIDE_FLAGS = (twins.Flag.OVERRIDE_TEMPERATURE, twins.Flag.OVERRIDE_BATTERY, twins.Flag.OVERRIDE_OFFLINE)


class Limits:
    """One generation's numbers by profile index: each attribute is a (profiles + 1,) array."""

    def __init__(self, generation: rules.RulesGeneration) -> None:
        self.generation = generation
        self.rules = [generation.default, *(profile.rules for profile in generation.profiles)]

        def column(dtype: type, value: Callable[[rules.Rules], object]) -> NDArray[Any]:
            return np.array([value(entry) for entry in self.rules], dtype=dtype)

        self.temperature_enabled = column(np.bool_, lambda r: r.temperature.enabled)
        self.temperature_threshold = column(np.float64, lambda r: r.temperature.threshold)
        self.temperature_hysteresis = column(np.float64, lambda r: r.temperature.hysteresis)
        self.temperature_samples = column(np.int64, lambda r: r.temperature.consecutive_samples)
        self.temperature_repeat_ms = column(np.int64, lambda r: r.temperature.repeat_interval_ms)
        self.battery_enabled = column(np.bool_, lambda r: r.battery.enabled)
        self.battery_drop = column(np.float64, lambda r: r.battery.max_drop_per_hour)
        self.battery_hysteresis = column(np.float64, lambda r: r.battery.hysteresis)
        self.battery_idle_below = column(np.float64, lambda r: r.battery.idle_below_cpu_load)
        self.battery_observation_ms = column(np.int64, lambda r: r.battery.min_observation_ms)
        self.battery_repeat_ms = column(np.int64, lambda r: r.battery.repeat_interval_ms)
        self.offline_enabled = column(np.bool_, lambda r: r.offline.enabled)
        self.offline_after_ms = column(np.int64, lambda r: r.offline.after_ms)
        self.offline_repeat_ms = column(np.int64, lambda r: r.offline.repeat_interval_ms)

    def temperature(self, twin_table: table.TwinTable, slots: records.Int64s, flags: NDArray[np.uint16]) -> Any:
        """(n,) float64, °C."""
        return self._over(twin_table, slots, flags, rules.TEMPERATURE, self.temperature_threshold)

    def battery(self, twin_table: table.TwinTable, slots: records.Int64s, flags: NDArray[np.uint16]) -> Any:
        """(n,) float64, % an hour."""
        return self._over(twin_table, slots, flags, rules.BATTERY, self.battery_drop)

    def offline(self, twin_table: table.TwinTable, slots: records.Int64s, flags: NDArray[np.uint16]) -> Any:
        """(n,) int64, ms."""
        return self._over(twin_table, slots, flags, rules.OFFLINE, self.offline_after_ms)

    def offline_least_ms(self) -> int:
        """No device without an override goes offline before it was silent for this long; where the rule is off for all,
        longer than any time."""
        return int(self.offline_after_ms[self.offline_enabled].min(initial=2**62))

    @staticmethod
    def _over(
        twin_table: table.TwinTable,
        slots: records.Int64s,
        flags: NDArray[np.uint16],
        rule: int,
        by_profile: NDArray[Any],
    ) -> NDArray[Any]:
        limit: NDArray[Any] = by_profile[twin_table.profile[slots]]
        overridden = flags & OVERRIDE_FLAGS[rule]
        if overridden.any():
            at = np.flatnonzero(overridden)
            limit[at] = twin_table.extras["override"][twin_table.extra_index[slots[at]] - 1, rule]
        return limit
