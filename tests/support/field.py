"""Devices in the field for runs in real time: what they and their operator put on a telemetry stream, drawn by a seed.

Device time may run quicker than real time, so that an hour's battery curve fits into seconds. Nothing here knows what
should come of it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from fleet_proto import fleet_pb2
from tests.reference import raw
from tests.reference.words import BATTERY, EVERY_RULE, OFFLINE, TEMPERATURE, Control
from tests.support import poison

HOUR_MS = 3_600_000
NAMES = ("truck-{}", "drone-{}", "freezer-{}", "zähler-{}", "depot {}/a")
FIRMWARES = ("", "1.0", "2.0")
POISON_BYTES_MAX = 4_000
Put = tuple[str, bytes]
"""A partition key and a record."""


@dataclasses.dataclass(slots=True)
class Device:
    """What a device is up to. device_ms: its own clock at its last sample. quick: that clock runs ahead of real time, out of the
    past. quiet_from: the tick from which it says nothing any more. strays: how often it uses another partition key, in %."""

    device_id: str
    device_ms: int
    quick: bool
    speaks_percent: int
    quiet_from: int
    strays: int
    json: bool
    firmware: str
    hot: bool = False
    battery: float = 90.0
    idle: bool = True
    said: bytes = b""


class Field:
    """`tick` tells what comes at each tick; at most one record a device and call, as a producer does that keeps order."""

    def __init__(self, dice: random.Random, devices: int, ticks: int, now_ms: int) -> None:
        self._dice = dice
        self._ticks = ticks
        self.devices = [self._device(number, now_ms) for number in range(devices)]

    def first(self, now_ms: int) -> list[Put]:
        """Everyone once, then instructions that make some go offline within seconds."""
        return [self._spoken(device, now_ms) for device in self.devices]

    def overrides(self, now_ms: int) -> list[Put]:
        """A limit of one to four seconds for the offline rule, since no fleet may have less than ten."""
        chosen = [device for device in self.devices if self._chance(40)]
        return [
            self._instructed(device, Control("update_threshold", now_ms, OFFLINE, self._dice.choice((1, 1.5, 2, 4))))
            for device in chosen
        ]

    def tick(self, number: int, now_ms: int, alert_ids: Sequence[tuple[str, str]]) -> list[Put]:
        """alert_ids: (device id, alert id) of alerts seen of late."""
        puts = [
            self._said(device, now_ms)
            for device in self.devices
            if number < device.quiet_from and self._chance(device.speaks_percent)
        ]
        if self._chance(35):
            puts.append(self._operator(now_ms, alert_ids))
        if self._chance(15):
            puts.append(self._poison())
        if self._chance(10):
            puts.append(self._aggregate(now_ms))
        return puts

    def last(self, now_ms: int) -> list[Put]:
        """Those that fell quiet are back, some of them."""
        return [self._spoken(device, now_ms) for device in self.devices if self._chance(40)]

    def _chance(self, percent: int) -> bool:
        return self._dice.randrange(100) < percent

    def _device(self, number: int, now_ms: int) -> Device:
        dice = self._dice
        quick = self._chance(50)
        offset_ms = dice.choice((-HOUR_MS, HOUR_MS, 250_000)) if self._chance(15) else 0
        return Device(
            device_id=dice.choice(NAMES).format(number),
            device_ms=now_ms - 3 * HOUR_MS if quick else now_ms + offset_ms,
            quick=quick,
            speaks_percent=dice.choice((5, 20, 40, 60)),
            quiet_from=dice.randrange(self._ticks // 4, 2 * self._ticks),
            strays=20 if self._chance(25) else 0,
            json=self._chance(25),
            firmware=dice.choice(FIRMWARES),
        )

    # One device

    def _said(self, device: Device, now_ms: int) -> Put:
        if device.said and self._chance(6):
            return device.device_id, device.said  # the same again
        if self._chance(4):
            late = self._telemetry(device)
            late.timestamp = device.device_ms - self._dice.choice((1, 60_000, HOUR_MS))
            return device.device_id, late.SerializeToString()
        return self._spoken(device, now_ms)

    def _spoken(self, device: Device, now_ms: int) -> Put:
        dice = self._dice
        if device.quick:
            device.device_ms += dice.choice((10_000, 20_000, 30_000, 30_000, 400_000 if self._chance(10) else 15_000))
        else:
            device.device_ms = max(device.device_ms + 1, now_ms if self._chance(90) else device.device_ms)
        if self._chance(12):
            device.hot = not device.hot
        if self._chance(10):
            device.idle = not device.idle
        device.battery -= dice.choice((0.0, 0.05, 0.4, 1.0)) if device.idle else dice.choice((0.1, -1.0))
        if not 1 <= device.battery <= 100:
            device.battery = 90.0
        if self._chance(3):
            device.firmware = dice.choice(FIRMWARES)
        message = self._telemetry(device)
        if self._chance(4):
            message.timestamp = dice.choice((0, now_ms + 2 * HOUR_MS))  # missing; skewed
        device.said = raw.as_json(message) if device.json else message.SerializeToString()
        if self._chance(device.strays):
            return dice.choice(("gateway-1", "gateway-2", "gateway-3", "gateway-4")), device.said
        return device.device_id, device.said

    def _telemetry(self, device: Device) -> fleet_pb2.Telemetry:
        dice = self._dice
        temperature = dice.choice((61.0, 75.0, 90.5)) if device.hot else dice.choice((20.0, 57.0, 59.9))
        return fleet_pb2.Telemetry(
            device_id=device.device_id,
            timestamp=device.device_ms,
            temperature_c=temperature + dice.randrange(100) / 1000,
            battery_pct=device.battery,
            cpu_load=0.1 if device.idle else 0.8,
            location="52.5,13.4" if self._chance(20) else "",
            firmware=device.firmware,
        )

    # Others

    def _operator(self, now_ms: int, alert_ids: Sequence[tuple[str, str]]) -> Put:
        dice = self._dice
        device = dice.choice(self.devices)
        issued_ms = dice.choice((0, now_ms, now_ms, now_ms - 1_000))
        kind = dice.randrange(100)
        if kind < 35 and alert_ids:
            device_id, alert_id = dice.choice(alert_ids)
            (device,) = [entry for entry in self.devices if entry.device_id == device_id] or [device]
            return self._instructed(device, Control("acknowledge", issued_ms, alert_id=alert_id))
        if kind < 75:
            rule, threshold = dice.choice(
                (
                    (OFFLINE, 1.0),
                    (OFFLINE, 2.5),
                    (OFFLINE, 3.0),
                    (TEMPERATURE, 40.0),
                    (TEMPERATURE, 80.0),
                    (BATTERY, 5.0),
                )
            )
            return self._instructed(device, Control("update_threshold", issued_ms, rule, threshold))
        if kind < 90:
            return self._instructed(
                device, Control("clear_override", issued_ms, dice.choice((EVERY_RULE, 0, 1, OFFLINE)))
            )
        return self._instructed(device, Control("forget_device", issued_ms))

    def _instructed(self, device: Device, control: Control) -> Put:
        message = raw.control_message(device.device_id, control)
        data = raw.as_json(message) if self._chance(20) else message.SerializeToString()
        return ("gateway-1" if self._chance(device.strays) else device.device_id), data

    def _poison(self) -> Put:
        corpus = [entry for entry in poison.CORPUS.values() if len(entry.data) <= POISON_BYTES_MAX]
        return self._dice.choice(self.devices).device_id, self._dice.choice(corpus).data

    def _aggregate(self, now_ms: int) -> Put:
        """As a gateway sends it: records of several devices under one key, so most of them are misrouted."""
        devices = self._dice.sample(self.devices, min(4, len(self.devices)))
        members = [self._spoken(device, now_ms) for device in devices]
        return members[0][0], raw.aggregated(members)
