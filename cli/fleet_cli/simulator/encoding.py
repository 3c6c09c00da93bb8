"""How devices say what they measured: protobuf Telemetry, or JSON, and what broken ones send instead. Pure.

A record is (partition key, data). The key is the device's id, also of records that nobody can read, as a real
producer would do it.
"""

from __future__ import annotations

import math

import numpy as np
import orjson

from fleet_cli.simulator import devices
from fleet_proto import fleet_pb2

Record = tuple[str, bytes]

POISON_SHARE = 0.2
"""Of a poisonous device's samples."""
DUPLICATE_SHARE = 0.3
"""Of a repeating device's samples."""
_YEAR_2099_MS = 4_070_908_800_000


def records(
    fleet: devices.Fleet, samples: devices.Samples, start_ms: int, generator: np.random.Generator
) -> list[Record]:
    """The samples' records in order of time. start_ms: the wall clock at the schedule's second 0."""
    index = samples.index
    timestamps = start_ms + (samples.at_s * 1000.0).astype(np.int64) + fleet.clock_offset_ms[index]
    rows = zip(
        [fleet.ids[device] for device in index.tolist()],
        timestamps.tolist(),
        samples.temperature_c.tolist(),
        samples.battery_pct.tolist(),
        samples.cpu_load.tolist(),
        samples.location,
        samples.firmware,
        strict=True,
    )
    telemetry = fleet_pb2.Telemetry
    made: list[Record] = [
        (
            device_id,
            telemetry(
                device_id=device_id,
                timestamp=timestamp,
                temperature_c=temperature,
                battery_pct=battery,
                cpu_load=cpu_load,
                location=location,
                firmware=firmware,
            ).SerializeToString(),
        )
        for device_id, timestamp, temperature, battery, cpu_load, location, firmware in rows
    ]
    draw = generator.random((3, len(made)))
    for place in np.nonzero(fleet.speaks_json[index])[0].tolist():
        made[place] = (made[place][0], as_json(made[place][1], newline=bool(index[place] % 2)))
    for place in np.nonzero(fleet.poisons[index] & (draw[0] < POISON_SHARE))[0].tolist():
        made[place] = (made[place][0], poison(made[place], int(draw[1, place] * POISONS)))
    twice = fleet.duplicates[index] & (draw[2] < DUPLICATE_SHARE)
    if not twice.any():
        return made
    return [record for place, record in enumerate(made) for _ in range(2 if twice[place] else 1)]


def as_json(data: bytes, newline: bool) -> bytes:
    """The same Telemetry as a JSON object, as a shell's `echo '{…}'` would send it when newline is set."""
    message = fleet_pb2.Telemetry.FromString(data)
    return orjson.dumps(
        {
            "device_id": message.device_id,
            "timestamp": message.timestamp,
            "temperature_c": message.temperature_c,
            "battery_pct": message.battery_pct,
            "cpu_load": message.cpu_load,
            "location": message.location,
            "firmware": message.firmware,
        },
        option=orjson.OPT_APPEND_NEWLINE if newline else None,
    )


POISONS = 8


def poison(record: Record, number: int) -> bytes:
    """Number 0 to POISONS - 1: one record nobody can use, of each sort that is seen in the wild."""
    device_id, data = record
    if number == 0:  # cut off in transit
        return data[: max(1, len(data) // 2)]
    if number == 1:
        return b"{" + b'"a":{' * 64 + b"}" * 65
    if number == 2:
        return orjson.dumps({"device_id": device_id, "temperature_c": "warm"})
    if number == 3:
        return b'{"device_id": "' + device_id.encode()
    message = fleet_pb2.Telemetry(device_id=device_id, timestamp=1, temperature_c=20.0, battery_pct=50.0)
    if number == 4:
        message.temperature_c = math.nan
    elif number == 5:
        message.battery_pct = math.inf
    elif number == 6:
        message.device_id = ""
    else:
        message.timestamp = _YEAR_2099_MS
    return message.SerializeToString()
