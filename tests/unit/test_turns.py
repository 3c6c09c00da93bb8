"""Many partitions on one event loop: nobody holds it for long, and answers that wait have bounded room."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest

from fleet_worker import reading, turns
from fleet_worker.core import records
from tests.support import virtual_time

EMPTY = records.ShardBatch([], np.zeros(0, dtype=np.int64), [], 0, 0)


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_partition_works_between_two_looks_of_the_loop() -> None:
    shared = turns.Turns()
    looks, worked_at = 0, list[int]()
    loop = asyncio.get_running_loop()

    def look() -> None:
        nonlocal looks
        looks += 1
        if len(worked_at) < 200:
            loop.call_soon(look)

    async def partition() -> None:
        for _ in range(10):
            await shared.next()
            worked_at.append(looks)

    look()
    await asyncio.gather(*(partition() for _ in range(20)))
    assert len(worked_at) == 200
    assert len(set(worked_at)) == 200, "two partitions worked without a look in between"


async def test_turns_go_round() -> None:
    shared, order = turns.Turns(), list[int]()

    async def partition(number: int) -> None:
        for _ in range(5):
            await shared.next()
            order.append(number)

    await asyncio.gather(*(partition(number) for number in range(4)))
    assert order == [0, 1, 2, 3] * 5


def test_a_turn_holds_what_fits_into_its_time() -> None:
    size = turns.TurnSize()
    for _ in range(10):
        size.took(size.records, 0.001)
    assert size.records == turns.RECORDS_MAX
    size.took(10_000, 1.0)
    assert size.records == pytest.approx(10_000 * turns.TURN_S)
    size.took(size.records, 100.0)
    assert size.records == turns.RECORDS_MIN
    size.took(10, 0.001)
    assert size.records == turns.RECORDS_MIN, "a few quick records say nothing about many"
    size.took(size.records, turns.TURN_S)
    assert size.records == turns.RECORDS_MIN


# ── places for answers ───────────────────────────────────────────────────────────────────────────────────────────────


class Source:
    """Answers at once, each time as far behind; `reads` counts how many answers were given and are not yet thrown away."""

    def __init__(self, behind_ms: int) -> None:
        self.behind_ms = behind_ms
        self.answers = 0

    async def read(self) -> records.ShardBatch:
        await asyncio.sleep(0)
        self.answers += 1
        return dataclasses.replace(EMPTY, millis_behind=self.behind_ms)


@dataclasses.dataclass
class Reading:
    source: Source
    reader: reading.Reader
    stopping: asyncio.Task[bool]
    places: reading.Places


def readers(count: int, behind_ms: int, each: int) -> list[Reading]:
    """So many partitions of one worker."""
    places, never = reading.Places(each, each), asyncio.Event()
    made = []
    for _ in range(count):
        source = Source(behind_ms)
        made.append(Reading(source, reading.Reader(source, places), asyncio.create_task(never.wait()), places))
    return made


async def end(all_of_them: list[Reading]) -> None:
    for one in all_of_them:
        await one.reader.ended()
        await reading.ended(one.stopping)


def test_after_an_outage_a_bounded_number_of_answers_is_in_memory() -> None:
    async def body() -> None:
        many = readers(50, behind_ms=3_600_000, each=3)
        first = await asyncio.gather(*(one.reader.answer(one.stopping) for one in many))
        assert sum(answer is not None for answer in first) == 3
        assert sum(one.source.answers for one in many) <= 6
        # Whoever is done makes room, and in the end everyone has had an answer.
        for _ in range(200):
            for one in many:
                one.reader.done()
            await asyncio.gather(*(one.reader.answer(one.stopping) for one in many))
        assert min(one.source.answers for one in many) > 0
        await end(many)
        assert many[0].places.ahead == 3
        assert not many[0].places.now.locked()

    virtual_time.run(body())


def test_a_read_that_is_begun_early_waits_for_whoever_judges_it() -> None:
    async def body() -> None:
        early = readers(5, 3_600_000, each=2)
        for one in early:
            one.reader.begin()
        await asyncio.sleep(0.1)
        assert [one.source.answers for one in early] == [1, 1, 0, 0, 0], (
            "places ahead are bounded, and nobody waits for one"
        )
        assert not early[0].places.now.locked(), "whoever can judge may read"
        for one in early:
            assert await one.reader.answer(one.stopping) is not None
            one.reader.done()
        await end(early)
        assert early[0].places.ahead == 2

    virtual_time.run(body())


def test_whoever_is_caught_up_needs_no_place() -> None:
    async def body() -> None:
        behind, caught_up = readers(5, 3_600_000, each=2), readers(20, 0, each=2)
        for one in caught_up:
            one.reader._places = behind[0].places
            one.reader.is_behind = False
        await asyncio.gather(*(one.reader.answer(one.stopping) for one in behind))
        found = await asyncio.gather(*(one.reader.answer(one.stopping) for one in caught_up))
        assert all(answer is not None for answer in found)
        await end([*behind, *caught_up])

    virtual_time.run(body())


def test_a_partition_that_waits_for_something_else_keeps_nobody_from_reading() -> None:
    """Its outbox is full, say: `done` before it waits, while the answer that it read ahead stays where it is."""

    async def body() -> None:
        stuck, other = readers(2, 3_600_000, each=1)
        assert await stuck.reader.answer(stuck.stopping) is not None
        await asyncio.sleep(0.1)
        assert stuck.source.answers == 2, "one read ahead"
        assert await other.reader.answer(other.stopping) is None
        stuck.reader.done()
        for _ in range(10):
            assert await other.reader.answer(other.stopping) is not None
            other.reader.done()
        await end([stuck, other])

    virtual_time.run(body())


def test_ending_gives_every_place_back_whatever_was_under_way() -> None:
    async def body() -> None:
        many = readers(12, 3_600_000, each=2)
        await asyncio.gather(*(one.reader.answer(one.stopping) for one in many[:3]))
        waiting = [asyncio.create_task(one.reader.answer(one.stopping)) for one in many]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await end(many)
        places = many[0].places
        assert places.ahead == 2
        for _ in range(2):
            await asyncio.wait_for(places.now.acquire(), 1)

    virtual_time.run(body())


def test_a_read_that_fails_tells_so_and_gives_its_place_back() -> None:
    async def body() -> None:
        (one,) = readers(1, 3_600_000, each=1)

        async def fails() -> records.ShardBatch:
            raise ConnectionError("gone")

        one.source.read = fails  # type: ignore[method-assign]
        with pytest.raises(ConnectionError):
            await one.reader.answer(one.stopping)
        await end([one])
        await asyncio.wait_for(one.places.now.acquire(), 1)

    virtual_time.run(body())
