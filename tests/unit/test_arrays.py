"""Large arrays in memory of their own behave as NumPy's."""

from __future__ import annotations

import pytest

from fleet_worker.core import arrays, twins


@pytest.mark.parametrize("rows", [0, 10, arrays.OWN_BYTES_MIN, arrays.HUGE_BYTES_MIN // 8])
def test_they_are_zero_and_can_be_written(rows: int) -> None:
    made = arrays.zeros((rows, 2), "u4")
    assert made.shape == (rows, 2)
    assert not made.any()
    made[rows // 2 :] = 7
    assert int(made.sum()) == 7 * 2 * (rows - rows // 2)


def test_structured_rows_work() -> None:
    rows = arrays.HUGE_BYTES_MIN // twins.TWIN_DTYPE.itemsize + 1
    made = arrays.zeros((rows,), twins.TWIN_DTYPE)
    made["samples"][-1] = 3
    assert int(made["samples"].sum()) == 3
