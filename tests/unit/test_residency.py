"""A table smaller than its fleet, in virtual time: who leaves, who comes back, and that silence is noticed wherever a twin is."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from fleet_model import rules, spec
from fleet_proto import fleet_pb2
from fleet_worker.adapters import lmdb_store, memory_kinesis, memory_store
from tests.reference import raw
from tests.reference.words import OFFLINE, Control
from tests.support import piped, virtual_time

DEVICES = [f"device-{number}" for number in range(40)]
ROWS_MAX = 4
MINUTE_S = 60.0


def told(device_id: str, control: Control) -> tuple[str, bytes]:
    return device_id, raw.control_message(device_id, control).SerializeToString()


def bounded(**more: object) -> piped.Setting:
    """A new partition with a table for a tenth of the fleet."""
    store = memory_store.MemoryTwinStore(piped.identity())
    return dataclasses.replace(piped.Setting(store=store, rows_max=ROWS_MAX), **more)  # type: ignore[arg-type]


def restarted(setting: piped.Setting, partition: piped.Piped, **more: object) -> piped.Setting:
    """The same partition, as it stands after a death of the process."""
    store = setting.store.crash(memory_store.Survivor.COMMITTED)
    return dataclasses.replace(setting, store=store, kinesis=partition.kinesis, **more)  # type: ignore[arg-type]


async def crowded(partition: piped.Piped) -> None:
    """Every device has spoken, and all rows but a few have left the table."""
    for number, device_id in enumerate(DEVICES):
        partition.put(piped.sample(device_id, timestamp_ms=1_000_000 + number))
        await partition.pass_time(1.0)
    await leaves_the_table(partition)


async def leaves_the_table(partition: piped.Piped) -> None:
    """Rows leave with commits, so something has to be committed."""
    table = partition.pipeline.engine.table
    for number in range(30):
        partition.put(piped.sample(DEVICES[-1], timestamp_ms=2_000_000 + 1_000 * partition.applied() + number))
        await partition.pass_time(6.0)
        if len(table) <= ROWS_MAX:
            return
    raise AssertionError(f"{len(table)} rows are still in the table")


def offline(partition: piped.Piped) -> list[str]:
    return [alert.device_id for alert in partition.alerts() if alert.trigger == "offline" and not alert.state]


def test_the_table_keeps_to_its_bound_and_no_twin_is_lost() -> None:
    async def body() -> None:
        async with piped.running(bounded()) as partition:
            await crowded(partition)
            table = partition.pipeline.engine.table
            assert table.stored_elsewhere == len(DEVICES) - len(table)
            assert partition.store.count() == len(DEVICES)

    virtual_time.run(body())


def test_a_device_that_speaks_again_goes_on_with_its_twin() -> None:
    async def body() -> None:
        async with piped.running(bounded()) as partition:
            await crowded(partition)
            assert partition.row(DEVICES[3]) is None
            partition.put(piped.sample(DEVICES[3], timestamp_ms=3_000_000))
            await partition.until(lambda: partition.row(DEVICES[3]) is not None)
            assert int(partition.row(DEVICES[3])["samples"]) == 2

    virtual_time.run(body())


def test_a_hot_run_goes_on_after_its_twin_has_left_and_come_back() -> None:
    async def body() -> None:
        async with piped.running(bounded()) as partition:
            await crowded(partition)
            for number in range(3):
                partition.put(piped.sample(DEVICES[3], 75.0, timestamp_ms=5_000_000 + number))
                await partition.pass_time(6.0)
                for other in DEVICES[10:20]:
                    partition.put(piped.sample(other, timestamp_ms=5_000_000 + number))
                if number < 2:
                    await leaves_the_table(partition)
                    assert partition.row(DEVICES[3]) is None
            await partition.until(lambda: [alert.trigger for alert in partition.alerts()] == ["temp_spike"], 10.0)

    virtual_time.run(body())


def test_devices_outside_the_table_go_offline_in_time() -> None:
    async def body() -> None:
        async with piped.running(bounded()) as partition:
            heard_s = {}
            for number, device_id in enumerate(DEVICES):
                partition.put(piped.sample(device_id, timestamp_ms=1_000_000 + number))
                heard_s[device_id] = partition.clock.monotonic()
                await partition.pass_time(1.0)
            found_s: dict[str, float] = {}
            while len(found_s) < len(DEVICES):
                await partition.pass_time(0.5)
                assert partition.clock.monotonic() < 400.0, f"only {len(found_s)} were found"
                for device_id in offline(partition):
                    found_s.setdefault(device_id, partition.clock.monotonic())
            late = {device_id: found_s[device_id] - heard_s[device_id] - 5 * MINUTE_S for device_id in DEVICES}
            assert all(0 <= seconds <= 5.0 for seconds in late.values()), late
            assert len(offline(partition)) == len(DEVICES)

    virtual_time.run(body())


def test_after_a_restart_twins_without_room_are_found_all_the_same() -> None:
    """They were in the table before, so the index knew nothing of them."""

    async def body() -> None:
        setting = bounded(rows_max=0)
        async with piped.running(setting) as partition:
            partition.put(*[piped.sample(device_id) for device_id in DEVICES])
            await partition.until(lambda: partition.applied() == len(DEVICES))
            await partition.pass_time(10.0)
            assert partition.pipeline.engine.table.stored_elsewhere == 0
        setting = restarted(setting, partition, rows_max=ROWS_MAX)
        async with piped.running(setting) as partition:
            await partition.pass_time(5.0)
            assert partition.pipeline.engine.table.stored_elsewhere == len(DEVICES) - ROWS_MAX
            await partition.until(lambda: len(offline(partition)) == len(DEVICES), 6 * MINUTE_S)
            assert sorted(offline(partition)) == sorted(DEVICES)

    virtual_time.run(body())


def test_the_index_of_a_restart_is_durable_before_the_clock_moves() -> None:
    """A second death, right after the first commit, finds the twins either in the table or in the index."""

    async def body() -> None:
        setting = bounded(rows_max=0)
        async with piped.running(setting) as partition:
            partition.put(*[piped.sample(device_id) for device_id in DEVICES])
            await partition.until(lambda: partition.applied() == len(DEVICES))
            await partition.pass_time(10.0)
        clock_ms = setting.store.state.clock_ms
        setting = restarted(setting, partition, rows_max=ROWS_MAX)
        async with piped.running(setting) as partition:
            await partition.until(lambda: partition.store.committed)
            (first, *_) = partition.store.committed
            assert len(first.commit.index_added) == len(DEVICES) - ROWS_MAX
            assert first.commit.state.clock_ms == clock_ms

    virtual_time.run(body())


def test_a_shorter_limit_holds_at_once_for_devices_outside_the_table() -> None:
    async def body() -> None:
        async with piped.running(bounded()) as partition:
            await crowded(partition)
            impatient = rules.Rules(offline=rules.OfflineRule(after_ms=60_000))
            now_ms = partition.kinesis.now_ms()
            partition.pipeline.adopt((rules.RulesGeneration(), rules.RulesGeneration(2, now_ms + 1_000, impatient)))
            silent = [device_id for device_id in DEVICES[:-1] if device_id not in offline(partition)]
            await partition.until(lambda: set(silent) <= set(offline(partition)), 65.0)
            alerts = [alert for alert in partition.alerts() if alert.device_id in silent and not alert.state]
            assert {alert.generation for alert in alerts} == {2}

    virtual_time.run(body())


def test_devices_outside_the_table_are_judged_by_the_old_rules_up_to_a_generations_start() -> None:
    """Records that jump past the start, without a poll in between: the scan at the start needs the rows that are elsewhere."""

    async def body() -> None:
        async with piped.running(bounded()) as partition:
            await crowded(partition)
            known = set(offline(partition))
            partition.kinesis.plan = lambda call: _unavailable(call.operation == "GetRecords")
            lenient = rules.Rules(offline=rules.OfflineRule(after_ms=36_000_000))
            start_ms = partition.kinesis.now_ms() + 310_000
            partition.pipeline.adopt((rules.RulesGeneration(), rules.RulesGeneration(2, start_ms, lenient)))
            await partition.pass_time(320.0)
            partition.put(piped.sample("newcomer"))
            partition.kinesis.plan = lambda call: _unavailable(False)
            await partition.until(lambda: partition.row("newcomer") is not None)
            await partition.pass_time(20.0)
            found = [alert for alert in partition.alerts() if alert.device_id not in known]
            assert {alert.device_id for alert in found} == set(DEVICES) - known
            assert {alert.generation for alert in found} == {1}

    virtual_time.run(body())


def _unavailable(is_it: bool) -> memory_kinesis.Fault:
    return memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE if is_it else None)


def test_a_device_with_a_limit_of_its_own_stays_in_the_table() -> None:
    """The index can't judge it. Once the override is cleared it may leave as others do."""

    async def body() -> None:
        setting = bounded()
        own = DEVICES[3]
        async with piped.running(setting) as partition:
            await crowded(partition)
            partition.put(told(own, Control("update_threshold", 0, OFFLINE, 20.0)))
            await partition.until(lambda: own in offline(partition), 20.0)
            assert "no telemetry for 20 s" in [
                alert.explanation for alert in partition.alerts() if alert.device_id == own
            ]
            partition.put(*[piped.sample(device_id, timestamp_ms=9_000_000) for device_id in DEVICES])
            await leaves_the_table(partition)
            assert partition.row(own) is not None
        async with piped.running(restarted(setting, partition)) as partition:
            await partition.until(lambda: len(offline(partition)) > 1, 60.0)
            assert partition.row(own) is not None, "after a restart as well, whatever the room"
            partition.put(told(own, Control("clear_override", 0, OFFLINE)))
            partition.put(*[piped.sample(device_id, timestamp_ms=10_000_000) for device_id in DEVICES])
            await partition.pass_time(6.0)
            partition.put(*[piped.sample(device_id, timestamp_ms=11_000_000) for device_id in DEVICES[5:]])
            await leaves_the_table(partition)
            assert partition.row(own) is None

    virtual_time.run(body())


def test_a_forgotten_device_is_removed_for_good_though_the_disk_was_full() -> None:
    """After the retention its stamp goes, from the table at once and from the store with the next commit that finds room."""

    async def body() -> None:
        setting = bounded(retention_ms=600_000, rows_max=0)
        async with piped.running(setting) as partition:
            partition.put(piped.sample("gone"), piped.sample("other"))
            await partition.until(lambda: partition.applied() == 2)
            partition.put(told("gone", Control("forget_device", partition.kinesis.now_ms())))
            await partition.until(lambda: partition.applied() == 3)
            await partition.pass_time(590.0)
            await partition.until(lambda: partition.row("gone") is None, 60.0)
            setting.store.disk_full = True
            partition.put(piped.sample("other"))
            await partition.until(lambda: partition.pipeline.message, 60.0)
            assert partition.store.count() == 2, "the commit that removes it has found no room"
            setting.store.disk_full = False
            await partition.until(lambda: setting.store._contents.count() == 1, 60.0)

    virtual_time.run(body())


@pytest.mark.parametrize("rows_max", [0, ROWS_MAX])
def test_over_lmdb_a_fleet_goes_silent_and_comes_back(tmp_path: pathlib.Path, rows_max: int) -> None:
    """The real store: every device offline once, every device back once."""

    async def body() -> None:
        store = lmdb_store.LmdbTwinStore.open(tmp_path, piped.identity(), spec.Storage(map_size_bytes=2**26), "boot")
        try:
            async with piped.running(piped.Setting(store=store, rows_max=rows_max)) as partition:
                await crowded(partition) if rows_max else partition.put(*map(piped.sample, DEVICES))
                await partition.until(lambda: len(offline(partition)) == len(DEVICES), 11 * MINUTE_S)
                partition.put(*[piped.sample(device_id, timestamp_ms=2_000_000_000) for device_id in DEVICES])
                await partition.until(
                    lambda: sum(alert.state == fleet_pb2.RESOLVED for alert in partition.alerts()) == len(DEVICES), 20.0
                )
                assert len(offline(partition)) == len(DEVICES)
                await partition.end()
                assert store.count() == len(DEVICES)
                assert store.outbox() == []
        finally:
            store.close()

    virtual_time.run(body())
