"""Kinesis, as far as the operator asks it: which shards a stream lists, how long it keeps records, what time it is there.

By aiobotocore. Fleets with the same endpoint and credentials share a client. It neither waits nor remembers anything else.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import email.utils
from collections.abc import Mapping
from typing import Any

import aiobotocore.config
import aiobotocore.session
import botocore.exceptions

from fleet_model import hashing, partition
from fleet_operator import errors

CLIENTS_MAX = 16
PAGES_MAX = 100
"""Of ListShards, a thousand shards each."""
_TIMES_S = {"connect_timeout": 3, "read_timeout": 5}


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """Of the fleet's Secret; all empty: the operator's own."""

    key_id: str = ""
    secret: str = dataclasses.field(default="", repr=False)
    token: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """stream: a name or an ARN."""

    stream: str
    region: str | None
    endpoint_url: str | None
    credentials: Credentials = Credentials()


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """date_ms: the Date header of the last answer, cut to whole seconds."""

    shards: tuple[partition.Shard, ...]
    retention_ms: int
    date_ms: int


class Streams:
    """On one event loop, inside `async with`."""

    def __init__(self) -> None:
        self._session = aiobotocore.session.get_session()
        self._clients: collections.OrderedDict[Place, tuple[contextlib.AsyncExitStack, Any]] = collections.OrderedDict()

    async def __aenter__(self) -> Streams:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._clients:
            stack, _client = self._clients.popitem()[1]
            await stack.aclose()

    async def look(self, place: Place) -> Answer:
        """Raises StreamUnavailableError."""
        client = None
        try:
            client = await self._client(place)
            return await _look(client, place.stream)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError, OSError) as error:
            if isinstance(error, botocore.exceptions.NoCredentialsError):
                # A client looks for its own only when it is made, and those who give them may have been away just then.
                await self._drop(place, client)
            raise errors.StreamUnavailableError(
                f"stream {place.stream} can't be listed: {error}; look at spec.aws, the credentials and the network"
            ) from error

    async def _drop(self, place: Place, client: Any) -> None:
        """Only this one: one that was made since may be in use."""
        key = dataclasses.replace(place, stream="")
        if key in self._clients and self._clients[key][1] is client:
            stack, _client = self._clients.pop(key)
            await stack.aclose()

    async def _client(self, place: Place) -> Any:
        key = dataclasses.replace(place, stream="")
        if key in self._clients:
            self._clients.move_to_end(key)
            return self._clients[key][1]
        stack = contextlib.AsyncExitStack()
        given = place.credentials
        client = await stack.enter_async_context(
            self._session.create_client(
                "kinesis",
                region_name=place.region,
                endpoint_url=place.endpoint_url,
                aws_access_key_id=given.key_id or None,
                aws_secret_access_key=given.secret or None,
                aws_session_token=given.token or None,
                config=aiobotocore.config.AioConfig(retries={"total_max_attempts": 2, "mode": "standard"}, **_TIMES_S),
            )
        )
        self._clients[key] = stack, client
        if len(self._clients) > CLIENTS_MAX:
            oldest, _client = self._clients.popitem(last=False)[1]
            await oldest.aclose()
        return client


async def _look(client: Any, stream: str) -> Answer:
    where = _named(stream)
    summary = await client.describe_stream_summary(**where)
    shards: list[partition.Shard] = []
    answer = summary
    for _ in range(PAGES_MAX):
        answer = await client.list_shards(**where)
        shards += [_shard(found) for found in answer["Shards"]]
        if not answer.get("NextToken"):
            break
        # Kinesis refuses a token together with the stream's name.
        where = {"NextToken": answer["NextToken"]}
    hours = int(summary["StreamDescriptionSummary"]["RetentionPeriodHours"])
    return Answer(tuple(shards), hours * 3_600_000, _date_ms(answer))


def _named(stream: str) -> dict[str, str]:
    return {"StreamARN": stream} if stream.startswith("arn:") else {"StreamName": stream}


def _shard(found: Mapping[str, Any]) -> partition.Shard:
    parents = (found.get("ParentShardId"), found.get("AdjacentParentShardId"))
    bounds = found["HashKeyRange"]
    return partition.Shard(
        shard_id=found["ShardId"],
        hash_key_range=hashing.HashKeyRange(int(bounds["StartingHashKey"]), int(bounds["EndingHashKey"])),
        parents=tuple(parent for parent in parents if parent),
        # Only a closed shard has an end; its value isn't looked at, as emulators put a number of their own there.
        closed=bool(found["SequenceNumberRange"].get("EndingSequenceNumber")),
    )


def _date_ms(answer: Mapping[str, Any]) -> int:
    """Raises ValueError."""
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    return int(email.utils.parsedate_to_datetime(headers.get("date", "")).timestamp()) * 1000
