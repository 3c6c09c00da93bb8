"""The health score takes exactly the points that its page says, and looks at many twins as it looks at one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_model import rules
from fleet_worker.core import health, limits, twins

NOW_MS = 1_700_000_000_000
PARTS = list(health.PARTS)


@dataclasses.dataclass(slots=True)
class Twin:
    """A twin with nothing wrong; a test changes what it is about."""

    temperature_c: float = 20.0
    battery_pct: float = 80.0
    drop_pct: float = 0.0
    idle_ms: int = 0
    silent_ms: int = 0
    flags: int = 0
    samples: int = 100

    def row(self) -> np.ndarray:
        row = np.zeros(1, dtype=twins.TWIN_DTYPE)
        row["last"][0] = (self.temperature_c, self.battery_pct, 0.5)
        row["battery_drop"], row["battery_idle_ms"] = self.drop_pct, self.idle_ms
        row["last_arrival_ms"] = NOW_MS - self.silent_ms
        row["flags"], row["samples"] = self.flags, self.samples
        return row


def assess(
    twin: Twin, generation: rules.RulesGeneration | None = None, override: tuple[float, ...] = (0, 0, 0)
) -> health.Health:
    row = twin.row()
    limit = health.held(
        limits.Limits(generation or rules.RulesGeneration()),
        np.zeros(1, dtype=np.uint8),
        row["flags"],
        np.array([override], dtype=np.float64),
    )
    return health.assess(row, limit, NOW_MS)


def lost(twin: Twin, generation: rules.RulesGeneration | None = None, **more: tuple[float, ...]) -> dict[str, float]:
    """The points lost, by part, without the parts that lost none."""
    assessed = assess(twin, generation, **more)
    return {part: points for part, points in zip(PARTS, assessed.lost[0].tolist(), strict=True) if points}


def test_nothing_wrong_is_a_hundred() -> None:
    assert assess(Twin()).score[0] == 100.0
    assert lost(Twin()) == {}


@pytest.mark.parametrize(
    ("twin", "part", "points"),
    [
        (Twin(temperature_c=50.0), None, 0),
        (Twin(temperature_c=55.0), "temperature_margin", 15),
        (Twin(temperature_c=60.0), "temperature_margin", 30),
        (Twin(temperature_c=900.0), "temperature_margin", 30),
        (Twin(battery_pct=40.0), None, 0),
        (Twin(battery_pct=20.0), "battery", 12.5),
        (Twin(battery_pct=0.0), "battery", 25),
        (Twin(battery_pct=-5.0), "battery", 25),
        (Twin(drop_pct=5.0, idle_ms=3_600_000), None, 0),
        (Twin(drop_pct=7.5, idle_ms=3_600_000), "battery_slope", 7.5),
        (Twin(drop_pct=10.0, idle_ms=3_600_000), "battery_slope", 15),
        (Twin(drop_pct=10.0, idle_ms=600_000), "battery_slope", 15),
        (Twin(drop_pct=10.0, idle_ms=599_999), None, 0),
        (Twin(silent_ms=150_000), None, 0),
        (Twin(silent_ms=225_000), "recency", 15),
        (Twin(silent_ms=300_000), "recency", 30),
        (Twin(silent_ms=10**12), "recency", 30),
        (Twin(silent_ms=-5_000), None, 0),
        (Twin(flags=twins.Flag.OPEN_TEMPERATURE), "alerts", 20),
        (Twin(flags=twins.Flag.OPEN_BATTERY), "alerts", 15),
        (Twin(flags=twins.Flag.OPEN_OFFLINE), "alerts", 30),
        (Twin(flags=twins.Flag.OPEN_TEMPERATURE | twins.Flag.ACKNOWLEDGED_TEMPERATURE), "alerts", 10),
        (Twin(flags=twins.Flag.ACKNOWLEDGED_TEMPERATURE), None, 0),
        (Twin(flags=twins.Flag.ANY_OPEN), "alerts", 50),
    ],
)
def test_each_part_takes_its_points_and_no_other_does(twin: Twin, part: str | None, points: float) -> None:
    assert lost(twin) == pytest.approx({part: points} if part else {}, rel=1e-6)
    assert assess(twin).score[0] == pytest.approx(100 - points, rel=1e-6)


def test_a_twin_in_every_trouble_has_none_left_but_never_less() -> None:
    worst = Twin(90.0, 0.0, 50.0, 3_600_000, 10**9, int(twins.Flag.ANY_OPEN))
    assert assess(worst).score[0] == 0.0
    assert lost(worst) == pytest.approx(health.PARTS)


def test_a_disabled_rule_takes_no_points_for_its_part() -> None:
    off = rules.Rules(
        rules.TemperatureRule(enabled=False), rules.BatteryRule(enabled=False), rules.OfflineRule(enabled=False)
    )
    trouble = Twin(90.0, 80.0, 50.0, 3_600_000, 10**9)
    assert lost(trouble, rules.RulesGeneration(default=off)) == {}


def test_a_device_is_measured_by_its_own_override() -> None:
    warm = Twin(temperature_c=75.0, flags=twins.Flag.OVERRIDE_TEMPERATURE)
    assert lost(warm, override=(90.0, 1.0, 1.0)) == {}
    assert lost(warm, override=(80.0, 1.0, 1.0)) == pytest.approx({"temperature_margin": 15.0})


def test_a_limit_of_no_drop_at_all_is_no_division_by_zero() -> None:
    strict = rules.RulesGeneration(default=rules.Rules(battery=rules.BatteryRule(max_drop_per_hour=0.0)))
    assert lost(Twin(drop_pct=0.0, idle_ms=3_600_000), strict) == {}
    assert lost(Twin(drop_pct=0.1, idle_ms=3_600_000), strict) == {"battery_slope": 15.0}


@pytest.mark.parametrize("twin", [Twin(samples=0), Twin(flags=twins.Flag.FORGOTTEN)])
def test_of_an_unknown_twin_nothing_is_claimed(twin: Twin) -> None:
    assert math.isnan(assess(twin).score[0])


TWINS = st.builds(
    Twin,
    temperature_c=st.floats(-1e9, 1e9, width=32),
    battery_pct=st.floats(-1e9, 1e9, width=32),
    drop_pct=st.floats(0, 2**20, width=32),
    idle_ms=st.integers(0, twins.BATTERY_WINDOW_MS),
    silent_ms=st.integers(-(10**9), 10**12),
    flags=st.integers(0, 63),
    samples=st.integers(0, 3),
)


@given(st.lists(TWINS, min_size=1, max_size=20))
def test_many_are_assessed_as_each_alone_and_stay_in_range(several: list[Twin]) -> None:
    rows = np.concatenate([twin.row() for twin in several])
    limit = health.held(
        limits.Limits(rules.RulesGeneration()),
        np.zeros(len(rows), dtype=np.uint8),
        rows["flags"],
        np.zeros((len(rows), 3)),
    )
    together = health.assess(rows, limit, NOW_MS)
    alone = [assess(twin) for twin in several]
    np.testing.assert_array_equal(together.score, np.concatenate([one.score for one in alone]))
    np.testing.assert_array_equal(together.lost, np.concatenate([one.lost for one in alone]))
    known = np.array([twin.samples > 0 for twin in several])
    assert (np.isnan(together.score) == ~known).all()
    assert ((together.score[known] >= 0) & (together.score[known] <= 100)).all()
    assert (together.lost >= 0).all()
    assert (together.lost <= np.array(list(health.PARTS.values()))).all()
