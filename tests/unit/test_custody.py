"""Custody: every row of the claim table, what is confirmed, how unknown outcomes are settled, and when to hold the outbox."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable

import pytest

from fleet_model import hashing, manifest, twin_partition
from fleet_worker import errors
from fleet_worker.adapters import memory_objects
from fleet_worker.core import claims
from tests.support import custodies, virtual_time

NONCE = "a" * 16
NO_FAULT = memory_objects.NO_FAULT


def standing(worker: str = "worker-0", epoch: int = 3, *, final: bool = False) -> manifest.Manifest:
    return manifest.Manifest(
        custodies.IDENTITY,
        custodies.PARENTS,
        epoch,
        NONCE,
        worker,
        final,
        checkpoint=custodies.checkpoint(7),
        kept=(("6.parquet",),),
        revision=20,
    )


def claim(worker: str, epoch: int, takeover: int = 0, first_epoch: int = 1) -> claims.Claim:
    return claims.Claim(custodies.IDENTITY, worker, epoch, takeover, first_epoch)


@pytest.mark.parametrize(
    ("found", "asked", "words"),
    [
        # No manifest: legal at the first epoch only.
        (None, claim("worker-0", 1), None),
        (None, claim("worker-0", 2), "its manifest is lost"),
        (None, claim("worker-0", 2, takeover=2), "its manifest is lost"),
        # Its first assignees never claimed.
        (None, claim("worker-1", 3, first_epoch=3), None),
        (None, claim("worker-1", 4, first_epoch=3), "its manifest is lost"),
        (None, claim("worker-1", 1, first_epoch=3), "its manifest is lost"),
        (standing(), claim("worker-1", 4, first_epoch=4), "hasn't released it"),
        # Final: free, at its epoch or above.
        (standing(final=True), claim("worker-1", 4), None),
        (standing(final=True), claim("worker-1", 3), None),
        (standing(final=True), claim("worker-1", 2), "epoch 2 is below 3"),
        # The same worker again, at its epoch or above.
        (standing(), claim("worker-0", 3), None),
        (standing(), claim("worker-0", 4), None),
        (standing(), claim("worker-0", 2), "epoch 2 is below 3"),
        # Another worker: only by a takeover, and only by one of this very epoch.
        (standing(), claim("worker-1", 3), "hasn't released it"),
        (standing(), claim("worker-1", 4), "hasn't released it"),
        (standing(), claim("worker-1", 4, takeover=3), "hasn't released it"),
        (standing(), claim("worker-1", 4, takeover=5), "hasn't released it"),
        (standing(), claim("worker-1", 4, takeover=4), None),
        (standing(), claim("worker-1", 3, takeover=3), None),
        (standing(), claim("worker-1", 2, takeover=2), "epoch 2 is below 3"),
    ],
)
def test_the_claim_table(found: manifest.Manifest | None, asked: claims.Claim, words: str | None) -> None:
    reason = claims.refusal(found, asked)
    assert (reason is None) == (words is None), reason
    assert words is None or (reason is not None and words in reason)


@pytest.mark.parametrize(
    "change",
    [
        {"stream": "other"},
        {"namespace": "other"},
        {"fleet": "other"},
        {"hash_key_range": hashing.HashKeyRange(0, 5)},
        {"shard_id": "shardId-000000000009"},
    ],
)
def test_another_partitions_manifest_is_never_claimed(change: dict[str, object]) -> None:
    """Not even a released one, by its own worker, with a takeover."""
    other = dataclasses.replace(custodies.IDENTITY, **change)  # type: ignore[arg-type]
    found = dataclasses.replace(standing(final=True), identity=other)
    reason = claims.refusal(found, claim("worker-0", 3, takeover=3))
    assert reason is not None
    assert next(iter(change)) in reason
    assert str(next(iter(change.values()))) in reason


def in_world(test: Callable[[custodies.World], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(custodies.World())

    virtual_time.run(main())


def test_the_first_claim_writes_the_first_manifest() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0", nonce=NONCE)
        assert await mine.claim(1) is None
        assert world.standing() == manifest.Manifest(
            custodies.IDENTITY, custodies.PARENTS, 1, NONCE, "worker-0", revision=1
        )
        assert mine.manifest == world.standing()
        assert mine.epoch == 1

    in_world(test)


def test_a_claim_keeps_the_checkpoint_and_tells_what_stood_there() -> None:
    async def test(world: custodies.World) -> None:
        before = dataclasses.replace(standing(final=True), ended=True)
        world.lay(before)
        mine = world.custody("worker-1")
        assert await mine.claim(4) == before
        assert world.standing() == dataclasses.replace(
            before, epoch=4, nonce=mine.nonce, worker="worker-1", final=False, revision=21
        )

    in_world(test)


@pytest.mark.parametrize(("laid", "epoch", "manifest_epoch"), [(None, 2, 0), (standing(), 2, 3), (standing(), 3, 3)])
def test_a_refused_claim_changes_nothing_and_reports_the_manifests_epoch(
    laid: manifest.Manifest | None, epoch: int, manifest_epoch: int
) -> None:
    async def test(world: custodies.World) -> None:
        if laid is not None:
            world.lay(laid)
        before = world.bucket.contents()
        mine = world.custody("worker-1")
        with pytest.raises(errors.ClaimRefusedError) as told:
            await mine.claim(epoch)
        assert told.value.manifest_epoch == manifest_epoch
        assert custodies.SHARD_ID in str(told.value)
        assert world.bucket.contents() == before
        assert not mine.is_claimed
        assert not mine.is_fenced

    in_world(test)


def test_a_refused_claim_may_be_made_again_with_a_higher_epoch() -> None:
    async def test(world: custodies.World) -> None:
        world.lay(standing())
        mine = world.custody("worker-1")
        with pytest.raises(errors.ClaimRefusedError):
            await mine.claim(2)
        await mine.claim(4, takeover=4)
        assert world.standing().epoch == 4

    in_world(test)


def test_a_first_claim_may_come_late_and_meets_who_was_quicker() -> None:
    """worker-0 was named first and thought dead before it claimed."""

    async def test(world: custodies.World) -> None:
        late, second = world.custody("worker-0"), world.custody("worker-1")
        assert await second.claim(2, first_epoch=2) is None
        assert world.standing().epoch == 2
        with pytest.raises(errors.ClaimRefusedError) as told:
            await late.claim(1)
        assert told.value.manifest_epoch == 2

    in_world(test)


def test_a_second_start_of_the_same_worker_fences_the_first_one() -> None:
    """A force-deleted pod lives on under the same name and epoch."""

    async def test(world: custodies.World) -> None:
        first, second = world.custody("worker-0"), world.custody("worker-0")
        await first.claim(1)
        await first.confirm(custodies.checkpoint(1))
        await second.claim(1)
        stands = world.standing()
        calls: list[Callable[[], Awaitable[object]]] = [
            first.verify,
            lambda: first.confirm(custodies.checkpoint(2)),
            first.resume,
            lambda: first.claim(1),
            lambda: first.claim(9, takeover=9),
        ]
        for call in calls:
            with pytest.raises(errors.FencedError, match="worker-0 has claimed it at epoch 1"):
                await call()
        assert first.is_fenced
        assert not first.may_publish(world.clock.monotonic())
        assert world.standing() == stands
        await second.verify()

    in_world(test)


def test_two_starts_with_the_same_nonce_are_told() -> None:
    async def test(world: custodies.World) -> None:
        await world.custody("worker-0", nonce=NONCE).claim(1)
        with pytest.raises(errors.FencedError, match="two processes have the same"):
            await world.custody("worker-0", nonce=NONCE).claim(1)

    in_world(test)


def test_confirming_moves_the_checkpoint_and_keeps_the_names_of_three_before() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0")
        await mine.claim(1)
        for number in range(1, 7):
            await mine.confirm(custodies.checkpoint(number))
        await mine.confirm(custodies.checkpoint(6))  # once more, as after an unknown outcome
        stands = world.standing()
        assert stands.checkpoint == custodies.checkpoint(6)
        assert stands.kept == (("5.parquet",), ("4.parquet",), ("3.parquet",))
        assert not stands.final
        assert not stands.ended

    in_world(test)


def test_released_and_closed_are_told_in_the_manifest() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0")
        await mine.claim(1)
        assert mine.may_publish(world.clock.monotonic())
        await mine.confirm(custodies.checkpoint(1), final=True, ended=True)
        assert (world.standing().final, world.standing().ended) == (True, True)
        assert not mine.may_publish(world.clock.monotonic())
        with pytest.raises(AssertionError, match="released"):
            await mine.confirm(custodies.checkpoint(2))

    in_world(test)


def test_a_taken_back_owner_resumes_without_a_claim() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0")
        await mine.claim(1)
        await mine.confirm(custodies.checkpoint(1), final=True)
        await mine.resume(epoch=3)
        stands = world.standing()
        assert (stands.final, stands.epoch, stands.nonce) == (False, 3, mine.nonce)
        with pytest.raises(errors.ClaimRefusedError):
            await world.custody("worker-1").claim(2, takeover=2)
        await mine.confirm(custodies.checkpoint(2))

    in_world(test)


def test_an_owner_whose_release_was_used_does_not_resume() -> None:
    async def test(world: custodies.World) -> None:
        mine, other = world.custody("worker-0"), world.custody("worker-1")
        await mine.claim(1)
        await mine.confirm(custodies.checkpoint(1), final=True)
        await other.claim(2)
        with pytest.raises(errors.FencedError):
            await mine.resume(epoch=3)
        assert world.standing().nonce == other.nonce

    in_world(test)


def test_a_release_on_its_way_does_not_undo_a_resume() -> None:
    """The store carries the final write out only after the owner was taken back."""

    async def test(world: custodies.World) -> None:
        late = False

        def plan(call: memory_objects.Call) -> memory_objects.Fault:
            return memory_objects.Fault(late_s=200.0) if late and call.operation == "PutObject" else NO_FAULT

        mine = world.custody("worker-0", plan=plan)
        await mine.claim(1)
        late = True
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await mine.confirm(custodies.checkpoint(1), final=True)
        late = False
        await mine.resume()
        await asyncio.sleep(500.0)
        assert not world.standing().final
        assert world.standing().checkpoint is None
        await mine.verify()

    in_world(test)


class Paused:
    """A plan in which one call of the client stands still for long: before the store does it, after, or it is done only then."""

    def __init__(self, number: int, fault: memory_objects.Fault) -> None:
        self._number = number
        self._fault = fault

    def __call__(self, call: memory_objects.Call) -> memory_objects.Fault:
        return self._fault if call.number == self._number else NO_FAULT


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize(
    "pause",
    [
        memory_objects.Fault(delay_s=100.0),
        memory_objects.Fault(delay_s=100.0, lost_reply=True),
        memory_objects.Fault(late_s=100.0),
        memory_objects.Fault(delay_s=100.0, failure=memory_objects.CONFLICT),
    ],
    ids=["before", "after", "late", "busy"],
)
@pytest.mark.parametrize("successor", ["worker-0", "worker-1"])
def test_a_zombie_is_fenced_wherever_it_was_paused(number: int, pause: memory_objects.Fault, successor: str) -> None:
    """It stands still in one of its calls, another start takes over meanwhile, then it goes on as if nothing had been."""

    async def test(world: custodies.World) -> None:
        await world.custody("worker-0").claim(1)
        zombie = world.custody("worker-0", plan=Paused(number, pause))

        async def persists(call: Callable[[], Awaitable[object]]) -> None:
            """As its owner does: it asks again for as long as it isn't told."""
            for _ in range(3):
                with contextlib.suppress(errors.ObjectStoreUnavailableError):
                    await call()
                    return
            raise AssertionError("never told")

        async def life() -> None:
            await persists(lambda: zombie.claim(1))
            for step in range(1, 20):
                wanted, is_final = custodies.checkpoint(step), step == 4
                await persists(functools.partial(zombie.confirm, wanted, final=is_final))
                await persists(zombie.resume if is_final else zombie.verify)
                await asyncio.sleep(20.0 if step > 4 else 0.0)

        living = asyncio.ensure_future(life())
        await asyncio.sleep(50.0)
        other = world.custody(successor)
        before = await other.claim(2, takeover=2)
        writes: list[bytes] = []
        world.bucket.on_change = lambda key, _, after: writes.append(after)
        with pytest.raises((errors.FencedError, errors.ClaimRefusedError)):
            await living
        await asyncio.sleep(500.0)
        assert writes == []
        assert before is not None
        assert world.standing() == dataclasses.replace(
            before, epoch=2, nonce=other.nonce, worker=successor, final=False, revision=before.revision + 1
        )
        await other.confirm(custodies.checkpoint(99))

    in_world(test)


def test_a_gone_manifest_fences() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0")
        await mine.claim(1)
        world.bucket.delete(custodies.KEY)
        with pytest.raises(errors.FencedError, match="gone"):
            await mine.confirm(custodies.checkpoint(1))
        assert world.bucket.contents() == {}

    in_world(test)


def test_a_broken_manifest_is_told() -> None:
    async def test(world: custodies.World) -> None:
        world.bucket.tamper(custodies.KEY, b"{}")
        with pytest.raises(errors.CheckpointBrokenError, match="format is missing"):
            await world.custody("worker-0").claim(1)

    in_world(test)


class Once:
    """A plan in which the n-th PutObject goes wrong."""

    def __init__(self, number: int, fault: memory_objects.Fault) -> None:
        self._left = number
        self._fault = fault

    def __call__(self, call: memory_objects.Call) -> memory_objects.Fault:
        if call.operation != "PutObject":
            return memory_objects.NO_FAULT
        self._left -= 1
        return self._fault if self._left == 0 else memory_objects.NO_FAULT


@pytest.mark.parametrize(
    "fault",
    [
        memory_objects.Fault(lost_reply=True),
        memory_objects.Fault(lost_reply=True, delay_s=20.0),
        memory_objects.Fault(late_s=0.01),
        memory_objects.Fault(late_s=5.0),
        memory_objects.Fault(failure=memory_objects.CONFLICT),
        memory_objects.Fault(failure=memory_objects.UNAVAILABLE, delay_s=3.0),
        # What a try of before, carried out late, looks like to the one after it.
        memory_objects.Fault(failure=memory_objects.PRECONDITION),
    ],
)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_each_write_settles_one_unknown_outcome(fault: memory_objects.Fault, number: int) -> None:
    async def test(world: custodies.World) -> None:
        world.lay(standing(final=True))
        mine = world.custody("worker-1", plan=Once(number, fault))
        assert await mine.claim(4) == standing(final=True)
        await mine.confirm(custodies.checkpoint(8))
        await mine.confirm(custodies.checkpoint(9), final=True)
        await mine.resume()
        await asyncio.sleep(100.0)
        stands = world.standing()
        assert (stands.epoch, stands.nonce, stands.worker) == (4, mine.nonce, "worker-1")
        assert stands.checkpoint == custodies.checkpoint(9)
        assert stands.kept == (("8.parquet",), ("7.parquet",), ("6.parquet",))
        assert not stands.final

    in_world(test)


def test_a_claim_that_gave_up_is_settled_by_the_next_one() -> None:
    """All its tries were lost, one of them was carried out; what stood there before is still told."""

    async def test(world: custodies.World) -> None:
        world.lay(standing(final=True))
        cut = True

        def plan(call: memory_objects.Call) -> memory_objects.Fault:
            return memory_objects.Fault(lost_reply=cut)

        mine = world.custody("worker-1", plan=plan)
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await mine.claim(4)  # its looks are lost as well, so it hasn't written anything yet
        cut = False
        puts_are_cut = True

        def cut_puts(call: memory_objects.Call) -> memory_objects.Fault:
            return memory_objects.Fault(lost_reply=puts_are_cut and call.number > 1)

        mine = world.custody("worker-1", plan=cut_puts)
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await mine.claim(4)
        assert world.standing().nonce == mine.nonce
        assert not mine.is_claimed
        puts_are_cut = False
        assert await mine.claim(5) == standing(final=True)
        assert world.standing().epoch == 5

    in_world(test)


def test_of_two_that_claim_at_once_one_is_fenced_or_refused() -> None:
    async def test(world: custodies.World) -> None:
        world.lay(standing(final=True))
        claimants = [world.custody(f"worker-{index}") for index in range(5)]
        outcomes = await asyncio.gather(*(each.claim(4) for each in claimants), return_exceptions=True)
        winners = [each for each, outcome in zip(claimants, outcomes, strict=True) if outcome == standing(final=True)]
        assert len(winners) == 1
        others = [outcome for outcome in outcomes if outcome != standing(final=True)]
        assert all(isinstance(outcome, errors.FencedError | errors.ClaimRefusedError) for outcome in others)
        assert world.standing().nonce == winners[0].nonce

    in_world(test)


def test_an_owner_that_could_not_look_for_two_intervals_holds_its_outbox() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0")
        now_s = world.clock.monotonic
        assert not mine.may_publish(now_s())
        await mine.claim(1)
        for _ in range(24):
            assert mine.may_publish(now_s())
            await asyncio.sleep(5.0)
            mine.heartbeat(now_s())
        assert mine.may_publish(now_s())
        await asyncio.sleep(1.0)
        assert not mine.may_publish(now_s())
        await mine.verify()
        assert mine.may_publish(now_s())

    in_world(test)


def test_a_confirmed_checkpoint_and_the_control_plane_count_as_verified() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0")
        now_s = world.clock.monotonic
        await mine.claim(1)

        async def pass_by(seconds: int) -> None:
            for _ in range(seconds // 5):
                await asyncio.sleep(5.0)
                mine.heartbeat(now_s())

        await pass_by(130)
        assert not mine.may_publish(now_s())
        await mine.confirm(custodies.checkpoint(1))
        assert mine.may_publish(now_s())
        await pass_by(130)
        told = twin_partition.Status(worker="worker-0", epoch=1, nonce=mine.nonce)
        assert not mine.seen_in_control_plane(dataclasses.replace(told, nonce=NONCE), now_s())
        assert not mine.seen_in_control_plane(dataclasses.replace(told, epoch=2), now_s())
        assert not mine.may_publish(now_s())
        assert mine.seen_in_control_plane(told, now_s())
        assert mine.may_publish(now_s())

    in_world(test)


def test_a_loop_that_stood_still_verifies_before_it_publishes() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0")
        now_s = world.clock.monotonic
        await mine.claim(1)
        await asyncio.sleep(10.0)
        assert mine.may_publish(now_s())
        mine.heartbeat(now_s())
        before_s = now_s()
        await asyncio.sleep(10.5)
        assert not mine.may_publish(now_s())
        mine.note_verified(before_s)  # it asked before it stood still, and hears the answer now
        mine.heartbeat(now_s())
        assert not mine.may_publish(now_s())
        await asyncio.sleep(1.0)
        mine.heartbeat(now_s())
        assert not mine.may_publish(now_s())
        await mine.verify()
        assert mine.may_publish(now_s())

    in_world(test)


def test_checkpoint_numbers_rise() -> None:
    async def test(world: custodies.World) -> None:
        mine = world.custody("worker-0")
        await mine.claim(1)
        await mine.confirm(custodies.checkpoint(2))
        for again in (custodies.checkpoint(1), custodies.checkpoint(2, commit_number=5)):
            with pytest.raises(AssertionError, match="after 2"):
                await mine.confirm(again)

    in_world(test)
