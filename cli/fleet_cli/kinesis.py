"""Kinesis for the CLI: a connection to a fleet's endpoint, and a reader of small streams from now on.

For commands and alerts, hundreds a second at most; telemetry is read by the worker's source, which is made for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable

from fleet_model import spec
from fleet_worker import errors
from fleet_worker.adapters import kinesis as adapter
from fleet_worker.adapters import kinesis_api

PASSING = frozenset({kinesis_api.Trouble.THROTTLED, kinesis_api.Trouble.TRANSIENT})
"""Troubles that go away by themselves."""

_CONNECTIONS_MAX = 32
_RELIST_S = 10.0
_FAILURES_IN_A_ROW_MAX = 60


@contextlib.asynccontextmanager
async def open_api(aws: spec.Aws) -> AsyncIterator[kinesis_api.KinesisApi]:
    """The worker's own connection, for a fleet's AWS or its endpoint."""
    async with adapter.KinesisConnection.open(aws, connections_max=_CONNECTIONS_MAX) as connection:
        yield connection.api


def gone(stream: str, error: kinesis_api.ApiError) -> errors.StreamGoneError:
    """The error to show when a stream can't be used, with what to do about it."""
    if error.trouble is kinesis_api.Trouble.NOT_FOUND:
        remedy = "Create it, or mend the name in the fleet file's spec.streams."
    elif error.trouble is kinesis_api.Trouble.DENIED:
        remedy = "Check the credentials (for an emulator: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, any values)."
    else:
        remedy = "Is spec.aws.endpointURL in the fleet file right, and is it running?"
    return errors.StreamGoneError(f"The stream {stream!r} can't be used: {error}. {remedy}")


async def shard_ids(api: kinesis_api.KinesisApi, stream: str) -> list[str]:
    """Every shard the stream lists. Raises ApiError."""
    found: list[str] = []
    token: str | None = None
    while True:
        page = await api.list_shards(stream, token)
        found += [shard.shard_id for shard in page.shards]
        token = page.next_token
        if token is None:
            return found


async def require_stream(api: kinesis_api.KinesisApi, stream: str) -> None:
    """Raises StreamGoneError when the stream can't be listed: asked once, before anything else is started."""
    try:
        await shard_ids(api, stream)
    except kinesis_api.ApiError as error:
        raise gone(stream, error) from error


class _Follower:
    """Where reading stands in each shard: the iterator, and what a new one would start from."""

    def __init__(self, api: kinesis_api.KinesisApi, stream: str) -> None:
        self._api = api
        self._stream = stream
        self._iterators: dict[str, str | None] = {}
        self._starts: dict[str, kinesis_api.Start] = {}
        self._ended: set[str] = set()

    async def relist(self, start: kinesis_api.Start) -> None:
        for shard_id in await shard_ids(self._api, self._stream):
            self._starts.setdefault(shard_id, start)

    async def poll(self) -> list[bytes]:
        """The next records of every shard. Raises ApiError; what other shards gave before it was returned earlier or
        is read again, since a shard's place moves only with its own answer."""
        taken: list[bytes] = []
        for shard_id in self._starts.keys() - self._ended:
            taken += await self._read(shard_id)
        return taken

    async def _read(self, shard_id: str) -> list[bytes]:
        iterator = self._iterators.get(shard_id)
        if iterator is None:
            made = await self._api.get_shard_iterator(self._stream, shard_id, self._starts[shard_id])
            iterator = made.iterator
            if iterator is None:
                self._ended.add(shard_id)
                return []
        self._iterators[shard_id] = None  # a failure leads to a new one from the last record taken
        answer = await self._api.get_records(self._stream, iterator)
        self._iterators[shard_id] = answer.next_iterator
        if answer.next_iterator is None:
            self._ended.add(shard_id)
        if answer.batch.sequence_numbers:
            self._starts[shard_id] = answer.batch.sequence_numbers[-1]
        return answer.batch.data


async def follow(
    api: kinesis_api.KinesisApi,
    stream: str,
    take: Callable[[list[bytes]], None],
    poll_s: float = 1.0,
    since_ms: int | None = None,
) -> None:
    """Calls `take` with the records of each poll, from since_ms on (None: from now on), of every shard, later ones too. Runs until
    cancelled.

    A watcher: records of a poll in which another shard failed are not told again. Raises StreamGoneError when the
    stream isn't there, or when it gave nothing but failures for _FAILURES_IN_A_ROW_MAX polls.
    """
    follower = _Follower(api, stream)
    loop = asyncio.get_running_loop()
    start: kinesis_api.Start = None
    relist_at = -math.inf
    failures = 0
    backoff = kinesis_api.Backoff(random.Random(), poll_s, 5.0)
    while True:
        try:
            if loop.time() >= relist_at:
                if relist_at == -math.inf:
                    # Now is Kinesis' own.
                    start = since_ms if since_ms is not None else (await api.describe_stream(stream)).date_ms
                await follower.relist(start)
                start, relist_at = None, loop.time() + _RELIST_S
            records = await follower.poll()
        except kinesis_api.ApiError as error:
            failures += 1
            passing = error.trouble in PASSING or error.trouble is kinesis_api.Trouble.EXPIRED_ITERATOR
            if not passing or failures > _FAILURES_IN_A_ROW_MAX:
                raise gone(stream, error) from error
            await asyncio.sleep(backoff.next_s())
            continue
        failures = 0
        backoff.reset()
        if records:
            take(records)
        await asyncio.sleep(poll_s)
