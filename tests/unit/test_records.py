"""Sequence numbers as limbs."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_worker.core import records

KINESIS = 49545115243490985018280067714973144582180062593244200961


def plainly(sequence_numbers: list[str]) -> list[list[int]]:
    return [
        [int(text[at : at + 19]) for at in range(0, 57, 19)]
        for text in (number.zfill(57) for number in sequence_numbers)
    ]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 1000])
@pytest.mark.parametrize("step", [0, 1, 10**7 + 9, 10**30 + 7])
def test_limbs_of_a_shard(count: int, step: int) -> None:
    numbers = [str(KINESIS + index * step) for index in range(count)]
    limbs = records.sequence_limbs(numbers)
    assert limbs.dtype == np.uint64
    assert limbs.shape == (count, 3)
    assert limbs.tolist() == plainly(numbers)


@pytest.mark.parametrize("width", range(1, 58))
def test_limbs_of_any_width(width: int) -> None:
    numbers = [str(10 ** (width - 1) + (10**width // 7 * index) % (9 * 10 ** (width - 1))) for index in range(100)]
    assert records.sequence_limbs(numbers).tolist() == plainly(numbers)


def test_limbs_of_many_widths_and_of_all_nines() -> None:
    numbers = ["9" * (1 + index % 57) for index in range(200)]
    assert records.sequence_limbs(numbers).tolist() == plainly(numbers)


@pytest.mark.parametrize("number", ["1", str(KINESIS), "9" * 56, "1" + "0" * 38])
def test_limbs_and_back(number: str) -> None:
    assert [records.sequence_string(row) for row in records.sequence_limbs([number] * 70)] == [number] * 70
    assert records.sequence_string(records.sequence_limbs([number])[0]) == number
