"""The battery and the temperature rule, on columns of accepted samples (docs/reference/rules.md)."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from fleet_model import partition, rules
from fleet_proto import fleet_pb2
from fleet_worker.core import contexts, effects, emit, observe, records, table, twins

OPEN = (np.uint16(twins.Flag.OPEN_TEMPERATURE), np.uint16(twins.Flag.OPEN_BATTERY))
ACKNOWLEDGED = (np.uint16(twins.Flag.ACKNOWLEDGED_TEMPERATURE), np.uint16(twins.Flag.ACKNOWLEDGED_BATTERY))


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """Accepted samples of n different devices. at: (n,) indices into columns. slots: (n,). rows: (n,) TWIN_DTYPE,
    changed in place. profile: (n,) profile indices. arrival_ms: (n,)."""

    columns: records.Columns
    at: records.Int64s
    slots: records.Int64s
    rows: NDArray[np.void]
    profile: NDArray[np.uint8]
    arrival_ms: records.Int64s

    def cause(self, index: int, generation: int, repeat: int) -> emit.Cause:
        at = int(self.at[index])
        return emit.Cause(
            device_id=self.columns.device_ids[at],
            time_ms=int(self.arrival_ms[index]),
            last=fleet_pb2.Telemetry.FromString(self.columns.payload[at]),
            position=partition.Position(
                records.sequence_string(self.columns.sequence[at]), int(self.columns.subsequence[at])
            ),
            generation=generation,
            repeat=repeat,
        )


def battery(
    context: contexts.Context, samples: Samples, stretches: observe.Stretches, out: list[effects.Effect]
) -> None:
    if not len(stretches.at):
        return
    limit, at = context.limits, stretches.at
    profile, flags = samples.profile[at], samples.rows["flags"][at]
    drop_max = limit.battery(context.table, samples.slots[at], flags)
    judged = limit.battery_enabled[profile] & (stretches.idle_ms >= limit.battery_observation_ms[profile])
    repeat_ms = limit.battery_repeat_ms[profile]
    over = judged & (stretches.rate > drop_max)
    may_repeat = repeat_ms > 0

    def explain(index: int) -> str:
        return f"battery dropping {stretches.rate[index]:.1f}%/h while idle"

    for index in np.flatnonzero(_fires(context, samples, at, rules.BATTERY, over, repeat_ms, may_repeat)).tolist():
        rule = limit.rules[int(profile[index])].battery
        _fire(context, samples, int(at[index]), rules.BATTERY, rule, explain(index), "{}", out)
    cleared = (
        judged & (flags & OPEN[rules.BATTERY] != 0) & (stretches.rate <= drop_max - limit.battery_hysteresis[profile])
    )
    for index in np.flatnonzero(cleared).tolist():
        rule = limit.rules[int(profile[index])].battery
        _clear(context, samples, int(at[index]), rules.BATTERY, rule.resolved_notice, explain(index), out)


def temperature(
    context: contexts.Context, samples: Samples, celsius: records.Float64s, out: list[effects.Effect]
) -> None:
    """celsius: (n,) float64 as it came."""
    limit, rows, profile = context.limits, samples.rows, samples.profile
    flags = rows["flags"]
    threshold = limit.temperature(context.table, samples.slots, flags)
    enabled = limit.temperature_enabled[profile]
    above = enabled & (celsius > threshold)
    was_open = flags & OPEN[rules.TEMPERATURE] != 0
    if above.any():
        run = np.where(above, np.minimum(rows["spike_run"].astype(np.int64) + 1, 255), 0)
        complete = run >= limit.temperature_samples[profile]
        run[complete] = 0
        rows["spike_run"] = run
        at = np.flatnonzero(complete)
        repeat_ms = limit.temperature_repeat_ms[profile[at]]
        everywhere = np.ones(len(at), dtype=np.bool_)
        fires = _fires(context, samples, at, rules.TEMPERATURE, everywhere, repeat_ms, everywhere)
        for index in at[fires].tolist():
            rule = limit.rules[int(profile[index])].temperature
            warm, most = float(celsius[index]), float(threshold[index])
            explanation = f"temperature {warm!r}°C above {most!r} for {rule.consecutive_samples} samples"
            parameters = f'{{"target_c":{most - 5!r}}}'
            _fire(context, samples, index, rules.TEMPERATURE, rule, explanation, parameters, out)
    else:
        rows["spike_run"] = 0
    if was_open.any():
        cleared = enabled & was_open & (celsius <= threshold - limit.temperature_hysteresis[profile])
        for index in np.flatnonzero(cleared).tolist():
            notice = limit.rules[int(profile[index])].temperature.resolved_notice
            explanation = f"temperature back to {float(celsius[index])!r}°C"
            _clear(context, samples, index, rules.TEMPERATURE, notice, explanation, out)


def _fires(
    context: contexts.Context,
    samples: Samples,
    at: records.Int64s,
    rule: int,
    wanted: NDArray[np.bool_],
    repeat_ms: records.Int64s,
    may_repeat: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """(k,) of the k samples `at`: wanted, and the alert is closed, or open, not acknowledged and due again."""
    fires = wanted.copy()
    flags = samples.rows["flags"][at]
    again = np.flatnonzero(wanted & (flags & OPEN[rule] != 0))
    if len(again):
        details = context.table.extra_index[samples.slots[at[again]]] - 1
        since_ms = samples.arrival_ms[at[again]] - context.table.extras["alert_ms"][details, rule]
        fires[again] = may_repeat[again] & (flags[again] & ACKNOWLEDGED[rule] == 0) & (since_ms >= repeat_ms[again])
    return fires


def _fire(
    context: contexts.Context,
    samples: Samples,
    index: int,
    rule: int,
    settings: rules.TemperatureRule | rules.BatteryRule,
    explanation: str,
    parameters: str,
    out: list[effects.Effect],
) -> None:
    slot = int(samples.slots[index])
    details = context.table.extra(slot)
    extras = context.table.extras
    is_open = samples.rows["flags"][index] & OPEN[rule] != 0
    repeat = int(extras["repeats"][details, rule]) if is_open else 0
    cause = samples.cause(index, context.limits.generation.generation, repeat)
    alert = context.emitter.alert(cause, rule, emit.FIRING, settings.severity, explanation)
    out.append(alert)
    if settings.command:
        out.append(context.emitter.command(cause, rule, settings.command, parameters))
    samples.rows["flags"][index] |= OPEN[rule] | table.EXTRA
    extras["repeats"][details, rule] = repeat + 1
    extras["alert_ms"][details, rule] = cause.time_ms
    extras["alert_generation"][details, rule] = cause.generation
    extras["alert_id"][details, rule] = np.frombuffer(bytes.fromhex(alert.effect_id), dtype=">u8")


def _clear(
    context: contexts.Context,
    samples: Samples,
    index: int,
    rule: int,
    notice: bool,
    explanation: str,
    out: list[effects.Effect],
) -> None:
    details = context.table.extra(int(samples.slots[index]))
    samples.rows["flags"][index] &= ~(OPEN[rule] | ACKNOWLEDGED[rule])
    context.table.extras["repeats"][details, rule] = 0
    if notice:
        cause = samples.cause(index, context.limits.generation.generation, 0)
        out.append(context.emitter.alert(cause, rule, emit.RESOLVED, "info", explanation))
