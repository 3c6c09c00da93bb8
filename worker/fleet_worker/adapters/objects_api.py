"""The object API as the adapters need it: one call each, no retries, errors sorted by what can be done about them.

`s3` speaks it to a real store and `memory_objects` in memory; what tries again is above both (`objects`). It knows nothing of fleets:
a key here is the whole key.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Protocol, TypeAlias

from fleet_worker import ports

LIST_PAGE_MAX = 1_000
"""Keys on a page of ListObjectsV2, by the S3 API reference."""


class Trouble(enum.Enum):
    """Why a call failed, by what can be done about it."""

    BUSY = "busy"  # 500, 503, SlowDown, no answer: it may have been done; try again
    CONFLICT = "conflict"  # 409: another conditional write was under way, nothing was done; try again
    PRECONDITION = "precondition"  # 412: the object is another one, or exists
    MISSING = "missing"  # no such object
    REFUSED = "refused"  # no such bucket, no right, not implemented: someone has to act


TRIED_AGAIN = (Trouble.BUSY, Trouble.CONFLICT)


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """code: the store's error code, or the exception's name where no answer came."""

    trouble: Trouble
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ApiError(Exception):
    def __init__(self, operation: str, failure: Failure) -> None:
        super().__init__(f"{operation}: {failure}")
        self.operation = operation
        self.failure = failure

    @property
    def trouble(self) -> Trouble:
        return self.failure.trouble


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Of a listing, by key. next_token: None on the last one."""

    found: list[ports.ObjectInfo]
    next_token: str | None


class ObjectApi(Protocol):
    """Every method raises ApiError and nothing else."""

    async def get(self, key: str) -> ports.Object: ...

    async def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes start..stop-1, fewer at the end, none after it."""

    async def put(self, key: str, data: bytes, if_match: str | None) -> str:
        """The new etag. if_match: the etag that the object must have; None: it must not exist. An error with Trouble.BUSY may come
        after the work was done, or before it is done late."""

    async def list_page(self, prefix: str, token: str | None) -> Page:
        """At most LIST_PAGE_MAX; token None for the first page."""

    async def delete(self, key: str) -> None:
        """A missing one counts as deleted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """A call failed and will be tried again."""

    operation: str
    key: str
    failure: Failure


OnRetry: TypeAlias = Callable[[Retry], None]


def ignore_retry(retry: Retry) -> None:
    """The OnRetry that nobody listens to."""
