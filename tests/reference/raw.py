"""Raw stream records read for the reference, by plain parsing of its own: protobuf by google.protobuf, JSON by the standard
library, aggregated records by hand. And the way back, events written as records, for histories.

Poison is told by its reason: HEARD where the device's id is readable and the device itself sent it, else UNREADABLE. What
depends on the shard's arrivals (a clock too far ahead) is the model's to decide.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import message

from fleet_proto import fleet_pb2, kpl_pb2
from tests.reference.words import EVERY_RULE, TEMPERATURE, Control, Event, Kind, Origin

KPL_MAGIC = bytes.fromhex("f3899ac2")
DEPTH_MAX = 32
RULE_NAMES = ("temperature", "battery", "offline")
NUMBERS = ("temperature_c", "battery_pct", "cpu_load")


@dataclasses.dataclass(frozen=True, slots=True)
class RawRecord:
    """A Kinesis record as GetRecords gives it, base64 taken off."""

    sequence_number: str
    arrival_ms: int
    data: bytes


class Poison(Exception):
    def __init__(self, reason: str, device_id: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.device_id = device_id


def events_of(records: Iterable[RawRecord]) -> list[Event]:
    """Every user record of a shard's records, in order."""
    events = []
    for record in records:
        try:
            members = _members(record.data)
        except Poison as poison:
            events.append(_refused(record, 0, poison))
            continue
        for subsequence_number, data in enumerate(members):
            try:
                events.append(_event(record, subsequence_number, data))
            except Poison as poison:
                events.append(_refused(record, subsequence_number, poison))
    return events


def _refused(record: RawRecord, subsequence_number: int, poison: Poison) -> Event:
    return Event(
        kind=Kind.HEARD if poison.device_id else Kind.UNREADABLE,
        device_id=poison.device_id,
        arrival_ms=record.arrival_ms,
        sequence_number=record.sequence_number,
        subsequence_number=subsequence_number,
        reason=poison.reason,
    )


def _members(data: bytes) -> list[bytes]:
    if not data.startswith(KPL_MAGIC):
        return [data]
    body, checksum = data[4:-16], data[-16:]
    if len(data) < 20:
        raise Poison("undecodable")
    if hashlib.md5(body).digest() != checksum:
        raise Poison("kpl_checksum")
    try:
        members = [member.data for member in kpl_pb2.AggregatedRecord.FromString(body).records]
    except message.DecodeError:
        raise Poison("undecodable") from None
    if not members:
        raise Poison("undecodable")
    return members


def _event(record: RawRecord, subsequence_number: int, data: bytes) -> Event:
    telemetry = _from_json(data) if _looks_like_json(data) else None
    if telemetry is None:
        try:
            telemetry = fleet_pb2.Telemetry.FromString(data)
        except message.DecodeError:
            raise Poison("undecodable") from None
    else:
        data = telemetry.SerializeToString()
    _check_id(telemetry.device_id)
    control = _control(telemetry) if telemetry.HasField("control") else None
    device_id = "" if control else telemetry.device_id
    origin = None
    if telemetry.HasField("origin"):
        first = telemetry.origin
        if first.hop > 1:
            raise Poison("second_hop", device_id)
        if re.fullmatch("[0-9]{1,56}", first.sequence_number) is None or not 1 <= len(first.shard_id) <= 128:
            raise Poison("undecodable", device_id)
        origin = Origin(first.shard_id, first.sequence_number, first.subsequence_number, first.arrival_ms, first.hop)
        telemetry.ClearField("origin")
        data = telemetry.SerializeToString()  # what a twin keeps is what the device sent
    if control is None:
        _check_sample(telemetry)
    return Event(
        kind=Kind.CONTROL if control else Kind.TELEMETRY,
        device_id=telemetry.device_id,
        arrival_ms=record.arrival_ms,
        sequence_number=record.sequence_number,
        subsequence_number=subsequence_number,
        timestamp_ms=0 if control else telemetry.timestamp,
        temperature_c=0.0 if control else telemetry.temperature_c,
        battery_pct=0.0 if control else telemetry.battery_pct,
        cpu_load=0.0 if control else telemetry.cpu_load,
        firmware="" if control else telemetry.firmware,
        telemetry=b"" if control else data,
        control=control,
        origin=origin,
    )


def _check_id(device_id: str) -> None:
    if not device_id:
        raise Poison("empty_id")
    if len(device_id.encode()) > 256:
        raise Poison("id_too_long")


def _check_sample(telemetry: fleet_pb2.Telemetry) -> None:
    for name in NUMBERS:
        value = getattr(telemetry, name)
        if not math.isfinite(value):
            raise Poison("not_finite", telemetry.device_id)
        if abs(value) > 1e9:
            raise Poison("out_of_range", telemetry.device_id)
    for text in (telemetry.location, telemetry.firmware):
        if len(text.encode()) > 1024:
            raise Poison("string_too_long", telemetry.device_id)


def _control(telemetry: fleet_pb2.Telemetry) -> Control:
    control = telemetry.control
    instruction = control.WhichOneof("instruction")
    bad = Poison("bad_control")
    if instruction is None:
        raise bad
    rule, threshold, alert_id = TEMPERATURE, 0.0, ""
    if instruction == "update_threshold":
        rule = control.update_threshold.rule - 1 if control.update_threshold.rule else TEMPERATURE
        threshold = control.update_threshold.threshold
        if not math.isfinite(threshold) or abs(threshold) > 1e9 or (rule != TEMPERATURE and threshold <= 0):
            raise bad
    elif instruction == "clear_override":
        rule = control.clear_override.rule - 1 if control.clear_override.rule else EVERY_RULE
    elif instruction == "acknowledge":
        alert_id = control.acknowledge.alert_id.lower()
        if len(alert_id) != 32 or set(alert_id) - set("0123456789abcdef"):
            raise bad
    if rule not in (EVERY_RULE, 0, 1, 2):
        raise bad
    return Control(instruction, control.issued_ms, rule, threshold, alert_id)


# JSON


def _looks_like_json(data: bytes) -> bool:
    text = data.lstrip(b" \t\r\n")
    if text.startswith(b"{"):
        return not data.startswith(b"\n") or _is_json(text)  # a line feed is also protobuf's tag of device_id
    return text.startswith(b"e") and not data.startswith(b"\n") and _unwrapped(text) is not None


def _unwrapped(text: bytes) -> bytes | None:
    """The AWS CLI's version 1 stores the base64 that it is given."""
    try:
        inner = base64.b64decode(b"".join(text.split()), validate=True).lstrip(b" \t\r\n")
    except (binascii.Error, ValueError):
        return None
    return inner if inner.startswith(b"{") else None


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text.decode())
    except ValueError:
        return False
    return True


def _once(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in members}) != len(members):
        raise ValueError("a member is there twice")
    return dict(members)


def _from_json(data: bytes) -> fleet_pb2.Telemetry:
    text = data.lstrip(b" \t\r\n")
    text = text if text.startswith(b"{") else _unwrapped(text) or b""
    if _depth(text) > DEPTH_MAX:
        raise Poison("json_too_deep")
    try:
        no_json: list[str] = []  # NaN and Infinity, which many producers write: understood only where a number is meant

        def constant(name: str) -> float:
            no_json.append(name)
            return float(name)

        document = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=constant)
        if len(no_json) > sum(isinstance(document.get(name), float) for name in NUMBERS):
            raise ValueError("NaN or Infinity elsewhere")
        json.dumps(document, ensure_ascii=False).encode()  # half surrogate pairs are no text
    except ValueError:
        raise Poison("undecodable") from None
    device_id = "" if document.get("device_id") is None else document["device_id"]
    if not isinstance(device_id, str):
        raise Poison("wrong_type")
    _check_id(device_id)
    if document.get("control") is not None:
        try:
            return fleet_pb2.Telemetry(device_id=device_id, control=_json_control(document["control"]))
        except (ValueError, TypeError, AttributeError, KeyError):
            raise Poison("bad_control") from None
    telemetry = fleet_pb2.Telemetry(device_id=device_id)
    for name in NUMBERS:
        value = document.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Poison("wrong_type", telemetry.device_id)
        setattr(telemetry, name, float(value))
    stamp = document.get("timestamp") or 0
    if isinstance(stamp, float) and stamp.is_integer():
        stamp = int(stamp)
    if document.get("timestamp") is False or not isinstance(stamp, int) or isinstance(stamp, bool):
        raise Poison("wrong_type", telemetry.device_id)
    if abs(stamp) >= 2**63:
        raise Poison("out_of_range", telemetry.device_id)
    telemetry.timestamp = stamp
    for name in ("location", "firmware"):
        value = document.get(name)
        if value is not None and not isinstance(value, str):
            raise Poison("wrong_type", telemetry.device_id)
        setattr(telemetry, name, value or "")
    return telemetry


def _depth(text: bytes) -> int:
    """How deep brackets nest, those inside strings not counted."""
    deepest = depth = 0
    in_string = escaped = False
    for byte in text:
        if in_string:
            in_string = escaped or byte != ord('"')
            escaped = not escaped and byte == ord("\\")
        elif byte == ord('"'):
            in_string = True
        elif byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest


def _json_control(document: dict[str, Any]) -> fleet_pb2.Control:
    """{"issued_ms": …, one of "update_threshold", "clear_override", "acknowledge", "forget_device": {…}}"""
    control = fleet_pb2.Control(issued_ms=document.get("issued_ms") or 0)
    names = ("update_threshold", "clear_override", "acknowledge", "forget_device")
    (name,) = (name for name in names if document.get(name) is not None)
    body = document[name]
    target = getattr(control, name)
    target.SetInParent()
    if name in ("update_threshold", "clear_override") and body.get("rule") is not None:
        target.rule = RULE_NAMES.index(body["rule"]) + 1
    if name == "update_threshold":
        target.threshold = body["threshold"]
    if name == "acknowledge":
        target.alert_id = body.get("alert_id") or ""
    if not isinstance(body, dict):
        raise TypeError
    return control


# The way back


def control_message(device_id: str, control: Control) -> fleet_pb2.Telemetry:
    telemetry = fleet_pb2.Telemetry(device_id=device_id)
    telemetry.control.issued_ms = control.issued_ms
    target = getattr(telemetry.control, control.instruction)
    target.SetInParent()
    if control.instruction in ("update_threshold", "clear_override"):
        target.rule = control.rule + 1
    if control.instruction == "update_threshold":
        target.threshold = control.threshold
    if control.instruction == "acknowledge":
        target.alert_id = control.alert_id
    return telemetry


def as_json(telemetry: fleet_pb2.Telemetry) -> bytes:
    """The JSON form of a Telemetry message, as a device without protobuf sends it, with the newline of a shell's echo."""
    document: dict[str, Any] = {"device_id": telemetry.device_id}
    if telemetry.HasField("control"):
        control = telemetry.control
        name = str(control.WhichOneof("instruction"))
        body: dict[str, Any] = {}
        sent = getattr(control, name)
        if name in ("update_threshold", "clear_override") and sent.rule:
            body["rule"] = RULE_NAMES[sent.rule - 1]
        if name == "update_threshold":
            body["threshold"] = sent.threshold
        if name == "acknowledge":
            body["alert_id"] = sent.alert_id
        document["control"] = {"issued_ms": control.issued_ms, name: body}
    else:
        for name in ("timestamp", *NUMBERS, "location", "firmware"):
            value = getattr(telemetry, name)
            if value:
                document[name] = value
    return json.dumps(document).encode() + b"\n"


def aggregated(members: Sequence[tuple[str, bytes]]) -> bytes:
    """One Kinesis record of (partition key, data) pairs, as the Kinesis Producer Library packs them."""
    body = kpl_pb2.AggregatedRecord(
        partition_key_table=[key for key, _ in members],
        records=[kpl_pb2.Record(partition_key_index=index, data=data) for index, (_, data) in enumerate(members)],
    ).SerializeToString()
    return KPL_MAGIC + body + hashlib.md5(body).digest()
