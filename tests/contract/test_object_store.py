"""One contract for every object store that Fleet Twin is run on: in memory, versitygw, moto's server.

What the tests ask for is what S3 does by its API reference. Where a store differs, its flag in tests/support/object_endpoints.py says so:

| behaviour                                     | S3   | memory | versitygw 1.8 | moto 5.2                                |
| --------------------------------------------- | ---- | ------ | ------------- | --------------------------------------- |
| If-None-Match: * on an existing key           | 412  | 412    | 412           | 412                                     |
| If-Match with another etag                    | 412  | 412    | 412           | 412                                     |
| If-Match on a missing key                     | 404  | 404    | 404           | 404                                     |
| a conditional write is one step with its look | yes  | yes    | yes           | no: it looks, then writes; of 16 at once |
|                                               |      |        |               | now and then two are told they won      |
| 409 while another conditional write goes on   | perhaps | by plan | never seen  | never                                   |
| the etag is the MD5 of the contents           | perhaps | yes | yes           | yes                                     |
| listings show a write at once                 | yes  | yes, or late by plan | yes | yes                                 |
| last-modified                                 | whole seconds | whole seconds | whole seconds | whole seconds           |
| a bucket that isn't there                     | 404  | there is one bucket | 404  | 404                                |

So what many do at once is asked of the first three only, and moto serves for what one does at a time. Lost replies, 409, 503 and broken bodies
are in test_object_store_faults.py (over HTTP) and tests/unit/test_memory_objects.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from fleet_model import spec
from fleet_worker import errors, ports, probe
from fleet_worker.adapters import clock, objects_api, s3
from tests.support import aws_env, go_toolchain, go_tools, moto_server, object_endpoints, versitygw

KEY = "shardId-000000000001/manifest.json"
PAGE = 7
WRITERS = 16
BUILD_S_MAX = go_tools.BUILD_S_MAX + 300

MEMORY = "memory"
VERSITYGW = pytest.param("versitygw", marks=[pytest.mark.processes, pytest.mark.timeout(BUILD_S_MAX)])
MOTO = pytest.param("moto", marks=pytest.mark.processes)


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto_server.running() as url:
        yield url


@pytest.fixture(scope="module")
def versitygw_url() -> Iterator[str]:
    try:
        versitygw.installed()
    except go_toolchain.NoGoError as error:
        pytest.skip(f"versitygw needs Go: {error}")
    with versitygw.running() as url:
        yield url


@pytest.fixture(params=[MEMORY, VERSITYGW, MOTO])
async def endpoint(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[object_endpoints.Endpoint]:
    aws_env.apply(monkeypatch)
    monkeypatch.setattr(objects_api, "LIST_PAGE_MAX", PAGE)
    match request.param:
        case "memory":
            opened = object_endpoints.memory(list_page_max=PAGE)
        case "moto":
            opened = object_endpoints.at(request.getfixturevalue("moto_url"), object_endpoints.MOTO)
        case _:
            opened = object_endpoints.at(request.getfixturevalue("versitygw_url"), object_endpoints.VERSITYGW)
    async with opened as found:
        yield found


in_one_step = pytest.mark.parametrize("endpoint", [MEMORY, VERSITYGW], indirect=True)
"""Only where a conditional write is one step; see the table."""


async def contents(store: ports.ObjectStore, key: str) -> bytes | None:
    found = await store.get(key)
    return None if found is None else found.data


async def test_what_was_put_is_got(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    assert await store.get(KEY) is None
    etag = await store.put_new(KEY, b"first")
    assert await store.get(KEY) == ports.Object(b"first", etag)
    other = await store.put_over(KEY, b"second", etag)
    assert other != etag
    assert await store.get(KEY) == ports.Object(b"second", other)


async def test_a_new_object_replaces_none(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    await store.put_new(KEY, b"first")
    for data in (b"second", b"first"):
        with pytest.raises(errors.PreconditionFailedError, match=KEY):
            await store.put_new(KEY, data)
    assert await contents(store, KEY) == b"first"


async def test_only_the_object_with_the_etag_is_replaced(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    before = await store.put_new(KEY, b"first")
    await store.put_over(KEY, b"second", before)
    with pytest.raises(errors.PreconditionFailedError, match=KEY):
        await store.put_over(KEY, b"third", before)
    assert await contents(store, KEY) == b"second"


async def test_nothing_is_replaced_where_there_is_nothing(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    etag = await store.put_new(KEY, b"first")
    with pytest.raises(errors.PreconditionFailedError):
        await store.put_over("other", b"x", etag)
    assert await store.get("other") is None
    await store.delete([KEY])
    with pytest.raises(errors.PreconditionFailedError):
        await store.put_over(KEY, b"x", etag)
    assert await store.get(KEY) is None
    await store.put_new(KEY, b"again")


async def test_a_range_ends_with_the_object(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    await store.put_new(KEY, b"0123456789")
    assert await store.get_range(KEY, 2, 5) == b"234"
    assert await store.get_range(KEY, 0, 10) == b"0123456789"
    assert await store.get_range(KEY, 8, 100) == b"89"
    assert await store.get_range(KEY, 10, 12) == b""
    assert await store.get_range(KEY, 5, 5) == b""
    with pytest.raises(errors.ObjectMissingError, match="other"):
        await store.get_range("other", 0, 1)


async def test_empty_and_large_objects(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    large = bytes(range(256)) * 40_000  # 10 MB: over the bound from which bodies are streamed
    await store.put_new("empty", b"")
    etag = await store.put_new("large", large)
    assert await contents(store, "empty") == b""
    assert await store.get("large") == ports.Object(large, etag)
    assert await store.get_range("large", 5_000_000, 5_000_300) == large[5_000_000:5_000_300]


async def test_a_listing_has_every_object_below_the_prefix_by_key(endpoint: object_endpoints.Endpoint) -> None:
    """On several pages."""
    store = endpoint.store()
    assert await store.list("") == []
    names = [f"shardId-000000000001/{number:02}.parquet" for number in range(3 * PAGE)]
    others = ["shardId-000000000002/00.parquet", "start.json"]
    before_ms = time.time_ns() // 1_000_000
    for name in [*reversed(names), *others]:
        await store.put_new(name, name.encode())
    found = await store.list("shardId-000000000001/")
    assert [info.key for info in found] == names
    assert all(info.size == len(info.key) for info in found)
    assert all(before_ms - 2_000 <= info.modified_ms <= before_ms + 60_000 for info in found)
    assert [info.key for info in await store.list("")] == [*names, *others]
    assert await store.list("shardId-000000000003/") == []


async def test_what_is_deleted_is_gone_and_may_be_deleted_again(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    for name in ("a/1", "a/2", "a/3"):
        await store.put_new(name, b"x")
    await store.delete(["a/1", "a/3", "a/never"])
    assert [info.key for info in await store.list("a/")] == ["a/2"]
    await store.delete(["a/1", "a/2"])
    await store.delete([])
    assert await store.list("") == []


async def test_fleets_share_a_bucket_without_meeting(endpoint: object_endpoints.Endpoint) -> None:
    first, second = endpoint.store("twins/default/cars/"), endpoint.store("twins/default/cars-2/")
    await first.put_new(KEY, b"first")
    await second.put_new(KEY, b"second")
    assert await contents(first, KEY) == b"first"
    assert [info.key for info in await second.list("")] == [KEY]
    await second.delete([KEY])
    assert await contents(first, KEY) == b"first"


async def test_any_prefix_will_do(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store("Zwillinge é+% &=/default/cars/")
    etag = await store.put_new(KEY, b"first")
    await store.put_over(KEY, b"second", etag)
    assert [info.key for info in await store.list("")] == [KEY]
    assert await contents(store, KEY) == b"second"


async def test_the_probe_leaves_nothing(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    await probe.check(store, "0" * 16, races=probe.RACES if endpoint.behaviour.writes_in_one_step else 0)
    assert await store.list("") == []


@in_one_step
async def test_of_many_new_objects_at_once_one_is_taken(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    assert endpoint.behaviour.writes_in_one_step
    for race in range(10):
        key = f"race-{race}"
        answers = await asyncio.gather(
            *(store.put_new(key, str(writer).encode()) for writer in range(WRITERS)), return_exceptions=True
        )
        await check_race(store, key, answers)


@in_one_step
async def test_of_many_replacements_at_once_one_is_taken(endpoint: object_endpoints.Endpoint) -> None:
    store = endpoint.store()
    for race in range(10):
        key = f"race-{race}"
        etag = await store.put_new(key, b"before")
        answers = await asyncio.gather(
            *(store.put_over(key, str(writer).encode(), etag) for writer in range(WRITERS)), return_exceptions=True
        )
        await check_race(store, key, answers)


@in_one_step
async def test_many_who_read_and_replace_lose_no_step(endpoint: object_endpoints.Endpoint) -> None:
    """A counter that eight raise ten times each: what an etag is for."""
    store = endpoint.store()
    await store.put_new(KEY, b"0")

    async def raise_it() -> None:
        done = 0
        while done < 10:
            found = await store.get(KEY)
            assert found is not None
            try:
                await store.put_over(KEY, str(int(found.data) + 1).encode(), found.etag)
            except errors.PreconditionFailedError:
                continue
            done += 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(raise_it() for _ in range(8)))
    assert await contents(store, KEY) == b"80"


async def check_race(store: ports.ObjectStore, key: str, answers: list[str | BaseException]) -> None:
    winners = [writer for writer, answer in enumerate(answers) if isinstance(answer, str)]
    assert len(winners) == 1
    assert await store.get(key) == ports.Object(str(winners[0]).encode(), str(answers[winners[0]]))
    losers = [answer for answer in answers if not isinstance(answer, str)]
    assert all(isinstance(answer, errors.PreconditionFailedError) for answer in losers)


@pytest.mark.parametrize("server", [VERSITYGW, MOTO])
async def test_a_bucket_that_is_not_there_is_told(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws_env.apply(monkeypatch)
    aws = spec.Aws(endpoint_url=request.getfixturevalue(f"{server}_url"))
    with clock.RealClock() as real:
        async with s3.open_store(aws, spec.Checkpoint("no-such-bucket"), ("default", "cars"), real) as store:
            for call in (store.get(KEY), store.put_new(KEY, b""), store.list(""), store.delete([KEY])):
                with pytest.raises(
                    errors.ObjectStoreRefusedError, match=r"NoSuchBucket.*check spec\.checkpoint\.bucket"
                ):
                    await call
