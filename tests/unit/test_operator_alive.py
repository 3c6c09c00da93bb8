"""When the operator is to be ended, and what is no reason for it; and what it makes of a worker's answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fleet_operator import alive, probing, workers

WELL = alive.Signs(age=1_000.0, answered=1.0, beat=3.0, swept=40.0, watches_down=0.0, oldest_run=0.5, late=())


def test_all_is_well() -> None:
    assert alive.why_not_healthy(WELL) == []
    assert alive.why_not_ready(WELL) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"beat": 90.0},
        {"beat": None},
        {"swept": 400.0},
        {"watches_down": 150.0},
        {"late": ("Pod",)},
        {"oldest_run": 200.0},
    ],
)
def test_reasons_to_be_begun_anew(changes: dict[str, Any]) -> None:
    assert len(alive.why_not_healthy(dataclasses.replace(WELL, **changes))) == 1


def test_an_api_server_that_is_away_is_none() -> None:
    away = dataclasses.replace(WELL, answered=60.0, beat=60.0, swept=400.0, watches_down=400.0, late=("Pod",))
    assert alive.why_not_healthy(away) == []
    assert alive.why_not_ready(away) != []


def test_a_round_that_doesnt_end_is_one_whoever_is_away() -> None:
    assert alive.why_not_healthy(dataclasses.replace(WELL, answered=60.0, oldest_run=200.0)) != []


def test_a_young_process_has_time() -> None:
    young = dataclasses.replace(WELL, age=5.0, beat=None, swept=None)
    assert alive.why_not_healthy(young) == []
    assert alive.why_not_ready(young) != []


def test_a_workers_answer() -> None:
    told = {
        "can_take_partitions": True,
        "ready": False,
        "rules": {"generation": 3, "last_error": None},
        "load": {"shardId-0": 12.5},
    }
    assert probing.read(told, 7) == workers.Answer(7, True, 3, {"shardId-0": 12.5})


@pytest.mark.parametrize(
    "told", [{}, {"rules": None, "load": []}, {"rules": {"generation": "x"}, "load": {"a": "b", "c": -1.0}}]
)
def test_an_answer_that_says_nothing_useful(told: dict[str, Any]) -> None:
    assert probing.read(told, 7) == workers.Answer(7, False, 0, {})


@pytest.mark.parametrize("rate", [pytest.param(10**400, id="a long number"), float("inf"), float("nan"), -1.0, "12"])
def test_a_load_that_is_none_counts_as_not_said(rate: object) -> None:
    assert probing.read({"load": {"shardId-0": rate, "shardId-1": 2.0}}, 7).load == {"shardId-1": 2.0}
