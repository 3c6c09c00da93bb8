"""ports.ObjectStore over any ObjectApi: prefix, tries with jittered waits, pages, and errors in our own words.

It decides nothing about what a failed precondition means: after a try whose reply was lost it may be our own write, and only who
knows the contents can tell.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fleet_worker import errors, ports
from fleet_worker.adapters import kinesis_api, objects_api

Answer = TypeVar("Answer")

TRIES_MAX = 6
TRYING_S_MAX = 30.0
"""After this long a call isn't tried once more."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 3.0
LIST_PAGES_MAX = 1_000


class Objects:
    """ports.ObjectStore. prefix: of the fleet, put before every key; "" or ending in "/". where: the bucket, for messages."""

    def __init__(
        self,
        api: objects_api.ObjectApi,
        clock: ports.Clock,
        randomness: random.Random,
        prefix: str = "",
        where: str = "the object store",
        on_retry: objects_api.OnRetry = objects_api.ignore_retry,
    ) -> None:
        self._api = api
        self._clock = clock
        self._randomness = randomness
        self._prefix = prefix
        self._where = where
        self._on_retry = on_retry

    async def get(self, key: str) -> ports.Object | None:
        try:
            return await self._tried("GetObject", key, lambda: self._api.get(self._prefix + key))
        except errors.ObjectMissingError:
            return None

    async def get_range(self, key: str, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        return await self._tried("GetObject", key, lambda: self._api.get_range(self._prefix + key, start, stop))

    async def put_new(self, key: str, data: bytes) -> str:
        return await self._tried("PutObject", key, lambda: self._api.put(self._prefix + key, data, None))

    async def put_over(self, key: str, data: bytes, etag: str) -> str:
        try:
            return await self._tried("PutObject", key, lambda: self._api.put(self._prefix + key, data, etag))
        except errors.ObjectMissingError as error:
            raise errors.PreconditionFailedError(f"{self._named(key)}: the object is gone") from error

    async def list(self, prefix: str) -> list[ports.ObjectInfo]:
        found: list[ports.ObjectInfo] = []
        token: str | None = None
        for _ in range(LIST_PAGES_MAX):
            page = await self._page(prefix, token)
            found += [
                ports.ObjectInfo(info.key.removeprefix(self._prefix), info.size, info.modified_ms)
                for info in page.found
            ]
            token = page.next_token
            if token is None:
                return found
        raise errors.ObjectStoreRefusedError(
            f"{self._named(prefix)}: more than {len(found)} objects; a fleet has a few per partition, so something else writes there: "
            "give the fleet a prefix of its own (spec.checkpoint.prefix)"
        )

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self._delete(key)

    async def _page(self, prefix: str, token: str | None) -> objects_api.Page:
        return await self._tried("ListObjectsV2", prefix, lambda: self._api.list_page(self._prefix + prefix, token))

    async def _delete(self, key: str) -> None:
        await self._tried("DeleteObject", key, lambda: self._api.delete(self._prefix + key))

    async def _tried(self, operation: str, key: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        backoff = kinesis_api.Backoff(self._randomness, BACKOFF_FIRST_S, BACKOFF_MAX_S)
        until_s = self._clock.monotonic() + TRYING_S_MAX
        tries = 0
        while True:
            tries += 1
            try:
                return await call()
            except objects_api.ApiError as error:
                if error.trouble not in objects_api.TRIED_AGAIN:
                    raise self._final(key, error) from error
                wait_s = backoff.next_s()
                if tries == TRIES_MAX or self._clock.monotonic() + wait_s > until_s:
                    raise errors.ObjectStoreUnavailableError(
                        f"{self._named(key)}: {error} (tried {tries} times)"
                    ) from error
                self._on_retry(objects_api.Retry(operation, key, error.failure))
            await self._clock.sleep(wait_s)

    def _final(self, key: str, error: objects_api.ApiError) -> errors.FleetTwinError:
        match error.trouble:
            case objects_api.Trouble.PRECONDITION:
                return errors.PreconditionFailedError(f"{self._named(key)}: {error}")
            case objects_api.Trouble.MISSING:
                return errors.ObjectMissingError(f"{self._named(key)}: {error}")
            case _:
                return errors.ObjectStoreRefusedError(
                    f"{self._named(key)}: {error}; check spec.checkpoint.bucket, the region, and that the worker's credentials may "
                    "s3:GetObject, s3:PutObject and s3:DeleteObject below the prefix and s3:ListBucket on the bucket"
                )

    def _named(self, key: str) -> str:
        return f"{self._where}: {self._prefix}{key}"
