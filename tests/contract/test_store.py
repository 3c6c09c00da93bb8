"""What every TwinStore promises, judged on the LMDB one and on the one in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fleet_model import hashing, partition, spec
from fleet_worker import errors
from fleet_worker.adapters import lmdb_store, memory_store
from fleet_worker.core import commits, twin_rows, twins
from tests.support import commits as build

IDENTITY = partition.PartitionIdentity("default", "fleet", "telemetry", "shardId-000000000000")
LOWER, UPPER = hashing.HashKeyRange(end=2**127 - 1), hashing.HashKeyRange(start=2**127)

Store = lmdb_store.LmdbTwinStore | memory_store.MemoryTwinStore
Make = Callable[..., Store]


@pytest.fixture(params=["lmdb", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes an empty store for a hash-key range."""
    made: list[Store] = []

    def new(key_range: hashing.HashKeyRange = IDENTITY.hash_key_range) -> Store:
        identity = dataclasses.replace(IDENTITY, shard_id=f"shard-{len(made)}", hash_key_range=key_range)
        store: Store
        if request.param == "memory":
            store = memory_store.MemoryTwinStore(identity)
        else:
            folder = tmp_path / identity.shard_id
            store = lmdb_store.LmdbTwinStore.open(folder, identity, spec.Storage(map_size_bytes=2**30), "boot")
        made.append(store)
        return store

    yield new
    for store in made:
        store.close()


@pytest.fixture
def store(make: Make) -> Store:
    return make()


def everything(store: Store) -> dict[str, bytes]:
    """Device id → row's bytes, by a scan."""
    found: dict[str, bytes] = {}
    for rows in store.scan():
        found |= {name: rows.rows[at].tobytes() for at, name in enumerate(rows.device_ids)}
    return found


def names(count: int) -> list[str]:
    return [f"device-{number}" for number in range(count)]


def in_key_order(device_ids: list[str]) -> list[str]:
    return sorted(device_ids, key=lambda name: (hashing.digest(name), name))


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.state == commits.PartitionState()
    assert store.count() == 0
    assert list(store.scan()) == []
    assert store.fetch(["device-1"]).device_ids == []
    assert store.telemetry(["device-1"]) == {}
    assert store.outbox() == []
    assert store.dead_letters(10) == []
    assert store.index_before(2**60, 10) == []


def test_a_commit_makes_all_of_it_visible(store: Store) -> None:
    rows = build.twin_rows(["a", "b"], extras={"b": build.extra(61.5)})
    store.commit(
        build.commit(
            rows,
            number=7,
            outbox=([build.outbox_entry(1)], []),
            dead_letters=[build.dead_letter(1)],
            index=([(5, "a")], []),
        )
    )
    assert store.state == build.state(7)
    assert everything(store) == {name: rows.rows[at].tobytes() for at, name in enumerate(rows.device_ids)}
    assert store.count() == 2
    assert store.telemetry(["a", "b", "c"]) == {"a": b"telemetry of a", "b": b"telemetry of b"}
    assert store.outbox() == [build.outbox_entry(1)]
    assert store.dead_letters(10) == [build.dead_letter(1)]
    assert store.index_before(6, 10) == [(5, "a")]
    assert list(store.fetch(["b"]).extras.values()) == [build.extra(61.5)]


def test_a_commit_that_fails_in_its_last_step_changes_nothing(store: Store) -> None:
    store.commit(build.commit(["a"], number=1, outbox=([build.outbox_entry(1)], [])))
    before = everything(store)
    unfit = build.commit(
        ["a", "b"], number=2, deleted=["a"], outbox=([build.outbox_entry(2)], [1]), index=([(-1, "a")], [])
    )
    if isinstance(store, memory_store.MemoryTwinStore):
        store.disk_full = True
        with pytest.raises(errors.DiskFullError):
            store.commit(unfit)
        store.disk_full = False
    else:
        with pytest.raises(OverflowError):  # A negative time has no key; it is the last thing but the state.
            store.commit(unfit)
    assert store.state == build.state(1)
    assert everything(store) == before
    assert store.outbox() == [build.outbox_entry(1)]
    store.commit(build.commit(["b"], number=2))
    assert store.count() == 2


def test_the_state_comes_back_field_by_field(store: Store) -> None:
    state = commits.PartitionState(partition.Position("9" * 56, 17), 3, 4, 5, 6, True, 7, "nonce")
    store.commit(dataclasses.replace(build.commit(), state=state))
    assert store.state == state


def test_scan_gives_every_twin_once_in_key_order_in_chunks(store: Store) -> None:
    device_ids = names(7_001)
    store.commit(build.commit(device_ids))
    chunks = list(store.scan())
    assert [name for rows in chunks for name in rows.device_ids] == in_key_order(device_ids)
    assert max(len(rows.device_ids) for rows in chunks) <= 50_000
    for rows in chunks:
        assert rows.digests.tolist() == [hashing.digest(name) for name in rows.device_ids]
        assert rows.rows.dtype == twins.TWIN_DTYPE
        assert rows.telemetry == [None] * len(rows.device_ids)


def test_the_chunks_rows_may_be_changed(store: Store) -> None:
    store.commit(build.commit(["a"]))
    (rows,) = store.scan()
    rows.rows["samples"] = 9
    assert store.fetch(["a"]).rows["samples"].tolist() == [1]


@pytest.mark.parametrize("edge", ["inside", "on a twin", "past the last"])
def test_scan_of_a_range_gives_the_twins_inside(store: Store, edge: str) -> None:
    device_ids = in_key_order(names(6_000))
    store.commit(build.commit(device_ids))
    keys = [hashing.hash_key(name) for name in device_ids]
    start, end = {
        "inside": (keys[10] + 1, keys[5_500] - 1),
        "on a twin": (keys[11], keys[5_499]),
        "past the last": (keys[11], hashing.HASH_KEY_MAX),
    }[edge]
    found = [name for rows in store.scan(hashing.HashKeyRange(start, end)) for name in rows.device_ids]
    assert found == (device_ids[11:] if edge == "past the last" else device_ids[11:5_500])


def test_fetch_gives_the_stored_ones_in_key_order(store: Store) -> None:
    store.commit(build.commit(names(50)))
    asked = ["device-3", "nobody", "device-1", "device-40", "device-1", "", "x" * 300]
    rows = store.fetch(asked)
    assert rows.device_ids == in_key_order(["device-1", "device-3", "device-40"])
    assert rows.rows["samples"].tolist() == [int(name[7:]) + 1 for name in rows.device_ids]


def test_ids_of_any_form_come_back(store: Store) -> None:
    device_ids = ["ж", "a\x00b", "a", "x" * 127, "y" * 128, "z" * 256, "\n", "😀" * 64]
    raw = {name: b"\x0a" + bytes([len(name) & 127]) + name.encode() for name in device_ids}
    store.commit(build.commit(build.twin_rows(device_ids, telemetry=dict(raw))))
    assert list(everything(store)) == in_key_order(device_ids)
    assert store.fetch(device_ids).device_ids == in_key_order(device_ids)
    assert store.telemetry(device_ids) == raw


def test_no_telemetry_keeps_the_stored_one(store: Store) -> None:
    first: dict[str, bytes | None] = {
        "canonical": build.raw_telemetry("canonical"),
        "other": build.raw_telemetry("another id"),
        "empty": b"",
        "with extra": build.raw_telemetry("with extra"),
        "never": None,
    }
    extras = {"with extra": build.extra(1.0)}
    store.commit(build.commit(build.twin_rows(list(first), telemetry=first, extras=extras), number=1))
    expected = {name: raw for name, raw in first.items() if raw is not None}
    assert store.telemetry(list(first)) == expected
    # Rows that gain and lose their extra, and a newcomer among them, while the telemetry stays.
    later: dict[str, bytes | None] = dict.fromkeys([*first, "new"])
    rows = build.twin_rows(list(later), telemetry=later, extras={"other": build.extra(2.0)}, commit_number=2)
    store.commit(build.commit(rows, number=2))
    assert store.telemetry(list(later)) == expected
    assert store.fetch(["other"]).extras == {0: build.extra(2.0)}
    assert store.fetch(["with extra"]).extras == {}
    later["empty"] = b"now some"
    store.commit(build.commit(build.twin_rows(["empty", "new"], telemetry=later), number=3))
    assert store.telemetry(list(later)) == expected | {"empty": b"now some"}


def test_rows_come_back_bit_by_bit(store: Store) -> None:
    rows = build.twin_rows(names(300))
    rows.rows.view(np.uint8)[:] = np.random.default_rng(5).integers(0, 256, rows.rows.nbytes, dtype=np.uint8)
    rows.rows["flags"] &= np.uint16(0xFFFF ^ twins.Flag.EXTRA)
    rows.rows["late"][::2] = 0
    store.commit(build.commit(rows))
    assert everything(store) == {name: rows.rows[at].tobytes() for at, name in enumerate(rows.device_ids)}


def test_deleted_twins_are_gone_with_their_telemetry(store: Store) -> None:
    store.commit(build.commit(names(10), number=1))
    store.commit(build.commit(number=2, deleted=["device-3", "device-4", "nobody"]))
    assert store.count() == 8
    assert store.fetch(["device-3", "device-5"]).device_ids == ["device-5"]
    assert store.telemetry(["device-3"]) == {}
    gone: dict[str, bytes | None] = {"device-3": None}
    store.commit(build.commit(build.twin_rows(["device-3"], telemetry=gone), number=3))
    assert store.telemetry(["device-3"]) == {}


def test_the_outbox_is_kept_by_number(store: Store) -> None:
    numbers = [1, 2, 255, 256, 70_000]
    store.commit(build.commit(outbox=([build.outbox_entry(number) for number in numbers], [])))
    assert store.outbox() == [build.outbox_entry(number) for number in numbers]
    store.commit(build.commit(outbox=([build.outbox_entry(70_001)], [2, 255, 9_999])))
    assert [entry.number for entry in store.outbox()] == [1, 256, 70_000, 70_001]


def test_the_index_gives_older_entries_oldest_first(store: Store) -> None:
    added = [(30, "c"), (10, "a"), (20, "b"), (10, "d"), (300, "e")]
    store.commit(build.commit(index=(added, [])))
    assert store.index_before(30, 10) == [
        *sorted([(10, "a"), (10, "d")], key=lambda e: hashing.digest(e[1])),
        (20, "b"),
    ]
    assert len(store.index_before(1_000, 4)) == 4
    whole, pieces = store.index_before(1_000, 10), list[tuple[int, str]]()
    while piece := store.index_before(1_000, 2, pieces[-1] if pieces else None):
        pieces += piece
    assert pieces == whole
    assert store.index_before(1_000, 10, (20, "nobody"))[-2:] == whole[-2:]
    assert store.index_before(30, 10, (29, "nobody")) == []
    store.commit(build.commit(index=([(40, "a")], [(10, "a"), (10, "nobody")])))
    assert store.index_before(50, 10) == [(10, "d"), (20, "b"), (30, "c"), (40, "a")]


def test_dead_letters_are_newest_first_and_at_most_ten_thousand(store: Store) -> None:
    store.commit(build.commit(dead_letters=[build.dead_letter(number) for number in range(6_000)]))
    store.commit(build.commit(dead_letters=[build.dead_letter(number) for number in range(6_000, 12_000)]))
    kept = store.dead_letters(20_000)
    assert kept == [build.dead_letter(number) for number in range(11_999, 1_999, -1)]
    assert store.dead_letters(3) == kept[:3]
    store.commit(build.commit(dead_letters=[build.dead_letter(number) for number in range(10_500)]))
    assert store.dead_letters(20_000) == [build.dead_letter(number) for number in range(10_499, 499, -1)]


def test_dead_letters_take_at_most_64_mebibytes(store: Store) -> None:
    data = bytes(65_536)
    for first in range(0, 1_200, 100):
        store.commit(build.commit(dead_letters=[build.dead_letter(first + number, data) for number in range(100)]))
    kept = store.dead_letters(20_000)
    assert kept[0].detail == "letter 1199"
    assert 1_015 <= len(kept) <= 1_024


def test_a_snapshot_sees_one_commit(store: Store) -> None:
    store.commit(build.commit(names(3_000), number=1, outbox=([build.outbox_entry(1)], [])))
    with store.snapshot() as snapshot:
        chunks = snapshot.scan(with_telemetry=True)
        first = next(chunks)
        store.commit(build.commit(names(6_000), number=2, outbox=([build.outbox_entry(2)], [1])))
        rest = list(chunks)
        assert snapshot.state == build.state(1)
        assert snapshot.outbox() == [build.outbox_entry(1)]
        assert snapshot.count() == 3_000
    rows = [first, *rest]
    assert [name for part in rows for name in part.device_ids] == in_key_order(names(3_000))
    assert {number for part in rows for number in part.rows["commit"].tolist()} == {1}
    assert all(
        raw == f"telemetry of {name}".encode()
        for part in rows
        for name, raw in zip(part.device_ids, part.telemetry, strict=True)
    )
    assert store.count() == 6_000


def test_closing_twice_is_closing_once_and_a_closed_store_refuses(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(errors.StoreBrokenError, match="closed"):
        store.commit(build.commit())
    with pytest.raises(errors.StoreBrokenError, match="closed"):
        store.count()


def copy_range(
    child: Store, parents: list[Store], key_range: hashing.HashKeyRange, state: commits.PartitionState
) -> None:
    if isinstance(child, memory_store.MemoryTwinStore):
        memory_store.copy_range(child, parents, key_range, state)  # type: ignore[arg-type]
    else:
        lmdb_store.copy_range(child, parents, key_range, state)  # type: ignore[arg-type]


def test_a_split_gives_each_child_its_range(make: Make) -> None:
    parent, lower, upper = make(), make(LOWER), make(UPPER)
    device_ids = names(5_000)
    entries = [build.outbox_entry(number, f"device-{number}") for number in range(10, 20)]
    index = [(number, f"device-{number}") for number in range(4_000)]
    parent.commit(build.commit(device_ids, outbox=(entries, []), index=(index, [])))
    for child, key_range in ((lower, LOWER), (upper, UPPER)):
        copy_range(child, [parent], key_range, build.state(2, outbox_next=1))
        inside = [name for name in device_ids if hashing.hash_key(name) in key_range]
        assert list(everything(child)) == in_key_order(inside)
        assert child.telemetry(device_ids) == {name: f"telemetry of {name}".encode() for name in inside}
        wanted = [entry.effect for entry in entries if hashing.hash_key(entry.effect.partition_key) in key_range]
        assert [entry.effect for entry in child.outbox()] == wanted
        assert [entry.number for entry in child.outbox()] == list(range(1, len(wanted) + 1))
        assert child.state == build.state(2, outbox_next=len(wanted) + 1)
        assert child.index_before(10_000, 10_000) == [
            entry for entry in index if hashing.hash_key(entry[1]) in key_range
        ]
        child.commit(build.commit(inside[:100], number=3))
    assert lower.count() + upper.count() == 5_000


def test_every_effect_that_a_parent_left_goes_to_one_child(make: Make) -> None:
    """Also a record put again, whose key is of another partition by its nature, and a dead letter, whose key may be anything."""
    quarter = hashing.HashKeyRange(start=2**126, end=2**127 - 1)
    halves = hashing.HashKeyRange(2**126, 2**126 + 2**125 - 1), hashing.HashKeyRange(2**126 + 2**125, 2**127 - 1)
    parent = make(quarter)
    entries = [build.outbox_entry(number, f"device-{number}") for number in range(1, 200)]
    inside = {entry.effect for entry in entries if hashing.hash_key(entry.effect.partition_key) in quarter}
    assert 0 < len(inside) < len(entries)
    parent.commit(build.commit(outbox=(entries, [])))
    inherited = []
    for key_range in halves:
        child = make(key_range)
        copy_range(child, [parent], key_range, build.state(2))
        inherited += [entry.effect for entry in child.outbox()]
    assert sorted(effect.effect_id for effect in inherited) == sorted(entry.effect.effect_id for entry in entries)


def test_the_first_rows_of_a_range_and_whether_there_are_more(make: Make) -> None:
    store = make()
    assert store.first(IDENTITY.hash_key_range)[1]
    store.commit(build.commit(names(7_000)))
    ordered = in_key_order(names(7_000))
    rows, is_all = store.first(IDENTITY.hash_key_range)
    assert not is_all
    assert list(rows.device_ids) == ordered[: len(rows.device_ids)]
    count = len(rows.device_ids)
    last = hashing.hash_key(ordered[count - 1])
    rows, is_all = store.first(hashing.HashKeyRange(end=last))
    assert (len(rows.device_ids), is_all) == (count, True)
    rows, is_all = store.first(hashing.HashKeyRange(end=hashing.hash_key(ordered[count])))
    assert (len(rows.device_ids), is_all) == (count, False)
    rows, is_all = store.first(hashing.HashKeyRange(start=last + 1, end=last + 1))
    assert (len(rows.device_ids), is_all) == (0, True)


def test_a_merge_unites_two_parents(make: Make) -> None:
    upper, lower, child = make(UPPER), make(LOWER), make()
    device_ids = names(3_000)
    rows = {
        key_range: build.twin_rows([name for name in device_ids if hashing.hash_key(name) in key_range])
        for key_range in (LOWER, UPPER)
    }
    upper.commit(build.commit(rows[UPPER], outbox=([build.outbox_entry(5)], []), index=([(7, "device-1")], [])))
    lower.commit(build.commit(rows[LOWER], index=([(3, "device-2")], [])))
    copy_range(child, [upper, lower], IDENTITY.hash_key_range, build.state(9))
    assert list(everything(child)) == in_key_order(device_ids)
    assert everything(child) == everything(lower) | everything(upper)
    assert child.state.commit_number == 9


def test_a_store_that_has_begun_is_not_copied_over(make: Make) -> None:
    parent, child = make(), make(LOWER)
    child.commit(build.commit(["a"]))
    with pytest.raises(AssertionError, match="begun"):
        copy_range(child, [parent], LOWER, build.state(2))
    assert child.count() == 1


def test_sorted_rows_are_appended_without_beginning_the_store(make: Make) -> None:
    store, appended = make(), make()
    rows = build.twin_rows(names(6_000), extras={"device-5": build.extra(61.5)}, telemetry={"device-6": None})
    store.commit(build.commit(rows))
    for first in (0, 2_000):
        last = 2_000 if first == 0 else 6_000
        appended.append(twin_rows.cut(rows, first, last))
        assert appended.state == commits.PartitionState()
        assert appended.count() == last
    assert everything(appended) == everything(store)
    assert appended.telemetry(names(6_000)) == store.telemetry(names(6_000))
    assert list(appended.fetch(["device-5"]).extras.values()) == [build.extra(61.5)]
    appended.append(commits.no_rows())
    appended.commit(build.commit(["one more"], number=2))
    assert appended.count() == 6_001


def test_rows_that_are_not_beyond_those_that_are_there_are_not_appended(make: Make) -> None:
    store = make()
    rows = build.twin_rows(names(10))
    store.append(twin_rows.cut(rows, 3, 6))
    for first in (0, 5):
        with pytest.raises(AssertionError, match="beyond"):
            store.append(twin_rows.cut(rows, first, first + 1))
    assert list(everything(store)) == list(rows.device_ids[3:6])
    store.append(twin_rows.cut(rows, 6, 10))
    assert store.count() == 7


def test_clearing_leaves_the_state_and_nothing_else(store: Store) -> None:
    entries = [build.outbox_entry(1)]
    store.commit(
        build.commit(names(10), outbox=(entries, []), dead_letters=[build.dead_letter(1)], index=([(5, "a")], []))
    )
    store.clear()
    assert (store.state, store.count(), store.outbox()) == (build.state(1), 0, [])
    assert (store.dead_letters(10), store.index_before(2**60, 10)) == ([], [])
    store.commit(build.commit(["a"], number=2, dead_letters=[build.dead_letter(2)]))
    assert store.dead_letters(10) == [build.dead_letter(2)]
    assert store.count() == 1


def test_a_snapshot_sees_one_moment_and_knows_what_changed_since_a_commit(store: Store) -> None:
    store.commit(build.commit(names(6_000), outbox=([build.outbox_entry(1)], []), dead_letters=[build.dead_letter(1)]))
    store.commit(build.commit(["device-3", "device-5"], number=2))
    before = everything(store)
    with store.snapshot() as snapshot:
        store.commit(build.commit(names(50), number=3, deleted=["device-100"], outbox=([], [1])))
        assert (snapshot.state, snapshot.count()) == (build.state(2), 6_000)
        assert (snapshot.outbox(), snapshot.dead_letters(5)) == ([build.outbox_entry(1)], [build.dead_letter(1)])
        seen = {name: rows.rows[at].tobytes() for rows in snapshot.scan() for at, name in enumerate(rows.device_ids)}
        assert seen == before
        chunks = list(snapshot.scan(with_telemetry=True, changed_after=1))
        assert len(chunks) > 1
        changed = {name: rows.telemetry[at] for rows in chunks for at, name in enumerate(rows.device_ids)}
        assert changed == {"device-3": b"telemetry of device-3", "device-5": b"telemetry of device-5"}
        assert [name for rows in snapshot.scan(changed_after=2) for name in rows.device_ids] == []
        inside = [name for rows in snapshot.scan(LOWER, changed_after=0) for name in rows.device_ids]
        assert inside == in_key_order([name for name in names(6_000) if hashing.hash_key(name) in LOWER])
    with store.snapshot() as snapshot:
        assert snapshot.state == build.state(3)
        changed_ids = [name for rows in snapshot.scan(changed_after=2) for name in rows.device_ids]
        assert changed_ids == in_key_order(names(50))
