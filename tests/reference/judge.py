"""Holds what a worker did against what the reference says it should have done, and tells the difference in words.

Effects are read from the messages on the output streams, twins from rows of the table or the store. Nothing here knows
rules.

For a live worker: the partition clock depends on which polls happened, the effects don't. Every record settles what was
due before it and every generation starts with a scan, so whichever polls happened in between, the same alerts fire with the
same content. Only the end is open: the reference has to be advanced to the clock that the worker reached at last (its
state's `clock_ms`) before the two are compared. And a shard's last minutes may be judged by itself or by its children, so
with resharding an offline alert's shard_id may be any of them: `any_offline_shard`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fleet_proto import fleet_pb2
from fleet_worker.core import records, twins
from tests.reference.words import BATTERY, OFFLINE, TEMPERATURE, Effect, Twin

SHOWN_MAX = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """missing: expected ids that never came. unexpected: ids nobody expected. different: same id, other content.
    misordered: devices whose effects came in another order. repeated: how many effects came again (allowed, counted)."""

    missing: tuple[Effect, ...]
    unexpected: tuple[Effect, ...]
    different: tuple[str, ...]
    misordered: tuple[str, ...]
    repeated: int
    expected: int

    @property
    def is_good(self) -> bool:
        return not (self.missing or self.unexpected or self.different or self.misordered)

    def __str__(self) -> str:
        lines = [
            f"{self.expected} effects expected: {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.different)} different, {len(self.misordered)} devices out of order, {self.repeated} repeated"
        ]
        lines += [f"missing: {effect}" for effect in self.missing[:SHOWN_MAX]]
        lines += [f"unexpected: {effect}" for effect in self.unexpected[:SHOWN_MAX]]
        lines += self.different[:SHOWN_MAX]
        lines += self.misordered[:SHOWN_MAX]
        return "\n".join(lines)


def effect_of_alert(data: bytes) -> Effect:
    """A DeviceAlert as protobuf."""
    alert = fleet_pb2.DeviceAlert.FromString(data)
    return Effect(
        kind="alert",
        effect_id=alert.alert_id,
        device_id=alert.device_id,
        trigger=alert.trigger,
        state=fleet_pb2.AlertState.Name(alert.state).lower(),
        severity=alert.severity,
        explanation=alert.explanation,
        timestamp_ms=alert.timestamp,
        fleet=alert.fleet,
        generation=alert.generation,
        shard_id=alert.shard_id,
        sequence_number=alert.sequence_number,
        subsequence_number=alert.subsequence_number,
        last=alert.last.SerializeToString(deterministic=True),
    )


def effect_of_command(data: bytes) -> Effect:
    """A DeviceCommand as protobuf. What only its alert tells is left empty."""
    command = fleet_pb2.DeviceCommand.FromString(data)
    return Effect(
        kind="command",
        effect_id=command.command_id,
        device_id=command.device_id,
        trigger="",
        state="",
        severity="",
        explanation="",
        timestamp_ms=command.timestamp,
        fleet=command.fleet,
        generation=command.generation,
        shard_id="",
        sequence_number="",
        subsequence_number=0,
        command=command.command,
        parameters=command.parameters,
    )


def as_published(effect: Effect) -> Effect:
    """An expected effect with only what its message carries."""
    if effect.kind != "command":
        return effect
    unknown = dataclasses.replace(effect, trigger="", state="", severity="", explanation="", shard_id="", last=b"")
    return dataclasses.replace(unknown, sequence_number="", subsequence_number=0)


def judge_effects(
    expected: Iterable[Effect], alerts: Iterable[bytes], commands: Iterable[bytes], any_offline_shard: bool = False
) -> Verdict:
    """alerts, commands: every message of the output streams, each device's in the order of its stream."""
    wanted = [as_published(effect) for effect in expected]
    came = [effect_of_alert(data) for data in alerts] + [effect_of_command(data) for data in commands]
    by_id = {effect.effect_id: effect for effect in wanted}
    if len(by_id) != len(wanted):
        raise AssertionError("the reference expects an id twice")
    first_seen: dict[str, Effect] = {}
    different = []
    for effect in came:
        first_seen.setdefault(effect.effect_id, effect)
        meant = by_id.get(effect.effect_id)
        if meant is not None:
            different += _content_differences(meant, effect, any_offline_shard)
    return Verdict(
        missing=tuple(effect for effect in wanted if effect.effect_id not in first_seen),
        unexpected=tuple(effect for effect_id, effect in first_seen.items() if effect_id not in by_id),
        different=tuple(different),
        misordered=tuple(_misordered(wanted, list(first_seen.values()))),
        repeated=len(came) - len(first_seen),
        expected=len(wanted),
    )


def _content_differences(meant: Effect, came: Effect, any_offline_shard: bool) -> list[str]:
    found = []
    for field in dataclasses.fields(Effect):
        mine, theirs = getattr(meant, field.name), getattr(came, field.name)
        if any_offline_shard and field.name == "shard_id" and meant.trigger == "offline":
            continue
        if mine != theirs:
            if field.name == "last":
                mine, theirs = (str(fleet_pb2.Telemetry.FromString(data)).split("\n") for data in (mine, theirs))
            found.append(
                f"{meant.kind} {meant.effect_id} of {meant.device_id!r} ({meant.trigger} {meant.state}): "
                f"{field.name} expected {mine!r}, came {theirs!r}"
            )
    return found


def _misordered(wanted: Sequence[Effect], came: Sequence[Effect]) -> list[str]:
    """Order per device and stream, of the effects that both know."""
    both = {effect.effect_id for effect in wanted} & {effect.effect_id for effect in came}
    orders: list[dict[tuple[str, str], list[str]]] = []
    for effects in (wanted, came):
        order = collections.defaultdict(list)
        for effect in effects:
            if effect.effect_id in both:
                order[(effect.device_id, effect.kind)].append(effect.effect_id)
        orders.append(order)
    mine, theirs = orders
    return [
        f"{kind}s of {device_id!r}: expected order {mine[device_id, kind]}, came {theirs[device_id, kind]}"
        for device_id, kind in mine
        if mine[device_id, kind] != theirs[device_id, kind]
    ]


# Twins

BY_METRIC = ("last", "mean", "variance", "minimum", "maximum", "previous_minimum", "previous_maximum")
PLAIN = (
    "last_arrival_ms",
    "last_timestamp_ms",
    "subsequence",
    "samples",
    "late",
    "late_run",
    "late_span_ms",
    "late_last_ms",
    "gaps",
    "battery_idle_ms",
    "battery_drop",
    "spike_run",
    "offline_repeats",
)


def expected_flags(twin: Twin) -> twins.Flag:
    flags = twins.Flag(0)
    for number in (TEMPERATURE, BATTERY, OFFLINE):
        flags |= twins.Flag(1 << number) if twin.open[number] else twins.Flag(0)
        flags |= twins.Flag(8 << number) if twin.acknowledged[number] else twins.Flag(0)
        flags |= twins.Flag(64 << number) if twin.overrides[number] is not None else twins.Flag(0)
    flags |= twins.Flag.EXTRA if twin.extra else twins.Flag(0)
    flags |= twins.Flag.FORGOTTEN if twin.forgotten else twins.Flag(0)
    return flags


def judge_twin(twin: Twin, row: np.void, extra: np.void | None, telemetry: bytes | None) -> list[str]:
    """Differences of one twin from its row (TWIN_DTYPE), its extra (EXTRA_DTYPE, None without Flag.EXTRA) and the last raw
    Telemetry (b"": none; None: not compared, since a store may hold it apart)."""
    found = []

    def differ(name: str, mine: object, theirs: object) -> None:
        if mine != theirs:
            found.append(f"{name} expected {mine!r}, is {theirs!r}")

    for name in PLAIN:
        differ(name, getattr(twin, "subsequence_number" if name == "subsequence" else name), row[name].item())
    for name in BY_METRIC:
        differ(name, getattr(twin, name), row[name].tolist())
    differ("sequence_number", twin.sequence_number, records.sequence_string(row["sequence"]))
    differ("flags", expected_flags(twin), twins.Flag(int(row["flags"])))
    if telemetry is not None:
        differ("telemetry", _sorted(twin.telemetry or b""), _sorted(telemetry))
    if extra is None:
        differ("extra", twin.extra, False)
    elif twin.extra:
        _judge_extra(twin, extra, differ)
    return found


def _sorted(telemetry: bytes) -> bytes:
    return fleet_pb2.Telemetry.FromString(telemetry).SerializeToString(deterministic=True)


def _judge_extra(twin: Twin, extra: np.void, differ: Callable[[str, object, object], None]) -> None:
    for number, override in enumerate(twin.overrides):
        if override is not None:
            differ(f"override[{number}]", override, extra["override"][number].item())
    differ("override_issued_ms", twin.override_issued_ms, extra["override_issued_ms"].tolist())
    differ("acknowledge_issued_ms", twin.acknowledge_issued_ms, extra["acknowledge_issued_ms"].item())
    for name in ("alert_ms", "alert_generation", "repeats"):
        differ(name, getattr(twin, name), extra[name].tolist())
    for number, alert_id in enumerate(twin.alert_id):
        high, low = (int(half) for half in extra["alert_id"][number])
        differ(f"alert_id[{number}]", alert_id, f"{high:016x}{low:016x}" if high or low else "")


def judge_twins(
    expected: Mapping[str, Twin], actual: Mapping[str, tuple[np.void, np.void | None, bytes | None]]
) -> list[str]:
    """Differences of every twin, by device id: (row, extra, telemetry) as judge_twin takes them."""
    found = [f"{device_id!r}: expected, isn't there" for device_id in expected if device_id not in actual]
    found += [f"{device_id!r}: is there, not expected" for device_id in actual if device_id not in expected]
    for device_id, twin in expected.items():
        if device_id in actual:
            found += [f"{device_id!r}: {text}" for text in judge_twin(twin, *actual[device_id])]
    return found
