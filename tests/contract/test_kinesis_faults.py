"""The client, the source and the sink over real HTTP, with a proxy that fails on purpose in front of moto's server."""

from __future__ import annotations

import asyncio
import collections
import random
from collections.abc import AsyncIterator, Iterator

import pytest

from fleet_model import spec
from fleet_worker.adapters import clock, kinesis, kinesis_api, kinesis_source
from fleet_worker.core import effects
from tests.support import aws_env, kinesis_endpoints, moto_server, proxy, waiting

pytestmark = pytest.mark.processes

READ_S_MAX = 20.0
FIRST = "shardId-000000000000"


class World:
    """A stream at moto, reached through the proxy by the connection under test and directly by `endpoint`."""

    def __init__(
        self, endpoint: kinesis_endpoints.Endpoint, faults: proxy.FaultProxy, connection: kinesis.KinesisConnection
    ) -> None:
        self.endpoint = endpoint
        self.faults = faults
        self.connection = connection
        self.retries: collections.Counter[tuple[str, kinesis_api.Trouble]] = collections.Counter()
        self.name = kinesis_endpoints.unused_name()

    def source(self) -> kinesis_source.KinesisShardSource:
        stream = self.connection.stream(self.name, self.endpoint.clock, kinesis_endpoints.QUICK)
        return stream.open_shard(FIRST, None)

    async def put(self, count: int) -> list[bytes]:
        sent = [str(index).encode() for index in range(count)]
        await self.endpoint.api.put_records(self.name, [kinesis_api.PutRecord("device-7", data) for data in sent])
        return sent

    async def publish(self, *devices: str) -> list[int]:
        streams = spec.Streams(
            spec.TelemetryStream(name="unused"), spec.EffectStream(self.name), spec.EffectStream("unused")
        )
        entries = [
            effects.OutboxEntry(
                number,
                effects.Effect(
                    effects.Target.ALERTS, f"{number:032x}", "offline", device, 0, f"{device}:{number}".encode()
                ),
            )
            for number, device in enumerate(devices, 1)
        ]
        async with asyncio.timeout(READ_S_MAX):
            published = await self.connection.sink(streams, self.endpoint.clock).publish(entries)
        assert not published.refused
        return sorted(published.acknowledged)

    async def stored(self) -> list[bytes]:
        answer = await self.endpoint.api.get_shard_iterator(self.name, FIRST, None)
        assert answer.iterator is not None
        return (await self.endpoint.api.get_records(self.name, answer.iterator)).batch.data


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto_server.running() as url:
        yield url


@pytest.fixture
async def world(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    aws_env.apply(monkeypatch)
    async with (
        kinesis_endpoints.at(moto_url, kinesis_endpoints.MOTO) as endpoint,
        proxy.FaultProxy(moto_url) as faults,
        kinesis.KinesisConnection.open(
            spec.Aws(region=aws_env.REGION, endpoint_url=faults.endpoint_url),
            random.Random(1),
            lambda retry: made.retries.update([(retry.operation, retry.failure.trouble)]),
        ) as connection,
    ):
        made = World(endpoint, faults, connection)
        await endpoint.admin.create_stream(made.name, 1)
        yield made


async def read(world: World, count: int) -> list[bytes]:
    found: list[bytes] = []
    source = world.source()
    async with asyncio.timeout(READ_S_MAX):
        while len(found) < count:
            found += (await source.read()).data
    return found


@pytest.mark.parametrize("operation", ["GetShardIterator", "GetRecords"])
@pytest.mark.parametrize(
    ("fault", "trouble"),
    [
        ({"throttle": True}, kinesis_api.Trouble.THROTTLED),
        ({"server_error": True}, kinesis_api.Trouble.TRANSIENT),
        ({"lose_reply": True}, kinesis_api.Trouble.TRANSIENT),
    ],
)
async def test_reading_gets_every_record_once(
    world: World, operation: str, fault: dict[str, bool], trouble: kinesis_api.Trouble
) -> None:
    sent = await world.put(20)
    rule = world.faults.add(proxy.Rule(operation, times=2, **fault))  # type: ignore[arg-type]
    assert await read(world, 20) == sent
    assert rule.times == 0
    assert world.retries == {(operation, trouble): 2}


async def test_a_lost_reply_publishes_again_before_the_devices_next_effect(world: World) -> None:
    world.faults.add(proxy.Rule("PutRecords", lose_reply=True))
    assert await world.publish("a", "a", "b") == [1, 2, 3]
    assert await world.stored() == [b"a:1", b"b:3", b"a:1", b"b:3", b"a:2"]
    assert world.retries == {("PutRecords", kinesis_api.Trouble.TRANSIENT): 1}


async def test_only_the_failed_part_is_published_again(world: World) -> None:
    world.faults.add(proxy.Rule("PutRecords", fail=frozenset({0, 2})))
    assert await world.publish("a", "b", "c", "a") == [1, 2, 3, 4]
    found = await world.stored()
    assert sorted(found) == [b"a:1", b"a:4", b"b:2", b"c:3"]
    assert found.index(b"a:1") < found.index(b"a:4")
    assert world.retries == {("PutRecords", kinesis_api.Trouble.THROTTLED): 1}


@pytest.mark.parametrize("fault", [{"throttle": True}, {"server_error": True}])
async def test_a_call_that_was_not_taken_is_published_again(world: World, fault: dict[str, bool]) -> None:
    world.faults.add(proxy.Rule("PutRecords", times=2, **fault))  # type: ignore[arg-type]
    assert await world.publish("a", "a") == [1, 2]
    assert await world.stored() == [b"a:1", b"a:2"]


async def test_millis_behind_and_poll_time_are_as_the_answer_tells(world: World) -> None:
    world.faults.millis_behind = 123_456
    world.faults.date_shift_ms = -3_600_000
    batch = await world.source().read()
    assert batch.millis_behind == 123_456
    assert abs(batch.poll_ms + 3_600_000 - world.endpoint.clock.wall_ms()) < 5_000


async def test_an_endpoint_that_is_away_is_waited_for(world: World) -> None:
    sent = await world.put(3)
    with clock.RealClock() as real:
        gone = proxy.FaultProxy("http://127.0.0.1:9")  # nobody listens there: the proxy answers 500
        async with (
            gone,
            kinesis.KinesisConnection.open(
                spec.Aws(region=aws_env.REGION, endpoint_url=gone.endpoint_url), random.Random(1)
            ) as connection,
        ):
            source = connection.stream(world.name, real).open_shard(FIRST, None)
            reading = asyncio.ensure_future(source.read())
            await waiting.until(lambda: gone.calls["GetShardIterator"] >= 2, "a second try")
            assert not reading.done()
            gone.forward_to(world.faults.endpoint_url)
            async with asyncio.timeout(READ_S_MAX):
                assert (await reading).data == sent


async def test_a_refused_connection_is_tried_again(world: World) -> None:
    retries: list[tuple[str, kinesis_api.Trouble]] = []
    with clock.RealClock() as real:
        async with kinesis.KinesisConnection.open(
            spec.Aws(region=aws_env.REGION, endpoint_url="http://127.0.0.1:9"),
            random.Random(1),
            lambda retry: retries.append((retry.operation, retry.failure.trouble)),
        ) as connection:
            reading = asyncio.ensure_future(connection.stream(world.name, real).open_shard(FIRST, None).read())
            await waiting.until(lambda: len(retries) >= 2, "a second try")
            assert not reading.done()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
    assert set(retries) == {("GetShardIterator", kinesis_api.Trouble.TRANSIENT)}
