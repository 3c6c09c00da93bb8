"""The production source over the in-memory Kinesis, in virtual time: pacing, retries, iterators, positions."""

from __future__ import annotations

import asyncio
import collections
import itertools
import random
from collections.abc import Callable

import pytest

from fleet_model import partition
from fleet_worker import errors
from fleet_worker.adapters import kinesis_api, kinesis_source, memory_kinesis, memory_stream
from fleet_worker.core import records
from tests.support import virtual_time

SHARD = "shardId-000000000000"
STREAM = "device-telemetry"


class World:
    """An in-memory Kinesis with one stream, every call it gets, and the retries that the source tells of."""

    def __init__(
        self, shards: int = 1, kind: type[memory_kinesis.MemoryKinesis] = memory_kinesis.MemoryKinesis
    ) -> None:
        self.clock = virtual_time.VirtualClock()
        self.calls: list[tuple[float, memory_kinesis.Call]] = []
        self.fault: Callable[[memory_kinesis.Call], memory_kinesis.Fault] = memory_kinesis.no_faults
        self.retries: collections.Counter[tuple[str, kinesis_api.Trouble]] = collections.Counter()
        self.kinesis = kind(self.clock, self._plan, shards_page=2)
        self.kinesis.create_stream(STREAM, shards)
        self.stream = kinesis_source.KinesisStream(
            kinesis_source.Reading(self.kinesis, STREAM, self.clock, random.Random(7), on_retry=self._retried)
        )

    def _retried(self, retry: kinesis_api.Retry) -> None:
        self.retries[(retry.operation, retry.failure.trouble)] += 1

    def _plan(self, call: memory_kinesis.Call) -> memory_kinesis.Fault:
        self.calls.append((self.clock.monotonic(), call))
        return self.fault(call)

    def open(
        self, start: partition.Position | int | None = None, shard_id: str = SHARD
    ) -> kinesis_source.KinesisShardSource:
        return self.stream.open_shard(shard_id, start)

    def put(self, count: int, size: int = 10, key: str = "device-7") -> list[str]:
        return [self.kinesis.put(STREAM, key, b"x" * size) for _ in range(count)]

    def times(self, operation: str) -> list[float]:
        return [at for at, call in self.calls if call.operation == operation]


def fail_times(
    count: int, operation: str, fault: memory_kinesis.Fault
) -> Callable[[memory_kinesis.Call], memory_kinesis.Fault]:
    """The fault for the first `count` calls of an operation."""
    left = [count]

    def plan(call: memory_kinesis.Call) -> memory_kinesis.Fault:
        if call.operation != operation or left[0] == 0:
            return memory_kinesis.NO_FAULT
        left[0] -= 1
        return fault

    return plan


async def read_until(source: kinesis_source.KinesisShardSource, count: int) -> list[records.ShardBatch]:
    batches: list[records.ShardBatch] = []
    while sum(len(batch.data) for batch in batches) < count:
        batches.append(await source.read())
    return batches


def sequence_numbers(batches: list[records.ShardBatch]) -> list[str]:
    return [number for batch in batches for number in batch.sequence_numbers]


def test_caught_up_polls_once_a_second_and_keeps_its_phase() -> None:
    async def scenario() -> list[float]:
        world = World()
        source = world.open()
        for _ in range(6):
            await source.read()
        return world.times("GetRecords")

    times = virtual_time.run(scenario())
    assert times[0] == 0.0
    assert 0.2 <= times[1] <= 1.0, "the first wait is a random part of a second"
    steps = [after - before for before, after in itertools.pairwise(times[1:])]
    assert steps == pytest.approx([1.0] * 4)


def test_phases_of_shards_that_start_together_are_spread() -> None:
    async def scenario() -> list[float]:
        world = World(shards=16)
        shards = await world.stream.list_shards()
        sources = [world.open(shard_id=shard.shard_id) for shard in shards]
        for _ in range(2):
            await asyncio.gather(*(source.read() for source in sources))
        return sorted(world.times("GetRecords")[16:])

    times = virtual_time.run(scenario())
    assert times[-1] - times[0] > 0.5
    assert len({round(at, 3) for at in times}) > 8


def test_behind_polls_at_once_and_never_above_the_quotas() -> None:
    async def scenario() -> World:
        world = World()
        world.put(60_000, size=50)
        await read_until(world.open(), 60_000)
        return world

    world = virtual_time.run(scenario())
    times = world.times("GetRecords")
    assert not world.retries, "the in-memory Kinesis throttles above five calls or 2 MB a second"
    steps = [after - before for before, after in itertools.pairwise(times)]
    assert min(steps) >= 0.2 - 1e-9
    assert max(steps) <= 58 * 10_000 / 2_000_000 + 1e-6, "it waits no longer than its bytes ask for"


def test_large_records_keep_to_two_megabytes_a_second() -> None:
    async def scenario() -> World:
        world = World()
        world.put(40, size=1_000_000)
        await read_until(world.open(), 40)
        return world

    world = virtual_time.run(scenario())
    assert not world.retries
    assert world.times("GetRecords")[-1] >= 30 * 1_000_000 / 2_000_000


def test_a_full_answer_means_more_even_when_millis_behind_is_zero() -> None:
    class SaysZero(memory_kinesis.MemoryKinesis):
        def _millis_behind(self, shard: memory_stream.Shard, index: int) -> int:
            return 0

    async def scenario() -> float:
        world = World(kind=SaysZero)
        world.put(20_000, size=1)
        await read_until(world.open(), 20_000)
        return world.clock.monotonic()

    assert virtual_time.run(scenario()) == pytest.approx(0.2)


def test_every_record_once_and_in_order_through_all_troubles() -> None:
    """Throttling, lost replies, errors, empty answers and a slow start: the same records as without them."""

    async def scenario() -> tuple[list[str], list[str], World]:
        world = World()
        randomness = random.Random(3)
        faults = [
            memory_kinesis.Fault(failure=memory_kinesis.THROTTLED),
            memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE),
            memory_kinesis.Fault(lost_reply=True, delay_s=15.0),
            memory_kinesis.Fault(empty=True),
            memory_kinesis.Fault(delay_s=2.0),
            memory_kinesis.NO_FAULT,
        ]
        world.fault = lambda call: randomness.choice(faults)
        put: list[str] = []
        source = world.open()
        got: list[records.ShardBatch] = []
        for _ in range(20):
            put += world.put(3)
            got.append(await source.read())
        world.fault = memory_kinesis.no_faults
        while len(sequence_numbers(got)) < len(put):
            got.append(await source.read())
        return put, sequence_numbers(got), world

    put, got, world = virtual_time.run(scenario())
    assert got == put
    assert world.retries["GetRecords", kinesis_api.Trouble.THROTTLED] > 0
    assert world.retries["GetRecords", kinesis_api.Trouble.TRANSIENT] > 0


def test_throttling_backs_off_twice_as_long_each_time_up_to_ten_seconds() -> None:
    async def scenario() -> list[float]:
        world = World()
        world.fault = fail_times(12, "GetRecords", memory_kinesis.Fault(failure=memory_kinesis.THROTTLED))
        await world.open().read()
        return world.times("GetRecords")

    times = virtual_time.run(scenario())
    waits = [after - before for before, after in itertools.pairwise(times)]
    ceilings = [min(10.0, 0.2 * 2**attempt) for attempt in range(12)]
    for wait, ceiling in zip(waits, ceilings, strict=True):
        assert max(0.2, ceiling / 2) - 1e-9 <= wait <= ceiling + 1e-9
    assert len({round(wait / ceiling, 6) for wait, ceiling in zip(waits, ceilings, strict=True)}) > 6, "jittered"


def test_back_off_begins_anew_after_success() -> None:
    async def scenario() -> float:
        world = World()
        source = world.open()
        world.fault = fail_times(8, "GetRecords", memory_kinesis.Fault(failure=memory_kinesis.THROTTLED))
        await source.read()
        world.fault = fail_times(1, "GetRecords", memory_kinesis.Fault(failure=memory_kinesis.THROTTLED))
        await source.read()
        times = world.times("GetRecords")
        return times[-1] - times[-2]

    assert virtual_time.run(scenario()) <= 0.2 + 1e-9


def test_an_expired_iterator_is_renewed_after_the_last_record_returned() -> None:
    async def scenario() -> tuple[list[str], list[str], World]:
        world = World()
        put = world.put(3)
        source = world.open()
        got = await read_until(source, 3)
        put += world.put(2)
        await world.clock.sleep(301)  # intake stood still, say with a full disk
        got += await read_until(source, 2)
        return put, sequence_numbers(got), world

    put, got, world = virtual_time.run(scenario())
    assert got == put
    assert world.retries["GetRecords", kinesis_api.Trouble.EXPIRED_ITERATOR] == 1


def test_an_iterator_that_expires_before_anything_was_returned_begins_at_the_start_again() -> None:
    async def scenario() -> tuple[list[str], list[str]]:
        world = World()
        world.put(2)
        await world.clock.sleep(5)
        source = world.open(start=world.clock.wall_ms())
        assert (await source.read()).data == []
        await world.clock.sleep(400)
        put = world.put(2)
        return put, sequence_numbers(await read_until(source, 2))

    put, got = virtual_time.run(scenario())
    assert got == put


def test_iterators_that_expire_at_once_are_asked_for_with_back_off() -> None:
    expired = kinesis_api.Failure(kinesis_api.Trouble.EXPIRED_ITERATOR, "ExpiredIteratorException", "")

    async def scenario() -> float:
        world = World()
        world.fault = fail_times(10, "GetRecords", memory_kinesis.Fault(failure=expired))
        await world.open().read()
        return world.clock.monotonic()

    assert virtual_time.run(scenario()) > 20


def test_a_position_resumes_right_after_it() -> None:
    async def scenario() -> tuple[list[str], list[str]]:
        world = World()
        put = world.put(5)
        source = world.open(start=partition.Position(put[2], 17))
        return put[3:], sequence_numbers(await read_until(source, 2))

    expected, got = virtual_time.run(scenario())
    assert got == expected


def test_an_empty_position_begins_at_the_shards_beginning() -> None:
    async def scenario() -> tuple[list[str], list[str]]:
        world = World()
        put = world.put(2)
        return put, sequence_numbers(await read_until(world.open(start=partition.Position()), 2))

    put, got = virtual_time.run(scenario())
    assert got == put


def test_a_start_time_leaves_out_what_came_before_also_when_the_iterator_begins_early() -> None:
    class WholeSeconds(memory_kinesis.MemoryKinesis):
        """As with a client that sends times in whole seconds."""

        async def get_shard_iterator(
            self, stream: str, shard_id: str, start: kinesis_api.Start
        ) -> kinesis_api.IteratorAnswer:
            assert isinstance(start, int)
            return await super().get_shard_iterator(stream, shard_id, start // 1000 * 1000)

    async def scenario() -> tuple[list[str], list[str]]:
        world = World(kind=WholeSeconds)
        await world.clock.sleep(0.3)
        world.put(2)
        await world.clock.sleep(0.4)
        start_ms = world.clock.wall_ms()
        source = world.open(start=start_ms)
        assert (await source.read()).data == []
        put = world.put(2)
        got = await read_until(source, 2)
        assert got[-1].arrival_ms.tolist() == [start_ms, start_ms], "nothing was put later than the start"
        return put, sequence_numbers(got)

    put, got = virtual_time.run(scenario())
    assert got == put


def test_a_start_time_that_lies_ahead_is_waited_for() -> None:
    async def scenario() -> tuple[float, list[str], list[str]]:
        world = World()
        world.put(1)
        source = world.open(start=world.clock.wall_ms() + 60_000)
        await source.read()
        began = world.clock.monotonic()
        return began, world.put(1), sequence_numbers(await read_until(source, 1))

    began, put, got = virtual_time.run(scenario())
    assert 60 <= began <= 71
    assert got == put


def test_a_trimmed_position_is_an_error() -> None:
    async def scenario() -> None:
        world = World()
        put = world.put(3)
        await world.clock.sleep(86_400 + 10)
        await world.open(start=partition.Position(put[0])).read()

    with pytest.raises(errors.PositionExpiredError, match=SHARD):
        virtual_time.run(scenario())


def test_an_idle_shards_trimmed_position_is_none() -> None:
    """The position's own record went with its age, and nothing after it did: no loss, no error."""

    async def scenario() -> tuple[list[str], list[str]]:
        world = World()
        put = world.put(3)
        await world.clock.sleep(86_400 + 10)
        source = world.open(start=partition.Position(put[2]))
        new = world.put(1)
        return new, sequence_numbers(await read_until(source, 1))

    new, got = virtual_time.run(scenario())
    assert got == new


@pytest.mark.parametrize("shard_id", [SHARD, "shardId-000000000099"])
def test_a_missing_stream_or_shard_is_gone(shard_id: str) -> None:
    async def scenario() -> None:
        world = World()
        if shard_id == SHARD:
            world.kinesis.delete_stream(STREAM)
        await world.open(shard_id=shard_id).read()

    with pytest.raises(errors.StreamGoneError):
        virtual_time.run(scenario())


def test_denied_access_is_told_at_once() -> None:
    denied = kinesis_api.Failure(kinesis_api.Trouble.DENIED, "AccessDeniedException", "no")

    async def scenario() -> None:
        world = World()
        world.fault = fail_times(1, "GetShardIterator", memory_kinesis.Fault(failure=denied))
        await world.open().read()

    with pytest.raises(errors.StreamGoneError, match="AccessDeniedException"):
        virtual_time.run(scenario())


def test_a_split_shard_ends_with_its_last_records_and_names_its_children() -> None:
    async def scenario() -> tuple[records.ShardBatch, tuple[str, str], list[str]]:
        world = World()
        put = world.put(3)
        children = world.kinesis.split_shard(STREAM, SHARD)
        world.put(2)
        batch = await world.open().read()
        assert batch.sequence_numbers == put
        late = await world.open(start=partition.Position(put[-1])).read()
        assert late.shard_ended
        assert not late.data
        return batch, children, put

    batch, children, _ = virtual_time.run(scenario())
    assert batch.shard_ended
    assert tuple(child.shard_id for child in batch.child_shards) == children
    assert all(child.parents == (SHARD,) for child in batch.child_shards)
    ranges = [child.hash_key_range for child in batch.child_shards]
    assert ranges[0].end + 1 == ranges[1].start


def test_reading_beyond_the_end_is_a_bug() -> None:
    async def scenario() -> None:
        world = World()
        world.kinesis.split_shard(STREAM, SHARD)
        source = world.open()
        await source.read()
        await source.read()

    with pytest.raises(AssertionError, match="read to its end"):
        virtual_time.run(scenario())


def test_a_cancelled_read_loses_nothing_and_counts_against_the_quota() -> None:
    async def scenario() -> tuple[list[str], list[str], World]:
        world = World()
        put = world.put(3)
        world.fault = fail_times(1, "GetRecords", memory_kinesis.Fault(delay_s=1.0))
        source = world.open()
        read = asyncio.ensure_future(source.read())
        await world.clock.sleep(0.01)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        return put, sequence_numbers(await read_until(source, 3)), world

    put, got, world = virtual_time.run(scenario())
    assert got == put
    first, second = world.times("GetRecords")
    assert second - first >= 0.2 - 1e-9


def test_the_poll_time_is_kinesis_clock_not_ours() -> None:
    async def scenario() -> tuple[int, int, int]:
        world = World()
        world.kinesis.clock_offset_ms = -3_600_000
        batch = await world.open().read()
        return batch.poll_ms, await world.stream.now_ms(), world.clock.wall_ms()

    poll_ms, now_ms, ours_ms = virtual_time.run(scenario())
    assert ours_ms - 3_601_000 < poll_ms <= ours_ms - 3_600_000
    assert now_ms == poll_ms


def test_list_shards_reads_every_page_and_tells_closed_ones() -> None:
    async def scenario() -> list[partition.Shard]:
        world = World(shards=4)
        world.kinesis.merge_shards(STREAM, "shardId-000000000002", "shardId-000000000003")
        return await world.stream.list_shards()

    shards = virtual_time.run(scenario())
    assert [shard.shard_id[-1] for shard in shards] == ["0", "1", "2", "3", "4"]
    assert [shard.closed for shard in shards] == [False, False, True, True, False]
    assert shards[4].parents == ("shardId-000000000002", "shardId-000000000003")
    assert shards[0].hash_key_range.start == 0
    assert shards[4].hash_key_range.end == 2**128 - 1


def test_calls_about_the_stream_try_again_but_not_for_ever() -> None:
    async def scenario() -> tuple[int, float]:
        world = World()
        unavailable = memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE)
        world.fault = fail_times(7, "DescribeStreamSummary", unavailable)
        assert await world.stream.retention_ms() == 86_400_000
        world.fault = fail_times(8, "ListShards", unavailable)
        began = world.clock.monotonic()
        with pytest.raises(errors.StreamUnavailableError):
            await world.stream.list_shards()
        return len(world.times("ListShards")), world.clock.monotonic() - began

    tries, took_s = virtual_time.run(scenario())
    assert tries == 8
    assert 10 < took_s < 25
