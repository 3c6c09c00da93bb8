"""The probe refuses each way in which a store can miss its conditions, says which, and lets a good one pass however badly it answers."""

from __future__ import annotations

import asyncio
import random

import pytest

from fleet_worker import errors, ports, probe
from fleet_worker.adapters import memory_objects, objects, objects_api
from tests.support import virtual_time

NONCE = "0" * 16


class SloppyApi(memory_objects.MemoryApi):
    """A store that does one thing wrong, by its name."""

    def __init__(self, bucket: memory_objects.Bucket, clock: ports.Clock, wrong: str) -> None:
        super().__init__(bucket, clock)
        self._wrong = wrong
        self._puts = 0

    async def put(self, key: str, data: bytes, if_match: str | None) -> str:
        stored = self._bucket.contents().get(key)
        is_new = if_match is None
        self._puts += 1
        match self._wrong:
            case "If-None-Match is passed over" if is_new:
                return self._taken(key, data)
            case "If-Match is passed over" if not is_new and stored is not None:
                return self._taken(key, data)
            case "If-Match writes where there is nothing" if not is_new and stored is None:
                return self._taken(key, data)
            case "If-None-Match looks, then writes" if is_new:
                return await self._look_then_write(key, data, None)
            case "If-Match looks, then writes" if not is_new:
                return await self._look_then_write(key, data, if_match)
            case "If-Match is never taken" if not is_new:
                raise objects_api.ApiError("PutObject", memory_objects.PRECONDITION)
            case "nothing is stored":
                return '"0"'
            case "all but the first are told they lost, and one of them is stored" if key.endswith("race-0"):
                self._taken(key, data)
                if self._puts % probe.WRITERS:
                    raise objects_api.ApiError("PutObject", memory_objects.PRECONDITION)
                return self._taken(key, b"another")
            case "conditions aren't known":
                failure = objects_api.Failure(objects_api.Trouble.REFUSED, "NotImplemented", "a header you provided")
                raise objects_api.ApiError("PutObject", failure)
        return await super().put(key, data, if_match)

    async def list_page(self, prefix: str, token: str | None) -> objects_api.Page:
        if self._wrong == "no right to list":
            raise objects_api.ApiError("ListObjectsV2", DENIED)
        return await super().list_page(prefix, token)

    async def delete(self, key: str) -> None:
        if self._wrong == "no right to delete":
            raise objects_api.ApiError("DeleteObject", DENIED)
        await super().delete(key)

    def _taken(self, key: str, data: bytes) -> str:
        self._bucket.tamper(key, data)
        return self._bucket.get(key).etag

    async def _look_then_write(self, key: str, data: bytes, etag: str | None) -> str:
        stored = self._bucket.contents().get(key)
        if (None if stored is None else self._bucket.get(key).etag) != etag:
            raise objects_api.ApiError("PutObject", memory_objects.PRECONDITION)
        await asyncio.sleep(0)
        return self._taken(key, data)


DENIED = objects_api.Failure(objects_api.Trouble.REFUSED, "AccessDenied", "no")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("If-None-Match is passed over", "If-None-Match: * replaced an object"),
        ("If-Match is passed over", "If-Match took an etag of before"),
        ("If-Match writes where there is nothing", "If-Match wrote where there was no object"),
        ("If-None-Match looks, then writes", "of 16 PutObject at once with If-None-Match: * on one key, 16 were told"),
        ("If-Match looks, then writes", "of 16 PutObject at once with If-Match on one key, 16 were told"),
        ("If-Match is never taken", "refused the object's own etag"),
        ("nothing is stored", "wasn't there after its PutObject"),
        ("all but the first are told they lost, and one of them is stored", "isn't the one that was taken"),
        ("conditions aren't known", "NotImplemented"),
        ("no right to list", "s3:ListBucket"),
        ("no right to delete", "s3:DeleteObject"),
    ],
)
def test_a_store_that_misses_a_condition_is_refused(wrong: str, words: str) -> None:
    async def main() -> None:
        clock = virtual_time.VirtualClock()
        bucket = memory_objects.Bucket(clock)
        store = objects.Objects(SloppyApi(bucket, clock, wrong), clock, random.Random(1))
        with pytest.raises(errors.ObjectStoreRefusedError) as told:
            await probe.check(store, NONCE)
        assert words in str(told.value)
        if "right" not in wrong and "known" not in wrong:
            assert "Use Amazon S3, or a store that honours" in str(told.value)
        if wrong != "no right to delete":
            assert bucket.contents() == {}

    virtual_time.run(main())


@pytest.mark.parametrize("seed", range(100))
def test_a_good_store_passes_however_badly_it_answers(seed: int) -> None:
    """Lost replies, 409, 503 and delays, as long as no call fails for good."""
    draw = random.Random(seed)

    def plan(call: memory_objects.Call) -> memory_objects.Fault:
        return draw.choice(
            [
                *[memory_objects.Fault(delay_s=draw.random())] * 10,
                memory_objects.Fault(lost_reply=True, delay_s=draw.random()),
                memory_objects.Fault(failure=memory_objects.UNAVAILABLE),
                memory_objects.Fault(failure=memory_objects.CONFLICT),
            ]
        )

    async def main() -> None:
        clock = virtual_time.VirtualClock()
        bucket = memory_objects.Bucket(clock)
        store = memory_objects.MemoryObjects(bucket, clock, plan)
        try:
            await probe.check(store, NONCE)
        except errors.ObjectStoreUnavailableError:
            return  # six failures of one call in a row: not known, and told so
        assert bucket.contents() == {}

    virtual_time.run(main())


def test_an_unknown_outcome_is_no_refusal() -> None:
    async def main() -> None:
        clock = virtual_time.VirtualClock()
        fault = memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        store = memory_objects.MemoryObjects(memory_objects.Bucket(clock), clock, lambda call: fault)
        with pytest.raises(errors.ObjectStoreUnavailableError):
            await probe.check(store, NONCE)

    virtual_time.run(main())


def test_beside_the_partitions_a_store_out_of_reach_is_probed_later() -> None:
    async def main() -> None:
        clock = virtual_time.VirtualClock()
        bucket = memory_objects.Bucket(clock)
        away = memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        back_at = clock.monotonic() + 3 * probe.BESIDE_S
        store = memory_objects.MemoryObjects(
            bucket, clock, lambda call: away if clock.monotonic() < back_at else memory_objects.Fault()
        )
        forgotten: list[str] = []
        await probe.check_beside(store, lambda: NONCE, clock, lambda: forgotten.append("it"))
        assert clock.monotonic() >= back_at
        assert not forgotten

    virtual_time.run(main())


def test_beside_the_partitions_a_store_that_fails_is_refused_and_forgotten() -> None:
    async def main() -> None:
        clock = virtual_time.VirtualClock()
        api = SloppyApi(memory_objects.Bucket(clock), clock, "If-Match is passed over")
        store = objects.Objects(api, clock, random.Random(1))
        forgotten: list[str] = []
        with pytest.raises(errors.ObjectStoreRefusedError):
            await probe.check_beside(store, lambda: NONCE, clock, lambda: forgotten.append("it"))
        assert forgotten == ["it"]

    virtual_time.run(main())
