"""What the operator keeps of a stream's client when that can't be used."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import botocore.exceptions
import pytest

from fleet_operator import errors
from fleet_operator.adapters import streams

NOBODY = streams.Place("telemetry", "eu-west-1", "http://127.0.0.1:1")


def test_credentials_that_come_later_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Those who give them may be away when the operator starts."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    async def body() -> None:
        async with streams.Streams() as looks:
            with pytest.raises(errors.StreamUnavailableError, match="locate credentials"):
                await looks.look(NOBODY)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            with pytest.raises(errors.StreamUnavailableError, match="connect to the endpoint"):
                await looks.look(NOBODY)

    asyncio.run(body())


# ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Kinesis:
    """A session whose clients answer when they are let. open: of clients, by region."""

    def __init__(self) -> None:
        self.made, self.open = 0, list[str]()
        self.go_on, self.asked = asyncio.Event(), asyncio.Semaphore(0)
        self.fails: Exception | None = None

    @contextlib.asynccontextmanager
    async def create_client(self, service: str, region_name: str, **_: object) -> AsyncIterator[Client]:
        self.made += 1
        await asyncio.sleep(0)
        self.open.append(region_name)
        try:
            yield Client(self, region_name)
        finally:
            self.open.remove(region_name)


@dataclasses.dataclass
class Client:
    kinesis: Kinesis
    region: str

    async def describe_stream_summary(self, **_: object) -> dict[str, Any]:
        self.kinesis.asked.release()
        await self.kinesis.go_on.wait()
        assert self.region in self.kinesis.open, "it was closed while somebody used it"
        if self.kinesis.fails is not None:
            raise self.kinesis.fails
        return {"StreamDescriptionSummary": {"RetentionPeriodHours": 24}}

    async def list_shards(self, **_: object) -> dict[str, Any]:
        return {"Shards": [], "ResponseMetadata": {"HTTPHeaders": {"date": "Thu, 01 Jan 2026 00:00:00 GMT"}}}


def place(number: int, stream: str = "telemetry") -> streams.Place:
    return streams.Place(stream, f"region-{number}", None)


def test_who_asks_at_once_shares_a_client() -> None:
    async def body() -> None:
        kinesis, looks = Kinesis(), streams.Streams()
        looks._session = kinesis
        kinesis.go_on.set()
        async with looks:
            await asyncio.gather(*(looks.look(place(1, stream)) for stream in ("a", "b", "c")))
            assert (kinesis.made, kinesis.open) == (1, ["region-1"])
        assert kinesis.open == []

    asyncio.run(body())


def test_a_client_in_use_isnt_closed_for_the_sake_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CLIENTS_MAX", 2)

    async def body() -> None:
        kinesis, looks = Kinesis(), streams.Streams()
        looks._session = kinesis
        async with looks:
            asked = [asyncio.create_task(looks.look(place(number))) for number in range(5)]
            async with asyncio.timeout(5):
                for _ in asked:
                    await kinesis.asked.acquire()
            kinesis.go_on.set()
            assert len(await asyncio.gather(*asked)) == 5
            assert len(kinesis.open) == 2
        assert kinesis.open == []

    asyncio.run(body())


def refused(code: str) -> Exception:
    return botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "as told"}}, "DescribeStreamSummary")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refused("AccessDeniedException"), "not permitted.*AccessDeniedException.*as told"),
        (refused("ExpiredTokenException"), "not permitted"),
        (refused("ResourceNotFoundException"), "no such stream"),
        (refused("LimitExceededException"), "throttled"),
        (refused("InternalFailure"), "Kinesis refuses"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="there"), "isn't reached"),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="there"), "isn't reached"),
    ],
)
def test_why_a_stream_cant_be_listed(error: Exception, said: str) -> None:
    async def body() -> None:
        kinesis, looks = Kinesis(), streams.Streams()
        looks._session = kinesis
        kinesis.go_on.set()
        kinesis.fails = error
        async with looks:
            with pytest.raises(errors.StreamUnavailableError, match=said):
                await looks.look(place(1))

    asyncio.run(body())
