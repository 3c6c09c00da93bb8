"""The production sink over the in-memory Kinesis, in virtual time: order per device, retries, limits, refusals."""

from __future__ import annotations

import asyncio
import collections
import itertools
import random
from collections.abc import Callable, Sequence

import hypothesis
import pytest
from hypothesis import strategies

from fleet_model import spec
from fleet_worker.adapters import kinesis_api, kinesis_sink, memory_kinesis
from fleet_worker.core import effects
from tests.support import virtual_time

STREAMS = spec.Streams(
    telemetry=spec.TelemetryStream(name="telemetry"),
    alerts=spec.EffectStream("alerts"),
    commands=spec.EffectStream("commands"),
    dead_letter="dead-letters",
)


INVALID = kinesis_api.Failure(kinesis_api.Trouble.INVALID, "InvalidArgumentException", "not a record")


class World:
    """An in-memory Kinesis with every stream of a fleet, and each PutRecords call it gets."""

    def __init__(self, *, enforce_quotas: bool = True, streams: spec.Streams = STREAMS, seed: int = 5) -> None:
        self.clock = virtual_time.VirtualClock()
        self.fault: Callable[[memory_kinesis.Call], memory_kinesis.Fault] = memory_kinesis.no_faults
        self.puts: list[tuple[float, str, list[kinesis_api.PutRecord]]] = []
        world = self

        class Recording(memory_kinesis.MemoryKinesis):
            async def put_records(
                self, stream: str, entries: Sequence[kinesis_api.PutRecord]
            ) -> list[kinesis_api.PutOutcome]:
                world.puts.append((world.clock.monotonic(), stream, list(entries)))
                return await super().put_records(stream, entries)

        self.kinesis = Recording(self.clock, lambda call: self.fault(call), enforce_quotas=enforce_quotas)
        for name in ("telemetry", "alerts", "commands", "dead-letters"):
            self.kinesis.create_stream(name, shards=2)
        self.sink = kinesis_sink.KinesisSink(self.kinesis, streams, self.clock, random.Random(seed))

    def stored(self, stream: str) -> dict[str, list[bytes]]:
        """What a stream has of each device, in order."""
        found: dict[str, list[bytes]] = collections.defaultdict(list)
        for record in self.kinesis.records_of(stream):
            found[record.partition_key].append(record.data)
        return dict(found)


def entry(
    number: int, device: str = "device-7", data: bytes | None = None, target: effects.Target = effects.Target.ALERTS
) -> effects.OutboxEntry:
    content = str(number).encode() if data is None else data
    return effects.OutboxEntry(number, effects.Effect(target, f"{number:032x}", "temp_spike", device, 0, content))


def without_repeats(found: list[bytes]) -> list[bytes]:
    """First occurrences only: a lost reply may publish an effect twice."""
    return list(dict.fromkeys(found))


def test_each_effect_goes_to_its_target_stream() -> None:
    async def scenario() -> tuple[World, kinesis_sink.Published]:
        world = World()
        targets = list(effects.Target)
        return world, await world.sink.publish([entry(n, target=target) for n, target in enumerate(targets, 1)])

    world, published = virtual_time.run(scenario())
    assert sorted(published.acknowledged) == [1, 2, 3, 4]
    assert published.refused == []
    assert {
        stream: list(world.stored(stream).values()) for stream in ("alerts", "commands", "telemetry", "dead-letters")
    } == {
        "alerts": [[b"1"]],
        "commands": [[b"2"]],
        "telemetry": [[b"3"]],
        "dead-letters": [[b"4"]],
    }


def test_a_call_carries_at_most_one_effect_of_a_device_and_they_stay_in_order() -> None:
    """With calls that store their entries in reverse, and entries given out of order."""

    async def scenario() -> World:
        world = World()
        world.fault = lambda call: memory_kinesis.Fault(reverse=True)
        entries = [entry(number, f"device-{number % 3}") for number in range(1, 31)]
        random.Random(1).shuffle(entries)
        published = await world.sink.publish(entries)
        assert sorted(published.acknowledged) == list(range(1, 31))
        return world

    world = virtual_time.run(scenario())
    assert len(world.puts) == 10
    for _, _, put in world.puts:
        assert len({record.partition_key for record in put}) == len(put)
    for device, found in world.stored("alerts").items():
        expected = [str(number).encode() for number in range(1, 31) if f"device-{number % 3}" == device]
        assert found == expected


def test_a_call_has_at_most_500_records_and_5_megabytes() -> None:
    async def scenario() -> World:
        world = World(enforce_quotas=False)
        small = [entry(number, f"device-{number}") for number in range(1, 1202)]
        large = [entry(number, f"device-{number}", b"x" * 900_000) for number in range(2001, 2013)]
        published = await world.sink.publish(small + large)
        assert len(published.acknowledged) == 1213
        return world

    world = virtual_time.run(scenario())
    sizes = [sum(len(record.data) + len(record.partition_key) for record in put) for _, _, put in world.puts]
    assert max(len(put) for _, _, put in world.puts) == 500
    assert 4_000_000 < max(sizes) <= 5_000_000


def test_exactly_the_failed_records_are_tried_again() -> None:
    async def scenario() -> World:
        world = World()
        first = [True]

        def plan(call: memory_kinesis.Call) -> memory_kinesis.Fault:
            failed = frozenset({1, 3}) if first[0] else frozenset()
            first[0] = False
            return memory_kinesis.Fault(failed=failed)

        world.fault = plan
        published = await world.sink.publish([entry(number, f"device-{number}") for number in range(1, 7)])
        assert sorted(published.acknowledged) == [1, 2, 3, 4, 5, 6]
        return world

    world = virtual_time.run(scenario())
    assert [[record.data for record in put] for _, _, put in world.puts] == [
        [b"1", b"2", b"3", b"4", b"5", b"6"],
        [b"2", b"4"],
    ]


def test_an_effect_waits_for_the_acknowledgement_of_the_one_before() -> None:
    """The hot device's first effect fails for a while; its second never overtakes it, other devices go on."""

    async def scenario() -> World:
        world = World()

        def plan(call: memory_kinesis.Call) -> memory_kinesis.Fault:
            put = world.puts[-1][2]
            hot = [index for index, record in enumerate(put) if record.partition_key == "hot"]
            return memory_kinesis.Fault(failed=frozenset(hot) if world.clock.monotonic() < 4 else frozenset())

        world.fault = plan
        entries = [entry(number, "hot" if number < 4 else f"cool-{number % 4}") for number in range(1, 41)]
        published = await world.sink.publish(entries)
        assert sorted(published.acknowledged) == list(range(1, 41))
        return world

    world = virtual_time.run(scenario())
    assert world.stored("alerts")["hot"] == [b"1", b"2", b"3"]
    cool_done = max(at for at, _, put in world.puts if any(record.partition_key != "hot" for record in put))
    hot_done = max(at for at, _, put in world.puts if any(record.partition_key == "hot" for record in put))
    assert cool_done < 0.2
    assert hot_done >= 4


def test_a_lost_reply_publishes_again_in_order() -> None:
    async def scenario() -> World:
        world = World()
        lost = [2]

        def plan(call: memory_kinesis.Call) -> memory_kinesis.Fault:
            lost[0] -= 1
            return memory_kinesis.Fault(lost_reply=lost[0] >= 0, delay_s=3.0)

        world.fault = plan
        published = await world.sink.publish([entry(number) for number in (1, 2, 3)])
        assert published.acknowledged == [1, 2, 3]
        return world

    found = virtual_time.run(scenario()).stored("alerts")["device-7"]
    assert found == [b"1", b"1", b"1", b"2", b"3"]


def test_gives_up_after_thirty_seconds_and_says_nothing_of_the_rest() -> None:
    async def scenario() -> tuple[kinesis_sink.Published, float, World]:
        world = World()
        world.fault = lambda call: (
            memory_kinesis.Fault(failure=memory_kinesis.THROTTLED)
            if call.stream == "alerts"
            else memory_kinesis.NO_FAULT
        )
        published = await world.sink.publish([entry(1), entry(2), entry(3, target=effects.Target.COMMANDS)])
        return published, world.clock.monotonic(), world

    published, took_s, world = virtual_time.run(scenario())
    assert published.acknowledged == [3]
    assert published.refused == []
    assert 26 < took_s <= 30
    alert_times = [at for at, stream, _ in world.puts if stream == "alerts"]
    assert max(after - before for before, after in itertools.pairwise(alert_times)) <= 3.0
    assert [at for at, stream, _ in world.puts if stream == "commands"] == [0.0], "streams don't wait for each other"


def test_a_device_that_keeps_failing_is_tried_ever_more_rarely_while_others_go_on() -> None:
    async def scenario() -> list[float]:
        world = World()

        def plan(call: memory_kinesis.Call) -> memory_kinesis.Fault:
            put = world.puts[-1][2]
            hot = [index for index, record in enumerate(put) if record.partition_key == "hot"]
            return memory_kinesis.Fault(delay_s=0.02, failed=frozenset(hot))

        world.fault = plan
        await world.sink.publish([entry(1, "hot"), *(entry(number, "cool") for number in range(2, 1000))])
        return [at for at, _, put in world.puts if any(record.partition_key == "hot" for record in put)]

    tries = virtual_time.run(scenario())
    assert 12 < len(tries) < 28, "from a tenth of a second up to three between two"
    assert tries[-1] - tries[-2] >= 1.5


@pytest.mark.parametrize("seed", range(12))
def test_a_device_that_keeps_failing_does_not_prolong_the_time(seed: int) -> None:
    """Others fill the time until shortly before its end, when the failing one would wait for longer than is left."""

    async def scenario() -> tuple[kinesis_sink.Published, float]:
        world = World(seed=seed)

        def plan(call: memory_kinesis.Call) -> memory_kinesis.Fault:
            put = world.puts[-1][2]
            hot = [index for index, record in enumerate(put) if record.partition_key == "hot"]
            return memory_kinesis.Fault(delay_s=1.0, failed=frozenset(hot))

        world.fault = plan
        entries = [entry(1, "hot"), *(entry(number, "cool") for number in range(2, 31))]
        return await world.sink.publish(entries), world.clock.monotonic()

    published, took_s = virtual_time.run(scenario())
    assert published.acknowledged == list(range(2, 31))
    assert took_s <= 30.0


def test_a_call_that_hangs_is_given_up_when_the_time_is_up() -> None:
    async def scenario() -> tuple[kinesis_sink.Published, float]:
        world = World()
        world.fault = lambda call: memory_kinesis.Fault(delay_s=500.0)
        published = await world.sink.publish([entry(1)])
        return published, world.clock.monotonic()

    published, took_s = virtual_time.run(scenario())
    assert published == kinesis_sink.Published()
    assert took_s == pytest.approx(30.0)


def test_cancelling_ends_the_calls_under_way() -> None:
    async def scenario() -> int:
        world = World()
        world.fault = lambda call: memory_kinesis.Fault(delay_s=5.0)
        publish = asyncio.ensure_future(world.sink.publish([entry(1), entry(2, target=effects.Target.COMMANDS)]))
        await world.clock.sleep(1)
        publish.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publish
        await world.clock.sleep(60)
        assert len(asyncio.all_tasks()) == 1
        return len(world.kinesis.records_of("alerts"))

    assert virtual_time.run(scenario()) == 0


def test_an_oversized_effect_is_refused_and_its_devices_next_one_goes() -> None:
    async def scenario() -> tuple[kinesis_sink.Published, World]:
        world = World(enforce_quotas=False)
        fits = b"x" * (2**20 - len("device-7"))
        return await world.sink.publish([entry(1, data=fits), entry(2, data=fits + b"x"), entry(3)]), world

    published, world = virtual_time.run(scenario())
    assert published.acknowledged == [1, 3]
    assert [number for number, _ in published.refused] == [2]
    assert "1048577 bytes" in published.refused[0][1]
    assert len(world.stored("alerts")["device-7"]) == 2


def test_a_call_refused_as_a_whole_is_halved_until_the_culprits_are_found() -> None:
    async def scenario() -> tuple[kinesis_sink.Published, World]:
        world = World()
        culprits = {17, 18, 400}
        entries = [entry(number, ("é" * 257 if number in culprits else "d") + str(number)) for number in range(1, 501)]
        return await world.sink.publish(entries), world

    published, world = virtual_time.run(scenario())
    assert sorted(number for number, _ in published.refused) == [17, 18, 400]
    assert "InvalidArgumentException" in published.refused[0][1]
    assert sorted(published.acknowledged) == [number for number in range(1, 501) if number not in (17, 18, 400)]
    assert all(len(found) == 1 for found in world.stored("alerts").values())
    assert len(world.puts) < 50


def test_a_record_refused_by_itself_is_refused() -> None:
    """Some endpoints refuse one record inside a call that went well."""
    refusal = kinesis_api.Failure(kinesis_api.Trouble.INVALID, "InvalidArgumentException", "too large for this stream")

    class Picky(memory_kinesis.MemoryKinesis):
        async def put_records(
            self, stream: str, entries: Sequence[kinesis_api.PutRecord]
        ) -> list[kinesis_api.PutOutcome]:
            outcomes = await super().put_records(stream, entries)
            return [
                kinesis_api.PutOutcome(failure=refusal) if sent.data == b"2" else outcome
                for sent, outcome in zip(entries, outcomes, strict=True)
            ]

    async def scenario() -> kinesis_sink.Published:
        clock = virtual_time.VirtualClock()
        kinesis = Picky(clock)
        kinesis.create_stream("alerts")
        sink = kinesis_sink.KinesisSink(kinesis, STREAMS, clock, random.Random(5))
        return await sink.publish([entry(1), entry(2), entry(3)])

    published = virtual_time.run(scenario())
    assert published.acknowledged == [1, 3]
    assert published.refused == [(2, "InvalidArgumentException: too large for this stream")]


def test_no_call_is_made_once_whoever_asked_may_not_go_on() -> None:
    """Neither the next call nor a second try, nor a half of a call that was refused as a whole."""

    async def scenario(fault: memory_kinesis.Fault) -> tuple[World, kinesis_sink.Published]:
        world = World()
        world.fault = lambda call: fault
        entries = [entry(1), entry(2), entry(3, "device-8"), entry(4, target=effects.Target.COMMANDS)]
        return world, await world.sink.publish(entries, lambda: len(world.puts) < 2)

    first_of_each = {"alerts", "commands"}
    world, published = virtual_time.run(scenario(memory_kinesis.NO_FAULT))
    assert sorted(published.acknowledged) == [1, 3, 4]
    assert {stream for _, stream, _ in world.puts} == first_of_each
    for failure in (memory_kinesis.UNAVAILABLE, INVALID):
        world, published = virtual_time.run(scenario(memory_kinesis.Fault(failure=failure)))
        assert len(world.puts) == 2
        assert {stream for _, stream, _ in world.puts} == first_of_each
        assert published.acknowledged == []
        refused_alone = [4] if failure is INVALID else []
        assert [number for number, _ in published.refused] == refused_alone


def test_a_missing_effect_stream_is_waited_for() -> None:
    async def scenario() -> tuple[kinesis_sink.Published, kinesis_sink.Published]:
        world = World()
        world.kinesis.delete_stream("alerts")
        never = await world.sink.publish([entry(1)])
        publish = asyncio.ensure_future(world.sink.publish([entry(1)]))
        await world.clock.sleep(5)
        world.kinesis.create_stream("alerts")
        return never, await publish

    never, later = virtual_time.run(scenario())
    assert never == kinesis_sink.Published()
    assert later.acknowledged == [1]


def test_a_dead_letter_without_a_stream_for_it_is_refused() -> None:
    streams = spec.Streams(STREAMS.telemetry, STREAMS.alerts, STREAMS.commands)

    async def scenario() -> kinesis_sink.Published:
        return await World(streams=streams).sink.publish([entry(1, target=effects.Target.DEAD_LETTER)])

    assert virtual_time.run(scenario()).refused == [(1, "no dead letter stream is configured")]


def test_nothing_to_publish_makes_no_call() -> None:
    async def scenario() -> World:
        world = World()
        assert await world.sink.publish([]) == kinesis_sink.Published()
        return world

    assert virtual_time.run(scenario()).puts == []


def test_above_a_shards_quota_everything_arrives_in_the_end() -> None:
    async def scenario() -> tuple[World, float]:
        world = World()
        published = await world.sink.publish([entry(number, f"device-{number}") for number in range(1, 5001)])
        assert len(published.acknowledged) == 5000
        return world, world.clock.monotonic()

    world, took_s = virtual_time.run(scenario())
    assert len(world.kinesis.records_of("alerts")) == 5000
    assert 1 < took_s < 15


FAULTS = strategies.sampled_from(
    [
        memory_kinesis.NO_FAULT,
        memory_kinesis.Fault(reverse=True),
        memory_kinesis.Fault(failed=frozenset({0, 2})),
        memory_kinesis.Fault(failed=frozenset(range(500))),
        memory_kinesis.Fault(failure=memory_kinesis.UNAVAILABLE),
        memory_kinesis.Fault(failure=memory_kinesis.THROTTLED),
        memory_kinesis.Fault(lost_reply=True, delay_s=1.0),
        memory_kinesis.Fault(lost_reply=True, failed=frozenset({1})),
    ]
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    devices=strategies.lists(strategies.sampled_from("abcde"), min_size=1, max_size=25),
    faults=strategies.lists(FAULTS, max_size=12),
)
def test_whatever_fails_each_device_keeps_its_order(devices: list[str], faults: list[memory_kinesis.Fault]) -> None:
    async def scenario() -> tuple[World, kinesis_sink.Published]:
        world = World()
        left = iter(faults)
        world.fault = lambda call: next(left, memory_kinesis.NO_FAULT)
        entries = [entry(number, device) for number, device in enumerate(devices, 1)]
        return world, await world.sink.publish(entries)

    world, published = virtual_time.run(scenario())
    assert sorted(published.acknowledged) == list(range(1, len(devices) + 1))
    for device, found in world.stored("alerts").items():
        expected = [str(number).encode() for number, of in enumerate(devices, 1) if of == device]
        assert without_repeats(found) == expected
        assert sorted(found, key=int) == found, "a repeat never comes after a later effect"
