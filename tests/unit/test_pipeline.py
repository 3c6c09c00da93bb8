"""One partition's loop in virtual time, over Kinesis and stores in memory: when it commits, what it publishes when, what
makes it stop and go on. Hours pass in milliseconds, and each test goes the same way every time.
"""

from __future__ import annotations

import itertools
import random

import pytest

from fleet_worker import errors, pipeline, reading
from fleet_worker.adapters import memory_kinesis, memory_store
from fleet_worker.core import effects, lifecycle
from tests.support import piped, virtual_time

POLL_S = 1.0
"""A caught-up shard is asked so often."""
MINUTE_MS = 60_000


# When it commits


def test_caught_up_with_effects_it_commits_at_once() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            await partition.until(lambda: partition.source.answered_s)
            partition.put(piped.sample("quiet"))
            await partition.until(lambda: partition.applied() == 1)
            await partition.until(lambda: partition.row("quiet")["commit"] > 0)
            for number in range(5):
                partition.put(*piped.spike(f"device-{number}"))
                put_s = partition.clock.monotonic()
                await partition.until(lambda number=number: len(partition.alerts()) == number + 1)  # type: ignore[misc]
                (answered_s,) = [at for at in partition.source.answered_s if at > put_s]
                assert answered_s - put_s <= POLL_S + piped.LOOK_AGAIN_S
                assert partition.clock.monotonic() - answered_s <= 2 * piped.LOOK_AGAIN_S
                await partition.pass_time(3.3)

    virtual_time.run(body())


def test_caught_up_without_effects_it_commits_every_five_seconds() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            for number in range(120):
                partition.put(piped.sample("device-7", timestamp_ms=1_000_000 + number))
                await partition.pass_time(0.5)
            times = [entry.at_s for entry in partition.store.committed]
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert len(gaps) >= 9
            assert all(pipeline.COMMIT_IDLE_S <= gap <= pipeline.COMMIT_IDLE_S + POLL_S for gap in gaps), gaps

    virtual_time.run(body())


def test_behind_it_commits_every_five_seconds_whatever_effects_wait() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.source.behind_ms = 60_000
            for number in range(240):
                partition.put(*piped.spike(f"device-{number}"))
                await partition.pass_time(0.25)
            times = [entry.at_s for entry in partition.store.committed]
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert len(gaps) >= 10
            assert all(pipeline.COMMIT_BEHIND_S <= gap <= pipeline.COMMIT_BEHIND_S + POLL_S for gap in gaps), gaps
            assert max(len(entry.commit.outbox_added) for entry in partition.store.committed) > 2

    virtual_time.run(body())


def test_nearly_caught_up_counts_as_caught_up() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.source.behind_ms = reading.CAUGHT_UP_MS
            await partition.until(lambda: len(partition.source.answered_s) > 2)
            partition.put(*piped.spike("device-7"))
            put_s = partition.clock.monotonic()
            await partition.until(partition.alerts)
            (answered_s,) = [at for at in partition.source.answered_s if at > put_s][:1]
            assert partition.clock.monotonic() - answered_s <= 2 * piped.LOOK_AGAIN_S

    virtual_time.run(body())


def test_a_commit_covers_a_bounded_number_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "RECORDS_A_COMMIT_MAX", 1_000)

    async def body() -> None:
        async with piped.running() as partition:
            partition.source.behind_ms = 60_000
            await partition.until(lambda: len(partition.store.committed) == 1)
            for number in range(1, 4):
                put_s = partition.clock.monotonic()
                partition.put(*[piped.sample(f"device-{number}-{one}") for one in range(1_000)])
                await partition.until(lambda: partition.store.count() == number * 1_000)  # noqa: B023
                answered_s = min(at for at in partition.source.answered_s if at >= put_s)
                assert partition.clock.monotonic() - answered_s <= 2 * piped.LOOK_AGAIN_S, (
                    "it doesn't wait for a second"
                )

    virtual_time.run(body())


def test_the_partition_clock_is_committed_while_nothing_comes() -> None:
    """So that silence isn't mistaken for age."""

    async def body() -> None:
        async with piped.running() as partition:
            await partition.pass_time(10.0)
            for _ in range(60):
                await partition.pass_time(60.0)
                behind_ms = partition.kinesis.now_ms() - partition.store.state.clock_ms
                assert behind_ms <= (pipeline.COMMIT_CLOCK_S + POLL_S + 4) * 1_000
            assert len(partition.store.committed) <= 3_700 / pipeline.COMMIT_CLOCK_S, "and not more often than that"

    virtual_time.run(body())


# Commit before publish, acknowledge before forget


def test_nothing_is_published_while_its_commit_is_under_way() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            await partition.pass_time(2.0)
            partition.clock.may_commit.clear()
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: partition.applied() == 3)
            await partition.pass_time(600.0)
            assert partition.sink.given == set()
            assert partition.alerts() == []
            partition.clock.may_commit.set()
            await partition.until(lambda: len(partition.alerts()) == len(partition.commands()) == 1)

    virtual_time.run(body())


def test_nothing_is_published_whose_commit_found_no_room() -> None:
    async def body() -> None:
        store = memory_store.MemoryTwinStore(piped.identity())
        async with piped.running(piped.Setting(store=store)) as partition:
            partition.put(piped.sample("device-1"))
            await partition.until(lambda: partition.applied() == 1)
            await partition.pass_time(10.0)
            store.disk_full = True
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: partition.pipeline.message)
            applied = partition.applied()
            for number in range(60):
                partition.put(piped.sample(f"other-{number}"))
                await partition.pass_time(10.0)
            assert partition.applied() == applied == 4, "intake stops"
            assert partition.sink.given == set()
            assert "no room" in partition.pipeline.message
            assert partition.pipeline.phase == lifecycle.Phase.RUNNING, "it still answers questions"
            assert partition.around.metrics.disk_full_stops.labels(piped.SHARD_ID)._value.get() == 1
            store.disk_full = False
            await partition.until(partition.alerts, pipeline.DISK_RETRY_S + 0.1)
            await partition.until(lambda: partition.applied() == 64, 10 * POLL_S)
            assert partition.pipeline.message == ""
            await partition.end()
            assert store._contents.count() == 62

    virtual_time.run(body())


def test_each_stop_for_want_of_room_is_counted_once_and_changes_nothing() -> None:
    async def body() -> None:
        plan = memory_store.FaultPlan(full_commits=frozenset({2, 3, 4, 7, 8}))
        store = memory_store.MemoryTwinStore(piped.identity(), plan)
        async with piped.running(piped.Setting(store=store)) as partition:
            for number in range(40):
                partition.put(*piped.spike(f"device-{number}"))
                await partition.pass_time(1.0)
            await partition.until(lambda: len(partition.alerts()) == len(partition.commands()) == 40)
            await partition.end()
            assert partition.around.metrics.disk_full_stops.labels(piped.SHARD_ID)._value.get() == 2
            numbers = [entry.number for one in partition.store.committed for entry in one.commit.outbox_added]
            assert numbers == list(range(1, 81)), "each effect in one commit, under its own number"
            assert store._contents.entries == {}
            assert [one.commit.state.commit_number for one in partition.store.committed] == list(
                range(1, len(partition.store.committed) + 1)
            )

    virtual_time.run(body())


def test_a_stop_does_not_wait_for_room() -> None:
    async def body() -> None:
        store = memory_store.MemoryTwinStore(piped.identity())
        async with piped.running(piped.Setting(store=store)) as partition:
            await partition.pass_time(5.0)
            store.disk_full = True
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: partition.pipeline.message)
            before = partition.clock.monotonic()
            with pytest.raises(errors.DiskFullError):
                await partition.end()
            assert partition.clock.monotonic() - before <= pipeline.DISK_RETRY_S + 0.1
        again = store.crash(memory_store.Survivor.COMMITTED)
        async with piped.running(piped.Setting(store=again, kinesis=partition.kinesis)) as partition:
            await partition.until(partition.alerts)
            assert len(partition.alerts()) == 1

    virtual_time.run(body())


def test_effects_leave_the_outbox_only_after_their_acknowledgement() -> None:
    """Throttled calls, entries that fail, replies that are lost: whatever a commit removes was settled before."""

    async def body() -> None:
        dice = random.Random(7)
        troubles = (
            memory_kinesis.Fault(failed=frozenset({0, 2})),
            memory_kinesis.Fault(lost_reply=True),
            memory_kinesis.Fault(delay_s=4.0),
            piped.THROTTLED,
            memory_kinesis.NO_FAULT,
        )
        async with piped.running() as partition:
            partition.kinesis.plan = lambda call: (
                dice.choice(troubles) if call.operation == "PutRecords" else memory_kinesis.NO_FAULT
            )
            removed: set[int] = set()
            watched = 0
            for number in range(60):
                partition.put(*piped.spike(f"device-{number % 7}"), *piped.spike(f"other-{number}"))
                await partition.pass_time(0.7)
                for entry in partition.store.committed[watched:]:
                    assert set(entry.commit.outbox_removed) <= partition.sink.settled
                    removed |= set(entry.commit.outbox_removed)
                watched = len(partition.store.committed)
                left = {entry.number for entry in partition.store.outbox()}
                assert left == set(range(1, partition.store.state.outbox_next)) - removed
            partition.kinesis.plan = memory_kinesis.no_faults
            await partition.until(lambda: partition.pipeline.outbox.effects == 0)
            await partition.end()
            assert partition.store.inner._contents.entries == {}
            ids = [alert.alert_id for alert in partition.alerts()]
            assert len(set(ids)) < len(ids), "lost replies were to publish some twice"
            assert len(set(ids)) == len({alert.device_id for alert in partition.alerts()})

    virtual_time.run(body())


def test_what_was_committed_and_not_acknowledged_is_published_after_a_restart() -> None:
    async def body() -> None:
        store = memory_store.MemoryTwinStore(piped.identity())
        async with piped.running(piped.Setting(store=store)) as partition:
            partition.kinesis.plan = piped.failing("PutRecords", piped.THROTTLED)
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: len(store.outbox()) == 2)
            before = partition.clock.monotonic()
            await partition.end()
            assert partition.clock.monotonic() - before <= pipeline.DRAIN_S + 2 * pipeline.OUTBOX_WAIT_S
            assert partition.pipeline.phase == lifecycle.Phase.DRAINING
            assert len(store.outbox()) == 2
            assert partition.alerts() == []
        again = store.crash(memory_store.Survivor.COMMITTED)
        partition.kinesis.plan = memory_kinesis.no_faults
        async with piped.running(piped.Setting(store=again, kinesis=partition.kinesis)) as partition:
            await partition.until(lambda: len(partition.alerts()) == len(partition.commands()) == 1)
            await partition.end()
            assert again._contents.entries == {}

    virtual_time.run(body())


def test_a_clean_stop_leaves_an_empty_outbox() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            await partition.pass_time(3.0)
            partition.kinesis.plan = piped.failing("PutRecords", piped.THROTTLED)
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: partition.store.outbox())
            partition.stop.set()
            await partition.clock.sleep(2.0)
            assert not partition.task.done()
            partition.kinesis.plan = memory_kinesis.no_faults
            await partition.task
            assert partition.store.outbox() == []
            assert len(partition.alerts()) == len(partition.commands()) == 1

    virtual_time.run(body())


# The end of a shard


def test_a_shard_that_ended_waits_for_its_outbox_as_long_as_it_takes() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.kinesis.plan = piped.failing("PutRecords", piped.THROTTLED)
            partition.put(*piped.spike("device-7"))
            partition.kinesis.split_shard(piped.TELEMETRY, piped.SHARD_ID)
            await partition.until(lambda: partition.store.state.ended)
            await partition.pass_time(3_600.0)
            assert len(partition.store.outbox()) == 2
            partition.kinesis.plan = memory_kinesis.no_faults
            await partition.task
            assert partition.pipeline.phase == lifecycle.Phase.RUNNING, "closing it is for the one who runs it"
            assert partition.store.outbox() == []
            assert len(partition.alerts()) == len(partition.commands()) == 1

    virtual_time.run(body())


def test_an_ended_shard_publishes_the_dead_letter_of_a_refused_effect_before_it_closes() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.sink.refuses = lambda effect: "too large" if effect.target is effects.Target.COMMANDS else None
            partition.put(*piped.spike("device-7"))
            partition.kinesis.split_shard(piped.TELEMETRY, piped.SHARD_ID)
            await partition.task
            assert len(partition.kinesis.records_of(piped.DEAD_LETTERS)) == 1
            assert partition.store.outbox() == []

    virtual_time.run(body())


def test_a_stream_that_takes_nothing_delays_no_other() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.sink.stuck = effects.Target.COMMANDS
            partition.put(*piped.spike("device-7"))
            await partition.until(partition.alerts)
            partition.put(*piped.spike("device-8"))
            await partition.until(lambda: len(partition.alerts()) >= 2)

    virtual_time.run(body())
