"""Whose words stand in a partition's status when several processes believe to own it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from fleet_model import manifest, twin_partition
from fleet_worker.adapters import memory_objects
from tests.support import crew, virtual_time
from tests.support.crew import FIRST, Crew

Phase = twin_partition.Phase


def in_a_crew(body: Callable[[Crew], Awaitable[None]]) -> None:
    """worker-0 owns the first partition."""

    async def main() -> None:
        async with crew.assembled() as fleet:
            await fleet.start("worker-0")
            await fleet.assign(FIRST, "worker-0")
            await fleet.is_running(FIRST, "worker-0")
            await body(fleet)

    virtual_time.run(main())


def test_a_claim_lost_to_a_process_of_the_same_name_that_never_told_of_its_own_asks_for_the_next_epoch() -> None:
    """A force-deleted process, without a way to the control plane, claims between our look and our write, and dies."""

    async def body(fleet: Crew) -> None:
        await fleet.kill("worker-0")

        def ghost(call: memory_objects.Call) -> memory_objects.Fault:
            if call.operation == "PutObject":
                standing = manifest.parse(fleet.bucket.contents()[call.key])
                claimed = dataclasses.replace(standing, nonce="f" * 16, revision=standing.revision + 1)
                fleet.bucket.tamper(call.key, manifest.encode(claimed))
                del fleet.plans["worker-0"]
            return memory_objects.NO_FAULT

        fleet.plans["worker-0"] = ghost
        await fleet.start("worker-0")
        await fleet.until(lambda: fleet.status(FIRST).phase is Phase.FAILED, 3 * crew.INTERVAL_S)
        assert fleet.status(FIRST).manifest_epoch == 1
        await fleet.assign(FIRST, "worker-0", takeover=True)
        await fleet.is_running(FIRST, "worker-0")

    in_a_crew(body)


def test_a_former_owner_that_is_named_again_does_not_speak_over_who_claimed_meanwhile() -> None:
    """What it told would be its own proof that it may publish."""

    async def body(fleet: Crew) -> None:
        await fleet.start("worker-1")
        fleet.plans["worker-0"] = lambda call: memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        fleet.control.cut("worker-0")
        await fleet.assign(FIRST, "worker-1", takeover=True)
        await fleet.is_running(FIRST, "worker-1")
        await fleet.assign(FIRST, "worker-0", takeover=True)
        fleet.control.mend("worker-0")
        await fleet.clock.sleep(3 * crew.INTERVAL_S)
        assert (fleet.status(FIRST).worker, fleet.status(FIRST).epoch) == ("worker-1", 2)
        del fleet.plans["worker-0"]
        await fleet.until(lambda: fleet.status(FIRST).epoch == 3)
        await fleet.is_running(FIRST, "worker-0")

    in_a_crew(body)


def test_a_fence_by_no_other_claim_does_not_ask_for_epoch_after_epoch() -> None:
    """The next claim would meet the same manifest: here one with the very nonce that the next start draws."""

    async def body(fleet: Crew) -> None:
        key = f"{FIRST}/manifest.json"
        standing = manifest.parse(fleet.bucket.contents()[key])
        await fleet.kill("worker-0")
        same = dataclasses.replace(standing, nonce=f"{int(standing.nonce, 16) + 1:016x}", revision=99)
        fleet.bucket.tamper(key, manifest.encode(same))
        await fleet.start("worker-0")
        await fleet.clock.sleep(crew.INTERVAL_S)
        assert not fleet.workers["worker-0"].supervisor.partitions()
        assert fleet.status(FIRST).manifest_epoch == 0

    in_a_crew(body)
