"""Taking checkpoints: a base or a delta, what a lost reply, a busy store or another owner does to it, and what garbage is."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from fleet_model import manifest
from fleet_worker import checkpointing, errors, restoring
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import memory_objects
from fleet_worker.core import checkpoint_format, commits, twins
from tests.support import checkpoints, virtual_time, waiting
from tests.support import commits as build

NAMES = [f"device-{number}" for number in range(200)]
LOST = memory_objects.Fault(lost_reply=True)
BUSY = memory_objects.Fault(failure=memory_objects.UNAVAILABLE)


def commit(store: checkpoints.Store, number: int, names: list[str], **more: object) -> None:
    store.commit(build.commit(names, number=number, **more))  # type: ignore[arg-type]


async def restored(world: checkpoints.World, owner: checkpoints.Owner) -> checkpoints.Held:
    store = world.store()
    await restoring.restore(world.objects(), owner.manifest, store, world.clock)
    return checkpoints.held(store)


def test_a_base_then_deltas_of_what_changed() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        assert checkpoints.kinds(await owner.checkpointer.take()) == [("base", 200)]
        commit(store, 2, NAMES[:7])
        commit(store, 3, NAMES[5:9])
        taken = await owner.checkpointer.take()
        assert checkpoints.kinds(taken) == [("base", 200), ("delta", 9)]
        assert (taken.parts[1].since, taken.parts[1].through) == (1, 3)
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_rows_of_the_confirmed_commit_are_not_in_the_next_delta() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        await owner.checkpointer.take()
        commit(store, 2, NAMES[:1])
        await owner.checkpointer.take()
        commit(store, 3, NAMES[1:2])
        taken = await owner.checkpointer.take()
        assert checkpoints.kinds(taken) == [("base", 200), ("delta", 1), ("delta", 1)]

    virtual_time.run(body())


def test_outbox_and_dead_letters_of_the_same_snapshot_go_along() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES, outbox=([build.outbox_entry(1)], []), dead_letters=[build.dead_letter(1)])
        await owner.checkpointer.take()
        commit(store, 2, NAMES[:3], outbox=([build.outbox_entry(2)], [1]), dead_letters=[build.dead_letter(2)])
        taken = await owner.checkpointer.take()
        assert checkpoints.kinds(taken) == [("base", 200), ("delta", 3), ("outbox", 1), ("deadLetters", 2)]
        found = await restored(world, owner)
        assert found == checkpoints.held(store)
        assert found.outbox == [build.outbox_entry(2)]

    virtual_time.run(body())


def test_nothing_new_is_no_new_file() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        first = await owner.checkpointer.take()
        second = await owner.checkpointer.take()
        assert (second.parts, second.number) == (first.parts, first.number + 1)
        store.commit(dataclasses.replace(build.commit(), state=build.state(2)))  # the clock alone
        third = await owner.checkpointer.take()
        assert (third.parts, third.clock_ms) == (first.parts, build.state(2).clock_ms)
        commit(store, 3, NAMES[:1])
        assert checkpoints.kinds(await owner.checkpointer.take()) == [("base", 200), ("delta", 1)]
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_an_empty_partition_has_a_checkpoint_too() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        store.commit(dataclasses.replace(build.commit(), state=build.state(1)))
        taken = await owner.checkpointer.take(final=True, ended=True)
        assert (taken.parts, taken.twins, owner.manifest.final, owner.manifest.ended) == ((), 0, True, True)
        found = await restored(world, owner)
        assert found.state == dataclasses.replace(build.state(1), ended=True)

    virtual_time.run(body())


@pytest.mark.parametrize("share", [0.3, 0.45, 0.55, 0.9])
def test_more_than_half_changed_is_a_base(share: float) -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        await owner.checkpointer.take()
        commit(store, 2, NAMES[: int(share * 200)])
        taken = await owner.checkpointer.take()
        assert [kind for kind, _ in checkpoints.kinds(taken)] == (["base", "delta"] if share < 0.5 else ["base"])

    virtual_time.run(body())


def test_a_delta_that_turns_out_too_large_becomes_a_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk looked as if little had changed."""

    async def optimistic(*arguments: object) -> bool:
        return True

    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        await owner.checkpointer.take()
        commit(store, 2, NAMES[:150])
        monkeypatch.setattr(checkpointing._Walk, "_looks_worth", optimistic)
        assert checkpoints.kinds(await owner.checkpointer.take()) == [("base", 200)]

    virtual_time.run(body())


def test_a_long_chain_is_compacted_and_a_drained_partition_s_last_one_is_still_small() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        await owner.checkpointer.take()
        for number in range(2, 10):
            commit(store, number, NAMES[:2])
            assert len((await owner.checkpointer.take()).parts) == number
        commit(store, 10, NAMES[:2])
        assert checkpoints.kinds(await owner.checkpointer.take(final=True))[-1] == ("delta", 2)
        await owner.custody.resume()
        commit(store, 11, NAMES[:2])
        assert checkpoints.kinds(await owner.checkpointer.take()) == [("base", 200)]
        commit(store, 12, NAMES[:60])
        assert checkpoints.kinds(await owner.checkpointer.take()) == [("base", 200), ("delta", 60)]
        commit(store, 13, NAMES[:60])
        assert checkpoints.kinds(await owner.checkpointer.take()) == [("base", 200)]  # 120 of 200 rows in deltas
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_after_an_hour_without_a_checkpoint_a_base_is_taken() -> None:
    """In between a device may have been forgotten and its stamp be gone, and a delta doesn't tell."""

    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        await owner.checkpointer.take()
        day_ms = 24 * 3_600_000
        state = dataclasses.replace(build.state(2), clock_ms=build.state(1).clock_ms + day_ms + 1)
        store.commit(dataclasses.replace(build.commit(NAMES[:1], number=2, deleted=[NAMES[9]]), state=state))
        assert checkpoints.kinds(await owner.checkpointer.take()) == [("base", 199)]
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_a_forgotten_device_does_not_come_back() -> None:
    """Its stamp is in a delta; once the stamp is gone from the store, the checkpoint may have it for a while longer."""

    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        await owner.checkpointer.take()
        stamp = build.twin_rows(NAMES[:1], commit_number=2, telemetry={NAMES[0]: b""})
        stamp.rows["flags"] = twins.Flag.FORGOTTEN
        stamp.rows["samples"] = 0
        store.commit(build.commit(stamp, number=2))
        await owner.checkpointer.take()
        assert await restored(world, owner) == checkpoints.held(store)
        store.commit(build.commit(number=3, deleted=NAMES[:1]))
        await owner.checkpointer.take()
        found = (await restored(world, owner)).twins
        assert found.pop(NAMES[0])[1] == stamp.rows[0].tobytes()  # it expires again, as it did
        assert found == checkpoints.held(store).twins
        for number in range(4, 14):
            commit(store, number, NAMES[1:30])
            await owner.checkpointer.take()
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_another_start_builds_on_the_checkpoint_only_if_its_store_has_it() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        first = await world.owner(store)
        commit(store, 1, NAMES)
        await first.checkpointer.take()
        commit(store, 2, NAMES[:1])
        second = await world.owner(store, epoch=2, continues=first.manifest.checkpoint)
        assert checkpoints.kinds(await second.checkpointer.take()) == [("base", 200), ("delta", 1)]
        third = await world.owner(store, epoch=3)
        commit(store, 3, NAMES[:1])
        assert checkpoints.kinds(await third.checkpointer.take()) == [("base", 200)]
        fourth = await world.owner(store, epoch=4, continues=first.manifest.checkpoint)
        commit(store, 4, NAMES[:1])
        assert checkpoints.kinds(await fourth.checkpointer.take()) == [("base", 200)]

    virtual_time.run(body())


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def failing(at: int, fault: memory_objects.Fault, times: int) -> Callable[[memory_objects.Call], memory_objects.Fault]:
    return lambda call: fault if at <= call.number < at + times else memory_objects.NO_FAULT


@pytest.mark.parametrize("fault", [LOST, BUSY], ids=["lost", "busy"])
@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("times", [1, 3, 100])
def test_a_take_succeeds_or_changes_nothing_whatever_call_fails(
    at: int, times: int, fault: memory_objects.Fault
) -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES, outbox=([build.outbox_entry(1)], []), dead_letters=[build.dead_letter(1)])
        await owner.checkpointer.take()
        before = owner.manifest
        commit(store, 2, NAMES[:5])
        owner.objects.api.plan = failing(owner.objects.api._calls + at, fault, times)
        try:
            await owner.checkpointer.take()
        except errors.ObjectStoreUnavailableError:
            assert times == 100
            assert owner.manifest == before
            owner.objects.api.plan = memory_objects.no_faults
            commit(store, 3, NAMES[3:9])
            await owner.checkpointer.take()
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_a_confirmation_that_stands_though_its_reply_was_lost_is_built_upon() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)
        await owner.checkpointer.take()
        confirm = owner.custody.confirm

        async def lost(checkpoint: manifest.Checkpoint, **how: bool) -> None:
            await confirm(checkpoint, **how)
            raise errors.ObjectStoreUnavailableError("no answer")

        owner.custody.confirm = lost  # type: ignore[method-assign]
        commit(store, 2, NAMES[:3])
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await owner.checkpointer.take()
        owner.custody.confirm = confirm  # type: ignore[method-assign]
        commit(store, 3, NAMES[3:5])
        taken = await owner.checkpointer.take()
        assert checkpoints.kinds(taken) == [("base", 200), ("delta", 3), ("delta", 2)]
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_someone_who_writes_in_our_name_fences_us() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES)

        def in_our_name(call: memory_objects.Call) -> memory_objects.Fault:
            if call.operation == "PutObject":
                world.bucket.tamper(call.key, b"other bytes")
            return memory_objects.NO_FAULT

        owner.objects.api.plan = in_our_name
        with pytest.raises(errors.FencedError, match="other contents"):
            await owner.checkpointer.take()

    virtual_time.run(body())


def test_a_fenced_owner_s_take_is_told_and_changes_nothing() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        zombie = await world.owner(store)
        commit(store, 1, NAMES)
        await zombie.checkpointer.take()
        successor = await world.owner(store, epoch=2)
        standing = world.bucket.contents()[f"{checkpoints.SHARD_ID}/manifest.json"]
        commit(store, 2, NAMES[:2])
        with pytest.raises(errors.FencedError):
            await zombie.checkpointer.take()
        assert world.bucket.contents()[f"{checkpoints.SHARD_ID}/manifest.json"] == standing
        assert successor.manifest.checkpoint is not None

    virtual_time.run(body())


def test_a_take_that_is_cancelled_lets_the_store_go(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        world = checkpoints.World(checkpoints.lmdb_stores(tmp_path))
        store = world.store()
        slow = checkpointing.Pace(share=0.5)
        owner = await world.owner(store, pace=slow, plan=lambda call: memory_objects.Fault(delay_s=50.0))
        commit(store, 1, NAMES)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20.0):
                await owner.checkpointer.take()
        store.close()  # waits for nobody
        assert owner.manifest.checkpoint is None

    virtual_time.run(body())


def test_failures_are_counted_and_so_is_what_was_written() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store, plan=lambda call: BUSY)
        commit(store, 1, NAMES, outbox=([build.outbox_entry(1)], []))
        labels = {"shard": checkpoints.SHARD_ID}
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await owner.checkpointer.take()
        value = world.metrics.registry.get_sample_value
        assert value("fleet_twin_checkpoint_failures_total", labels) == 1
        assert value("fleet_twin_checkpoint_time_seconds", labels) is None
        owner.objects.api.plan = memory_objects.no_faults
        taken = await owner.checkpointer.take()
        assert value("fleet_twin_checkpoint_rows_total", labels | {"kind": "base"}) == 200
        assert value("fleet_twin_checkpoint_bytes_total", labels | {"kind": "outbox"}) == taken.parts[1].size
        assert value("fleet_twin_checkpoint_time_seconds", labels) == taken.time_ms / 1000
        assert value("fleet_twin_checkpoint_seconds_count", {}) == 1

    virtual_time.run(body())


# ── large ones ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_large_partition_is_several_files_and_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_format, "BASE_GROUP_ROWS", 2_000)
    monkeypatch.setattr(checkpoint_format, "DELTA_GROUP_ROWS", 500)
    monkeypatch.setattr(checkpointing, "FILE_BYTES_MAX", 50_000)
    monkeypatch.setattr(checkpointing, "UPLOADING_BYTES_MAX", 100_000)

    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        names = [f"device-{number}" for number in range(12_000)]
        commit(store, 1, names)
        base = await owner.checkpointer.take()
        assert len(base.parts) > 1
        assert sum(part.rows for part in base.parts) == 12_000
        firsts = [group.first for part in base.parts for group in part.groups]
        assert firsts == sorted(firsts)
        assert len(firsts) > len(base.parts)
        commit(store, 2, names[:3_000])
        await owner.checkpointer.take()
        commit(store, 3, names[2_000:4_000])
        await owner.checkpointer.take()
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_a_pace_rests_in_proportion() -> None:
    behind = [False]
    pace = checkpointing.Pace(lambda: behind[0], share_behind=0.2, share=0.5)
    assert pace.rest_s(0.01) == pytest.approx(0.01)
    behind[0] = True
    assert pace.rest_s(0.01) == pytest.approx(0.04)


# ── garbage ──────────────────────────────────────────────────────────────────────────────────────────────────────────

HOUR_S = 3_601.0


def test_garbage_is_what_nobody_names_after_an_hour() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        for number in range(1, 7):
            commit(store, number, NAMES)  # each time a base
            await owner.checkpointer.take()
        assert len(world.files()) == 6
        assert await owner.checkpointer.collect() == 0  # too young
        await world.clock.sleep(HOUR_S)
        await owner.checkpointer.take()  # the newest object's time is the store's clock
        assert await owner.checkpointer.collect() == 3
        assert len(world.files()) == 3  # two checkpoints share one
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_what_a_failed_take_left_is_garbage_too() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        owner = await world.owner(store)
        commit(store, 1, NAMES, outbox=([build.outbox_entry(1)], []))
        owner.objects.api.plan = failing(2, BUSY, 1_000)
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await owner.checkpointer.take()
        owner.objects.api.plan = memory_objects.no_faults
        await owner.checkpointer.take()
        assert len(world.files()) == 3
        await world.clock.sleep(HOUR_S)
        await owner.checkpointer.take()
        assert await owner.checkpointer.collect() == 1
        assert await restored(world, owner) == checkpoints.held(store)

    virtual_time.run(body())


def test_a_zombie_collects_nothing_of_its_successor_s() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        zombie = await world.owner(store)
        commit(store, 1, NAMES)
        await zombie.checkpointer.take()
        successor = await world.owner(store, epoch=2)
        await successor.checkpointer.take()
        await world.clock.sleep(HOUR_S)
        commit(store, 2, NAMES[:3])
        await successor.checkpointer.take()
        files = world.files()
        with pytest.raises(errors.FencedError):
            await zombie.checkpointer.collect()
        assert world.files() == files

    virtual_time.run(body())


def test_files_of_an_unfinished_start_at_our_epoch_and_of_later_ones_stay() -> None:
    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        first = await world.owner(store)
        commit(store, 1, NAMES)
        await first.checkpointer.take()
        others = [
            f"{checkpoints.SHARD_ID}/{name}"
            for name in (
                "base-9-e2-cafe-1-1.parquet",
                "base-9-e1-cafe-1-1.parquet",
                "base-9-e3-cafe-1-1.parquet",
                "notes.txt",
            )
        ]
        for key in others:
            world.bucket.tamper(key, b"x")
        second = await world.owner(store, epoch=2)
        await world.clock.sleep(HOUR_S)
        await second.checkpointer.take()
        assert await second.checkpointer.collect() == 1
        left = world.bucket.contents()
        assert [key in left for key in others] == [True, False, True, True]

    virtual_time.run(body())


def test_collecting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "COLLECT_FILES_MAX", 3)

    async def body() -> None:
        world = checkpoints.World()
        store = world.store()
        await world.owner(store)
        owner = await world.owner(store, epoch=2)
        for number in range(7):
            world.bucket.tamper(f"{checkpoints.SHARD_ID}/base-{number}-e1-cafe-1-1.parquet", b"x")
        await world.clock.sleep(HOUR_S)
        commit(store, 1, NAMES)
        await owner.checkpointer.take()
        assert [await owner.checkpointer.collect() for _ in range(4)] == [3, 3, 1, 0]

    virtual_time.run(body())


def test_a_snapshot_is_one_moment_s(tmp_path: pathlib.Path) -> None:
    """What is committed while a checkpoint is taken isn't in it: not the twins, not the outbox, not the position."""

    async def body() -> None:
        world = checkpoints.World(checkpoints.lmdb_stores(tmp_path))
        store = world.store()
        commit(store, 1, [f"device-{number}" for number in range(9_000)], outbox=([build.outbox_entry(1)], []))
        before = checkpoints.held(store)
        owner = await world.owner(store)
        number = [1]

        def busy(call: memory_objects.Call) -> memory_objects.Fault:
            number[0] += 1
            commit(store, number[0], NAMES, outbox=([build.outbox_entry(number[0])], [number[0] - 1]))
            return memory_objects.NO_FAULT

        owner.objects.api.plan = busy
        await owner.checkpointer.take()
        assert number[0] > 1
        owner.objects.api.plan = memory_objects.no_faults
        found = await restored(world, owner)
        assert found == before
        assert isinstance(found.state, commits.PartitionState)

    virtual_time.run(body())


async def test_a_take_cancelled_while_its_snapshot_begins_leaves_none_open() -> None:
    """Otherwise the store could never be closed: a snapshot that nobody ends counts as in use."""

    class Store:
        """Whose snapshots take a while to begin."""

        def __init__(self) -> None:
            self.is_beginning, self.may_begin = threading.Event(), threading.Event()
            self.open = 0

        @contextlib.contextmanager
        def snapshot(self) -> Iterator[None]:
            self.is_beginning.set()
            assert self.may_begin.wait(20)
            self.open += 1
            try:
                yield
            finally:
                self.open -= 1

    store = Store()
    with clocks.RealClock() as clock:
        held = checkpointing._held(store, clock)  # type: ignore[arg-type]
        beginning = asyncio.create_task(held.__aenter__())
        await waiting.until(store.is_beginning.is_set, "the snapshot isn't begun")
        beginning.cancel()
        await asyncio.sleep(0)
        store.may_begin.set()
        await asyncio.wait((beginning,))
        assert beginning.cancelled()
        assert store.open == 0
