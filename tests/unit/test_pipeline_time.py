"""One partition's loop and time: what its clock may know while it can't read, and which generation of rules judges at its border. In virtual
time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from fleet_model import rules
from fleet_proto import fleet_pb2
from fleet_worker.adapters import memory_kinesis, memory_store
from fleet_worker.core import commits
from tests.support import commits as builders
from tests.support import piped, virtual_time

POLL_S = 1.0
"""A caught-up shard is asked so often."""
MINUTE_MS = 60_000


# Time


def test_the_clock_stands_still_while_reads_fail_and_nobody_goes_offline() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.put(piped.sample("silent"), piped.sample("speaking"))
            await partition.until(lambda: partition.applied() == 2)
            await partition.pass_time(10.0)
            clock_ms = partition.pipeline.state.clock_ms
            partition.kinesis.plan = piped.failing("GetRecords", piped.UNAVAILABLE)
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
