"""One partition's loop in virtual time, over Kinesis and stores in memory: when it commits, what it publishes when, what
makes it stop and go on. Hours pass in milliseconds, and each test goes the same way every time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Sequence

import pytest

from fleet_model import rules
from fleet_proto import fleet_pb2
from fleet_worker import errors, pipeline, publisher, reading
from fleet_worker.adapters import memory_kinesis, memory_store
from fleet_worker.core import commits, effects, lifecycle
from tests.support import commits as builders
from tests.support import piped, virtual_time

POLL_S = 1.0
"""A caught-up shard is asked so often."""
MINUTE_MS = 60_000


def failing(operation: str, fault: memory_kinesis.Fault, stream: str = "") -> memory_kinesis.Plan:
    """Every such call goes wrong."""
    return lambda call: (
        fault if call.operation == operation and stream in ("", call.stream) else memory_kinesis.NO_FAULT
    )


UNAVAILABLE = memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE)
THROTTLED = memory_kinesis.Fault(failure=memory_kinesis.THROTTLED)


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
            THROTTLED,
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
            partition.kinesis.plan = failing("PutRecords", THROTTLED)
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
            partition.kinesis.plan = failing("PutRecords", THROTTLED)
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


# The outbox is bounded


def test_a_full_outbox_stops_intake_until_kinesis_takes_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "OUTBOX_MAX", 20)

    async def body() -> None:
        async with piped.running() as partition:
            partition.kinesis.plan = failing("PutRecords", UNAVAILABLE)
            for number in range(30):
                partition.put(*piped.spike(f"device-{number}"))
                await partition.pass_time(2.0)
            stopped_at = partition.applied()
            assert stopped_at < 45
            assert 20 <= len(partition.store.outbox()) <= 30
            await partition.pass_time(600.0)
            assert partition.applied() == stopped_at
            partition.kinesis.plan = memory_kinesis.no_faults
            await partition.until(lambda: len(partition.alerts()) == len(partition.commands()) == 30)
            assert partition.applied() == 90
            await partition.end()
            assert partition.store.outbox() == []

    virtual_time.run(body())


def test_a_stop_does_not_wait_for_room_in_the_outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "OUTBOX_MAX", 2)

    async def body() -> None:
        async with piped.running() as partition:
            partition.kinesis.plan = failing("PutRecords", UNAVAILABLE)
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: len(partition.store.outbox()) == 2)
            await partition.pass_time(5.0)
            before = partition.clock.monotonic()
            await partition.end()
            assert partition.clock.monotonic() - before <= pipeline.DRAIN_S + 2 * pipeline.OUTBOX_WAIT_S + 0.1

    virtual_time.run(body())


def test_a_publisher_that_breaks_ends_the_partition_even_while_the_outbox_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "OUTBOX_MAX", 2)

    async def body() -> None:
        async with piped.running() as partition:
            await partition.pass_time(2.0)
            partition.sink.breaks = RuntimeError("a bug")
            partition.put(*piped.spike("device-7"))
            with pytest.raises(RuntimeError, match="a bug"):
                await partition.until(lambda: False, 60.0)

    virtual_time.run(body())


# Refused effects


def test_an_effect_that_kinesis_never_takes_becomes_a_dead_letter() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.sink.refuses = lambda effect: "too large" if effect.target is effects.Target.COMMANDS else None
            partition.put(*piped.spike("device-7"))
            await partition.until(partition.alerts)
            await partition.until(lambda: partition.kinesis.records_of(piped.DEAD_LETTERS))
            await partition.end()
            assert partition.store.outbox() == []
            (letter,) = partition.store.inner._contents.letters
            assert (letter.reason, letter.device_id) == ("refused_by_kinesis", "device-7")
            assert "commands: too large" in letter.detail

    virtual_time.run(body())


def test_a_stop_publishes_the_dead_letter_of_an_effect_refused_while_draining() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            await partition.pass_time(3.0)
            partition.sink.refuses = lambda effect: "too large" if effect.target is effects.Target.COMMANDS else None
            partition.kinesis.plan = failing("PutRecords", memory_kinesis.Fault(delay_s=2.0))
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: partition.store.outbox())
            await partition.end()
            assert len(partition.kinesis.records_of(piped.DEAD_LETTERS)) == 1
            assert partition.store.outbox() == []

    virtual_time.run(body())


def test_two_refused_effects_of_a_device_are_two_dead_letters() -> None:
    """Consumers tell dead letters by their id."""

    async def body() -> None:
        async with piped.running() as partition:
            partition.sink.refuses = lambda effect: "no" if effect.target is not effects.Target.DEAD_LETTER else None
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: len(partition.kinesis.records_of(piped.DEAD_LETTERS)) == 2)
            ids = {
                record.data.split(b'"dead_letter_id":"')[1][:32]
                for record in partition.kinesis.records_of(piped.DEAD_LETTERS)
            }
            assert len(ids) == 2

    virtual_time.run(body())


# Stores that break


def test_a_broken_store_ends_the_partition() -> None:
    async def body() -> None:
        store = memory_store.MemoryTwinStore(piped.identity(), memory_store.FaultPlan(broken_commits=frozenset({2})))
        async with piped.running(piped.Setting(store=store)) as partition:
            partition.put(*piped.spike("device-1"))
            await partition.until(partition.alerts)
            partition.put(*piped.spike("device-2"))
            with pytest.raises(errors.StoreBrokenError):
                await partition.until(lambda: False, 60.0)
            assert {alert.device_id for alert in partition.alerts()} == {"device-1"}

    virtual_time.run(body())


def test_a_failed_sync_ends_the_partition() -> None:
    async def body() -> None:
        store = memory_store.MemoryTwinStore(piped.identity(), memory_store.FaultPlan(broken_syncs=frozenset({2})))
        async with piped.running(piped.Setting(store=store)) as partition:
            with pytest.raises(errors.StoreBrokenError):
                await partition.until(lambda: False, 60.0)
            assert 19 < partition.clock.monotonic() < 24, "at its second interval"

    virtual_time.run(body())


def test_a_sync_under_way_is_waited_for_at_the_end() -> None:
    """The store is closed right after, and nothing may work beside that."""

    async def body() -> None:
        async with piped.running() as partition:
            partition.clock.may_sync.clear()
            await partition.pass_time(15.0)
            partition.stop.set()
            await partition.clock.sleep(20.0)
            assert not partition.task.done()
            partition.clock.may_sync.set()
            await partition.task

    virtual_time.run(body())


# Time


def test_the_clock_stands_still_while_reads_fail_and_nobody_goes_offline() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.put(piped.sample("silent"), piped.sample("speaking"))
            await partition.until(lambda: partition.applied() == 2)
            await partition.pass_time(10.0)
            clock_ms = partition.pipeline.state.clock_ms
            partition.kinesis.plan = failing("GetRecords", UNAVAILABLE)
            await partition.pass_time(1_800.0)
            partition.put(piped.sample("speaking"))
            await partition.pass_time(1_800.0)
            assert partition.pipeline.state.clock_ms <= clock_ms + 3_000, "an answer was on its way"
            assert partition.alerts() == []
            partition.put(piped.sample("speaking"))
            partition.kinesis.plan = memory_kinesis.no_faults
            back_s = partition.clock.monotonic()
            await partition.until(lambda: any(alert.device_id == "silent" for alert in partition.alerts()), 20.0)
            assert partition.clock.monotonic() - back_s < 15.0, "back-off, an answer, a commit"
            told = [(alert.device_id, alert.trigger, alert.state) for alert in partition.alerts()]
            # The device that spoke half an hour apart was silent for longer than the limit in between, and is back.
            assert told.count(("silent", "offline", fleet_pb2.FIRING)) == 1
            await partition.until(
                lambda: (
                    [alert.state for alert in partition.alerts() if alert.device_id == "speaking"][-1:]
                    == [fleet_pb2.RESOLVED]
                )
            )

    virtual_time.run(body())


def test_a_worker_that_was_down_finds_nobody_offline_who_spoke_meanwhile() -> None:
    async def body() -> None:
        store = memory_store.MemoryTwinStore(piped.identity())
        async with piped.running(piped.Setting(store=store)) as partition:
            partition.put(piped.sample("silent"), piped.sample("speaking"))
            await partition.until(lambda: partition.applied() == 2)
            await partition.end()
        kinesis = partition.kinesis
        for number in range(60):
            await partition.clock.sleep(60.0)
            kinesis.put(piped.TELEMETRY, *piped.sample("speaking", timestamp_ms=2_000_000 + number))
        again = store.crash(memory_store.Survivor.COMMITTED)
        async with piped.running(piped.Setting(store=again, kinesis=kinesis)) as partition:
            await partition.until(partition.alerts, 5.0)
            await partition.pass_time(30.0)
            assert [alert.device_id for alert in partition.alerts()] == ["silent"]

    virtual_time.run(body())


def test_silence_is_found_within_five_seconds_of_its_limit() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.put(piped.sample("device-7"))
            arrived_ms = partition.kinesis.now_ms()
            await partition.until(partition.alerts)
            late_ms = partition.kinesis.now_ms() - arrived_ms - 5 * MINUTE_MS
            assert 0 <= late_ms <= 5_000

    virtual_time.run(body())


# Rules


def test_no_record_is_judged_while_a_generation_is_being_stamped() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            await partition.pass_time(3.0)
            partition.around.rules_settled.clear()
            partition.put(*[piped.sample("device-7", 50.0, timestamp_ms=1_000_000 + number) for number in range(3)])
            await partition.pass_time(30.0)
            assert partition.applied() == 0
            stricter = rules.Rules(temperature=rules.TemperatureRule(threshold=40.0))
            partition.pipeline.adopt(
                (rules.RulesGeneration(), rules.RulesGeneration(2, virtual_time.EPOCH_MS + 1, stricter))
            )
            partition.around.rules_settled.set()
            await partition.until(partition.alerts, 5.0)
            (alert,) = partition.alerts()
            assert (alert.generation, alert.explanation) == (2, "temperature 50.0°C above 40.0 for 3 samples")

    virtual_time.run(body())


def test_rules_that_come_while_firmware_is_read_judge_what_comes_next() -> None:
    """The first rules that look at firmware make the partition read it from the store; an edit that is being stamped
    meanwhile must be waited for."""

    async def body() -> None:
        by_firmware = rules.Profile("old", rules.Match(None, None, "0.9"), rules.Rules())
        stricter = rules.Rules(temperature=rules.TemperatureRule(threshold=40.0))
        second = rules.RulesGeneration(2, virtual_time.EPOCH_MS + 1, rules.Rules(), (by_firmware,))
        third = rules.RulesGeneration(3, virtual_time.EPOCH_MS + 2, stricter, (by_firmware,))
        async with piped.running() as partition:
            partition.put(piped.sample("device-7", timestamp_ms=1))
            await partition.until(lambda: partition.applied() == 1)
            await partition.pass_time(10.0)
            stored = partition.store.inner.telemetry

            def settle() -> None:
                partition.pipeline.adopt((rules.RulesGeneration(), second, third))
                partition.around.rules_settled.set()

            def edited_meanwhile(device_ids: Sequence[str]) -> dict[str, bytes]:
                partition.around.rules_settled.clear()
                asyncio.get_running_loop().call_later(5.0, settle)
                found: dict[str, bytes] = stored(device_ids)
                return found

            partition.store.inner.telemetry = edited_meanwhile
            partition.pipeline.adopt((rules.RulesGeneration(), second))
            partition.put(*[piped.sample("device-7", 50.0, timestamp_ms=1_000_000 + number) for number in range(3)])
            await partition.until(partition.alerts, 20.0)
            assert [alert.generation for alert in partition.alerts()] == [3]

    virtual_time.run(body())


def test_a_merged_child_scans_at_a_generation_that_began_between_its_parents_clocks() -> None:
    """One parent had come past the new generation's start, the other hadn't: its silent device is offline by the old rules."""

    async def body() -> None:
        base_ms = virtual_time.EPOCH_MS - 600_000
        lenient = rules.Rules(offline=rules.OfflineRule(after_ms=36_000_000))
        switch = rules.RulesGeneration(2, base_ms + 300_500, lenient)
        contents = memory_store.Contents()
        contents.apply(builders.commit(builders.twin_rows(["silent"], last_arrival_ms=base_ms)))
        contents.state = commits.PartitionState(
            clock_ms=base_ms + 100_000, high_arrival_ms=base_ms + 400_000, commit_number=7
        )
        store = memory_store.MemoryTwinStore(piped.identity(), contents=contents)
        async with piped.running(
            piped.Setting(store=store, generations=(rules.RulesGeneration(), switch))
        ) as partition:
            await partition.until(partition.alerts, 10.0)
            (alert,) = partition.alerts()
            assert (alert.device_id, alert.generation, alert.timestamp) == ("silent", 1, base_ms + 300_000)

    virtual_time.run(body())


def test_a_stop_right_after_the_clock_passed_a_generations_start_loses_nothing() -> None:
    """A device goes offline right before a generation starts by which it isn't. The clock passes both at once, less than a
    second after the last scan: the scan by the old rules must not be lost when the worker stops right then."""
    undisturbed = virtual_time.run(_alerts_of_a_switch(None))
    assert len(undisturbed) == 1
    for stops_after_s in (303.1, 303.6, 304.1, 304.6, 305.1, 305.6):
        assert virtual_time.run(_alerts_of_a_switch(stops_after_s)) == undisturbed, stops_after_s


async def _alerts_of_a_switch(stops_after_s: float | None) -> tuple[str, ...]:
    """By device-7, due 301.5 s after the beginning; another's record brings the scan before, at 301.2 s."""
    lenient = rules.Rules(offline=rules.OfflineRule(after_ms=3_600_000))
    switch = rules.RulesGeneration(2, virtual_time.EPOCH_MS + 301_800, lenient)
    store = memory_store.MemoryTwinStore(piped.identity())
    setting = piped.Setting(store=store, generations=(rules.RulesGeneration(), switch))
    async with piped.running(setting) as partition:
        await partition.pass_time(1.5)
        partition.put(piped.sample("device-7"))
        await partition.pass_time(301.2 - partition.clock.monotonic())
        partition.put(piped.sample("other"))
        await partition.pass_time((stops_after_s or 320.0) - partition.clock.monotonic())
        await partition.end()
    again = store.crash(memory_store.Survivor.COMMITTED)
    async with piped.running(dataclasses.replace(setting, kinesis=partition.kinesis, store=again)) as partition:
        await partition.pass_time(30.0)
        return tuple(alert.alert_id for alert in partition.alerts())


# The end of a shard


def test_a_shard_that_ended_waits_for_its_outbox_as_long_as_it_takes() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.kinesis.plan = failing("PutRecords", THROTTLED)
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
