"""What is known of a fleet's stream, in virtual time: when it is asked, how old it may be, and what its clock says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from fleet_model import hashing, parse, partition
from fleet_operator import errors, stream_watch
from fleet_operator.adapters import streams
from fleet_operator.kinds import FleetKey
from tests.support import operator_cluster as scenes
from tests.support import virtual_time

FLEET: FleetKey = ("depot", "trucks")
SHARD = partition.Shard("shardId-0", hashing.HashKeyRange())
AHEAD_MS = 12_345
"""Of Kinesis' clock before ours."""


class Clock:
    """ahead_ms: by so much somebody set the wall clock."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return virtual_time.EPOCH_MS + round(self.monotonic() * 1000) + self.ahead_ms

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Scene:
    def __init__(self) -> None:
        self.shards: tuple[partition.Shard, ...] = (SHARD,)
        self.is_away = False
        self.takes_s = 0.01
        self.asked: list[float] = []
        self.places: list[streams.Place] = []
        self.woken = 0
        self.clock = Clock()
        self.watch = stream_watch.StreamWatch(self, self._credentials, self.clock, self._wake)

    async def look(self, place: streams.Place) -> streams.Answer:
        self.asked.append(Clock().monotonic())
        self.places.append(place)
        await asyncio.sleep(self.takes_s)
        if self.is_away:
            raise errors.StreamUnavailableError("away")
        return streams.Answer(self.shards, 86_400_000, (Clock().now_ms() + AHEAD_MS) // 1000 * 1000)

    async def _credentials(self, fleet: FleetKey, secret: str) -> streams.Credentials:
        return streams.Credentials(secret, "s")

    def _wake(self, fleet: FleetKey) -> None:
        self.woken += 1


def play(scene: Scene, story: Callable[[], Coroutine[Any, Any, None]], **spec: Any) -> None:
    async def body() -> None:
        scene.watch.follow(FLEET, parse.parse(scenes.document(**spec)))
        loop = asyncio.create_task(scene.watch.run())
        await story()
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop

    virtual_time.run(body())


def test_it_is_asked_at_once_and_then_each_half_minute() -> None:
    scene = Scene()

    async def story() -> None:
        assert not scene.watch.seen(FLEET).is_asked
        await asyncio.sleep(1)
        assert scene.watch.seen(FLEET).shards == (SHARD,)
        assert scene.woken == 1
        await asyncio.sleep(300)

    play(scene, story)
    assert 10 <= len(scene.asked) - (stream_watch.SOON - 1) <= 14
    assert scene.woken == 1  # nothing changed


def test_a_hint_brings_the_next_look_near_and_not_nearer_than_it_may_be() -> None:
    scene = Scene()

    async def story() -> None:
        await asyncio.sleep(5)
        for _ in range(100):
            scene.watch.hint(FLEET)
            await asyncio.sleep(0.1)

    play(scene, story)
    assert 4 <= len(scene.asked) - (stream_watch.SOON - 1) <= 7


def test_new_shards_wake_the_fleet() -> None:
    scene = Scene()

    async def story() -> None:
        await asyncio.sleep(1)
        scene.shards = (SHARD, partition.Shard("shardId-1", hashing.HashKeyRange(), ("shardId-0",)))
        await asyncio.sleep(31)
        assert len(scene.watch.seen(FLEET).shards or ()) == 2

    play(scene, story)
    assert scene.woken == 2


def test_a_stream_that_cant_be_listed_is_unknown_after_a_while_and_its_clock_later() -> None:
    scene = Scene()

    async def story() -> None:
        await asyncio.sleep(1)
        scene.is_away = True
        await asyncio.sleep(60)
        assert scene.watch.seen(FLEET).shards == (SHARD,)
        assert scene.watch.seen(FLEET).why == "away"
        await asyncio.sleep(120)
        seen = scene.watch.seen(FLEET)
        assert seen.shards is None
        assert seen.now_ms is not None
        await asyncio.sleep(stream_watch.CLOCK_S_MAX)
        assert scene.watch.seen(FLEET).now_ms is None
        scene.is_away = False
        await asyncio.sleep(15)
        assert scene.watch.seen(FLEET).shards == (SHARD,)

    play(scene, story)


def test_a_stream_that_never_answered_was_asked_all_the_same() -> None:
    scene = Scene()
    scene.is_away = True

    async def story() -> None:
        await asyncio.sleep(1)
        seen = scene.watch.seen(FLEET)
        assert (seen.is_asked, seen.shards, seen.now_ms, seen.why) == (True, None, None, "away")

    play(scene, story)
    assert scene.woken == 1


def test_the_clock_is_found_though_headers_are_cut_to_seconds() -> None:
    scene = Scene()

    async def story() -> None:
        for after_s, behind_ms in ((6, 450), (600, 300)):
            await asyncio.sleep(after_s)
            now_ms = scene.watch.seen(FLEET).now_ms
            assert now_ms is not None
            true_ms = Clock().now_ms() + AHEAD_MS
            assert true_ms - behind_ms <= now_ms <= true_ms + 20

    play(scene, story)


def test_who_sets_our_clock_doesnt_set_the_streams() -> None:
    """A generation that were to start in the stream's past would judge what another has judged already."""
    scene = Scene()

    async def story() -> None:
        await asyncio.sleep(1)
        scene.clock.ahead_ms = -60_000
        told = scene.watch.seen(FLEET).now_ms
        assert told is not None
        assert abs(told - (Clock().now_ms() + AHEAD_MS)) < 2_000

    play(scene, story)


def test_the_fleets_own_credentials_and_place() -> None:
    scene = Scene()
    aws = {"region": "eu-west-1", "endpointURL": "http://127.0.0.1:1", "credentialsSecretRef": {"name": "keys"}}

    async def story() -> None:
        await asyncio.sleep(1)

    play(scene, story, aws=aws)
    assert scene.places[0] == streams.Place(
        scenes.STREAM, "eu-west-1", "http://127.0.0.1:1", streams.Credentials("keys", "s")
    )


def test_a_fleet_that_is_forgotten_is_asked_no_more() -> None:
    scene = Scene()

    async def story() -> None:
        await asyncio.sleep(0.5)
        scene.watch.forget(FLEET)
        asked = len(scene.asked)
        await asyncio.sleep(120)
        assert len(scene.asked) == asked > 0

    play(scene, story)


def test_a_fleet_that_is_forgotten_while_it_is_chosen_ends_nothing() -> None:
    """Rounds forget fleets in threads of their own."""
    scene = Scene()

    class Going(tuple[str, str]):
        """Forgotten as soon as it is put in order with another."""

        __slots__ = ()
        __hash__ = tuple.__hash__

        def __lt__(self, other: tuple[str, ...]) -> bool:
            scene.watch.forget(self)
            return False

    async def story() -> None:
        scene.watch.follow(Going(("depot", "vans")), parse.parse(scenes.document()))
        await asyncio.sleep(0.1)
        assert scene.watch.seen(FLEET).is_asked

    play(scene, story)
    assert len(scene.asked) == 1


def test_a_stream_that_doesnt_answer_holds_the_first_round_up_for_a_few_seconds_only() -> None:
    scene = Scene()
    scene.takes_s = 1_000.0

    async def story() -> None:
        await asyncio.sleep(stream_watch.FIRST_S_MAX - 0.5)
        assert not scene.watch.seen(FLEET).is_asked
        await asyncio.sleep(1)
        assert scene.watch.seen(FLEET) == stream_watch.Seen(is_asked=True, why="no answer yet")

    play(scene, story)
