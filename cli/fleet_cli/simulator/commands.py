"""Reads a fleet's DeviceCommands, so that simulated devices do what they are told."""

from __future__ import annotations

import dataclasses
import json

import orjson
from google.protobuf import message as protobuf

from fleet_proto import fleet_pb2


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """target_c: from the parameters, None when they have none."""

    device_id: str
    command: str
    target_c: float | None


def read(data: bytes) -> Command | None:
    """A DeviceCommand as protobuf or JSON. None: it is neither (someone else's record on the stream)."""
    try:
        if data[:1] == b"{":
            told = orjson.loads(data)
            device_id, command, parameters = told["device_id"], told["command"], told.get("parameters") or "{}"
        else:
            message = fleet_pb2.DeviceCommand.FromString(data)
            device_id, command, parameters = message.device_id, message.command, message.parameters or "{}"
        target_c = json.loads(parameters).get("target_c") if isinstance(parameters, str) else parameters.get("target_c")
        return Command(device_id, command, None if target_c is None else float(target_c))
    except (protobuf.DecodeError, ValueError, KeyError, TypeError, AttributeError):
        return None
