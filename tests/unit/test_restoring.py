"""Restoring: whole, by range after a split or merge, brought forward, interrupted; and the way out of an expired position."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from fleet_model import hashing, manifest, partition
from fleet_worker import checkpoint_reading, custody, errors, restoring
from fleet_worker.adapters import lmdb_store, memory_objects, memory_store
from fleet_worker.core import checkpoint_format, commits, twins
from tests.support import checkpoints, piped, virtual_time
from tests.support import commits as build

NAMES = [f"device-{number}" for number in range(400)]
LOWER, UPPER = checkpoints.halves()


@pytest.fixture(params=["lmdb", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> checkpoints.MakeStore:
    return checkpoints.lmdb_stores(tmp_path) if request.param == "lmdb" else memory_store.MemoryTwinStore


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several row groups in a small partition."""
    monkeypatch.setattr(memory_store, "CHUNK_ROWS", 30)
    monkeypatch.setattr("fleet_worker.adapters.lmdb_snapshot.CHUNK_ROWS", 30)
    monkeypatch.setattr(checkpoint_format, "BASE_GROUP_ROWS", 60)
    monkeypatch.setattr(checkpoint_format, "DELTA_GROUP_ROWS", 30)


async def taken(world: checkpoints.World, store: checkpoints.Store, **more: object) -> checkpoints.Owner:
    """A base, two deltas, an outbox, dead letters."""
    owner = await world.owner(store)
    store.commit(build.commit(NAMES, number=1, dead_letters=[build.dead_letter(1)]))
    await owner.checkpointer.take()
    rows = build.twin_rows(NAMES[:40], commit_number=2, extras={NAMES[0]: build.extra(61.0)})
    store.commit(build.commit(rows, number=2, outbox=([build.outbox_entry(1), build.outbox_entry(2, "device-8")], [])))
    await owner.checkpointer.take()
    store.commit(build.commit(NAMES[20:60], number=3, dead_letters=[build.dead_letter(2)], outbox=([], [1])))
    await owner.checkpointer.take(**more)  # type: ignore[arg-type]
    return owner


def test_a_partition_comes_back_as_it_was(make: checkpoints.MakeStore) -> None:
    async def body() -> None:
        world = checkpoints.World(make)
        store, copy = world.store(), world.store()
        owner = await taken(world, store)
        copy.commit(build.commit(["left over"], number=9, outbox=([build.outbox_entry(3)], []), index=([(5, "x")], [])))
        found = await restoring.restore(world.objects(), owner.manifest, copy, world.clock)
        assert found == owner.manifest.checkpoint
        assert checkpoints.held(copy) == checkpoints.held(store)
        assert (copy.state.epoch, copy.state.nonce) == (1, owner.custody.nonce)
        assert copy.index_before(10**15, 10) == []
        assert checkpoints.kinds(found) == [
            ("base", 400), ("delta", 40), ("delta", 40), ("outbox", 1), ("deadLetters", 2),
        ]  # fmt: skip
        store.close()
        copy.close()

    virtual_time.run(body())


def test_a_range_is_read_without_the_rest() -> None:
    async def body() -> None:
        world = checkpoints.World()
        owner = await taken(world, world.store())
        checkpoint = owner.manifest.checkpoint
        assert checkpoint is not None
        fetched: list[tuple[str, int, int]] = []
        objects = world.objects()
        get_range = objects.get_range

        async def watched(key: str, start: int, stop: int) -> bytes:
            fetched.append((key, start, stop))
            return await get_range(key, start, stop)

        objects.get_range = watched  # type: ignore[method-assign]
        narrow = hashing.HashKeyRange(2**127, 2**127 + 2**122)
        found = [
            name
            async for rows in checkpoint_reading.twins(
                objects, checkpoints.SHARD_ID, checkpoint.parts, world.clock, narrow
            )
            for name in rows.device_ids
        ]
        assert set(found) == {name for name in NAMES if hashing.hash_key(name) in narrow}
        base = checkpoint.parts[0]
        groups = [entry for entry in fetched if base.name in entry[0] and entry[2] != base.size]
        assert len(base.groups) >= 6
        assert len(groups) <= 2

    virtual_time.run(body())


def test_a_split_s_children_have_what_copying_the_folder_gave_them(make: checkpoints.MakeStore) -> None:
    async def body() -> None:
        world = checkpoints.World(make)
        parent = world.store()
        owner = await taken(world, parent, final=True, ended=True)
        state = commits.PartitionState(
            clock_ms=parent.state.clock_ms, high_arrival_ms=parent.state.high_arrival_ms, commit_number=4
        )
        for number, half in enumerate((LOWER, UPPER)):
            identity = dataclasses.replace(checkpoints.IDENTITY, shard_id=f"child-{number}", hash_key_range=half)
            child, copied = world.store(identity), world.store(dataclasses.replace(identity, shard_id=f"copy-{number}"))
            await restoring.inherit(world.objects(), [owner.manifest], half, child, world.clock)
            copy_range = (
                lmdb_store.copy_range if isinstance(parent, lmdb_store.LmdbTwinStore) else memory_store.copy_range
            )
            copy_range(copied, [parent], half, state)
            assert checkpoints.held(child) == checkpoints.held(copied)
            assert checkpoints.held(child).twins
            child.close()
            copied.close()
        parent.close()

    virtual_time.run(body())


def test_a_merge_takes_the_slowest_clock_and_every_effect_once() -> None:
    async def body() -> None:
        world = checkpoints.World()
        parents: list[manifest.Manifest] = []
        stores = []
        for number, half in enumerate((UPPER, LOWER), start=1):
            identity = dataclasses.replace(checkpoints.IDENTITY, shard_id=f"parent-{number}", hash_key_range=half)
            store = world.store(identity)
            own = [name for name in NAMES if hashing.hash_key(name) in half]
            store.commit(build.commit(own, number=number, outbox=([build.outbox_entry(5, own[0])], [])))
            owner = await world.owner(store, identity)
            await owner.checkpointer.take(final=True, ended=True)
            parents.append(owner.manifest)
            stores.append(store)
        child = world.store(dataclasses.replace(checkpoints.IDENTITY, shard_id="child"))
        await restoring.inherit(world.objects(), parents, checkpoints.IDENTITY.hash_key_range, child, world.clock)
        found = checkpoints.held(child)
        assert found.twins == checkpoints.held(stores[0]).twins | checkpoints.held(stores[1]).twins
        assert [entry.number for entry in found.outbox] == [1, 2]
        assert found.state == commits.PartitionState(
            clock_ms=build.state(1).clock_ms,
            high_arrival_ms=build.state(2).high_arrival_ms,
            commit_number=3,
            outbox_next=3,
        )

    virtual_time.run(body())


def test_children_wait_for_a_final_checkpoint() -> None:
    async def body() -> None:
        world = checkpoints.World()
        owner = await taken(world, world.store())
        child = world.store()
        with pytest.raises(errors.CheckpointBrokenError, match="isn't closed"):
            await restoring.inherit(world.objects(), [owner.manifest], LOWER, child, world.clock)
        assert child.state == commits.PartitionState()
        bare = dataclasses.replace(owner.manifest, checkpoint=None, final=True, ended=True)
        with pytest.raises(errors.CheckpointBrokenError, match="no checkpoint"):
            await restoring.inherit(world.objects(), [bare], LOWER, child, world.clock)

    virtual_time.run(body())


# ── standbys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_standby_follows_by_deltas_and_anew_where_they_do_not_connect(make: checkpoints.MakeStore) -> None:
    async def body() -> None:
        world = checkpoints.World(make)
        store, copy = world.store(), world.store()
        owner = await world.owner(store)
        store.commit(
            build.commit(NAMES, number=1, outbox=([build.outbox_entry(1)], []), dead_letters=[build.dead_letter(1)])
        )
        have = await owner.checkpointer.take()
        await restoring.restore(world.objects(), owner.manifest, copy, world.clock)
        fetched: list[str] = []
        objects = world.objects(lambda call: fetched.append(call.key) or memory_objects.NO_FAULT)  # type: ignore[func-returns-value]
        for number in range(2, 14):
            names = NAMES if number == 6 else NAMES[3 * number : 3 * number + 20]
            # A twin that had telemetry comes back without any.
            rows = build.twin_rows(names, commit_number=number, telemetry={names[0]: None})
            store.commit(build.commit(number=number, deleted=[names[0]]))
            store.commit(
                build.commit(
                    rows,
                    number=number,
                    outbox=([build.outbox_entry(number)], [number - 1]),
                    dead_letters=[build.dead_letter(number)],
                )
            )
            if number % 3 == 1:
                continue  # now and then two checkpoints' worth at once
            want = await owner.checkpointer.take()
            fetched.clear()
            assert await restoring.bring_forward(objects, copy, have, owner.manifest, world.clock) == want
            assert checkpoints.held(copy) == checkpoints.held(store)
            assert any("base" in key for key in fetched) == (number == 6 or len(want.parts) <= 3 < len(have.parts))
            have = want
        store.close()
        copy.close()

    virtual_time.run(body())


def test_a_standby_that_is_not_what_it_should_be_is_restored_anew() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store, copy = world.store(), world.store()
        owner = await taken(world, store)
        have = owner.manifest.checkpoint
        assert have is not None
        store.commit(build.commit(NAMES[:5], number=4))
        await owner.checkpointer.take()
        await restoring.bring_forward(world.objects(), copy, have, owner.manifest, world.clock)  # it was empty
        assert checkpoints.held(copy) == checkpoints.held(store)

    virtual_time.run(body())


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_flipped_byte_anywhere_is_noticed() -> None:
    async def body() -> None:
        world = checkpoints.World()
        owner = await taken(world, world.store())
        good = world.bucket.contents()
        for name in world.files():
            key = f"{checkpoints.SHARD_ID}/{name}"
            data = good[key]
            named = owner.manifest.checkpoint
            assert named is not None
            if name not in {part.name for part in named.parts}:
                continue
            for at in range(4, len(data), max(1, len(data) // 6)):
                broken = bytearray(data)
                broken[at] ^= 1
                world.bucket.tamper(key, bytes(broken))
                copy = world.store()
                with pytest.raises(errors.CheckpointBrokenError, match=name):
                    await restoring.restore(world.objects(), owner.manifest, copy, world.clock)
                assert copy.state == commits.PartitionState()
            for cut in (data[:-1], data[: len(data) // 2], b""):
                world.bucket.tamper(key, cut)
                with pytest.raises(errors.CheckpointBrokenError, match=name):
                    await restoring.restore(world.objects(), owner.manifest, world.store(), world.clock)
            world.bucket.tamper(key, data)
        copy = world.store()
        await restoring.restore(world.objects(), owner.manifest, copy, world.clock)

    virtual_time.run(body())


def test_a_missing_file_is_told_by_name() -> None:
    async def body() -> None:
        world = checkpoints.World()
        owner = await taken(world, world.store())
        assert owner.manifest.checkpoint is not None
        for part in owner.manifest.checkpoint.parts:
            key = f"{checkpoints.SHARD_ID}/{part.name}"
            data = world.bucket.contents()[key]
            world.bucket.delete(key)
            with pytest.raises(errors.CheckpointBrokenError, match=f"{part.name} is gone"):
                await restoring.restore(world.objects(), owner.manifest, world.store(), world.clock)
            world.bucket.tamper(key, data)

    virtual_time.run(body())


def test_a_group_of_another_file_is_not_taken_for_ours() -> None:
    """A manifest that was put together wrongly: every checksum is right, the twins aren't those it says."""

    async def body() -> None:
        world = checkpoints.World()
        owner = await taken(world, world.store())
        checkpoint = owner.manifest.checkpoint
        assert checkpoint is not None
        base, *others = checkpoint.parts
        first = dataclasses.replace(base.groups[0], last=base.groups[1].last)
        wrong = dataclasses.replace(base, groups=(first, *base.groups[1:]))
        told = dataclasses.replace(owner.manifest, checkpoint=dataclasses.replace(checkpoint, parts=(wrong, *others)))
        with pytest.raises(errors.CheckpointBrokenError, match="other twins"):
            await restoring.restore(world.objects(), told, world.store(), world.clock)

    virtual_time.run(body())


@pytest.mark.parametrize("at", range(1, 12))
def test_a_full_disk_leaves_a_store_that_has_not_begun(at: int) -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await taken(world, store)
        copy = memory_store.MemoryTwinStore(checkpoints.IDENTITY, memory_store.FaultPlan(full_commits=frozenset({at})))
        unhindered = memory_store.MemoryTwinStore(checkpoints.IDENTITY)
        await restoring.restore(world.objects(), owner.manifest, unhindered, world.clock)
        full = False
        try:
            await restoring.restore(world.objects(), owner.manifest, copy, world.clock)
        except errors.DiskFullError:
            full = True
            assert copy.state == commits.PartitionState()
            await restoring.restore(world.objects(), owner.manifest, copy, world.clock)
        assert full == (at <= unhindered._commits)
        assert unhindered._commits in range(5, 11)
        assert checkpoints.held(copy) == checkpoints.held(store)

    virtual_time.run(body())


@pytest.mark.parametrize("at", range(1, 12))
@pytest.mark.parametrize("forward", [False, True])
def test_an_object_store_that_goes_away_leaves_a_store_that_can_be_restored(at: int, forward: bool) -> None:
    async def body() -> None:
        world = checkpoints.World()
        store, copy = world.store(), world.store()
        owner = await taken(world, store)
        have = await restoring.restore(world.objects(), owner.manifest, copy, world.clock)
        store.commit(build.commit(NAMES[:90], number=4, outbox=([build.outbox_entry(9)], [])))
        await owner.checkpointer.take()
        busy = memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        objects = world.objects(lambda call: busy if call.number >= at else memory_objects.NO_FAULT)

        async def again(objects: memory_objects.MemoryObjects) -> None:
            if forward:
                await restoring.bring_forward(objects, copy, have, owner.manifest, world.clock)
            else:
                await restoring.restore(objects, owner.manifest, copy, world.clock)

        try:
            await again(objects)
        except errors.ObjectStoreUnavailableError:
            is_as_before = copy.state.commit_number == have.commit_number
            assert copy.state == commits.PartitionState() or (forward and is_as_before)
            await again(world.objects())
        assert checkpoints.held(copy) == checkpoints.held(store)

    virtual_time.run(body())


def test_a_file_of_a_later_version_is_not_half_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        world = checkpoints.World()
        monkeypatch.setattr(checkpoint_format, "FORMAT", 2)
        owner = await taken(world, world.store())
        monkeypatch.undo()
        with pytest.raises(errors.CheckpointBrokenError, match="Run the version that wrote it"):
            await restoring.restore(world.objects(), owner.manifest, world.store(), world.clock)

    virtual_time.run(body())


# ── the offline index, and the way out ───────────────────────────────────────────────────────────────────────────────


def test_after_a_restore_silence_is_noticed_of_twins_without_room_in_the_table() -> None:
    """The checkpoint has no offline index: the pipeline makes it before the clock moves."""

    async def body() -> None:
        devices = [f"device-{number}" for number in range(30)]
        setting = piped.Setting(store=memory_store.MemoryTwinStore(piped.identity()), rows_max=0)
        async with piped.running(setting) as running:
            running.put(*[piped.sample(device_id) for device_id in devices])
            await running.until(lambda: running.applied() == len(devices))
            await running.pass_time(10.0)
        world = checkpoints.World()
        owner = await world.owner(setting.store, piped.identity())
        await owner.checkpointer.take(final=True)
        copy = memory_store.MemoryTwinStore(piped.identity())
        await restoring.restore(world.objects(), owner.manifest, copy, world.clock)
        assert copy.index_before(10**15, 100) == []
        bounded = dataclasses.replace(setting, store=copy, kinesis=running.kinesis, rows_max=4)
        async with piped.running(bounded) as running:
            await running.pass_time(5.0)
            assert running.pipeline.engine.table.stored_elsewhere == len(devices) - 4
            told = [alert for alert in running.alerts() if alert.trigger == "offline"]
            assert told == []
            await running.until(
                lambda: len([alert for alert in running.alerts() if alert.trigger == "offline"]) == len(devices), 400.0
            )

    virtual_time.run(body())


def test_the_way_out_lifts_every_last_arrival_and_empties_the_position(make: checkpoints.MakeStore) -> None:
    async def body() -> None:
        world = checkpoints.World(make)
        store = world.store()
        late = build.FIRST_ARRIVAL_MS + 10_000
        store.commit(build.commit(NAMES, number=1, index=([(build.FIRST_ARRIVAL_MS, "device-1")], [])))
        some = build.twin_rows(["newer"], last_arrival_ms=late + 5, commit_number=2)
        never = build.twin_rows(["never"], last_arrival_ms=0, commit_number=3)
        store.commit(build.commit(some, number=2, outbox=([build.outbox_entry(1)], [])))
        store.commit(build.commit(never, number=3))
        owner = await world.owner(store)
        await owner.checkpointer.take()
        before = checkpoints.held(store)
        for _ in range(2):  # done again, it ends the same
            restoring.lift(store, late)
            after = checkpoints.held(store)
            arrivals = {name: int(_row(twin)["last_arrival_ms"]) for name, twin in after.twins.items()}
            assert arrivals == dict.fromkeys(NAMES, late) | {"newer": late + 5, "never": 0}
            assert (after.state.position, after.state.clock_ms) == (partition.Position(), late)
            assert (after.outbox, store.index_before(10**15, 10)) == (before.outbox, [])
            for name, twin in after.twins.items():
                same = _row(twin)
                same["last_arrival_ms"], same["commit"] = (
                    _row(before.twins[name])[field] for field in ("last_arrival_ms", "commit")
                )
                assert (same.tobytes(), twin[2:]) == (_row(before.twins[name]).tobytes(), before.twins[name][2:])
        await owner.checkpointer.take()
        copy = world.store()
        await restoring.restore(world.objects(), owner.manifest, copy, world.clock)
        assert checkpoints.held(copy) == after
        store.close()
        copy.close()

    virtual_time.run(body())


def _row(twin: checkpoints.Twin) -> np.void:
    row: np.void = np.frombuffer(bytearray(twin[1]), dtype=twins.TWIN_DTYPE)[0]
    return row


def test_manifests_that_are_read_back_restore() -> None:
    """Through the JSON that stands in the bucket."""

    async def body() -> None:
        world = checkpoints.World()
        store, copy = world.store(), world.store()
        await taken(world, store)
        found = await custody.Manifests(world.objects()).read(checkpoints.SHARD_ID)
        assert found is not None
        await restoring.restore(world.objects(), found[0], copy, world.clock)
        assert checkpoints.held(copy) == checkpoints.held(store)

    virtual_time.run(body())
