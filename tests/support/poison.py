"""The poison corpus: records that no worker may choke on, with what becomes of each.

Names say what is wrong. Times and numbers are absolute, so the corpus holds for any arrival in this decade.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Callable

from fleet_proto import fleet_pb2
from fleet_worker.core import deaggregate
from fleet_worker.core.records import Kind, Reason

DEVICE_ID = "poisoned-1"
YEAR_2099_MS = 4_070_908_800_000


@dataclasses.dataclass(frozen=True, slots=True)
class Poison:
    """data: the Kinesis record. device_id: of the dead letter, "" when it isn't readable."""

    data: bytes
    reason: Reason
    kind: Kind
    device_id: str = ""


def protobuf(**fields: object) -> bytes:
    """A telemetry of the poisoned device, with some fields changed."""
    return fleet_pb2.Telemetry(**{"device_id": DEVICE_ID, "timestamp": 1_700_000_000_000, **fields}).SerializeToString()  # type: ignore[arg-type]


def text(**members: object) -> bytes:
    """The same as JSON. Python's own writer spells NaN and Infinity as no JSON reader should take them."""
    return json.dumps({"device_id": DEVICE_ID, **members}).encode()


def _heard(data: bytes, reason: Reason) -> Poison:
    return Poison(data, reason, Kind.HEARD, DEVICE_ID)


def _unreadable(data: bytes, reason: Reason) -> Poison:
    return Poison(data, reason, Kind.UNREADABLE)


def _bad_control(data: bytes) -> Poison:
    return Poison(data, Reason.BAD_CONTROL, Kind.UNREADABLE, DEVICE_ID)


def _control(**fields: object) -> bytes:
    return protobuf(control=fleet_pb2.Control(**fields))  # type: ignore[arg-type]


def _control_text(**members: object) -> bytes:
    return text(control=members)


def _origin(**fields: object) -> bytes:
    origin = {"shard_id": "shardId-000000000000", "sequence_number": "1", "hop": 1, **fields}
    return protobuf(origin=fleet_pb2.Origin(**origin))  # type: ignore[arg-type]


def _broken_aggregate(change: Callable[[bytes], bytes]) -> bytes:
    return change(deaggregate.aggregate([("a", protobuf()), ("b", protobuf())]))


def _aggregate_of(body: bytes) -> bytes:
    return deaggregate.MAGIC + body + deaggregate.checksum(body)


LONG = "x" * (2**20 - 256)
"""A megabyte that leaves room for the rest of a message and its key: Kinesis takes a MiB together."""
_DEEP = "[" * 40 + "]" * 40
_MASKED_DEPTH = '{"a":"]]]]]]]]]]","b":' + "[" * 32 + "]" * 32 + "}"

CORPUS: dict[str, Poison] = {
    "truncated protobuf": _unreadable(protobuf(location="59.9,10.7")[:-1], Reason.UNDECODABLE),
    "protobuf of an id only, cut": _unreadable(b"\x0a\x20abc", Reason.UNDECODABLE),
    "random bytes": _unreadable(bytes.fromhex("ffd8ffe000104a46494600010101"), Reason.UNDECODABLE),
    "one byte": _unreadable(b"\xff", Reason.UNDECODABLE),
    "id that isn't UTF-8": _unreadable(b"\x0a\x02\xc3\x28", Reason.UNDECODABLE),
    "location that isn't UTF-8": _unreadable(
        protobuf(location="ab").replace(b"\x32\x02ab", b"\x32\x02\xc3\x28"), Reason.UNDECODABLE
    ),
    "line feed before base64": _unreadable(b"\n" + base64.b64encode(text(cpu_load=0.5)), Reason.UNDECODABLE),
    "text": _unreadable(b"hello", Reason.UNDECODABLE),
    "empty record": _unreadable(b"", Reason.EMPTY_ID),
    "empty id": _unreadable(protobuf(device_id=""), Reason.EMPTY_ID),
    "257-byte id": _unreadable(protobuf(device_id="x" * 257), Reason.ID_TOO_LONG),
    "129 characters, 258 bytes of id": _unreadable(protobuf(device_id="é" * 129), Reason.ID_TOO_LONG),
    "1 MiB id": _unreadable(protobuf(device_id=LONG), Reason.ID_TOO_LONG),
    "1 MiB location": _heard(protobuf(location=LONG), Reason.STRING_TOO_LONG),
    "1 MiB firmware": _heard(protobuf(firmware=LONG), Reason.STRING_TOO_LONG),
    "1025-byte location": _heard(protobuf(location="x" * 1025), Reason.STRING_TOO_LONG),
    "NaN temperature": _heard(protobuf(temperature_c=math.nan), Reason.NOT_FINITE),
    "infinite battery": _heard(protobuf(battery_pct=math.inf), Reason.NOT_FINITE),
    "minus infinite load": _heard(protobuf(cpu_load=-math.inf), Reason.NOT_FINITE),
    "temperature of two billion": _heard(protobuf(temperature_c=2e9), Reason.OUT_OF_RANGE),
    "load of minus two billion": _heard(protobuf(cpu_load=-2e9), Reason.OUT_OF_RANGE),
    "year 2099": _heard(protobuf(timestamp=YEAR_2099_MS), Reason.TIMESTAMP_AHEAD),
    "last millisecond of 64 bits": _heard(protobuf(timestamp=2**63 - 1), Reason.TIMESTAMP_AHEAD),
    "second hop": _heard(_origin(hop=2), Reason.SECOND_HOP),
    "origin without a sequence number": _heard(_origin(sequence_number="abc"), Reason.UNDECODABLE),
    "origin without a shard": _heard(_origin(shard_id=""), Reason.UNDECODABLE),
    # KPL aggregates
    "broken KPL checksum": _unreadable(
        _broken_aggregate(lambda data: data[:-1] + bytes([data[-1] ^ 1])), Reason.KPL_CHECKSUM
    ),
    "broken KPL body": _unreadable(
        _broken_aggregate(lambda data: data[:10] + bytes([data[10] ^ 1]) + data[11:]), Reason.KPL_CHECKSUM
    ),
    "KPL magic alone": _unreadable(deaggregate.MAGIC, Reason.UNDECODABLE),
    "KPL checksum right, body not a message": _unreadable(_aggregate_of(b"\xff\xff"), Reason.UNDECODABLE),
    "KPL aggregate of nothing": _unreadable(_aggregate_of(b""), Reason.UNDECODABLE),
    "aggregate inside an aggregate": _unreadable(
        deaggregate.aggregate([("a", deaggregate.aggregate([("b", protobuf())]))]), Reason.UNDECODABLE
    ),
    # JSON
    "truncated JSON": _unreadable(text(temperature_c=20.0)[:-1], Reason.UNDECODABLE),
    "JSON that isn't UTF-8": _unreadable(b'{"device_id":"\xc3\x28"}', Reason.UNDECODABLE),
    "JSON with half a surrogate pair": _unreadable(b'{"device_id":"\\ud800"}', Reason.UNDECODABLE),
    "JSON with half a surrogate pair and NaN": _unreadable(
        b'{"device_id":"\\ud800","cpu_load":NaN}', Reason.UNDECODABLE
    ),
    "JSON with a member twice": _unreadable(b'{"device_id":"a","device_id":"b"}', Reason.UNDECODABLE),
    "JSON with a member twice, spelt apart": _unreadable(
        b'{"device_id":"a","device\\u005fid":"b"}', Reason.UNDECODABLE
    ),
    "two JSON objects": _unreadable(text() + text(), Reason.UNDECODABLE),
    "deep JSON": _unreadable(b'{"device_id":"a","x":' + _DEEP.encode() + b"}", Reason.JSON_TOO_DEEP),
    "JSON deep enough to break a parser": _unreadable(b'{"x":' + b"[" * 500_000, Reason.JSON_TOO_DEEP),
    "deep JSON behind brackets in a string": _unreadable(_MASKED_DEPTH.encode(), Reason.JSON_TOO_DEEP),
    "JSON without an id": _unreadable(b'{"temperature_c":20.0}', Reason.EMPTY_ID),
    "JSON with an empty id": _unreadable(b'{"device_id":""}', Reason.EMPTY_ID),
    "JSON with a null id": _unreadable(b'{"device_id":null}', Reason.EMPTY_ID),
    "JSON with a number for an id": _unreadable(b'{"device_id":7}', Reason.WRONG_TYPE),
    "JSON with a 257-byte id": _unreadable(b'{"device_id":"' + b"x" * 257 + b'"}', Reason.ID_TOO_LONG),
    "JSON with a string for a number": _heard(text(temperature_c="20"), Reason.WRONG_TYPE),
    "JSON with true for a number": _heard(text(cpu_load=True), Reason.WRONG_TYPE),
    "JSON with null for a number": _heard(text(battery_pct=None), Reason.WRONG_TYPE),
    "JSON with a list for a number": _heard(text(battery_pct=[1]), Reason.WRONG_TYPE),
    "JSON with a number for a string": _heard(text(firmware=2.4), Reason.WRONG_TYPE),
    "JSON with a string for a time": _heard(text(timestamp="1700000000000"), Reason.WRONG_TYPE),
    "JSON with half a millisecond": _heard(text(timestamp=1700000000000.5), Reason.WRONG_TYPE),
    "JSON with true for a time": _heard(text(timestamp=True), Reason.WRONG_TYPE),
    "JSON NaN": _heard(text(temperature_c=math.nan), Reason.NOT_FINITE),
    "JSON -Infinity": _heard(text(cpu_load=-math.inf), Reason.NOT_FINITE),
    "JSON NaN without an id": _unreadable(b'{"device_id":"","cpu_load":NaN}', Reason.EMPTY_ID),
    "JSON NaN where nobody looks": _unreadable(text(other=math.nan), Reason.UNDECODABLE),
    "JSON number beyond a double": _heard(b'{"device_id":"poisoned-1","cpu_load":1e999}', Reason.OUT_OF_RANGE),
    "JSON integer of 30 digits": _heard(text(temperature_c=10**29), Reason.OUT_OF_RANGE),
    "JSON integer of 5000 digits": _heard(
        b'{"device_id":"poisoned-1","battery_pct":' + b"9" * 5000 + b"}", Reason.OUT_OF_RANGE
    ),
    "JSON time of 30 digits": _heard(text(timestamp=10**29), Reason.OUT_OF_RANGE),
    "JSON time of 64 unsigned bits": _heard(text(timestamp=2**63), Reason.OUT_OF_RANGE),
    "JSON year 2099": _heard(text(timestamp=YEAR_2099_MS), Reason.TIMESTAMP_AHEAD),
    "JSON 1 MiB location": _heard(text(location=LONG), Reason.STRING_TOO_LONG),
    "base64 of truncated JSON": _unreadable(base64.b64encode(text(cpu_load=0.5)[:-1]), Reason.UNDECODABLE),
    "base64 of JSON NaN": _heard(base64.b64encode(text(cpu_load=math.nan)) + b"\n", Reason.NOT_FINITE),
    # control records
    "control without an instruction": _bad_control(_control(issued_ms=1)),
    "control with a NaN threshold": _bad_control(
        _control(update_threshold=fleet_pb2.UpdateThreshold(threshold=math.nan))
    ),
    "control with a threshold of two billion": _bad_control(
        _control(update_threshold=fleet_pb2.UpdateThreshold(threshold=2e9))
    ),
    "control with an offline threshold of 0": _bad_control(
        _control(update_threshold=fleet_pb2.UpdateThreshold(rule=fleet_pb2.OFFLINE))
    ),
    "control with a negative battery threshold": _bad_control(
        _control(update_threshold=fleet_pb2.UpdateThreshold(rule=fleet_pb2.BATTERY, threshold=-1.0))
    ),
    "control with an unknown rule": _bad_control(
        _control(clear_override=fleet_pb2.ClearOverride(rule=9))  # type: ignore[arg-type]
    ),
    "control with a short alert id": _bad_control(_control(acknowledge=fleet_pb2.Acknowledge(alert_id="12ab"))),
    "control issued in 2099": _bad_control(_control(issued_ms=YEAR_2099_MS, forget_device=fleet_pb2.ForgetDevice())),
    "control without an id": _unreadable(
        protobuf(device_id="", control=fleet_pb2.Control(forget_device=fleet_pb2.ForgetDevice())), Reason.EMPTY_ID
    ),
    "control put again twice": Poison(
        protobuf(control=fleet_pb2.Control(forget_device=fleet_pb2.ForgetDevice()), origin=fleet_pb2.Origin(hop=2)),
        Reason.SECOND_HOP,
        Kind.UNREADABLE,
        DEVICE_ID,
    ),
    "JSON control that is a list": _bad_control(text(control=[])),
    "JSON control of nothing": _bad_control(_control_text()),
    "JSON control with two instructions": _bad_control(_control_text(forget_device={}, clear_override={})),
    "JSON control with a string for an instruction": _bad_control(_control_text(forget_device="yes")),
    "JSON control without a threshold": _bad_control(_control_text(update_threshold={"rule": "battery"})),
    "JSON control with a string for a threshold": _bad_control(_control_text(update_threshold={"threshold": "65"})),
    "JSON control with an unknown rule": _bad_control(_control_text(clear_override={"rule": "humidity"})),
    "JSON control with a number for a rule": _bad_control(_control_text(clear_override={"rule": 1})),
    "JSON control without an alert id": _bad_control(_control_text(acknowledge={})),
    "JSON control with a string for its time": _bad_control(_control_text(issued_ms="1", forget_device={})),
}
