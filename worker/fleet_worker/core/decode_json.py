"""Telemetry and control records written as JSON, turned into the Telemetry message they stand for.

A whole page, docs/reference/messages.md, says what is read and what is refused. Ranges and lengths aren't judged here:
`decode` does that, for both forms alike.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from fleet_proto import fleet_pb2
from fleet_worker.core import decode_control, records, refusal

DEPTH_MAX = 32
NUMBERS = ("temperature_c", "battery_pct", "cpu_load")
STRINGS = ("location", "firmware")
RULES = {
    "temperature": fleet_pb2.TEMPERATURE,
    "battery": fleet_pb2.BATTERY,
    "offline": fleet_pb2.OFFLINE,
}
INSTRUCTIONS = tuple(str(instruction) for instruction in records.Instruction)
_BLANK = b" \t\r\n"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_STEP = np.zeros(256, dtype=np.int64)
_STEP[list(b"{[")] = 1
_STEP[list(b"}]")] = -1
_IS_BLANK = np.zeros(256, dtype=np.bool_)
_IS_BLANK[list(_BLANK)] = True
_MAY_START = np.zeros(256, dtype=np.bool_)
_MAY_START[list(b"{e \t\r")] = True


def may_be_text(joined: bytes, start: records.Int64s, length: records.Int64s) -> NDArray[np.bool_]:
    """(n,) whether the first bytes allow that `text_of` finds JSON. joined: the records and some padding."""
    byte = np.frombuffer(joined, dtype=np.uint8)
    first, second, third = byte[start], byte[start + 1], byte[start + 2]
    # After a line feed, protobuf has the length of a device id and then the id.
    line = (first == ord("\n")) & (
        (second == ord("{")) | (_IS_BLANK[second] & (_IS_BLANK[third] | (third == ord("{"))))
    )
    may_be: NDArray[np.bool_] = (length > 0) & (_MAY_START[first] | line)
    return may_be


def text_of(record: bytes) -> bytes | None:
    """The JSON text of a record that looks like a JSON object, None when it doesn't.

    Blanks before it are allowed, and so is base64 around it (AWS CLI version 1 stores the base64 it is given). A record
    that starts with a line feed may be protobuf as well, whose first field starts with that byte: it is JSON
    only when it is JSON from the first brace to the end.
    """
    text = record.lstrip(_BLANK)
    first = text[:1]
    if first == b"{":
        return None if record.startswith(b"\n") and not _is_json(text) else text
    if first == b"e" and not record.startswith(b"\n"):
        try:
            decoded = binascii.a2b_base64(b"".join(text.split()), strict_mode=True).lstrip(_BLANK)
        except binascii.Error:
            return None
        return decoded if decoded.startswith(b"{") else None
    return None


def telemetry(text: bytes) -> fleet_pb2.Telemetry:
    """The message a JSON text stands for, with `control` when it is a control record. Raises Refused."""
    _check_depth(text)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _why_not_json(text, error) from error
    if type(document) is not dict:
        raise refusal.Refused(records.Reason.WRONG_TYPE, "not a JSON object")
    if text.count(b":") != len(document):  # as many colons as members: no member is there twice
        _check_members_once(text)
    device_id = document.get("device_id")
    if device_id is None:
        device_id = ""
    if type(device_id) is not str:
        raise refusal.Refused(records.Reason.WRONG_TYPE, "device_id isn't a string")
    refusal.check_device_id(device_id)
    if document.get("control") is not None:
        return fleet_pb2.Telemetry(device_id=device_id, control=_control(document["control"], device_id))
    return fleet_pb2.Telemetry(
        device_id=device_id,
        timestamp=_integer(document, "timestamp", device_id),
        temperature_c=_number(document, "temperature_c", device_id),
        battery_pct=_number(document, "battery_pct", device_id),
        cpu_load=_number(document, "cpu_load", device_id),
        location=_string(document, "location", device_id),
        firmware=_string(document, "firmware", device_id),
    )


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _check_depth(text: bytes) -> None:
    """Before parsing, since a parser's own limit is far higher. Brackets inside strings don't count."""
    if text.count(b"{") + text.count(b"[") <= DEPTH_MAX:
        return
    depths = np.cumsum(_STEP[np.frombuffer(_STRING.sub(b"", text), dtype=np.uint8)])
    if len(depths) and int(depths.max()) > DEPTH_MAX:
        raise refusal.Refused(records.Reason.JSON_TOO_DEEP, f"JSON deeper than {DEPTH_MAX}")


def _check_members_once(text: bytes) -> None:
    """orjson keeps the last of two members of one name; two readers might not agree on that, so it is refused."""

    def once(members: list[tuple[str, Any]]) -> None:
        names = set()
        for name, _ in members:
            if name in names:
                raise refusal.Refused(records.Reason.UNDECODABLE, f"member {name[:100]!r} is there twice")
            names.add(name)

    json.loads(text.decode(), object_pairs_hook=once, parse_int=float)


class _NotFinite(str):
    """NaN, Infinity or -Infinity, as it stood in the text."""


def _why_not_json(text: bytes, error: orjson.JSONDecodeError) -> refusal.Refused:
    """NaN and Infinity aren't JSON and 1e999 isn't a double, but producers write them: they are told apart from what
    can't be read at all, so that the device is heard."""
    undecodable = refusal.Refused(records.Reason.UNDECODABLE, f"not JSON: {error}")
    try:
        document = json.loads(text.decode(), parse_int=float, parse_constant=_NotFinite)
    except ValueError:
        return undecodable
    device_id = document.get("device_id") if type(document) is dict else None
    if type(device_id) is not str:
        return undecodable
    try:
        refusal.check_device_id(device_id)
    except refusal.Refused as refused:
        return refused
    except UnicodeEncodeError:  # half a surrogate pair
        return undecodable
    heard = document.get("control") is None
    for name in (*NUMBERS, "timestamp"):
        value = document.get(name)
        if type(value) is _NotFinite:
            return refusal.Refused(records.Reason.NOT_FINITE, f"{name} is {value}", device_id, heard)
        if type(value) is float and math.isinf(value):
            return refusal.Refused(records.Reason.OUT_OF_RANGE, f"{name} doesn't fit a double", device_id, heard)
    return undecodable


def _number(document: dict[str, Any], name: str, device_id: str) -> float:
    value = document.get(name, 0.0)
    if type(value) is float or type(value) is int:
        return float(value)
    raise refusal.Refused(records.Reason.WRONG_TYPE, f"{name} isn't a number", device_id)


def _integer(document: dict[str, Any], name: str, device_id: str) -> int:
    value = document.get(name)
    if value is None:
        return 0
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise refusal.Refused(records.Reason.WRONG_TYPE, f"{name} isn't a whole number", device_id)
    if not -(2**63) <= value < 2**63:
        raise refusal.Refused(records.Reason.OUT_OF_RANGE, f"{name} doesn't fit 64 bits", device_id)
    return value


def _string(document: dict[str, Any], name: str, device_id: str) -> str:
    value = document.get(name)
    if value is None:
        return ""
    if type(value) is not str:
        raise refusal.Refused(records.Reason.WRONG_TYPE, f"{name} isn't a string", device_id)
    return value


def _control(document: Any, device_id: str) -> fleet_pb2.Control:
    if type(document) is not dict:
        raise decode_control.bad(device_id, "control isn't an object")
    named = [name for name in INSTRUCTIONS if document.get(name) is not None]
    if len(named) != 1:
        raise decode_control.bad(device_id, f"control has {len(named)} instructions, must have one")
    body = document[named[0]]
    if type(body) is not dict:
        raise decode_control.bad(device_id, f"{named[0]} isn't an object")
    try:
        control = fleet_pb2.Control(issued_ms=_integer(document, "issued_ms", device_id))
        if named[0] == records.Instruction.UPDATE_THRESHOLD:
            if "threshold" not in body:
                raise decode_control.bad(device_id, "update_threshold has no threshold")
            control.update_threshold.rule = _rule(body, device_id)
            control.update_threshold.threshold = _number(body, "threshold", device_id)
        elif named[0] == records.Instruction.CLEAR_OVERRIDE:
            control.clear_override.SetInParent()
            control.clear_override.rule = _rule(body, device_id)
        elif named[0] == records.Instruction.ACKNOWLEDGE:
            control.acknowledge.SetInParent()
            control.acknowledge.alert_id = _string(body, "alert_id", device_id)
        else:
            control.forget_device.SetInParent()
    except refusal.Refused as refused:
        raise decode_control.bad(device_id, f"control: {refused.detail}") from refused
    return control


def _rule(body: dict[str, Any], device_id: str) -> fleet_pb2.Rule.ValueType:
    name = body.get("rule")
    if name is None:
        return fleet_pb2.RULE_UNSPECIFIED
    if type(name) is not str or name not in RULES:
        raise decode_control.bad(device_id, f"rule must be one of {', '.join(RULES)}")
    return RULES[name]
