"""One contract for every Kinesis that Fleet Twin is run on: in memory, moto's server, kinesis-local.

The one in memory is tried twice: called, and behind HTTP as tests of whole fleets have it.

What the tests ask for is what the service does by its API reference. Where an emulator differs, its flag in
tests/support/kinesis_endpoints.py says so and the test checks the difference too, so that this table stays true:

| behaviour                                   | service  | memory   | kinesis-local 0.6 | moto 5.2                   |
| ------------------------------------------- | -------- | -------- | ----------------- | -------------------------- |
| a closed shard's end has no next iterator   | yes      | yes      | yes               | no: it goes on for ever    |
| ChildShards at a closed shard's end         | yes      | yes      | yes               | no                         |
| a closed shard is listed with an end        | yes      | yes      | yes (a constant)  | yes                        |
| records of closed shards stay where they are | yes     | yes      | yes               | copied into the children   |
| new records go to the children              | yes      | yes      | yes               | split: to the parent, too  |
| position that was never in the shard        | refused  | refused  | ResourceNotFound  | taken                      |
| start time ahead of now                     | refused  | refused  | refused           | taken                      |
| MillisBehindLatest                          | yes      | yes      | 0 on empty reads  | 0 on empty reads           |
| iterators expire after 5 minutes            | yes      | yes      | not tried         | no                         |
| throttling                                  | yes      | yes, off here | no           | no                         |
| 500 records and 5 MB a PutRecords           | refused  | refused  | taken             | refused                    |
| a record above 1 MiB                        | call refused | call refused | that record refused | call refused      |
| a refused PutRecords call stores nothing    | yes      | yes      | yes               | those before the bad one   |
| records older than the retention            | trimmed  | trimmed  | not tried         | kept                       |

What only the in-memory Kinesis does (expiry, throttling, trimming, lost replies) is tested on it in tests/unit, and over
HTTP with a proxy that fails on purpose in test_kinesis_faults.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from fleet_model import hashing, partition, spec
from fleet_worker import errors
from fleet_worker.adapters import kinesis_api, kinesis_source
from fleet_worker.core import effects, records
from tests.support import aws_env, kinesis_endpoints, kinesis_local, memory_kinesis_server, moto_server, node

READ_S_MAX = 20.0
FIRST = "shardId-000000000000"


@pytest.fixture(scope="module")
def memory_url() -> Iterator[str]:
    with memory_kinesis_server.running() as url:
        yield url


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto_server.running() as url:
        yield url


@pytest.fixture(scope="module")
def kinesis_local_url() -> Iterator[str]:
    try:
        kinesis_local.installed()
    except node.NoNodeError as error:
        pytest.skip(f"kinesis-local needs Node: {error}")
    with kinesis_local.running() as url:
        yield url


@pytest.fixture(
    params=[
        "memory",
        pytest.param("memory-over-http", marks=pytest.mark.processes),
        pytest.param("moto", marks=pytest.mark.processes),
        pytest.param("kinesis-local", marks=pytest.mark.processes),
    ]
)
async def endpoint(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[kinesis_endpoints.Endpoint]:
    aws_env.apply(monkeypatch)
    match request.param:
        case "memory":
            opened = kinesis_endpoints.memory()
        case "memory-over-http":
            opened = kinesis_endpoints.at(request.getfixturevalue("memory_url"), kinesis_endpoints.MEMORY_OVER_HTTP)
        case "moto":
            opened = kinesis_endpoints.at(request.getfixturevalue("moto_url"), kinesis_endpoints.MOTO)
        case _:
            url = request.getfixturevalue("kinesis_local_url")
            opened = kinesis_endpoints.at(url, kinesis_endpoints.KINESIS_LOCAL)
    async with opened as found:
        yield found


async def new_stream(endpoint: kinesis_endpoints.Endpoint, shards: int = 1) -> str:
    name = kinesis_endpoints.unused_name()
    await endpoint.admin.create_stream(name, shards)
    return name


async def put(endpoint: kinesis_endpoints.Endpoint, stream: str, *data: bytes, key: str = "device-7") -> list[str]:
    """One call a record, as no order is promised inside a call; the sequence numbers."""
    numbers: list[str] = []
    for each in data:
        (outcome,) = await endpoint.api.put_records(stream, [kinesis_api.PutRecord(key, each)])
        assert outcome.failure is None
        numbers.append(outcome.sequence_number)
    return numbers


async def read_until(source: kinesis_source.KinesisShardSource, count: int) -> list[records.ShardBatch]:
    """Batches until there are `count` records or the shard ends."""
    batches: list[records.ShardBatch] = []
    async with asyncio.timeout(READ_S_MAX):
        while sum(len(batch.data) for batch in batches) < count:
            batches.append(await source.read())
            if batches[-1].shard_ended:
                break
    return batches


def data_of(batches: list[records.ShardBatch]) -> list[bytes]:
    return [data for batch in batches for data in batch.data]


async def settled(sources: list[kinesis_source.KinesisShardSource]) -> list[bytes]:
    """What is in shards that get no more records: read until each has ended or answered nothing twice."""
    found: list[bytes] = []
    for source in sources:
        empty = 0
        while empty < 2:
            batch = await source.read()
            found += batch.data
            empty = 0 if batch.data else empty + 1
            if batch.shard_ended:
                break
    return found


async def test_shards_cover_the_hash_keys_once(endpoint: kinesis_endpoints.Endpoint) -> None:
    shards = await endpoint.stream(await new_stream(endpoint, 3)).list_shards()
    ranges = sorted(shard.hash_key_range for shard in shards)
    assert len(ranges) == 3
    assert ranges[0].start == 0
    assert ranges[-1].end == hashing.HASH_KEY_MAX
    assert all(before.end + 1 == after.start for before, after in itertools.pairwise(ranges))
    assert not any(shard.closed or shard.parents for shard in shards)


async def test_records_come_once_in_order_with_their_bytes(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    sent = [bytes(range(256)), b"", b'{"device_id":"device-7"}\n', *(str(index).encode() for index in range(20))]
    numbers = await put(endpoint, name, *sent)
    batches = await read_until(endpoint.stream(name).open_shard(FIRST, None), len(sent))
    assert data_of(batches) == sent
    assert [number for batch in batches for number in batch.sequence_numbers] == numbers
    assert [int(number) for number in numbers] == sorted(map(int, numbers))
    assert all(len(batch.data) == len(batch.arrival_ms) == len(batch.sequence_numbers) for batch in batches)
    assert all(batch.size_bytes > 0 for batch in batches if any(batch.data))


async def test_times_are_milliseconds_of_kinesis_clock(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    before_ms = endpoint.clock.wall_ms()
    await put(endpoint, name, b"a")
    after_ms = endpoint.clock.wall_ms()
    stream = endpoint.stream(name)
    batches = await read_until(stream.open_shard(FIRST, None), 1)
    assert before_ms - 1 <= batches[-1].arrival_ms[0] <= after_ms + 1
    assert batches[-1].arrival_ms.dtype.name == "int64"
    now_ms = endpoint.clock.wall_ms()
    assert now_ms - 5_000 <= batches[-1].poll_ms <= now_ms
    assert now_ms - 5_000 <= await stream.now_ms() <= endpoint.clock.wall_ms()
    assert await stream.retention_ms() == 86_400_000


async def test_caught_up_answers_nothing_and_is_not_behind(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    source = endpoint.stream(name).open_shard(FIRST, None)
    batch = await source.read()
    assert batch.data == []
    assert batch.millis_behind == 0
    assert not batch.shard_ended
    await put(endpoint, name, b"later")
    assert data_of(await read_until(source, 1)) == [b"later"]


async def test_reading_resumes_after_a_position(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    numbers = await put(endpoint, name, b"a", b"b", b"c", b"d")
    source = endpoint.stream(name).open_shard(FIRST, partition.Position(numbers[1]))
    assert data_of(await read_until(source, 2)) == [b"c", b"d"]
    tip = endpoint.stream(name).open_shard(FIRST, partition.Position(numbers[3]))
    assert (await tip.read()).data == []
    await put(endpoint, name, b"e")
    assert data_of(await read_until(tip, 1)) == [b"e"]


async def test_reading_starts_at_an_arrival_time(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    stream = endpoint.stream(name)
    await put(endpoint, name, b"a")
    await endpoint.clock.sleep(0.05)
    await put(endpoint, name, b"b")
    batches = await read_until(stream.open_shard(FIRST, None), 2)
    arrivals = [int(at) for batch in batches for at in batch.arrival_ms]
    assert arrivals[1] > arrivals[0]
    assert data_of(await read_until(stream.open_shard(FIRST, arrivals[1]), 1)) == [b"b"]
    assert data_of(await read_until(stream.open_shard(FIRST, arrivals[0] + 1), 1)) == [b"b"]
    assert data_of(await read_until(stream.open_shard(FIRST, arrivals[0] - 3_600_000), 2)) == [b"a", b"b"]


async def test_reading_from_kinesis_own_now_gets_all_that_comes_after(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    stream = endpoint.stream(name)
    source = stream.open_shard(FIRST, await stream.now_ms())
    await put(endpoint, name, b"after")
    assert data_of(await read_until(source, 1)) == [b"after"]


async def test_a_start_time_ahead_of_now_waits_for_it(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    await put(endpoint, name, b"too early")
    source = endpoint.stream(name).open_shard(FIRST, endpoint.clock.wall_ms() + 2_000)
    first = asyncio.ensure_future(source.read())
    done, _ = await asyncio.wait((first,), timeout=0.5)
    assert bool(done) != endpoint.behaviour.refuses_future_times
    async with asyncio.timeout(READ_S_MAX):
        batch = await first
    assert batch.data == []
    while endpoint.behaviour.refuses_future_times and batch.data == []:
        await put(endpoint, name, b"in time")
        batch = await source.read()
    assert set(batch.data) <= {b"in time"}


async def test_records_go_where_the_md5_of_their_key_says(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint, 4)
    keys = [f"device-{index}" for index in range(40)]
    await endpoint.api.put_records(name, [kinesis_api.PutRecord(key, key.encode()) for key in keys])
    stream = endpoint.stream(name)
    seen = 0
    for shard in await stream.list_shards():
        for data in await settled([stream.open_shard(shard.shard_id, None)]):
            assert hashing.hash_key(data.decode()) in shard.hash_key_range
            seen += 1
    assert seen == len(keys)


async def test_more_than_ten_thousand_records_take_several_answers(endpoint: kinesis_endpoints.Endpoint) -> None:
    if not endpoint.behaviour.takes_ten_thousand_quickly:
        pytest.skip("putting so many takes an emulator too long; the parser is tried on as many in tests/unit")
    name = await new_stream(endpoint)
    entries = [kinesis_api.PutRecord("device-7", str(index).encode()) for index in range(10_500)]
    for first in range(0, len(entries), 500):
        await endpoint.api.put_records(name, entries[first : first + 500])
    batches = await read_until(endpoint.stream(name).open_shard(FIRST, None), 10_500)
    assert [len(batch.data) for batch in batches if batch.data] == [10_000, 500]
    assert data_of(batches) == [entry.data for entry in entries]


async def test_a_split_shard_ends_and_names_its_children(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    stream = endpoint.stream(name)
    numbers = await put(endpoint, name, b"a", b"b")
    await endpoint.admin.split_shard(name, FIRST, 2**127)

    shards = {shard.shard_id: shard for shard in await stream.list_shards()}
    children = [shard for shard in shards.values() if shard.parents == (FIRST,)]
    assert shards[FIRST].closed
    assert [child.closed for child in children] == [False, False]
    assert sorted(child.hash_key_range for child in children) == [
        hashing.HashKeyRange(0, 2**127 - 1),
        hashing.HashKeyRange(2**127, hashing.HASH_KEY_MAX),
    ]

    source = stream.open_shard(FIRST, None)
    if not endpoint.behaviour.ends_closed_shards:
        for _ in range(3):
            assert not (await source.read()).shard_ended
        return
    batches = await read_until(source, 1_000_000)
    assert data_of(batches) == [b"a", b"b"]
    assert batches[-1].shard_ended
    assert {child.shard_id for child in batches[-1].child_shards} == {child.shard_id for child in children}
    assert set(batches[-1].child_shards) == set(children)
    late = await stream.open_shard(FIRST, partition.Position(numbers[-1])).read()
    assert late.shard_ended
    assert late.data == []

    await put(endpoint, name, b"c")
    owner = next(child for child in children if hashing.hash_key("device-7") in child.hash_key_range)
    assert data_of(await read_until(stream.open_shard(owner.shard_id, None), 1)) == [b"c"]


async def test_merged_shards_end_both_and_name_one_child(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint, 2)
    stream = endpoint.stream(name)
    keys = [f"device-{index}" for index in range(12)]
    for key in keys:
        await put(endpoint, name, key.encode(), key=key)
    parents = [shard.shard_id for shard in await stream.list_shards()]
    await endpoint.admin.merge_shards(name, *parents)

    shards = await stream.list_shards()
    (child,) = [shard for shard in shards if not shard.closed]
    assert set(child.parents) == set(parents)
    assert child.hash_key_range == hashing.HashKeyRange()
    in_parents = await settled([stream.open_shard(shard_id, None) for shard_id in parents])
    assert sorted(in_parents) == sorted(key.encode() for key in keys)
    in_child = await settled([stream.open_shard(child.shard_id, None)])
    assert bool(in_child) == endpoint.behaviour.moves_records_when_merging
    for shard_id in parents:
        batches = [await stream.open_shard(shard_id, None).read()]
        assert batches[-1].shard_ended == endpoint.behaviour.ends_closed_shards
        if endpoint.behaviour.ends_closed_shards:
            assert [found.shard_id for found in batches[-1].child_shards] == [child.shard_id]


async def test_what_does_not_exist_is_gone(endpoint: kinesis_endpoints.Endpoint) -> None:
    nowhere = endpoint.stream("no-such-stream")
    with pytest.raises(errors.StreamGoneError, match="no-such-stream"):
        await nowhere.list_shards()
    with pytest.raises(errors.StreamGoneError):
        await nowhere.retention_ms()
    with pytest.raises(errors.StreamGoneError):
        await nowhere.open_shard(FIRST, None).read()
    with pytest.raises(errors.StreamGoneError):
        await endpoint.stream(await new_stream(endpoint)).open_shard("shardId-000000000099", None).read()


async def test_a_position_that_the_shard_never_had(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    await put(endpoint, name, b"a")
    source = endpoint.stream(name).open_shard(FIRST, partition.Position("12345"))
    match endpoint.behaviour.refuses_unknown_positions:
        case "expired":
            with pytest.raises(errors.PositionExpiredError):
                await source.read()
        case "gone":
            with pytest.raises(errors.StreamGoneError):
                await source.read()
        case _:
            assert (await source.read()).data == []


async def test_a_stream_can_be_named_by_its_arn(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = await new_stream(endpoint)
    stream = endpoint.stream(f"{endpoint.behaviour.arn}{name}")
    await put(endpoint, name, b"a")
    assert [shard.shard_id for shard in await stream.list_shards()] == [FIRST]
    assert data_of(await read_until(stream.open_shard(FIRST, None), 1)) == [b"a"]
    sink = endpoint.sink(
        spec.Streams(
            spec.TelemetryStream(arn=f"{endpoint.behaviour.arn}{name}"),
            spec.EffectStream("unused"),
            spec.EffectStream("unused"),
        )
    )
    assert (await sink.publish([entry(1, "device-7", b"b", effects.Target.TELEMETRY)])).acknowledged == [1]
    assert data_of(await read_until(stream.open_shard(FIRST, None), 2)) == [b"a", b"b"]


def entry(number: int, device: str, data: bytes, target: effects.Target = effects.Target.ALERTS) -> effects.OutboxEntry:
    return effects.OutboxEntry(number, effects.Effect(target, f"{number:032x}", "offline", device, 0, data))


async def effect_streams(endpoint: kinesis_endpoints.Endpoint) -> spec.Streams:
    return spec.Streams(
        spec.TelemetryStream(name="unused"),
        spec.EffectStream(await new_stream(endpoint, 2)),
        spec.EffectStream(await new_stream(endpoint)),
    )


async def everything(endpoint: kinesis_endpoints.Endpoint, name: str) -> list[bytes]:
    stream = endpoint.stream(name)
    return await settled([stream.open_shard(shard.shard_id, None) for shard in await stream.list_shards()])


async def test_effects_of_a_device_arrive_in_their_order(endpoint: kinesis_endpoints.Endpoint) -> None:
    streams = await effect_streams(endpoint)
    entries = [
        entry(number, f"device-{number % 5}", f"{number % 5}:{number}".encode(), target)
        for number, target in enumerate([effects.Target.ALERTS, effects.Target.COMMANDS] * 30, 1)
    ]
    published = await endpoint.sink(streams).publish(entries)
    assert sorted(published.acknowledged) == list(range(1, 61))
    assert published.refused == []
    for name, target in (
        (streams.alerts.name, effects.Target.ALERTS),
        (streams.commands.name, effects.Target.COMMANDS),
    ):
        found = await everything(endpoint, name)
        for device in range(5):
            prefix = f"{device}:".encode()
            expected = [
                e.effect.data for e in entries if e.effect.target is target and e.effect.data.startswith(prefix)
            ]
            assert [data for data in found if data.startswith(prefix)] == expected


async def test_effects_that_are_refused_for_good_leave_the_others_alone(endpoint: kinesis_endpoints.Endpoint) -> None:
    """One is too large, one has a partition key that is too long (which only Kinesis tells)."""
    streams = await effect_streams(endpoint)
    entries = [
        entry(1, "device-1", b"1"),
        entry(2, "device-2", b"x" * (2**20)),
        entry(3, "k" * 257, b"3"),
        entry(4, "device-2", b"4"),
        entry(5, "device-5", b"5"),
    ]
    published = await endpoint.sink(streams).publish(entries)
    assert sorted(published.acknowledged) == [1, 4, 5]
    assert sorted(number for number, _ in published.refused) == [2, 3]
    found = await everything(endpoint, streams.alerts.name)
    if not endpoint.behaviour.refused_calls_store_nothing:
        assert len(found) > 3
        found = list(set(found))
    assert sorted(found) == [b"1", b"4", b"5"]


async def test_the_largest_record_and_a_call_of_many_are_taken(endpoint: kinesis_endpoints.Endpoint) -> None:
    streams = await effect_streams(endpoint)
    largest = b"x" * (2**20 - len("device-0"))
    entries = [entry(1, "device-0", largest), *(entry(number, f"device-{number}", b"y") for number in range(2, 700))]
    published = await endpoint.sink(streams).publish(entries)
    assert len(published.acknowledged) == 699
    found = await everything(endpoint, streams.alerts.name)
    assert len(found) == 699
    assert largest in found


async def test_an_effect_stream_made_later_gets_its_effects(endpoint: kinesis_endpoints.Endpoint) -> None:
    name = kinesis_endpoints.unused_name()
    streams = spec.Streams(spec.TelemetryStream(name="unused"), spec.EffectStream(name), spec.EffectStream("unused"))
    publish = asyncio.ensure_future(endpoint.sink(streams).publish([entry(1, "device-1", b"1")]))
    done, _ = await asyncio.wait((publish,), timeout=0.3)
    assert not done
    await endpoint.admin.create_stream(name, 1)
    async with asyncio.timeout(READ_S_MAX):
        assert (await publish).acknowledged == [1]
    assert await everything(endpoint, name) == [b"1"]
