"""The in-memory Kinesis by itself: what the tests of source and sink, and the simulator, take for granted."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

from fleet_model import hashing
from fleet_worker.adapters import kinesis_api, memory_kinesis
from fleet_worker.core import records
from tests.support import virtual_time

STREAM = "device-telemetry"
FIRST = "shardId-000000000000"


def made(**settings: object) -> tuple[memory_kinesis.MemoryKinesis, virtual_time.VirtualClock]:
    clock = virtual_time.VirtualClock()
    kinesis = memory_kinesis.MemoryKinesis(clock, **settings)  # type: ignore[arg-type]
    kinesis.create_stream(STREAM)
    return kinesis, clock


async def read_all(kinesis: memory_kinesis.MemoryKinesis, shard_id: str = FIRST) -> list[records.ShardBatch]:
    """From the oldest record to the tip, or the end of the shard."""
    iterator = (await kinesis.get_shard_iterator(STREAM, shard_id, None)).iterator
    batches: list[records.ShardBatch] = []
    while iterator is not None:
        answer = await kinesis.get_records(STREAM, iterator)
        batches.append(answer.batch)
        iterator = answer.next_iterator if answer.batch.millis_behind else None
    return batches


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    steps=strategies.lists(strategies.tuples(strategies.booleans(), strategies.integers(0, 10**6)), max_size=8),
    keys=strategies.lists(strategies.text(min_size=1, max_size=12), max_size=20),
)
def test_however_it_is_split_and_merged_open_shards_cover_the_hash_keys_once(
    steps: list[tuple[bool, int]], keys: list[str]
) -> None:
    async def scenario() -> None:
        kinesis, _ = made()
        for splits, choice in steps:
            shards = (await kinesis.list_shards(STREAM, None)).shards
            ranges = sorted((shard.hash_key_range, shard.shard_id) for shard in shards if not shard.closed)
            if splits or len(ranges) == 1:
                kinesis.split_shard(STREAM, ranges[choice % len(ranges)][1])
            else:
                at = choice % (len(ranges) - 1)
                kinesis.merge_shards(STREAM, ranges[at + 1][1], ranges[at][1])
        shards = [shard for shard in (await kinesis.list_shards(STREAM, None)).shards if not shard.closed]
        for key in keys:
            (outcome,) = await kinesis.put_records(STREAM, [kinesis_api.PutRecord(key, b"")])
            owners = [shard.shard_id for shard in shards if hashing.hash_key(key) in shard.hash_key_range]
            assert owners == [outcome.shard_id]
        ranges_only = sorted(shard.hash_key_range for shard in shards)
        assert ranges_only[0].start == 0
        assert ranges_only[-1].end == hashing.HASH_KEY_MAX
        assert sum(each.size for each in ranges_only) == 2**128

    virtual_time.run(scenario())


def test_children_begin_above_their_parents_sequence_numbers() -> None:
    async def scenario() -> None:
        kinesis, _ = made()
        before = kinesis.put(STREAM, "device-7", b"a")
        kinesis.split_shard(STREAM, FIRST)
        assert int(kinesis.put(STREAM, "device-7", b"b")) > int(before)

    virtual_time.run(scenario())


def test_an_explicit_hash_key_goes_before_the_partition_key() -> None:
    async def scenario() -> None:
        kinesis, _ = made()
        _, upper = kinesis.split_shard(STREAM, FIRST)
        kinesis.put(STREAM, "device-1", b"a", explicit_hash_key=hashing.HASH_KEY_MAX)
        kinesis.put(STREAM, "device-1", b"b", explicit_hash_key=2**127)
        assert [data for batch in await read_all(kinesis, upper) for data in batch.data] == [b"a", b"b"]

    virtual_time.run(scenario())


def test_millis_behind_is_the_age_of_the_next_record_and_zero_at_the_tip() -> None:
    async def scenario() -> list[int]:
        kinesis, clock = made(enforce_quotas=False)
        for _ in range(10_001):
            kinesis.put(STREAM, "device-7", b"x")
        await clock.sleep(42)
        return [batch.millis_behind for batch in await read_all(kinesis)]

    assert virtual_time.run(scenario()) == [42_000, 0]


def test_an_answer_is_cut_at_ten_megabytes() -> None:
    async def scenario() -> list[int]:
        kinesis, _ = made(enforce_quotas=False)
        for _ in range(12):
            kinesis.put(STREAM, "k", b"x" * 1_000_000)
        return [len(batch.data) for batch in await read_all(kinesis)]

    assert virtual_time.run(scenario()) == [9, 3]


def test_what_is_older_than_the_retention_is_trimmed_and_then_its_shard() -> None:
    async def scenario() -> None:
        kinesis, clock = made()
        kinesis.put(STREAM, "device-7", b"old")
        kinesis.split_shard(STREAM, FIRST)
        await clock.sleep(40_000)
        kinesis.put(STREAM, "device-7", b"young")
        await clock.sleep(50_000)
        listed = [shard.shard_id for shard in (await kinesis.list_shards(STREAM, None)).shards]
        assert FIRST not in listed
        assert len(listed) == 2
        assert [record.data for record in kinesis.records_of(STREAM)] == [b"young"]
        with pytest.raises(kinesis_api.ApiError) as caught:
            await kinesis.get_shard_iterator(STREAM, FIRST, None)
        assert caught.value.trouble is kinesis_api.Trouble.NOT_FOUND

    virtual_time.run(scenario())


@pytest.mark.parametrize("refuses", [True, False])
def test_a_trimmed_position_is_refused_or_silently_the_oldest(refuses: bool) -> None:
    async def scenario() -> list[bytes]:
        kinesis, clock = made(refuses_trimmed=refuses)
        trimmed = [kinesis.put(STREAM, "device-7", b"old") for _ in range(3)]
        await clock.sleep(86_500)
        kinesis.put(STREAM, "device-7", b"young")
        answer = await kinesis.get_shard_iterator(STREAM, FIRST, trimmed[0])
        assert answer.iterator is not None
        return (await kinesis.get_records(STREAM, answer.iterator)).batch.data

    if refuses:
        with pytest.raises(kinesis_api.ApiError, match="trimmed"):
            virtual_time.run(scenario())
    else:
        assert virtual_time.run(scenario()) == [b"young"]


def test_the_sixth_read_of_a_second_is_throttled() -> None:
    async def scenario() -> None:
        kinesis, clock = made()
        iterator = (await kinesis.get_shard_iterator(STREAM, FIRST, None)).iterator
        assert iterator is not None
        for _ in range(5):
            await kinesis.get_records(STREAM, iterator)
        with pytest.raises(kinesis_api.ApiError, match="ProvisionedThroughputExceeded"):
            await kinesis.get_records(STREAM, iterator)
        await clock.sleep(1.0)
        await kinesis.get_records(STREAM, iterator)

    virtual_time.run(scenario())


def test_a_shard_takes_a_thousand_records_a_second() -> None:
    async def scenario() -> int:
        kinesis, _ = made()
        taken = 0
        for _ in range(3):
            outcomes = await kinesis.put_records(STREAM, [kinesis_api.PutRecord("device-7", b"x")] * 400)
            taken += sum(outcome.failure is None for outcome in outcomes)
        return taken

    assert virtual_time.run(scenario()) == 1_000


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [kinesis_api.PutRecord("k", b"")] * 501,
        [kinesis_api.PutRecord("k", b"x" * 2**20)],
        [kinesis_api.PutRecord("k", b"x" * 1_000_000)] * 6,
        [kinesis_api.PutRecord("", b"x")],
        [kinesis_api.PutRecord("k" * 257, b"x")],
    ],
)
def test_an_invalid_put_is_refused_and_stores_nothing(entries: list[kinesis_api.PutRecord]) -> None:
    async def scenario() -> None:
        kinesis, _ = made()
        with pytest.raises(kinesis_api.ApiError) as caught:
            await kinesis.put_records(STREAM, entries)
        assert caught.value.trouble is kinesis_api.Trouble.INVALID
        assert kinesis.records_of(STREAM) == []

    virtual_time.run(scenario())


def test_faults_do_what_they_say() -> None:
    async def scenario() -> None:
        kinesis, clock = made()
        put = [kinesis_api.PutRecord("device-7", data) for data in (b"a", b"b", b"c")]

        kinesis.plan = lambda call: memory_kinesis.Fault(failure=memory_kinesis.THROTTLED)
        with pytest.raises(kinesis_api.ApiError):
            await kinesis.put_records(STREAM, put)
        assert kinesis.records_of(STREAM) == []

        kinesis.plan = lambda call: memory_kinesis.Fault(
            lost_reply=True, delay_s=9.0, failed=frozenset({1}), reverse=True, arrival_shift_ms=-40
        )
        sent_ms = kinesis.now_ms()
        with pytest.raises(kinesis_api.ApiError):
            await kinesis.put_records(STREAM, put)
        assert [record.data for record in kinesis.records_of(STREAM)] == [b"c", b"a"]
        assert {record.arrival_ms for record in kinesis.records_of(STREAM)} == {sent_ms - 40}
        assert clock.monotonic() == 9.0

        kinesis.plan = lambda call: memory_kinesis.Fault(empty=call.operation == "GetRecords")
        iterator = (await kinesis.get_shard_iterator(STREAM, FIRST, None)).iterator
        assert iterator is not None
        empty = await kinesis.get_records(STREAM, iterator)
        assert empty.batch.data == []
        assert empty.batch.millis_behind == 9_040
        kinesis.plan = memory_kinesis.no_faults
        assert empty.next_iterator is not None
        assert (await kinesis.get_records(STREAM, empty.next_iterator)).batch.data == [b"c", b"a"]

    virtual_time.run(scenario())
