"""An object store in memory: conditional writes as S3 does them, for tests and for deterministic simulation.

A Bucket is the store itself, shared by all; a MemoryObjects is one client's way to it, with a plan of its own that says which of its
calls go wrong. No random number is drawn but for the jitter of tries, so a run is repeated by repeating its plan. What it keeps to: a
conditional write is one atomic step; an etag is the MD5 of the contents, so equal contents have equal etags; a write whose reply was lost may
still be carried out later; last-modified in whole seconds by the store's own clock; listings in pages, perhaps late. What it leaves out:
versions, multipart uploads, lifecycle rules, rights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from fleet_worker import ports
from fleet_worker.adapters import objects, objects_api

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call as the plan sees it. number: 1, 2, … over all calls of the client, tries included. operation: "GetObject",
    "PutObject", "ListObjectsV2" or "DeleteObject"."""

    number: int
    operation: str
    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one call.

    failure: the call fails before anything is done. lost_reply: it is done, then the answer is lost. delay_s: before the work; with
    lost_reply, from the work until the loss is noticed. late_s: the answer is lost at once, and a put or delete is done only
    that much later, unless it finds its condition broken by then.
    """

    failure: objects_api.Failure | None = None
    lost_reply: bool = False
    delay_s: float = 0.0
    late_s: float = 0.0


NO_FAULT = Fault()
Plan: TypeAlias = Callable[[Call], Fault]

UNAVAILABLE = objects_api.Failure(objects_api.Trouble.BUSY, "SlowDown", "reduce your request rate")
CONFLICT = objects_api.Failure(objects_api.Trouble.CONFLICT, "ConditionalRequestConflict", "another one was under way")
LOST_REPLY = objects_api.Failure(objects_api.Trouble.BUSY, "ReadTimeoutError", "no answer")
PRECONDITION = objects_api.Failure(objects_api.Trouble.PRECONDITION, "PreconditionFailed", "it is another object")
MISSING = objects_api.Failure(objects_api.Trouble.MISSING, "NoSuchKey", "no such object")


def no_faults(call: Call) -> Fault:
    """The plan in which all goes well."""
    return NO_FAULT


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """listed_s: from when on a listing shows it, by the monotonic clock."""

    data: bytes
    etag: str
    modified_ms: int
    listed_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Late:
    due_s: float
    work: Callable[[], object]


class Bucket:
    """clock_offset_ms: the store's clock minus ours. list_lag_s: how long a new object is missing from listings. on_change: told of
    each put that was carried out, with the key and the contents before (None: there was none) and after."""

    def __init__(self, clock: ports.Clock, *, clock_offset_ms: int = 0, list_lag_s: float = 0.0) -> None:
        self.clock_offset_ms = clock_offset_ms
        self.list_lag_s = list_lag_s
        self.on_change: Callable[[str, bytes | None, bytes], None] = _unwatched
        self._clock = clock
        self._stored: dict[str, Stored] = {}
        self._late: list[_Late] = []

    def contents(self) -> dict[str, bytes]:
        """Everything there is, by key."""
        self.settle()
        return {key: self._stored[key].data for key in sorted(self._stored)}

    def put(self, key: str, data: bytes, if_match: str | None) -> str:
        """Raises ApiError. In one step: nothing else happens between looking and storing."""
        self.settle()
        return self._put(key, data, if_match)

    def get(self, key: str) -> Stored:
        self.settle()
        found = self._stored.get(key)
        if found is None:
            raise objects_api.ApiError("GetObject", MISSING)
        return found

    def list_page(self, prefix: str, token: str | None, page_max: int) -> objects_api.Page:
        self.settle()
        now_s = self._clock.monotonic()
        keys = sorted(
            key
            for key, stored in self._stored.items()
            if key.startswith(prefix) and key > (token or "") and stored.listed_s <= now_s
        )
        found = [
            ports.ObjectInfo(key, len(self._stored[key].data), self._stored[key].modified_ms) for key in keys[:page_max]
        ]
        return objects_api.Page(found, found[-1].key if len(keys) > page_max else None)

    def delete(self, key: str) -> None:
        self.settle()
        self._stored.pop(key, None)

    def tamper(self, key: str, data: bytes) -> None:
        """Replaces an object without asking: what a broken disk or a human does."""
        self._store(key, data)

    def do_late(self, after_s: float, work: Callable[[], object]) -> None:
        """Carries a call out later: at the first look at the bucket from then on, which nobody can tell from its own time."""
        self._late.append(_Late(self._clock.monotonic() + after_s, work))

    def settle(self) -> None:
        """Carries out what is due by now."""
        now_s = self._clock.monotonic()
        due = sorted((late for late in self._late if late.due_s <= now_s), key=lambda late: late.due_s)
        self._late = [late for late in self._late if late.due_s > now_s]
        for late in due:
            try:
                late.work()
            except objects_api.ApiError:
                continue  # its condition is broken; nobody waits for the answer

    def put_late(self, after_s: float, key: str, data: bytes, if_match: str | None) -> None:
        self.do_late(after_s, lambda: self._put(key, data, if_match))

    def delete_late(self, after_s: float, key: str) -> None:
        self.do_late(after_s, lambda: self._stored.pop(key, None))

    def _put(self, key: str, data: bytes, if_match: str | None) -> str:
        found = self._stored.get(key)
        if if_match is not None and found is None:
            raise objects_api.ApiError("PutObject", MISSING)
        if (None if found is None else found.etag) != if_match:
            raise objects_api.ApiError("PutObject", PRECONDITION)
        return self._store(key, data)

    def _store(self, key: str, data: bytes) -> str:
        before = self._stored.get(key)
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        now_ms = self._clock.wall_ms() + self.clock_offset_ms
        listed_s = self._clock.monotonic() + self.list_lag_s if before is None else before.listed_s
        self._stored[key] = Stored(data, etag, now_ms // 1000 * 1000, listed_s)
        self.on_change(key, None if before is None else before.data, data)
        return etag


def _unwatched(key: str, before: bytes | None, after: bytes) -> None:
    """The on_change that nobody listens to."""


class MemoryApi:
    """objects_api.ObjectApi of one client. list_page_max: objects on a page."""

    def __init__(
        self,
        bucket: Bucket,
        clock: ports.Clock,
        plan: Plan = no_faults,
        list_page_max: int = objects_api.LIST_PAGE_MAX,
    ) -> None:
        self.plan = plan
        self._bucket = bucket
        self._clock = clock
        self._list_page_max = list_page_max
        self._calls = 0

    async def get(self, key: str) -> ports.Object:
        def work() -> ports.Object:
            found = self._bucket.get(key)
            return ports.Object(found.data, found.etag)

        return await self._answered("GetObject", key, work)

    async def get_range(self, key: str, start: int, stop: int) -> bytes:
        return await self._answered("GetObject", key, lambda: self._bucket.get(key).data[start:stop])

    async def put(self, key: str, data: bytes, if_match: str | None) -> str:
        return await self._answered(
            "PutObject",
            key,
            lambda: self._bucket.put(key, data, if_match),
            lambda after_s: self._bucket.put_late(after_s, key, data, if_match),
        )

    async def list_page(self, prefix: str, token: str | None) -> objects_api.Page:
        return await self._answered(
            "ListObjectsV2", prefix, lambda: self._bucket.list_page(prefix, token, self._list_page_max)
        )

    async def delete(self, key: str) -> None:
        await self._answered(
            "DeleteObject",
            key,
            lambda: self._bucket.delete(key),
            lambda after_s: self._bucket.delete_late(after_s, key),
        )

    async def _answered(
        self,
        operation: str,
        key: str,
        work: Callable[[], Answer],
        work_late: Callable[[float], None] | None = None,
    ) -> Answer:
        self._calls += 1
        fault = self.plan(Call(self._calls, operation, key))
        if fault.late_s:
            if work_late is not None:
                work_late(fault.late_s)
            raise objects_api.ApiError(operation, LOST_REPLY)
        # Even a quick store answers only after others had their turn: what is read may be old when the answer comes.
        await self._clock.sleep(0 if fault.lost_reply else fault.delay_s)
        if fault.failure is not None:
            raise objects_api.ApiError(operation, fault.failure)
        answer = work()
        await self._clock.sleep(fault.delay_s if fault.lost_reply else 0)
        if fault.lost_reply:
            raise objects_api.ApiError(operation, LOST_REPLY)
        return answer


class MemoryObjects(objects.Objects):
    """ports.ObjectStore of one client of a bucket. Its plan can be changed at any time."""

    def __init__(
        self,
        bucket: Bucket,
        clock: ports.Clock,
        plan: Plan = no_faults,
        prefix: str = "",
        randomness: random.Random | None = None,
    ) -> None:
        self.bucket = bucket
        self.api = MemoryApi(bucket, clock, plan)
        super().__init__(self.api, clock, randomness or random.Random(1), prefix, "memory")
