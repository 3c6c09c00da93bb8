"""The S3 adapter over real HTTP, with a proxy that fails on purpose in front of moto's server."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator

import pytest

from fleet_model import spec
from fleet_worker import errors, ports
from fleet_worker.adapters import clock, objects, objects_api, s3
from tests.support import aws_env, moto_server, object_endpoints, object_proxy, server_process

pytestmark = pytest.mark.processes

KEY = "shardId-000000000001/manifest.json"


class World:
    """store: through the proxy. plain: directly."""

    def __init__(self, faults: object_proxy.ObjectProxy, store: ports.ObjectStore, plain: ports.ObjectStore) -> None:
        self.faults = faults
        self.store = store
        self.plain = plain

    async def contents(self) -> bytes | None:
        found = await self.plain.get(KEY)
        return None if found is None else found.data


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto_server.running() as url:
        yield url


@pytest.fixture
async def world(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    aws_env.apply(monkeypatch)
    monkeypatch.setattr(objects, "BACKOFF_FIRST_S", 0.001)
    monkeypatch.setattr(objects, "BACKOFF_MAX_S", 0.01)
    monkeypatch.setattr(s3, "READ_S_MAX", 0.5)
    bucket = spec.Checkpoint(await object_endpoints.create_bucket(moto_url))
    fleet = ("default", "cars")
    with clock.RealClock() as real:
        async with (
            object_proxy.ObjectProxy(moto_url) as faults,
            s3.open_store(spec.Aws(endpoint_url=moto_url), bucket, fleet, real) as plain,
        ):
            through = spec.Aws(endpoint_url=faults.endpoint_url)
            async with s3.open_store(through, bucket, fleet, real, random.Random(1)) as store:
                yield World(faults, store, plain)


@pytest.mark.parametrize(
    "rule",
    [
        object_proxy.Rule(status=500, code="InternalError"),
        object_proxy.Rule(status=503, code="SlowDown"),
        object_proxy.Rule(status=503, code="ServiceUnavailable"),
        object_proxy.Rule(status=400, code="RequestTimeout"),
        object_proxy.Rule(status=429, code="TooManyRequests"),
        object_proxy.Rule(status=409, code="ConditionalRequestConflict"),
        object_proxy.Rule(status=502, page=b"<html>bad gateway</html>"),
        object_proxy.Rule(status=503, page=b""),
    ],
    ids=lambda rule: f"{rule.status}-{rule.code}",
)
async def test_a_busy_store_is_asked_again(world: World, rule: object_proxy.Rule) -> None:
    async def after_two(call: str) -> None:
        rule.times = 2
        world.faults.add(rule)
        world.faults.calls.clear()
        match call:
            case "PUT":
                etag = await world.store.put_new(KEY, b"first")
                assert await world.plain.get(KEY) == ports.Object(b"first", etag)
            case "GET":
                found = await world.store.get(KEY)
                assert found is not None
                assert found.data == b"first"
            case _:
                await world.store.delete([KEY])
                assert await world.contents() is None
        assert world.faults.calls == {call: 3}

    for call in ("PUT", "GET", "DELETE"):
        await after_two(call)


async def test_a_store_that_stays_busy_is_told_after_bounded_tries(world: World) -> None:
    world.faults.add(object_proxy.Rule(status=503, code="SlowDown", times=1_000))
    with pytest.raises(errors.ObjectStoreUnavailableError, match=rf"{KEY}.*SlowDown.*tried {objects.TRIES_MAX} times"):
        await world.store.put_new(KEY, b"first")
    assert world.faults.calls == {"PUT": objects.TRIES_MAX}


async def test_a_write_whose_reply_was_lost_meets_itself(world: World) -> None:
    world.faults.add(object_proxy.Rule("PUT", lose_reply=True))
    with pytest.raises(errors.PreconditionFailedError):
        await world.store.put_new(KEY, b"first")
    found = await world.plain.get(KEY)
    assert found is not None
    assert found.data == b"first"
    world.faults.add(object_proxy.Rule("PUT", lose_reply=True))
    with pytest.raises(errors.PreconditionFailedError):
        await world.store.put_over(KEY, b"second", found.etag)
    assert await world.contents() == b"second"


async def test_a_store_that_hangs_is_not_waited_for(world: World) -> None:
    """The write was done; the read is asked again."""
    world.faults.add(object_proxy.Rule("PUT", hang_s=3.0))
    with pytest.raises(errors.PreconditionFailedError):
        await world.store.put_new(KEY, b"first")
    world.faults.add(object_proxy.Rule("GET", hang_s=3.0))
    found = await world.store.get(KEY)
    assert found is not None
    assert found.data == b"first"


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_a_body_that_broke_off_is_asked_again(world: World, size: int) -> None:
    data = b"x" * size
    await world.plain.put_new(KEY, data)
    world.faults.add(object_proxy.Rule("GET", break_off=True, times=2))
    found = await world.store.get(KEY)
    assert found is not None
    assert found.data == data
    world.faults.add(object_proxy.Rule("GET", break_off=True))
    assert await world.store.get_range(KEY, 3, size) == data[3:]
    assert world.faults.calls == {"GET": 5}


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (501, "NotImplemented"), (403, "InvalidAccessKeyId"), (400, "InvalidRequest")],
)
async def test_what_someone_has_to_mend_is_told_at_once(world: World, status: int, code: str) -> None:
    calls = (
        lambda: world.store.put_new(KEY, b"first"),
        lambda: world.store.get(KEY),
        lambda: world.store.list(""),
        lambda: world.store.delete([KEY]),
    )
    for call in calls:
        world.faults.add(object_proxy.Rule(status=status, code=code))
        with pytest.raises(errors.ObjectStoreRefusedError, match=rf"{code}.*s3:GetObject, s3:PutObject"):
            await call()
    assert sum(world.faults.calls.values()) == len(calls)


async def test_a_store_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    aws_env.apply(monkeypatch)
    monkeypatch.setattr(objects, "BACKOFF_MAX_S", 0.01)
    aws = spec.Aws(endpoint_url=f"http://127.0.0.1:{server_process.free_port()}")
    with clock.RealClock() as real:
        async with s3.open_store(aws, spec.Checkpoint("bucket"), ("default", "cars"), real) as store:
            with pytest.raises(errors.ObjectStoreUnavailableError, match="tried 6 times"):
                await store.get(KEY)


async def test_retries_are_told(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aws_env.apply(monkeypatch)
    told: list[objects_api.Retry] = []
    bucket = spec.Checkpoint(await object_endpoints.create_bucket(moto_url))
    with clock.RealClock() as real:
        async with object_proxy.ObjectProxy(moto_url) as faults:
            through = spec.Aws(endpoint_url=faults.endpoint_url)
            async with s3.open_store(through, bucket, ("a", "b"), real, on_retry=told.append) as store:
                faults.add(object_proxy.Rule(status=503, code="SlowDown"))
                await store.get(KEY)
    assert [(retry.operation, retry.key, retry.failure.code) for retry in told] == [("GetObject", KEY, "SlowDown")]


@pytest.mark.parametrize(
    ("aws", "environment"),
    [(spec.Aws(region="us-east-1", endpoint_url="127.0.0.1:1"), {}), (spec.Aws(), {"AWS_DEFAULT_REGION": ""})],
)
async def test_settings_that_lead_nowhere_are_told(
    aws: spec.Aws, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    aws_env.apply(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with clock.RealClock() as real, pytest.raises((errors.AwsSettingsError, errors.ObjectStoreRefusedError)):
        async with s3.open_store(aws, spec.Checkpoint("bucket"), ("default", "cars"), real) as store:
            await store.get(KEY)


@pytest.mark.parametrize(("prefix", "whole"), [("twins", "twins/default/cars/"), ("/a/b/", "a/b/default/cars/")])
def test_where_a_fleets_objects_are(prefix: str, whole: str) -> None:
    assert s3.fleet_prefix(prefix, ("default", "cars")) == whole


def test_an_empty_prefix_is_the_buckets_top() -> None:
    assert s3.fleet_prefix("", ("default", "cars")) == "default/cars/"
