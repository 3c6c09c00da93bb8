"""The twin table between a commit's start and its end, when rows come, go and change hands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleet_model import hashing
from fleet_worker.core import commits, table, twins
from tests.support import commits as build


def add(twin_table: table.TwinTable, device_id: str, telemetry: bytes | None = None) -> int:
    """A new twin; its slot."""
    slot = int(twin_table.add([device_id], [hashing.digest(device_id)])[0])
    twin_table.rows["last_arrival_ms"][slot] = build.FIRST_ARRIVAL_MS
    if telemetry is not None:
        twin_table.telemetry[slot] = telemetry
    return slot


def committed(twin_table: table.TwinTable, number: int = 1, leaving: Sequence[int] = ()) -> commits.Commit:
    commit = twin_table.take_dirty(number, np.array(leaving, dtype=np.int64))
    twin_table.committed()
    return commit


def telemetry_of(commit: commits.Commit) -> dict[str, bytes | None]:
    return dict(zip(commit.twins.device_ids, commit.twins.telemetry, strict=True))


# ── twins that are gone ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_twin_that_is_gone_is_not_asked_of_the_store_which_has_not_heard_of_it() -> None:
    """Neither while its deletion waits, nor while it is being committed, nor after that failed."""
    twin_table = table.TwinTable()
    slot = add(twin_table, "gone")
    committed(twin_table)
    twin_table.stored_elsewhere = 1
    asked = ["gone", "elsewhere", "", "elsewhere"]
    twin_table.delete(slot)
    assert twin_table.only_stored(asked) == ["elsewhere"]
    commit = twin_table.take_dirty(2)
    assert commit.deleted == ["gone"]
    assert twin_table.only_stored(asked) == ["elsewhere"]
    twin_table.not_committed(commit)
    assert twin_table.only_stored(asked) == ["elsewhere"]
    assert committed(twin_table, 3).deleted == ["gone"]
    assert twin_table.only_stored(asked) == ["elsewhere", "gone"]  # as far as the table knows


def test_a_twin_made_anew_while_its_deletion_failed_has_not_the_old_ones_telemetry() -> None:
    twin_table = table.TwinTable()
    slot = add(twin_table, "again", b"old")
    committed(twin_table)
    twin_table.delete(slot)
    failing = twin_table.take_dirty(2)
    add(twin_table, "again")
    twin_table.not_committed(failing)
    commit = committed(twin_table, 3)
    assert commit.deleted == []
    assert telemetry_of(commit) == {"again": b""}  # None would leave the stored one


def test_a_slots_next_device_has_not_the_last_ones_telemetry() -> None:
    twin_table = table.TwinTable()
    slot = add(twin_table, "first", b"of the first")
    failing = twin_table.take_dirty(1)
    twin_table.delete(slot)
    assert add(twin_table, "second") == slot
    snapshot = twin_table.snapshot("second")
    assert snapshot is not None
    assert snapshot.telemetry is None
    twin_table.not_committed(failing)
    assert telemetry_of(committed(twin_table, 2)) == {"second": None}


# ── rows that leave ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_that_is_touched_on_its_way_out_stays_and_its_index_entry_goes() -> None:
    """The first of all to leave, too, and one that goes offline at that moment."""
    for flags in (0, twins.Flag.OPEN_OFFLINE):
        twin_table = table.TwinTable()
        slot = add(twin_table, "staying")
        committed(twin_table)
        commit = twin_table.take_dirty(2, np.array([slot]))
        assert commit.index_added == [(build.FIRST_ARRIVAL_MS, "staying")]
        twin_table.rows["flags"][slot] |= flags
        twin_table.touch(np.array([slot]))
        twin_table.committed()
        assert "staying" in twin_table.slots
        assert twin_table.stored_elsewhere == 0
        assert committed(twin_table, 3).index_removed == [(build.FIRST_ARRIVAL_MS, "staying")]


def test_a_row_whose_leaving_failed_stays_and_leaves_the_next_time() -> None:
    twin_table = table.TwinTable()
    slot = add(twin_table, "leaving")
    committed(twin_table)
    twin_table.not_committed(twin_table.take_dirty(2, np.array([slot])))
    assert "leaving" in twin_table.slots
    commit = committed(twin_table, 3, [slot])
    assert commit.index_added == [(build.FIRST_ARRIVAL_MS, "leaving")]
    assert commit.index_removed == []
    assert "leaving" not in twin_table.slots
    assert twin_table.stored_elsewhere == 1


def test_an_index_entry_that_many_scans_meet_is_removed_once() -> None:
    twin_table = table.TwinTable()
    for _ in range(1_000):
        twin_table.came_back([(5, "a"), (6, "b")])
    commit = twin_table.take_dirty(1)
    assert commit.index_removed == [(5, "a"), (6, "b")]
    twin_table.came_back([(6, "b"), (7, "c")])
    twin_table.not_committed(commit)
    assert twin_table.take_dirty(2).index_removed == [(5, "a"), (6, "b"), (7, "c")]
