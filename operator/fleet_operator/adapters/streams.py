"""Kinesis, as far as the operator asks it: which shards a stream lists, how long it keeps records, what time it is there.

By aiobotocore. Fleets with the same endpoint and credentials share a client. It neither waits nor remembers anything else.
"""

from __future__ import annotations

import asyncio
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

CLIENTS_MAX = 64
"""Kept open; beyond it those that were unused longest are closed, and never one in use."""
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


@dataclasses.dataclass(slots=True)
class _Client:
    """opened: one for all who ask for the same meanwhile. users: lookers that use it just now. is_dropped: whoever uses it last closes it."""

    opened: asyncio.Task[Any]
    stack: contextlib.AsyncExitStack
    users: int = 0
    is_dropped: bool = False


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
        self._clients: collections.OrderedDict[Place, _Client] = collections.OrderedDict()

    async def __aenter__(self) -> Streams:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._clients:
            await self._close(self._clients.popitem()[1])

    async def look(self, place: Place) -> Answer:
        """Raises StreamUnavailableError."""
        key = dataclasses.replace(place, stream="")
        kept = self._kept(key)
        kept.users += 1
        try:
            return await _look(await asyncio.shield(kept.opened), place.stream)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError, OSError) as error:
            is_without = isinstance(error, botocore.exceptions.NoCredentialsError)
            if is_without or (kept.opened.done() and kept.opened.exception() is not None):
                # A client looks for its own only when it is made, and those who give them may have been away just then.
                self._drop(key, kept)
            raise errors.StreamUnavailableError(f"stream {place.stream} can't be listed: {_why(error)}") from error
        finally:
            kept.users -= 1
            await self._close_unused(kept)

    # ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _kept(self, key: Place) -> _Client:
        if key not in self._clients:
            stack = contextlib.AsyncExitStack()
            self._clients[key] = _Client(asyncio.create_task(self._opened(key, stack)), stack)
        self._clients.move_to_end(key)
        return self._clients[key]

    async def _opened(self, key: Place, stack: contextlib.AsyncExitStack) -> Any:
        given = key.credentials
        return await stack.enter_async_context(
            self._session.create_client(
                "kinesis",
                region_name=key.region,
                endpoint_url=key.endpoint_url,
                aws_access_key_id=given.key_id or None,
                aws_secret_access_key=given.secret or None,
                aws_session_token=given.token or None,
                config=aiobotocore.config.AioConfig(retries={"total_max_attempts": 2, "mode": "standard"}, **_TIMES_S),
            )
        )

    def _drop(self, key: Place, kept: _Client) -> None:
        """Only this one: one that was made since may be in use."""
        kept.is_dropped = True
        if self._clients.get(key) is kept:
            del self._clients[key]

    async def _close_unused(self, used: _Client) -> None:
        unused = [key for key, each in self._clients.items() if not each.users]
        for key in unused[: max(0, len(self._clients) - CLIENTS_MAX)]:
            await self._close(self._clients.pop(key))
        if used.is_dropped and not used.users:
            await self._close(used)

    async def _close(self, kept: _Client) -> None:
        if not kept.opened.done():
            kept.opened.cancel()
        await asyncio.gather(kept.opened, return_exceptions=True)
        await kept.stack.aclose()


_PERMISSION = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "OptInRequired",
        "UnrecognizedClientException",
    }
)
_THROTTLED = frozenset({"LimitExceededException", "Throttling", "ThrottlingException", "TooManyRequestsException"})
_WITHOUT_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
)
_UNREACHED = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError, OSError)


def _why(error: Exception) -> str:
    """What was the matter, in words that tell what to do, and then as it was told."""
    code = error.response.get("Error", {}).get("Code", "") if isinstance(error, botocore.exceptions.ClientError) else ""
    if code in _PERMISSION:
        said = "not permitted; look at the credentials and at what they allow (DescribeStreamSummary, ListShards)"
    elif code == "ResourceNotFoundException":
        said = "there is no such stream; look at its name and at spec.aws.region"
    elif code in _THROTTLED:
        said = "throttled; it is asked again"
    elif isinstance(error, _WITHOUT_CREDENTIALS):
        said = "no credentials were found; look at spec.aws.credentialsSecretRef or at the operator's own role"
    elif isinstance(error, _UNREACHED):
        said = "Kinesis isn't reached; look at spec.aws and the network"
    else:
        said = "Kinesis refuses; look at spec.aws"
    return f"{said}: {error}"


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
