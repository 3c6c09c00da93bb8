"""A TwinPartition that was deleted and made anew while a worker has the partition: the new object says all that the old one said."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from fleet_model import twin_partition
from tests.support import crew, virtual_time
from tests.support.crew import FIRST, Crew

Phase = twin_partition.Phase


def in_a_crew(body: Callable[[Crew], Awaitable[None]]) -> None:
    async def main() -> None:
        async with crew.assembled() as fleet:
            await body(fleet)

    virtual_time.run(main())


async def made_anew(fleet: Crew, *unseen_by: str, **changed: object) -> None:
    """unseen_by: workers that see the new object only, as after a list."""
    for worker in unseen_by:
        fleet.control.cut(worker)
    stored = fleet.control.stored(FIRST)
    await fleet.control.delete(FIRST, stored.resource_version)
    spec = dataclasses.replace(stored.spec, **{"epoch": 1, "takeover": 0, **changed})  # type: ignore[arg-type]
    await fleet.control.create(twin_partition.TwinPartition(stored.namespace, stored.name, spec))
    for worker in unseen_by:
        fleet.control.mend(worker)


def test_a_running_owner_tells_the_new_object_at_once() -> None:
    async def body(fleet: Crew) -> None:
        await fleet.start("worker-0")
        await fleet.assign(FIRST, "worker-0")
        await fleet.is_running(FIRST, "worker-0")
        await fleet.until(lambda: fleet.status(FIRST).checkpoint is not None, 4 * crew.INTERVAL_S)
        before = fleet.status(FIRST)
        for unseen_by in ((), ("worker-0",)):
            await made_anew(fleet, *unseen_by)
            assert fleet.status(FIRST) == twin_partition.Status()
            await fleet.until(lambda: fleet.status(FIRST).phase is Phase.RUNNING, 10.0)
            assert (fleet.status(FIRST).nonce, fleet.status(FIRST).epoch) == (before.nonce, before.epoch)
            assert fleet.status(FIRST).checkpoint is not None

    in_a_crew(body)


def test_a_standby_tells_the_new_object_of_its_copy() -> None:
    async def body(fleet: Crew) -> None:
        for worker in ("worker-0", "worker-1"):
            await fleet.start(worker)
        await fleet.assign(FIRST, "worker-0")
        await fleet.change(FIRST, standby=("worker-1",))
        await fleet.until(lambda: any(entry.warm for entry in fleet.status(FIRST).standby), 4 * crew.INTERVAL_S)
        await made_anew(fleet, "worker-1")
        await fleet.until(lambda: any(entry.warm for entry in fleet.status(FIRST).standby), 10.0)

    in_a_crew(body)


def test_a_new_object_that_names_who_was_fenced_is_claimed_or_says_why_not() -> None:
    """Whoever made it anew knew nothing of the fence; without an answer it would wait for good."""

    async def body(fleet: Crew) -> None:
        for worker in ("worker-0", "worker-1"):
            await fleet.start(worker)
        await fleet.assign(FIRST, "worker-0")
        await fleet.is_running(FIRST, "worker-0")
        fleet.control.cut("worker-0")
        await fleet.assign(FIRST, "worker-1", takeover=True)
        await fleet.is_running(FIRST, "worker-1")
        await fleet.clock.sleep(3 * crew.INTERVAL_S)  # its next checkpoint finds the other's claim
        await fleet.workers.pop("worker-1").end()
        await made_anew(fleet, "worker-0", worker="worker-0")
        await fleet.until(lambda: fleet.status(FIRST).manifest_epoch == 2, 10.0)
        await fleet.change(FIRST, epoch=3, takeover=3)
        await fleet.is_running(FIRST, "worker-0")

    in_a_crew(body)
