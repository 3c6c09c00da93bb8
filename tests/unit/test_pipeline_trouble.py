"""One partition's loop when its surroundings fail: streams that take nothing or refuse for good, stores that break. In virtual time."""

from __future__ import annotations

import pytest

from fleet_worker import errors, pipeline, publisher
from fleet_worker.adapters import memory_kinesis, memory_store
from fleet_worker.core import effects
from tests.support import piped, virtual_time

POLL_S = 1.0
"""A caught-up shard is asked so often."""
MINUTE_MS = 60_000


# The outbox is bounded


def test_a_full_outbox_stops_intake_until_kinesis_takes_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "OUTBOX_MAX", 20)

    async def body() -> None:
        async with piped.running() as partition:
            partition.kinesis.plan = piped.failing("PutRecords", piped.UNAVAILABLE)
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
            partition.kinesis.plan = piped.failing("PutRecords", piped.UNAVAILABLE)
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
            partition.kinesis.plan = piped.failing("PutRecords", memory_kinesis.Fault(delay_s=2.0))
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
