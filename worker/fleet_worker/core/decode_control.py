"""Control records and origins: the fields numbered from 100 of a Telemetry message, checked.

Whoever sends a control record isn't the device, so a refused one doesn't count as hearing from the device.
"""

from __future__ import annotations

import math
import re

from fleet_model import rules
from fleet_proto import fleet_pb2
from fleet_worker.core import records, refusal

EVERY_RULE = -1
HOP_MAX = 1
SHARD_ID_CHARACTERS_MAX = 128
_ALERT_ID = re.compile(r"[0-9a-f]{32}")
_SEQUENCE_NUMBER = re.compile(r"[0-9]{1,56}")


def instruction(telemetry: fleet_pb2.Telemetry, arrival_ms: int) -> records.Control:
    """The instruction of a message that has `control`. arrival_ms: the issue time of one without a usable one.

    Raises Refused (BAD_CONTROL) when it isn't exactly one well-formed instruction.
    """
    control = telemetry.control
    which = control.WhichOneof("instruction")
    issued_ms = _issued_ms(telemetry, arrival_ms)
    if which == "update_threshold":
        return _update_threshold(telemetry, issued_ms)
    if which == "clear_override":
        rule = _rule(telemetry, control.clear_override.rule, EVERY_RULE)
        return records.Control(records.Instruction.CLEAR_OVERRIDE, issued_ms, rule=rule)
    if which == "acknowledge":
        alert_id = control.acknowledge.alert_id.lower()
        if _ALERT_ID.fullmatch(alert_id) is None:
            raise bad(telemetry.device_id, "acknowledge.alert_id isn't 32 hexadecimal digits")
        return records.Control(records.Instruction.ACKNOWLEDGE, issued_ms, alert_id=alert_id)
    if which == "forget_device":
        return records.Control(records.Instruction.FORGET_DEVICE, issued_ms)
    raise bad(telemetry.device_id, "control has no instruction")


def origin(telemetry: fleet_pb2.Telemetry, arrival_ms: int) -> records.Origin:
    """The origin of a message that has one; its arrival_ms is `arrival_ms` where it names none, or a later one.

    Raises Refused: SECOND_HOP, or UNDECODABLE when it can't be a worker's.
    """
    first = telemetry.origin
    device_id = telemetry.device_id
    heard = not telemetry.HasField("control")
    if first.hop > HOP_MAX:
        raise refusal.Refused(
            records.Reason.SECOND_HOP, f"origin.hop is {first.hop}: put again more than once", device_id, heard
        )
    if _SEQUENCE_NUMBER.fullmatch(first.sequence_number) is None:
        raise refusal.Refused(
            records.Reason.UNDECODABLE, "origin.sequence_number isn't a sequence number", device_id, heard
        )
    if not 0 < len(first.shard_id) <= SHARD_ID_CHARACTERS_MAX:
        raise refusal.Refused(records.Reason.UNDECODABLE, "origin.shard_id isn't a shard id", device_id, heard)
    return records.Origin(
        shard_id=first.shard_id,
        sequence_number=first.sequence_number,
        subsequence_number=first.subsequence_number,
        arrival_ms=first.arrival_ms if 0 < first.arrival_ms <= arrival_ms else arrival_ms,
        hop=first.hop,
    )


def bad(device_id: str, detail: str) -> refusal.Refused:
    return refusal.Refused(records.Reason.BAD_CONTROL, detail, device_id, heard=False)


def _issued_ms(telemetry: fleet_pb2.Telemetry, arrival_ms: int) -> int:
    issued_ms = telemetry.control.issued_ms
    if issued_ms > arrival_ms + refusal.AHEAD_MS_MAX:
        raise bad(telemetry.device_id, "control.issued_ms is more than 24 h ahead of arrival")
    return issued_ms if 0 < issued_ms <= arrival_ms + refusal.SKEW_MS_MAX else arrival_ms


def _update_threshold(telemetry: fleet_pb2.Telemetry, issued_ms: int) -> records.Control:
    update = telemetry.control.update_threshold
    rule = _rule(telemetry, update.rule, rules.TEMPERATURE)
    threshold = update.threshold
    if not math.isfinite(threshold) or abs(threshold) > refusal.NUMBER_MAX:
        raise bad(telemetry.device_id, f"update_threshold.threshold is {threshold!r}, beyond ±{refusal.NUMBER_MAX:g}")
    if rule != rules.TEMPERATURE and threshold <= 0:
        raise bad(telemetry.device_id, f"update_threshold.threshold is {threshold!r}, must be above 0 for this rule")
    return records.Control(records.Instruction.UPDATE_THRESHOLD, issued_ms, rule=rule, threshold=threshold)


def _rule(telemetry: fleet_pb2.Telemetry, number: int, unspecified: int) -> int:
    if number == fleet_pb2.RULE_UNSPECIFIED:
        return unspecified
    if number not in fleet_pb2.Rule.values():
        raise bad(telemetry.device_id, f"control names rule {number}, which there isn't")
    return number - 1  # rule numbers follow the enum's order, see fleet_model.rules
