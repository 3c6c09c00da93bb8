"""The object store in memory beyond the contract: what its plan can make go wrong, late writes, late listings, its own clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from fleet_worker import errors, ports
from fleet_worker.adapters import memory_objects, objects, objects_api
from tests.support import virtual_time

NO_FAULT = memory_objects.NO_FAULT


class World:
    """faults: of the calls to come, in order; then all goes well."""

    def __init__(self) -> None:
        self.clock = virtual_time.VirtualClock()
        self.bucket = memory_objects.Bucket(self.clock)
        self.faults: list[memory_objects.Fault] = []
        self.calls: list[memory_objects.Call] = []
        self.store = memory_objects.MemoryObjects(self.bucket, self.clock, self._plan, "fleet/")

    def _plan(self, call: memory_objects.Call) -> memory_objects.Fault:
        self.calls.append(call)
        return self.faults.pop(0) if self.faults else NO_FAULT

    def now_s(self) -> float:
        return self.clock.monotonic()


def in_world(test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(World())

    virtual_time.run(main())


@pytest.mark.parametrize("failure", [memory_objects.UNAVAILABLE, memory_objects.CONFLICT])
def test_a_failed_call_did_nothing_and_is_tried_again(failure: objects_api.Failure) -> None:
    async def test(world: World) -> None:
        world.faults = [memory_objects.Fault(failure=failure), memory_objects.Fault(failure=failure)]
        await world.store.put_new("a", b"1")
        assert [call.operation for call in world.calls] == ["PutObject"] * 3
        assert [call.number for call in world.calls] == [1, 2, 3]
        assert world.bucket.contents() == {"fleet/a": b"1"}

    in_world(test)


def test_tries_end() -> None:
    async def test(world: World) -> None:
        world.faults = [memory_objects.Fault(failure=memory_objects.UNAVAILABLE, delay_s=1.0)] * 20
        with pytest.raises(errors.ObjectStoreUnavailableError, match="SlowDown"):
            await world.store.get("a")
        assert len(world.calls) == objects.TRIES_MAX

    in_world(test)


def test_tries_end_with_the_time() -> None:
    async def test(world: World) -> None:
        world.faults = [memory_objects.Fault(failure=memory_objects.UNAVAILABLE, delay_s=20.0)] * 20
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await world.store.get("a")
        assert len(world.calls) == 2

    in_world(test)


def test_a_lost_reply_leaves_the_work_done() -> None:
    async def test(world: World) -> None:
        world.faults = [memory_objects.Fault(lost_reply=True, delay_s=5.0)]
        with pytest.raises(errors.PreconditionFailedError):
            await world.store.put_new("a", b"1")
        assert world.now_s() >= 5.0
        assert world.bucket.contents() == {"fleet/a": b"1"}

    in_world(test)


def test_a_late_write_is_done_later_unless_its_condition_is_broken() -> None:
    async def test(world: World) -> None:
        world.faults = [memory_objects.Fault(late_s=10.0)] * objects.TRIES_MAX
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await world.store.put_new("a", b"1")
        assert world.now_s() < 10.0
        assert await world.store.get("a") is None
        await asyncio.sleep(10.0)
        found = await world.store.get("a")
        assert found is not None
        assert found.data == b"1"
        world.faults = [memory_objects.Fault(late_s=10.0)]
        await world.store.put_over("a", b"2", found.etag)  # its second try wins
        await world.store.delete(["a"])
        await world.store.put_new("a", b"3")
        await asyncio.sleep(20.0)
        assert world.bucket.contents() == {"fleet/a": b"3"}

    in_world(test)


def test_equal_contents_have_equal_etags_as_in_s3() -> None:
    async def test(world: World) -> None:
        assert await world.store.put_new("a", b"1") == await world.store.put_new("b", b"1")
        assert await world.store.put_new("c", b"2") != await world.store.put_new("d", b"3")

    in_world(test)


def test_listings_may_be_late_and_times_are_the_stores() -> None:
    async def test(world: World) -> None:
        world.bucket.list_lag_s = 30.0
        world.bucket.clock_offset_ms = 3_600_500
        etag = await world.store.put_new("a", b"1")
        assert await world.store.list("") == []
        await asyncio.sleep(29.5)
        await world.store.put_over("a", b"22", etag)
        await asyncio.sleep(0.5)
        (info,) = await world.store.list("")
        assert info == ports.ObjectInfo("a", 2, virtual_time.EPOCH_MS + 3_600_000 + 30_000)

    in_world(test)


def test_who_watches_is_told_of_each_write() -> None:
    async def test(world: World) -> None:
        seen: list[tuple[str, bytes | None, bytes]] = []
        world.bucket.on_change = lambda key, before, after: seen.append((key, before, after))
        etag = await world.store.put_new("a", b"1")
        with pytest.raises(errors.PreconditionFailedError):
            await world.store.put_new("a", b"x")
        await world.store.put_over("a", b"2", etag)
        assert seen == [("fleet/a", None, b"1"), ("fleet/a", b"1", b"2")]

    in_world(test)


def test_too_long_a_listing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(objects, "LIST_PAGES_MAX", 2)
        store = objects.Objects(
            memory_objects.MemoryApi(world.bucket, world.clock, list_page_max=3),
            world.clock,
            random.Random(1),
        )
        for number in range(6):
            await store.put_new(str(number), b"")
        assert len(await store.list("")) == 6
        await store.put_new("6", b"")
        with pytest.raises(errors.ObjectStoreRefusedError, match="prefix of its own"):
            await store.list("")

    in_world(test)
