"""Large answers and whole fleets, judged in turns: nothing piles up, nothing is left out, and a stop doesn't wait for the end."""

from __future__ import annotations

import asyncio

import pytest

from fleet_model import rules
from fleet_worker import errors, pipeline, publisher, residency, turns
from fleet_worker.adapters import memory_kinesis, memory_store
from fleet_worker.core import engine, lifecycle
from tests.support import piped, virtual_time

MINUTE_MS = 60_000
UNAVAILABLE = memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE)


def failing(operation: str) -> memory_kinesis.Plan:
    return lambda call: UNAVAILABLE if call.operation == operation else memory_kinesis.NO_FAULT


def crowd(count: int, **more: object) -> list[tuple[str, bytes]]:
    return [piped.sample(f"device-{number}", **more) for number in range(count)]  # type: ignore[arg-type]


def offline(partition: piped.Piped) -> list[str]:
    return [alert.device_id for alert in partition.alerts() if alert.trigger == "offline" and not alert.state]


@pytest.fixture
def small_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every effect cost a hundred times as much."""
    monkeypatch.setattr(turns, "EFFECTS_A_TURN", 20)
    monkeypatch.setattr(engine, "SETTLE_ROWS", 5)
    monkeypatch.setattr(residency, "INDEX_CHUNK_ENTRIES", 30)


@pytest.fixture
def slow_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time stands still while a task is ready; here other things happen between two turns."""
    right = turns.Turns.next

    async def slow(shared: turns.Turns) -> None:
        await right(shared)
        await asyncio.sleep(0.2)

    monkeypatch.setattr(turns.Turns, "next", slow)


# ── a whole fleet goes silent ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("small_turns")
@pytest.mark.parametrize("rows_max", [0, 40])
def test_a_fleet_that_goes_silent_as_a_whole_is_told_a_bounded_part_at_a_time(rows_max: int) -> None:
    async def body() -> None:
        async with piped.running(piped.Setting(rows_max=rows_max)) as partition:
            at_most = 0
            table = partition.pipeline.engine.table

            def look() -> None:
                nonlocal at_most
                at_most = max(at_most, len(table))

            partition.put(*crowd(400))
            await partition.until(lambda: partition.applied() == 400)
            await partition.pass_time(60.0)
            partition.store.on_commit = look
            await partition.until(lambda: len(offline(partition)) == 400, 310.0)
            assert len(set(offline(partition))) == 400
            added = [len(entry.commit.outbox_added) for entry in partition.store.committed]
            assert max(added) <= 20 + 2 * 5
            if rows_max:
                await partition.pass_time(60.0)
                assert at_most < 400, "all of the fleet was in memory"
                assert len(table) <= rows_max

    virtual_time.run(body())


@pytest.mark.usefixtures("small_turns", "slow_turns")
def test_the_clock_arrives_only_when_all_is_found_and_a_stop_does_not_wait_for_that() -> None:
    async def body() -> None:
        setting = piped.Setting(store=memory_store.MemoryTwinStore(piped.identity()))
        async with piped.running(setting) as partition:
            partition.put(*crowd(400))
            await partition.until(lambda: partition.applied() == 400)
            await partition.until(lambda: len(offline(partition)) > 50, 310.0)
            due_ms = partition.pipeline.state.clock_ms
            assert len(offline(partition)) < 400
            await partition.end()
            assert partition.store.state.clock_ms <= due_ms
            told = offline(partition)
            assert 50 < len(told) < 400
        reopened = setting.store.crash(memory_store.Survivor.COMMITTED)
        again = piped.Setting(store=reopened, kinesis=partition.kinesis)
        async with piped.running(again) as partition:
            await partition.until(lambda: len(offline(partition)) == 400, 20.0)
            await partition.pass_time(60.0)
            assert sorted(offline(partition)) == sorted(device_id for device_id, _ in crowd(400)), "each once"

    virtual_time.run(body())


@pytest.mark.usefixtures("small_turns")
def test_an_edit_that_makes_a_whole_fleet_due_is_told_in_parts_before_the_records_after_it() -> None:
    """By the old rules nobody is due at the start, by the new ones everybody; records pass the start, not a poll."""

    async def body() -> None:
        async with piped.running() as partition:
            partition.put(*crowd(300))
            await partition.until(lambda: partition.applied() == 300)
            start_ms = partition.kinesis.now_ms() + 2 * MINUTE_MS
            strict = rules.Rules(offline=rules.OfflineRule(after_ms=MINUTE_MS))
            partition.kinesis.plan = failing("GetRecords")
            await partition.pass_time(100.0)
            partition.put(piped.sample("before"))
            partition.pipeline.adopt((rules.RulesGeneration(), rules.RulesGeneration(2, start_ms, strict)))
            await partition.pass_time(25.0)
            partition.put(*crowd(300))
            partition.kinesis.plan = memory_kinesis.no_faults
            await partition.until(lambda: len(offline(partition)) == 300, 30.0)
            alerts = [alert for alert in partition.alerts() if alert.trigger == "offline"]
            assert {alert.generation for alert in alerts} == {2}
            added = [len(entry.commit.outbox_added) for entry in partition.store.committed]
            assert max(added) <= 2 * 300 + 20, "what one answer's own records cause can't be cut further"
            await partition.until(lambda: len(partition.alerts()) == 600, 30.0)  # everyone is back

    virtual_time.run(body())


@pytest.mark.parametrize("is_on", [True, False])
def test_silent_devices_that_are_not_due_are_not_brought_in_again_and_again(is_on: bool) -> None:
    """By a profile with a longer limit, or where the rule is off: the shortest limit says nothing about them."""

    async def body() -> None:
        patient = rules.Rules(offline=rules.OfflineRule(after_ms=10 * 3_600_000))
        watched = rules.Profile("watched", rules.Match(device_id_prefix="watched"), rules.Rules())
        default = patient if is_on else rules.Rules(offline=rules.OfflineRule(enabled=False))
        known = (rules.RulesGeneration(default=default, profiles=(watched,)),)
        async with piped.running(piped.Setting(rows_max=20, generations=known)) as partition:
            partition.put(*crowd(60), piped.sample("watched-1"))
            await partition.until(lambda: partition.applied() == 61)
            for minute in range(7):
                partition.put(piped.sample("device-0", timestamp_ms=2_000_000 + minute))
                await partition.pass_time(60.0)
            assert offline(partition) == ["watched-1"]
            fetched = 0
            right = partition.store.inner.fetch

            def counting(device_ids: list[str]) -> object:
                nonlocal fetched
                fetched += len(device_ids)
                return right(device_ids)

            partition.store.inner.fetch = counting
            for minute in range(30):
                partition.put(piped.sample("device-0", timestamp_ms=3_000_000 + minute))
                await partition.pass_time(60.0)
            assert fetched <= 30, "the one that speaks may leave and come back, as the others stay"
            assert partition.pipeline.engine.table.stored_elsewhere + len(partition.pipeline.engine.table) == 61

    virtual_time.run(body())


# ── large answers ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("slow_turns")
def test_a_stop_in_the_middle_of_a_large_answer_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "RECORDS_FIRST", 10)
    monkeypatch.setattr(turns, "RECORDS_MAX", 10)

    async def body() -> None:
        setting = piped.Setting(store=memory_store.MemoryTwinStore(piped.identity()))
        async with piped.running(setting) as partition:
            partition.put(*crowd(500))
            await partition.until(lambda: partition.applied() > 0)
            partition.stop.set()
            await partition.task
            assert partition.applied() < 500
            assert partition.store.count() == partition.applied()
        reopened = setting.store.crash(memory_store.Survivor.COMMITTED)
        async with piped.running(piped.Setting(store=reopened, kinesis=partition.kinesis)) as partition:
            await partition.until(lambda: partition.store.count() == 500, 30.0)
            assert {int(partition.row(device_id)["samples"]) for device_id, _ in crowd(500)} == {1}

    virtual_time.run(body())


def test_in_the_middle_of_a_large_answer_a_full_outbox_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "RECORDS_FIRST", 10)
    monkeypatch.setattr(turns, "RECORDS_MAX", 10)
    monkeypatch.setattr(publisher, "OUTBOX_MAX", 30)

    async def body() -> None:
        async with piped.running() as partition:
            partition.kinesis.plan = failing("PutRecords")
            for number in range(60):
                partition.put(*piped.spike(f"device-{number}"))
            await partition.pass_time(120.0)
            assert partition.applied() < 180
            assert partition.pipeline.outbox.effects <= 30 + 2 * 10
            assert "effects wait for Kinesis" in partition.pipeline.message
            partition.kinesis.plan = memory_kinesis.no_faults
            await partition.until(lambda: len(partition.alerts()) == 60, 120.0)
            assert partition.pipeline.message == ""

    virtual_time.run(body())


# ── rules that begin to look at firmware ─────────────────────────────────────────────────────────────────────────────


def test_the_answer_in_hand_when_rules_begin_to_look_at_firmware_counts_with_its_firmware() -> None:
    """It was asked for before the edit; a device that it makes known is judged by its profile from the edit's start on."""

    async def body() -> None:
        async with piped.running() as partition:
            await partition.until(lambda: partition.source.answered_s)
            hot = rules.Rules(temperature=rules.TemperatureRule(threshold=30.0, consecutive_samples=1))
            profile = rules.Profile("old", rules.Match(firmware="1.0"), hot)
            start_ms = partition.kinesis.now_ms() + 5_000
            known = (rules.RulesGeneration(), rules.RulesGeneration(2, start_ms, profiles=(profile,)))
            partition.put(piped.sample("device-7", 40.0, firmware="1.0"))
            partition.around.rules_settled.clear()
            await partition.pass_time(3.0)  # the answer is there, and waits
            assert partition.applied() == 0
            partition.pipeline.adopt(known)
            partition.around.rules_settled.set()
            await partition.until(lambda: partition.applied() == 1)
            firmware = partition.pipeline.engine.table.firmware
            assert firmware is not None
            assert firmware[partition.pipeline.engine.table.slots.get("device-7")] == "1.0"
            await partition.pass_time(5.0)
            partition.put(piped.sample("device-7", 40.0))  # without a word about its firmware: "" doesn't match
            await partition.until(lambda: partition.applied() == 2)
            await partition.pass_time(2.0)
            assert partition.alerts() == []

    virtual_time.run(body())


# ── pauses, and what is told of them ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("pause_s", "is_lost"), [(3_500.0, False), (4_000.0, True)])
def test_a_pause_longer_than_the_retention_is_a_loud_failure(pause_s: float, is_lost: bool) -> None:
    """The disk was full, or Kinesis out of reach, for so long; Kinesis itself would go on as if nothing had happened."""

    async def body() -> None:
        kinesis = memory_kinesis.MemoryKinesis(piped.Clock(), refuses_trimmed=False)
        for name in (piped.ALERTS, piped.COMMANDS, piped.DEAD_LETTERS):
            kinesis.create_stream(name)
        kinesis.create_stream(piped.TELEMETRY, retention_ms=3_600_000)
        async with piped.running(piped.Setting(kinesis=kinesis, retention_ms=3_600_000)) as partition:
            partition.put(piped.sample("device-7"))
            await partition.until(lambda: partition.applied() == 1)
            kinesis.plan = failing("GetRecords")
            await partition.clock.sleep(pause_s)
            kinesis.plan = memory_kinesis.no_faults
            await asyncio.wait((partition.task,), timeout=60)
            if not is_lost:
                assert not partition.task.done()
                return
            with pytest.raises(errors.PositionExpiredError, match=r"stands 6\d min back.*retains 60 min"):
                partition.task.result()

    virtual_time.run(body())


def test_reading_far_behind_without_a_pause_is_no_failure() -> None:
    """As after a first start at the shard's beginning, where the first records are as old as the retention."""

    async def body() -> None:
        async with piped.running(piped.Setting(retention_ms=3_600_000)) as partition:
            partition.source.behind_ms = 3_700_000
            partition.put(*crowd(10))
            await partition.pass_time(300.0)
            assert partition.applied() == 10

    virtual_time.run(body())


def test_acknowledged_effects_leave_the_outbox_soon_though_nothing_else_happens() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: len(partition.alerts()) == 1)
            await partition.pass_time(pipeline.COMMIT_IDLE_S + 2.0)
            assert partition.store.outbox() == []

    virtual_time.run(body())


def test_an_outbox_of_before_is_published_after_the_start() -> None:
    """It is read in a thread, with the twins, not while the partition is made."""

    async def body() -> None:
        setting = piped.Setting(store=memory_store.MemoryTwinStore(piped.identity()))
        async with piped.running(setting) as partition:
            partition.kinesis.plan = failing("PutRecords")
            partition.put(*piped.spike("device-7"))
            await partition.until(lambda: partition.store.outbox())
            await partition.end()
        partition.kinesis.plan = memory_kinesis.no_faults
        reopened = setting.store.crash(memory_store.Survivor.COMMITTED)
        async with piped.running(piped.Setting(store=reopened, kinesis=partition.kinesis)) as partition:
            assert partition.pipeline.phase == lifecycle.Phase.RESTORING.value
            await partition.until(lambda: len(partition.alerts()) == 1, 10.0)

    virtual_time.run(body())
