"""Loads to plan by: smooth, known only after a while, gone with their partition."""

from __future__ import annotations

import random

import pytest

from fleet_model import loads


def test_a_load_is_known_after_a_while_and_forgotten_with_its_partition() -> None:
    seen = loads.Loads()
    assert seen.see(100.0, {"a": 5.0}) == {}
    assert seen.see(109.0, {"a": 5.0}) == {}
    assert seen.see(110.0, {"a": 5.0, "b": 1.0}) == {"a": pytest.approx(5.0)}
    assert seen.see(115.0, {"b": 1.0}) == {}
    assert seen.see(120.0, {"a": 7.0, "b": 1.0}) == {"b": pytest.approx(1.0)}


def test_restless_figures_become_steady_and_lasting_changes_are_followed() -> None:
    chance, seen = random.Random(1), loads.Loads()
    known: list[float] = []
    for second in range(120):
        known += seen.see(float(second), {"a": chance.choice([20.0, 30.0])}).values()
    assert all(22.0 < load < 28.0 for load in known[20:])
    for second in range(120, 240):
        known += seen.see(float(second), {"a": 100.0}).values()
    assert known[-1] == pytest.approx(100.0, rel=0.05)


def test_time_that_does_not_go_on_changes_nothing() -> None:
    seen = loads.Loads()
    for now_s in (0.0, 20.0):
        seen.see(now_s, {"a": 4.0})
    assert seen.see(20.0, {"a": 400.0}) == {"a": pytest.approx(4.0)}
    assert seen.see(19.0, {"a": 400.0}) == {"a": pytest.approx(4.0)}
