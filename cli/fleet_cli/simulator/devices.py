"""The fleet as arrays: what each device measures at a time. Vectorised, no I/O, no clock; seeded randomness only.

A device's day: the outside temperature of its place, warmed by its own load; busy and idle stretches; a battery
that discharges and is charged; a firmware that a slow rollout replaces; trucks drive. Faults come from `faults`.

Time in seconds since the start. *World* time runs `time_scale` times as fast (days, roads, load, charging, rollout,
faults' pauses). Losing charge while idle keeps its real rate, since the battery rule counts %/h by the devices' clocks.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from fleet_cli.simulator import faults, places

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KINDS = ("sensor", "sensor", "sensor", "sensor", "sensor", "sensor", "sensor", "truck", "truck", "gateway")
"""Kind of device i: KINDS[i % 10]."""
FIRMWARES = ("1.4.2", "1.5.0")
ROLLOUT_S = 86_400.0
"""World time in which the newer firmware goes from a tenth of the fleet to all of it."""
WORLD_START_S = 8 * 3600.0
"""The world's clock at the start: eight in the morning UTC, whatever the wall says, so that a seed repeats."""

_INERTIA_S = 60.0  # world time in which a device's temperature follows by 63 %
_HEATING_S = 20.0  # world time: a fault heats, and a cool_down cools, more quickly
_LOAD_WARMTH_C = 14.0
_BUSY_STRETCH_S, _IDLE_STRETCH_S = 180.0, 420.0
_CHARGE_PER_H, _BUSY_DRAIN_PER_H = 60.0, 9.0
_HOT_PERIOD_S, _HOT_LENGTH_S = 900.0, 180.0
_DRAIN_PERIOD_S, _DRAIN_LENGTH_S = 7_200.0, 2_400.0
_SILENT_PERIOD_S = 1_800.0
_EPISODE_SAMPLES_MIN = 8
"""However short the world's time, a fault lasts this many samples, so that it can be noticed."""
_COOLED_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What the fleet's rules say of each device, (n,): °C and seconds. Faults overstep them; nothing else uses them."""

    temperature_c: Floats
    offline_s: Floats

    @classmethod
    def same(cls, devices: int, temperature_c: float = 60.0, offline_s: float = 300.0) -> Limits:
        return cls(np.full(devices, temperature_c), np.full(devices, offline_s))


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """devices: how many. interval_s: between a device's samples. time_scale: world seconds a real second."""

    devices: int
    interval_s: float
    seed: int = 0
    time_scale: float = 1.0
    shares: faults.Shares = faults.Shares()


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """m samples in order of time. index: (m,) devices. at_s: (m,) seconds since the start. The rest: (m,) or m strings."""

    index: Ints
    at_s: Floats
    temperature_c: Floats
    battery_pct: Floats
    cpu_load: Floats
    location: list[str]
    firmware: list[str]

    def __len__(self) -> int:
        return len(self.index)


def device_ids(devices: int) -> list[str]:
    """sensor-0 … truck-7, truck-8, gateway-9, sensor-10 …"""
    return [f"{KINDS[number % 10]}-{number}" for number in range(devices)]


class Fleet:
    """All devices' state. `measure` moves the devices it is given; `react` takes a command."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        devices, shares = settings.devices, settings.shares
        generator = np.random.default_rng([settings.seed, 2])
        self.ids = device_ids(devices)
        self._settings = settings
        self._limits = limits
        self._number = {device_id: number for number, device_id in enumerate(self.ids)}

        place = generator.integers(0, places.COUNT, devices)
        self._latitude = places.LATITUDE[place] + generator.normal(0.0, 0.05, devices)
        self._longitude = places.LONGITUDE[place] + generator.normal(0.0, 0.08, devices)
        self._mean_c = places.MEAN_C[place] + generator.normal(0.0, 1.5, devices)
        self._swing_c = places.SWING_C[place] * generator.uniform(0.5, 1.1, devices)
        self._location = [
            f"{latitude:.5f},{longitude:.5f}"
            for latitude, longitude in zip(self._latitude.tolist(), self._longitude.tolist(), strict=True)
        ]
        kind = np.arange(devices) % 10
        self._is_truck = (kind == 7) | (kind == 8)
        self._truck_number = np.cumsum(self._is_truck) - 1
        self._roads = places.Roads(generator, int(self._is_truck.sum()))

        self._busy_share = np.where(kind == 9, 0.6, 0.3) * generator.uniform(0.6, 1.2, devices)
        self._busy = generator.random(devices) < self._busy_share
        self._battery = generator.uniform(35.0, 100.0, devices)
        self._charging = generator.random(devices) < 0.1
        self._plug_in_at = generator.uniform(15.0, 30.0, devices)
        self._unplug_at = generator.uniform(85.0, 99.5, devices)
        self._idle_drain_per_h = generator.uniform(0.5, 3.0, devices)
        self._fault_drain_per_h = generator.uniform(40.0, 90.0, devices)
        self._fault_above_c = generator.uniform(8.0, 20.0, devices)
        self._rollout = generator.random(devices)
        self._cooled_until_s = np.full(devices, -1.0)
        self._cool_target_c = np.zeros(devices)
        self._last_s = np.zeros(devices)
        self._temperature = self._resting_c(np.arange(devices), np.zeros(devices), np.where(self._busy, 0.6, 0.1))

        scale, shortest_s = settings.time_scale, _EPISODE_SAMPLES_MIN * settings.interval_s
        hot, drain, silent = (
            faults.chosen(generator, devices, share) for share in (shares.hot, shares.drain, shares.silent)
        )
        self._hot = faults.episodes(generator, hot, _HOT_PERIOD_S / scale, max(_HOT_LENGTH_S / scale, shortest_s))
        drain_s = max(_DRAIN_LENGTH_S / scale, shortest_s)
        self._drain = faults.episodes(generator, drain, _DRAIN_PERIOD_S / scale, drain_s)
        silent_s = limits.offline_s * 1.6 + 2.0 * settings.interval_s
        self._silent = faults.episodes(generator, silent, _SILENT_PERIOD_S / scale, silent_s)
        self._silent.first_s += 2.0 * settings.interval_s  # a device is known before it falls silent
        self.speaks_json = faults.chosen(generator, devices, shares.json)
        self.poisons = faults.chosen(generator, devices, shares.poison)
        self.duplicates = faults.chosen(generator, devices, shares.duplicate)
        wrong = faults.chosen(generator, devices, shares.clock)
        offsets_s = np.array([-7 * 86_400, -3_600, -90, 240, 3_600])
        self.clock_offset_ms = np.where(wrong, offsets_s[generator.integers(0, len(offsets_s), devices)] * 1000, 0)

    def measure(self, index: Ints, at_s: Floats, generator: np.random.Generator) -> Samples:
        """Samples of devices `index` (each once) at `at_s`, without those that are silent just then."""
        speaking = ~self._silent.active(index, at_s)
        index, at_s = index[speaking], at_s[speaking]
        elapsed_s = np.maximum(at_s - self._last_s[index], 0.0)
        self._last_s[index] = at_s
        draining = self._drain.active(index, at_s)
        cpu_load = self._load(index, elapsed_s, draining, generator)
        temperature = self._warm(index, at_s, elapsed_s, cpu_load)
        battery = self._discharge(index, elapsed_s, draining)
        noise = generator.normal(0.0, 0.15, len(index))
        return Samples(
            index=index,
            at_s=at_s,
            temperature_c=np.round(temperature + noise, 2),
            battery_pct=np.round(battery, 4),
            cpu_load=np.round(cpu_load, 3),
            location=self._where(index, at_s),
            firmware=self._firmware(index, at_s),
        )

    def react(self, device_id: str, command: str, target_c: float | None, at_s: float) -> bool:
        """The device does what it is told; at_s is now. False: no such device, or a command it doesn't know."""
        device = self._number.get(device_id)
        if device is None:
            return False
        if command == "cool_down":
            self._hot.calm(device, at_s)
            self._cooled_until_s[device] = at_s + max(_COOLED_S, 4.0 * self._settings.interval_s)
            self._cool_target_c[device] = self._limits.temperature_c[device] - 5.0 if target_c is None else target_c
        elif command == "reduce_duty":
            self._drain.calm(device, at_s)
            self._busy[device] = False
        elif command == "reboot":
            self._hot.calm(device, at_s)
            self._drain.calm(device, at_s)
            self._busy[device] = False
        else:
            return command == "ping"
        return True

    def _world_s(self, at_s: Floats) -> Floats:
        return np.asarray(WORLD_START_S + at_s * self._settings.time_scale)

    def _resting_c(self, index: Ints, at_s: Floats, cpu_load: Floats) -> Floats:
        """Where the temperature goes when nothing is wrong."""
        world_s = self._world_s(at_s)
        mean_c, swing_c, longitude = self._mean_c[index], self._swing_c[index], self._longitude[index]
        trucks = np.nonzero(self._is_truck[index])[0]
        if len(trucks):
            number = self._truck_number[index[trucks]]
            along = self._roads.along(number, world_s[trucks])
            mean_c[trucks], swing_c[trucks] = self._roads.climate(number, along)
        return np.asarray(places.ambient_c(mean_c, swing_c, longitude, world_s) + _LOAD_WARMTH_C * cpu_load)

    def _load(
        self, index: Ints, elapsed_s: Floats, draining: NDArray[np.bool_], generator: np.random.Generator
    ) -> Floats:
        """Busy and idle stretches as a two-state chain; what drains is idle."""
        draw, level = generator.random((2, len(index)))
        busy, share = self._busy[index], self._busy_share[index]
        stretch_s = np.where(busy, _BUSY_STRETCH_S, _IDLE_STRETCH_S * (1.0 - share) / share / 2.0)
        turns = draw < 1.0 - np.exp(-elapsed_s * self._settings.time_scale / stretch_s)
        busy = (busy ^ turns) & ~draining
        self._busy[index] = busy
        return np.asarray(np.where(busy, 0.4 + 0.55 * level, 0.03 + 0.2 * level))

    def _warm(self, index: Ints, at_s: Floats, elapsed_s: Floats, cpu_load: Floats) -> Floats:
        target = self._resting_c(index, at_s, cpu_load)
        hot = self._hot.active(index, at_s)
        target = np.where(hot, self._limits.temperature_c[index] + self._fault_above_c[index], target)
        cooled = at_s < self._cooled_until_s[index]
        target = np.where(cooled, np.minimum(target, self._cool_target_c[index]), target)
        scale, interval_s = self._settings.time_scale, self._settings.interval_s
        inertia_s = np.where(hot | cooled, max(_HEATING_S / scale, interval_s / 2.0), _INERTIA_S / scale)
        temperature = self._temperature[index]
        temperature += (target - temperature) * (1.0 - np.exp(-elapsed_s / inertia_s))
        self._temperature[index] = temperature
        return temperature

    def _discharge(self, index: Ints, elapsed_s: Floats, draining: NDArray[np.bool_]) -> Floats:
        scale = self._settings.time_scale
        battery, busy = self._battery[index], self._busy[index]
        charging = self._charging[index] & ~draining
        per_h = np.where(busy, -_BUSY_DRAIN_PER_H * scale, -self._idle_drain_per_h[index])
        per_h = np.where(draining, -self._fault_drain_per_h[index], per_h)
        per_h = np.where(charging, _CHARGE_PER_H * scale, per_h)
        battery = np.clip(battery + per_h * elapsed_s / 3600.0, 0.0, 100.0)
        charging = np.where(charging, battery < self._unplug_at[index], battery < self._plug_in_at[index])
        self._battery[index] = battery
        self._charging[index] = charging
        return battery

    def _where(self, index: Ints, at_s: Floats) -> list[str]:
        location = [self._location[device] for device in index.tolist()]
        trucks = np.nonzero(self._is_truck[index])[0]
        if len(trucks):
            number = self._truck_number[index[trucks]]
            along = self._roads.along(number, self._world_s(at_s[trucks]))
            latitude, longitude = self._roads.position(number, along)
            for place, north, east in zip(trucks.tolist(), latitude.tolist(), longitude.tolist(), strict=True):
                location[place] = f"{north:.5f},{east:.5f}"
        return location

    def _firmware(self, index: Ints, at_s: Floats) -> list[str]:
        progress = 0.1 + 0.9 * at_s * self._settings.time_scale / ROLLOUT_S
        newer = self._rollout[index] < progress
        return [FIRMWARES[is_newer] for is_newer in newer.tolist()]
