"""Control records: what an instruction does to one twin's row and details. They are rare, so one at a time."""

from __future__ import annotations

from fleet_model import rules
from fleet_worker.core import contexts, effects, emit, limits, records, twins

MAKES_A_TWIN = (records.Instruction.UPDATE_THRESHOLD, records.Instruction.FORGET_DEVICE)
OFFLINE_MS_MIN = 1000


def apply(context: contexts.Context, slot: int, control: records.Control, arrival_ms: int) -> None:
    """Changes the twin in the table. The caller has settled an offline that was due before."""
    match control.instruction:
        case records.Instruction.UPDATE_THRESHOLD:
            _override(context, slot, control, control.threshold)
        case records.Instruction.CLEAR_OVERRIDE:
            _override(context, slot, control, None)
        case records.Instruction.ACKNOWLEDGE:
            _acknowledge(context, slot, control)
        case records.Instruction.FORGET_DEVICE:
            _forget(context, slot, control, arrival_ms)


def _override(context: contexts.Context, slot: int, control: records.Control, threshold: float | None) -> None:
    table = context.table
    details = table.extra(slot)
    for rule in range(3) if control.rule < 0 else (control.rule,):
        if control.issued_ms < table.extras["override_issued_ms"][details, rule]:
            continue
        table.extras["override_issued_ms"][details, rule] = control.issued_ms
        flag = limits.OVERRIDE_FLAGS[rule]
        if threshold is None:
            table.rows["flags"][slot] &= ~flag & 0xFFFF
        else:
            value = max(OFFLINE_MS_MIN, round(threshold * 1000)) if rule == rules.OFFLINE else threshold
            table.extras["override"][details, rule] = value
            table.rows["flags"][slot] |= flag


def _acknowledge(context: contexts.Context, slot: int, control: records.Control) -> None:
    table = context.table
    flags = int(table.rows["flags"][slot])
    index = int(table.extra_index[slot])
    if index and control.issued_ms < table.extras["acknowledge_issued_ms"][index - 1]:
        return
    for rule in range(3):
        if flags & (twins.Flag.OPEN_TEMPERATURE << rule) and open_alert_id(context, slot, rule) == control.alert_id:
            details = table.extra(slot)  # first: it may move the array
            table.extras["acknowledge_issued_ms"][details] = control.issued_ms
            table.rows["flags"][slot] |= twins.Flag.ACKNOWLEDGED_TEMPERATURE << rule


def open_alert_id(context: contexts.Context, slot: int, rule: int) -> str:
    """The id of the last firing of an alert that is open: kept for temperature and battery, told again for offline."""
    table = context.table
    if rule != rules.OFFLINE:
        return str(table.extras["alert_id"][int(table.extra_index[slot]) - 1, rule].astype(">u8").tobytes().hex())
    row = table.rows[slot]
    return effects.effect_id(
        context.emitter.identity,
        table.device_ids[slot],
        "alert",
        rules.TRIGGERS[rule],
        emit.FIRING,
        emit.row_position(row),
        int(row["offline_repeats"]) - 1,
    )


def _forget(context: contexts.Context, slot: int, control: records.Control, arrival_ms: int) -> None:
    table = context.table
    row = table.rows[slot]
    is_forgotten = bool(int(row["flags"]) & twins.Flag.FORGOTTEN)
    last_ms = int(row["last_timestamp_ms"])
    if (row["samples"] > 0 or is_forgotten) and control.issued_ms < last_ms:
        return
    if is_forgotten and control.issued_ms == last_ms:
        return
    table.clear(slot)
    table.profile[slot] = context.limits.generation.profile_index(table.device_ids[slot], "")
    table.rows["flags"][slot] = twins.Flag.FORGOTTEN
    table.rows["last_timestamp_ms"][slot] = control.issued_ms
    table.rows["last_arrival_ms"][slot] = arrival_ms
