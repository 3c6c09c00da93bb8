"""Bugs planted on purpose: each must be found by random histories, or the property tests of the engine say too little.

They are planted at public names of the core, so that they outlive its insides.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from fleet_model import partition
from fleet_worker.core import (
    control,
    effects,
    emit,
    judge,
    limits,
    offline,
    records,
    refusal,
    rounds,
    table,
    twins,
)
from tests.property import driving, histories

HISTORIES_MAX = 500
Bug = Callable[[pytest.MonkeyPatch], None]


def constant(module: Any, name: str, value: int) -> Bug:
    return lambda patch: patch.setattr(module, name, value)


def around(owner: Any, name: str, wrong: Callable[..., Any]) -> Bug:
    """wrong: called with the right function and its arguments."""
    right = getattr(owner, name)

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(owner, name, lambda *arguments, **named: wrong(right, *arguments, **named))

    return plant


def id_without_repeat(right: Callable[..., str], *parts: Any) -> str:
    return right(*parts[:6], 0)


def id_without_subsequence(right: Callable[..., str], *parts: Any) -> str:
    position: partition.Position = parts[5]
    return right(*parts[:5], partition.Position(position.sequence_number, 0), parts[6])


def one_round(right: Callable[..., Any], slots: np.ndarray[Any, Any]) -> Sequence[np.ndarray[Any, Any]]:
    return [np.arange(len(slots))] if len(slots) else []


def last_first(right: Callable[..., Any], slots: np.ndarray[Any, Any]) -> Sequence[np.ndarray[Any, Any]]:
    return list(reversed(right(slots)))


def without_overrides(right: Callable[..., Any], owner: Any, rows: Any, slots: Any, flags: Any) -> Any:
    return right(owner, rows, slots, flags & ~np.uint16(twins.Flag.ANY_OVERRIDE))


def low_digits(right: Callable[..., Any], sequence_numbers: list[str]) -> Any:
    limbs = right(sequence_numbers)
    limbs[:, 0] = 0
    return limbs


def nothing_fires(right: Callable[..., Any], *_: Any) -> Any:
    return np.empty(0, dtype=np.int64)


BUGS: dict[str, Bug] = {
    "eleven late records for a clock set back": constant(twins, "LATE_RUN_RECORDS", 11),
    "a longer run for a clock set back": constant(twins, "LATE_RUN_SPAN_MS", 340_000),
    "gaps start a millisecond late": constant(twins, "HOLD_MS_MAX", 300_001),
    "another window of the mean": constant(twins, "STATISTICS_WINDOW_MS", 3_600_001),
    "extremes of whole hours": constant(twins, "HALF_WINDOW_MS", 3_600_000),
    "a battery curve of two hours": constant(twins, "BATTERY_WINDOW_MS", 7_200_000),
    "one repeat too many": constant(twins, "OFFLINE_REPEATS_MAX", 25),
    "skew starts a millisecond late": constant(refusal, "SKEW_MS_MAX", 300_001),
    "a day ahead is refused": constant(refusal, "AHEAD_MS_MAX", 86_399_999),
    "offline limits below a second": constant(control, "OFFLINE_MS_MIN", 1),
    "ids don't tell repeats": around(effects, "effect_id", id_without_repeat),
    "ids don't tell sub-sequence numbers": around(effects, "effect_id", id_without_subsequence),
    "all of a batch in one round": around(rounds, "split", one_round),
    "rounds backwards": around(rounds, "split", last_first),
    "temperature overrides forgotten": around(limits.Limits, "temperature", without_overrides),
    "battery overrides forgotten": around(limits.Limits, "battery", without_overrides),
    "offline overrides forgotten": around(limits.Limits, "offline", without_overrides),
    "the temperature rule sleeps": around(judge, "temperature", lambda right, *_: None),
    "the battery rule sleeps": around(judge, "battery", lambda right, *_: None),
    "nobody is ever offline": around(offline, "fire_due", nothing_fires),
    "nobody ever comes back": around(offline, "resolve", lambda right, *_: None),
    "instructions are ignored": around(control, "apply", lambda right, *_: None),
    "acknowledgements match nothing": around(control, "open_alert_id", lambda right, *_: "x"),
    "the row's numbers aren't rounded": around(emit, "row_telemetry", lambda right, *parts: unrounded(*parts)),
    "scans skip too much": around(limits.Limits, "offline_least_ms", lambda right, owner: right(owner) + 60_000),
    "sequence numbers lose their high digits": around(records, "sequence_limbs", low_digits),
    "a failed commit passes for a good one": around(
        table.TwinTable, "not_committed", lambda right, owner, commit: owner.committed()
    ),
    "forgetting keeps the telemetry": around(table.TwinTable, "clear", lambda right, *_: None),
}


def unrounded(device_id: str, row: np.void) -> Any:
    telemetry = RIGHT_ROW_TELEMETRY(device_id, row)
    if row["samples"]:
        telemetry.temperature_c, telemetry.battery_pct, telemetry.cpu_load = row["last"].tolist()
    return telemetry


RIGHT_ROW_TELEMETRY = emit.row_telemetry


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A planted bug may divide by zero on its way."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[name](monkeypatch)
    for seed in range(HISTORIES_MAX):
        if is_found(seed):
            return
    pytest.fail(f"{HISTORIES_MAX} histories didn't find: {name}")


def test_without_a_planted_bug_nothing_is_found() -> None:
    assert not [seed for seed in range(30) if is_found(seed)]


def is_found(seed: int) -> bool:
    history = histories.draw(random.Random(seed), records_max=60)
    try:
        outcome = driving.run(history, driving.Cutting(random.Random(seed), has_store=seed % 2 == 1))
    except (ArithmeticError, AssertionError, LookupError, ValueError):
        return True  # a bug that shows itself
    return bool(driving.disagreements(history, outcome))
