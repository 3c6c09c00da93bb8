"""The reader of the usual layout: that it reads what devices usually send, and leaves alone what it would misread."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_proto import fleet_pb2
from fleet_worker.core import wire

NOW_MS = 1_700_000_000_000


def read(*data: bytes) -> wire.Usual:
    end = np.cumsum([len(record) for record in data])
    start = end - [len(record) for record in data]
    return wire.read(b"".join(data) + wire.PADDING, start, end, with_firmware=True)


def telemetry(**fields: object) -> fleet_pb2.Telemetry:
    return fleet_pb2.Telemetry(**{"device_id": "device-7", "timestamp": NOW_MS, **fields})  # type: ignore[arg-type]


USUAL = [
    telemetry(),
    telemetry(temperature_c=20.5, battery_pct=80.1, cpu_load=-0.3, location="59.9139,10.7522", firmware="2.4.1"),
    telemetry(temperature_c=float("nan"), cpu_load=float("inf")),
    telemetry(battery_pct=1e-300, firmware="1"),
    telemetry(location="x" * 127, firmware="y" * 127, device_id="z" * 127),
    telemetry(device_id="a"),
    telemetry(timestamp=2**35),
    telemetry(timestamp=2**42 - 1),
]


def test_usual_messages_are_read() -> None:
    usual = read(*[message.SerializeToString() for message in USUAL])
    assert usual.fits.tolist() == [True] * len(USUAL)
    assert usual.device_ids == [message.device_id for message in USUAL]
    assert usual.firmware == [message.firmware for message in USUAL]
    assert usual.timestamp_ms.tolist() == [message.timestamp for message in USUAL]
    numbers = np.array([[message.temperature_c, message.battery_pct, message.cpu_load] for message in USUAL]).T
    assert np.array_equal(usual.numbers, numbers, equal_nan=True)


SAMPLE = telemetry(temperature_c=20.5, location="59,10", firmware="1").SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\x01",
        SAMPLE[:-1],
        SAMPLE + b"1",
        SAMPLE + b"\x3a\x00",
        SAMPLE + fleet_pb2.Telemetry(temperature_c=2.0).SerializeToString(),
        SAMPLE + fleet_pb2.Telemetry(control=fleet_pb2.Control()).SerializeToString(),
        SAMPLE + fleet_pb2.Telemetry(origin=fleet_pb2.Origin()).SerializeToString(),
        fleet_pb2.Telemetry(firmware="1").SerializeToString() + SAMPLE,
        telemetry(device_id="").SerializeToString(),
        telemetry(device_id="x" * 128).SerializeToString(),
        telemetry(device_id="é").SerializeToString(),
        telemetry(location="é").SerializeToString(),
        telemetry(firmware="x" * 30 + "é").SerializeToString(),
        telemetry(timestamp=0).SerializeToString(),
        telemetry(timestamp=2**35 - 1).SerializeToString(),
        telemetry(timestamp=2**42).SerializeToString(),
        telemetry(timestamp=-1).SerializeToString(),
        # A time of seven bytes, whose last looks like the tag of a location of 25 bytes, up to the very end.
        b"\x0a\x08device-7\x10\x81\x81\x81\x81\x81\x81\x32\x19@@@@@@@@\x21@@@@@@@@\x32\x0659,10.",
        b'{"device_id":"device-7"}',
    ],
)
def test_anything_else_is_left_alone_and_harms_no_neighbour(data: bytes) -> None:
    usual = read(SAMPLE, data, SAMPLE, data)
    assert usual.fits.tolist() == [True, False, True, False]
    assert usual.device_ids == ["device-7", "", "device-7", ""]
    assert usual.firmware == ["1", "", "1", ""]


def test_a_message_cut_anywhere_stays_within_the_padding() -> None:
    """Cut between two fields it is a shorter message; elsewhere it is none, and the reader looks beyond its end."""
    longest = telemetry(
        device_id="z" * 127, temperature_c=1.0, battery_pct=1.0, cpu_load=1.0, location="x" * 127, firmware="y" * 127
    ).SerializeToString()
    between = {136, 145, 154, 163, 292, len(longest)}
    for length in range(len(longest) + 1):
        assert read(SAMPLE, longest[:length]).fits.tolist() == [True, length in between]
