"""The offline rule: a scan of one column, and the settling of what was due before a record.

Both ask the same question at a time T, so it doesn't matter which of them comes first: the effects are the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleet_model import rules
from fleet_worker.core import contexts, effects, emit, records, twins

OPEN = np.uint16(twins.Flag.OPEN_OFFLINE)
ACKNOWLEDGED = np.uint16(twins.Flag.ACKNOWLEDGED_OFFLINE)
OVERRIDE = np.uint16(twins.Flag.OVERRIDE_OFFLINE)
NOT_WATCHED = np.uint16(twins.Flag.FORGOTTEN)
NEVER_MS = 2**62
"""Later than any time."""


def due_ms(context: contexts.Context, part: slice) -> records.Int64s:
    """When the rule fires next for each slot of a part of the table, (n,) int64, by the rules in force if nothing is heard
    meanwhile; NEVER_MS where it won't."""
    limit, twin_table = context.limits, context.table
    rows, profile = twin_table.rows[part], twin_table.profile[part]
    arrival_ms, flags = rows["last_arrival_ms"], rows["flags"]
    after_ms: records.Int64s = limit.offline_after_ms[profile]
    overridden = np.flatnonzero(flags & OVERRIDE)
    if len(overridden):
        slots = overridden + part.start
        after_ms[overridden] = limit.offline(twin_table, slots, flags[overridden])
    due: records.Int64s = arrival_ms + after_ms
    watched = (arrival_ms > 0) & limit.offline_enabled[profile] & (flags & NOT_WATCHED == 0)
    is_open = flags & OPEN != 0
    if is_open.any():
        repeat_ms, repeats = limit.offline_repeat_ms[profile], rows["offline_repeats"]
        may_repeat = (flags & ACKNOWLEDGED == 0) & (repeat_ms > 0) & (repeats < twins.OFFLINE_REPEATS_MAX)
        watched &= ~is_open | may_repeat
        due += np.where(is_open, repeats * repeat_ms, 0)
    due[~watched] = NEVER_MS
    return due


def fire_due(
    context: contexts.Context,
    slots: records.Int64s,
    rows: NDArray[np.void],
    time_ms: records.Int64s,
    out: list[effects.Effect],
) -> NDArray[np.int64]:
    """Fires what is due at time_ms, (n,) int64, for rows (n,) TWIN_DTYPE copied from the table; changes `rows` in place.

    Returns the indices of the rows it changed.
    """
    limit = context.limits
    silent_ms = time_ms - rows["last_arrival_ms"]
    flags = rows["flags"]
    candidates = (silent_ms >= limit.offline_least_ms()) | (flags & twins.Flag.OVERRIDE_OFFLINE != 0)
    candidates &= (rows["last_arrival_ms"] > 0) & (flags & NOT_WATCHED == 0)
    at = np.flatnonzero(candidates)
    changed = at[:0]
    while len(at):
        flags = rows["flags"][at]
        profile = context.table.profile[slots[at]]
        is_open = flags & OPEN != 0
        repeats = np.where(is_open, rows["offline_repeats"][at].astype(np.int64), 0)
        repeat_ms = limit.offline_repeat_ms[profile]
        due_ms = limit.offline(context.table, slots[at], flags) + repeats * repeat_ms
        may_repeat = (
            (flags & twins.Flag.ACKNOWLEDGED_OFFLINE == 0) & (repeat_ms > 0) & (repeats < twins.OFFLINE_REPEATS_MAX)
        )
        due = limit.offline_enabled[profile] & (silent_ms[at] >= due_ms) & (~is_open | may_repeat)
        at, due_ms, profile, repeats = at[due], due_ms[due], profile[due], repeats[due]
        for index, after_ms, profile_index in zip(at.tolist(), due_ms.tolist(), profile.tolist(), strict=True):
            _fire(context, int(slots[index]), rows[index], after_ms, limit.rules[profile_index].offline, out)
        rows["flags"][at] |= OPEN
        rows["offline_repeats"][at] = repeats + 1
        changed = at if not len(changed) else changed  # the first pass has them all
        at = at[repeat_ms[due] > 0]
    return changed


def resolve(
    context: contexts.Context,
    slot: int,
    cause: emit.Cause,
    out: list[effects.Effect],
) -> None:
    """The device is back. The row still has its open alert; the caller clears it."""
    rule = context.limits.rules[int(context.table.profile[slot])].offline
    if rule.resolved_notice:
        out.append(context.emitter.alert(cause, rules.OFFLINE, emit.RESOLVED, "info", "telemetry is back"))


def _fire(
    context: contexts.Context,
    slot: int,
    row: np.void,
    after_ms: int,
    rule: rules.OfflineRule,
    out: list[effects.Effect],
) -> None:
    device_id = context.table.device_ids[slot]
    cause = emit.Cause(
        device_id=device_id,
        time_ms=int(row["last_arrival_ms"]) + after_ms,
        last=emit.row_telemetry(device_id, row),
        position=emit.row_position(row),
        generation=context.limits.generation.generation,
        repeat=int(row["offline_repeats"]) if row["flags"] & OPEN else 0,
    )
    explanation = f"no telemetry for {after_ms / 1000:.3f}".rstrip("0").rstrip(".") + " s"
    out.append(context.emitter.alert(cause, rules.OFFLINE, emit.FIRING, rule.severity, explanation))
    if rule.command:
        out.append(context.emitter.command(cause, rules.OFFLINE, rule.command, "{}"))
