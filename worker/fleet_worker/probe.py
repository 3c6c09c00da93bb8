"""Is this object store one to build on? A few conditional writes tell, at every start: before any partition is claimed, or, on a disk
that knows the store to have passed before, beside the partitions.

Everything that keeps two owners apart hangs on conditional writes, and many stores that speak S3 take the headers and pass over
them, or look first and write afterwards. So the probe does what owners would do, sixteen at once too, under keys of its own below
the fleet's prefix, and removes them. It needs the rights that a worker needs, so a missing one shows here. What it can't show: that a store
behind several gateways does it right through all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fleet_worker import errors, ports

log = logging.getLogger(__name__)

WRITERS = 16
RACES = 3
"""Of each kind: one race may be won by luck."""

BESIDE_S = 20.0
"""Between a start on a disk that knows the store and its probe: the partitions come first."""

_ADVICE = (
    "partitions can't be kept apart there. Use Amazon S3, or a store that honours If-None-Match and If-Match on PutObject as one step "
    "with the write (docs/reference/object-store.md lists those that were tried)"
)


async def check(objects: ports.ObjectStore, nonce: str, races: int = RACES) -> None:
    """nonce: of this start; nobody else may probe under it. races: rounds in which all write at once.

    Raises ObjectStoreRefusedError, which names what the store did and what to use instead, and ObjectStoreUnavailableError: not
    known, try again.
    """
    probe = _Probe(objects, f"probe/{nonce}/")
    try:
        await probe.one_at_a_time()
        for race in range(races):
            await probe.many_at_once(race)
    except (errors.ObjectStoreRefusedError, errors.ObjectStoreUnavailableError):
        await probe.clean_up_as_far_as_possible()
        raise
    await probe.clean_up()


async def check_beside(
    objects: ports.ObjectStore, new_nonce: Callable[[], str], clock: ports.Clock, forget: Callable[[], None]
) -> None:
    """For a start on a disk that knows this store to have passed: the same probe, once the partitions are back. A store out of reach is
    probed later. forget: that it has passed, so that the next start probes first. Raises ObjectStoreRefusedError, DataFolderError."""
    while True:
        await clock.sleep(BESIDE_S)
        try:
            await check(objects, new_nonce())
            return
        except errors.ObjectStoreUnavailableError as error:
            log.warning("the object store can't be probed now, trying again: %s", error)
        except errors.ObjectStoreRefusedError:
            await clock.in_thread(forget)
            raise


class _Probe:
    def __init__(self, objects: ports.ObjectStore, prefix: str) -> None:
        self._objects = objects
        self._prefix = prefix
        self._written: list[str] = []

    async def one_at_a_time(self) -> None:
        store, key, missing = self._objects, self._key("one"), self._key("missing")
        await self._must_take(
            key, b"first", store.put_new(key, b"first"), "a new object wasn't there after its PutObject"
        )
        found = await store.get(key)
        etag = "" if found is None else found.etag
        await self._must_refuse(
            key, b"first", store.put_new(key, b"2"), "PutObject with If-None-Match: * replaced an object that was there"
        )
        await self._must_take(
            key, b"third", store.put_over(key, b"third", etag), "PutObject with If-Match refused the object's own etag"
        )
        await self._must_refuse(
            key, b"third", store.put_over(key, b"4", etag), "PutObject with If-Match took an etag of before"
        )
        await self._must_refuse(
            missing,
            None,
            store.put_over(missing, b"5", etag),
            "PutObject with If-Match wrote where there was no object",
        )
        await self._objects.list(self._prefix)  # for the right to list, not for what it shows

    async def many_at_once(self, race: int) -> None:
        key = self._key(f"race-{race}")
        await self._race(key, lambda data: self._objects.put_new(key, data), "If-None-Match: *")
        found = await self._objects.get(key)
        if found is None:
            raise _refused("an object was gone that nobody had deleted")
        etag = found.etag
        await self._race(key, lambda data: self._objects.put_over(key, data, etag), "If-Match")

    async def _race(self, key: str, put: Callable[[bytes], Awaitable[str]], condition: str) -> None:
        candidates = [f"{condition} writer {number}".encode() for number in range(WRITERS)]
        answers = await asyncio.gather(*(self._is_taken(put(data)) for data in candidates), return_exceptions=True)
        for answer in answers:  # only now, when none is under way any more
            if isinstance(answer, BaseException):
                raise answer
        winners = [data for data, has_won in zip(candidates, answers, strict=True) if has_won]
        found = await self._objects.get(key)
        if len(winners) > 1:
            raise _refused(
                f"of {WRITERS} PutObject at once with {condition} on one key, {len(winners)} were told that theirs was taken"
            )
        # Nobody was told so when the winner's reply was lost and its next try met its own object.
        if found is None or found.data not in (winners or candidates):
            raise _refused(
                f"of {WRITERS} PutObject at once with {condition} on one key, the object isn't the one that was taken"
            )

    async def _is_taken(self, put: Awaitable[str]) -> bool:
        try:
            await put
        except errors.PreconditionFailedError:
            return False
        return True

    async def _must_take(self, key: str, contents: bytes, put: Awaitable[str], otherwise: str) -> None:
        """By what is there afterwards: when a reply was lost, the next try met its own object."""
        await self._is_taken(put)
        if await self._contents(key) != contents:
            raise _refused(otherwise)

    async def _must_refuse(self, key: str, contents: bytes | None, put: Awaitable[str], otherwise: str) -> None:
        is_taken = await self._is_taken(put)
        if is_taken or await self._contents(key) != contents:
            raise _refused(otherwise)

    async def _contents(self, key: str) -> bytes | None:
        found = await self._objects.get(key)
        return None if found is None else found.data

    def _key(self, name: str) -> str:
        key = self._prefix + name
        self._written.append(key)
        return key

    async def clean_up(self) -> None:
        await self._objects.delete(self._written)

    async def clean_up_as_far_as_possible(self) -> None:
        try:
            await self.clean_up()
        except (errors.ObjectStoreRefusedError, errors.ObjectStoreUnavailableError):
            return  # what is wrong is told already


def _refused(what: str) -> errors.ObjectStoreRefusedError:
    return errors.ObjectStoreRefusedError(f"the object store doesn't honour conditional writes: {what}; {_ADVICE}")
