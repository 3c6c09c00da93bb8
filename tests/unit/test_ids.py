"""Device ids as columns, and the index of slots, against plain lists and a dict."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fleet_worker.core import ids

NAMES = ["a", "device-7", "é" * 20, "x" * 40, "x" * 41, "ж" * 128, "nul\0inside", "nul at the end\0", "\0", "😀"]


def test_a_column_gives_back_what_it_got() -> None:
    column = ids.IdColumn.of(NAMES)
    assert list(column) == NAMES
    assert [column[row] for row in range(len(NAMES))] == NAMES
    assert column.encoded() == [name.encode() for name in NAMES]
    assert list(column[3:6]) == NAMES[3:6]
    assert list(column.take(np.array([5, 0, 4]))) == [NAMES[5], NAMES[0], NAMES[4]]


def test_rows_can_be_set() -> None:
    column = ids.IdColumn.empty(3)
    for name in NAMES:
        column[1] = name
        assert list(column) == ["", name, ""]
    column.fill([0, 2], ["y" * 50, "z"])
    assert list(column) == ["y" * 50, NAMES[-1], "z"]


def test_ids_that_differ_by_zeros_at_the_end_are_different() -> None:
    index = ids.SlotIndex()
    index.make_room(4)
    index.put(np.array([2]), ids.IdColumn.of(["a\0"]))
    assert [index.get(name) for name in ("a", "a\0", "a\0\0", "")] == [-1, 2, -1, -1]


@pytest.mark.parametrize("seed", range(5))
def test_the_index_is_a_dict(seed: int) -> None:
    randomness = random.Random(seed)
    index, expected, free = ids.SlotIndex(), dict[str, int](), list(range(4096))
    index.make_room(4096)
    for _ in range(400):
        names = list({_name(randomness) for _ in range(randomness.randint(1, 30))})
        assert index.find(ids.IdColumn.of(names)).tolist() == [expected.get(name, -1) for name in names]
        assert [index.get(name) for name in names] == [expected.get(name, -1) for name in names]
        new = [name for name in names if name not in expected]
        slots = [free.pop() for _ in new]
        index.put(np.array(slots, dtype=np.int64), ids.IdColumn.of(new))
        expected |= dict(zip(new, slots, strict=True))
        for name in randomness.sample(sorted(expected), min(len(expected), randomness.randint(0, 20))):
            index.remove(expected[name])
            free.append(expected.pop(name))
        assert len(index) == len(expected)


def test_ids_with_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids.IdColumn, "hashes", lambda column: np.full(len(column), 7, dtype=np.uint64))
    index = ids.SlotIndex()
    index.make_room(100)
    names = [f"device-{number}" for number in range(100)]
    index.put(np.arange(100), ids.IdColumn.of(names))
    index.remove(50)
    assert index.find(ids.IdColumn.of(names)).tolist() == [slot if slot != 50 else -1 for slot in range(100)]


def _name(randomness: random.Random) -> str:
    kind = randomness.random()
    if kind < 0.1:
        return "x" * randomness.randint(38, 43) + str(randomness.randint(0, 50))
    if kind < 0.2:
        return "a" + "\0" * randomness.randint(0, 5)
    return f"device-{randomness.randint(0, 1500)}"
