"""Writes effects: an alert's, a command's and a repeated record's message, encoded as its stream wants it.

An effect's content depends on its input only; nothing here knows what time it is.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import orjson

from fleet_model import partition, rules, spec
from fleet_proto import fleet_pb2
from fleet_worker.core import effects, records

FIRING, RESOLVED = "firing", "resolved"


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """What an alert is about. time_ms: the effect's own time. last: the Telemetry it shows. position: of the causing
    record. repeat: firings before this one in the episode."""

    device_id: str
    time_ms: int
    last: fleet_pb2.Telemetry
    position: partition.Position
    generation: int
    repeat: int


@dataclasses.dataclass(frozen=True, slots=True)
class Emitter:
    """Builds effects of one partition."""

    identity: partition.PartitionIdentity
    alert_format: spec.Format
    command_format: spec.Format

    @property
    def fleet(self) -> str:
        return f"{self.identity.namespace}/{self.identity.fleet}"

    def alert(self, cause: Cause, rule: int, state: str, severity: str, explanation: str) -> effects.Effect:
        trigger = rules.TRIGGERS[rule]
        alert_id = effects.effect_id(
            self.identity, cause.device_id, "alert", trigger, state, cause.position, cause.repeat
        )
        message = fleet_pb2.DeviceAlert(
            device_id=cause.device_id,
            trigger=trigger,
            severity=severity,
            explanation=explanation,
            last=cause.last,
            timestamp=cause.time_ms,
            alert_id=alert_id,
            state=fleet_pb2.RESOLVED if state == RESOLVED else fleet_pb2.FIRING,
            fleet=self.fleet,
            generation=cause.generation,
            shard_id=self.identity.shard_id,
            sequence_number=cause.position.sequence_number,
            subsequence_number=cause.position.subsequence_number,
        )
        data = message.SerializeToString() if self.alert_format is spec.Format.PROTOBUF else _alert_json(message, state)
        return effects.Effect(effects.Target.ALERTS, alert_id, trigger, cause.device_id, cause.time_ms, data)

    def command(self, cause: Cause, rule: int, command: str, parameters: str) -> effects.Effect:
        trigger = rules.TRIGGERS[rule]
        command_id = effects.effect_id(
            self.identity, cause.device_id, "command", trigger, FIRING, cause.position, cause.repeat
        )
        message = fleet_pb2.DeviceCommand(
            device_id=cause.device_id,
            command=command,
            parameters=parameters,
            timestamp=cause.time_ms,
            command_id=command_id,
            fleet=self.fleet,
            generation=cause.generation,
        )
        data = message.SerializeToString() if self.command_format is spec.Format.PROTOBUF else _json(message)
        return effects.Effect(effects.Target.COMMANDS, command_id, trigger, cause.device_id, cause.time_ms, data)

    def put_again(self, columns: records.Columns, at: int) -> effects.Effect:
        """The misrouted record at this index, as protobuf with its origin, hop 1."""
        device_id = columns.device_ids[at]
        position = partition.Position(records.sequence_string(columns.sequence[at]), int(columns.subsequence[at]))
        message = fleet_pb2.Telemetry.FromString(columns.payload[at])
        control = columns.controls.get(at)
        if control is not None:
            message.device_id = device_id
            message.control.CopyFrom(_control_message(control))
        message.origin.shard_id = self.identity.shard_id
        message.origin.sequence_number = position.sequence_number
        message.origin.subsequence_number = position.subsequence_number
        message.origin.arrival_ms = int(columns.arrival_ms[at])
        message.origin.hop = 1
        effect_id = effects.effect_id(self.identity, device_id, "telemetry", "misrouted", FIRING, position, 0)
        return effects.Effect(
            effects.Target.TELEMETRY,
            effect_id,
            "misrouted",
            device_id,
            int(columns.arrival_ms[at]),
            message.SerializeToString(),
        )


def row_telemetry(device_id: str, row: np.void) -> fleet_pb2.Telemetry:
    """The last sample as the twin's row tells it: its numbers by their shortest 7-digit decimals."""
    if not row["samples"]:
        return fleet_pb2.Telemetry(device_id=device_id)
    temperature_c, battery_pct, cpu_load = (float(f"{value:.7g}") for value in row["last"].tolist())
    return fleet_pb2.Telemetry(
        device_id=device_id,
        timestamp=int(row["last_timestamp_ms"]),
        temperature_c=temperature_c,
        battery_pct=battery_pct,
        cpu_load=cpu_load,
    )


def row_position(row: np.void) -> partition.Position:
    """Of the last record heard."""
    return partition.Position(records.sequence_string(row["sequence"]), int(row["subsequence"]))


_CONTROL_RULES = (fleet_pb2.TEMPERATURE, fleet_pb2.BATTERY, fleet_pb2.OFFLINE)


def _control_message(control: records.Control) -> fleet_pb2.Control:
    message = fleet_pb2.Control(issued_ms=control.issued_ms)
    rule = _CONTROL_RULES[control.rule] if control.rule >= 0 else fleet_pb2.RULE_UNSPECIFIED
    match control.instruction:
        case records.Instruction.UPDATE_THRESHOLD:
            message.update_threshold.rule = rule
            message.update_threshold.threshold = control.threshold
        case records.Instruction.CLEAR_OVERRIDE:
            message.clear_override.SetInParent()
            message.clear_override.rule = rule
        case records.Instruction.ACKNOWLEDGE:
            message.acknowledge.alert_id = control.alert_id
        case records.Instruction.FORGET_DEVICE:
            message.forget_device.SetInParent()
    return message


def _fields(message: fleet_pb2.DeviceAlert | fleet_pb2.DeviceCommand | fleet_pb2.Telemetry) -> dict[str, object]:
    """Set fields by their proto names; int64 as numbers, which every JSON consumer of milliseconds can hold."""
    return {field.name: value for field, value in message.ListFields()}


def _json(message: fleet_pb2.DeviceCommand) -> bytes:
    return orjson.dumps(_fields(message))


def _alert_json(message: fleet_pb2.DeviceAlert, state: str) -> bytes:
    return orjson.dumps(_fields(message) | {"last": _fields(message.last), "state": state})
