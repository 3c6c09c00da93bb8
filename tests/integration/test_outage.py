"""Outages of ours longer than the offline limit: no device is called offline that spoke meanwhile, and each that really
fell silent is, within its limit and five seconds of the worker's catching up.

Every crowd has clocks that are an hour slow, right, and an hour fast: none of it may change anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_proto import fleet_pb2
from tests.reference import raw
from tests.reference.words import OFFLINE, Control
from tests.support import (
    aws_env,
    catching_up,
    live_fleet,
    live_judge,
    proxy,
    streams,
    worker_process,
)

LIMIT_MS = 4_000
"""Of each device's override: no fleet may have less than ten seconds."""
REPORTED_MS_MAX = LIMIT_MS + 5_000
OUTAGE_S = 2 * LIMIT_MS / 1000
SEND_EVERY_S = 0.7
WAIT_S_MAX = 60.0
HOUR_MS = 3_600_000
NOWHERE = "http://127.0.0.1:9"

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(240)]


class Scene:
    """A fleet with a worker behind a proxy, and its crowd: the faithful speak on and on, the silent until `hush`, the
    patient once, with the default limit of five minutes."""

    def __init__(
        self, fleet: live_fleet.LiveFleet, worker: worker_process.WorkerProcess, between: proxy.FaultProxy
    ) -> None:
        self.fleet, self.worker, self.proxy = fleet, worker, between
        self.faithful = [f"faithful-{number}" for number in range(9)]
        self.silent = [f"silent-{number}" for number in range(6)]
        self.patient = [f"patient-{number}" for number in range(3)]
        self._speaking = [*self.faithful, *self.silent]
        self._sending: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Everyone has spoken, the worker runs and knows it."""
        await self._put(self._said(device) for device in (*self._speaking, *self.patient))
        override = Control("update_threshold", now_ms(), OFFLINE, LIMIT_MS / 1000)
        await self._put(
            (device, raw.control_message(device, override).SerializeToString()) for device in self._speaking
        )
        self.speak_on()
        self.worker.start()
        await self.worker.ready()
        await self._applied()

    def speak_on(self) -> None:
        self._sending = asyncio.create_task(self._send())

    async def fall_silent(self, everyone: bool = False) -> None:
        """The silent say a last word; everyone: the faithful as well."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        await self._put(self._said(device) for device in self._speaking)
        self._speaking = [] if everyone else self.faithful
        if not everyone:
            self.speak_on()

    async def reported(self, devices: list[str], since: Callable[[str], int]) -> int:
        """Waits until all of them were called offline; the longest time that took since `since` of each, in ms."""
        deadline = time.monotonic() + WAIT_S_MAX
        while True:
            fired = await self.called_offline()
            if all(device in fired for device in devices):
                return max(max(fired[device]) - since(device) for device in devices)
            assert time.monotonic() < deadline, (
                f"never called offline: {set(devices) - fired.keys()}\n{self.worker.log()}"
            )
            await asyncio.sleep(0.1)

    async def called_offline(self) -> dict[str, list[int]]:
        """When, by the arrival of the alert on its stream, by device."""
        fired = defaultdict(list)
        for record in await self.fleet.streams.read_all(self.fleet.stream(live_fleet.ALERTS)):
            alert = fleet_pb2.DeviceAlert.FromString(record.data)
            if alert.trigger == "offline" and alert.state == fleet_pb2.FIRING:
                fired[alert.device_id].append(record.arrival_ms)
        return fired

    async def caught_up_ms(self) -> int:
        """When the worker had applied all that was on the stream when it was asked."""
        await self._applied()
        return now_ms()

    async def last_spoke_ms(self) -> dict[str, int]:
        return {device: arrivals[-1] for device, arrivals in (await self._arrivals()).items()}

    async def nobody_is_called_offline_who_spoke(self, final_ms: int) -> None:
        """By the arrivals on the stream alone. A device may be offline only where a gap of LIMIT_MS was."""
        arrivals = await self._arrivals()
        for device, fired in (await self.called_offline()).items():
            gaps = [later - earlier for earlier, later in itertools.pairwise([*arrivals[device], final_ms])]
            real = sum(gap >= LIMIT_MS for gap in gaps)
            assert len(fired) <= real, (
                f"{device} called offline {len(fired)} times, it fell silent {real} times: {gaps}"
            )

    async def _arrivals(self) -> dict[str, list[int]]:
        found = defaultdict(list)
        for record in await self.fleet.streams.read_all(self.fleet.stream(live_fleet.TELEMETRY)):
            message = fleet_pb2.Telemetry.FromString(record.data)
            if not message.HasField("control"):
                found[message.device_id].append(record.arrival_ms)
        return found

    async def _applied(self) -> None:
        wanted = await self.fleet.streams.read(self.fleet.stream(live_fleet.TELEMETRY))

        def is_so(status: dict[str, Any]) -> bool:
            places = {
                entry["shard_id"]: int(entry["position"]["sequence_number"] or 0) for entry in status["partitions"]
            }
            return all(places.get(shard, -1) >= int(read[-1].sequence_number) for shard, read in wanted.items() if read)

        await self.worker.until(is_so, "the worker hasn't read what there is", WAIT_S_MAX)

    async def _send(self) -> None:
        while True:
            await self._put(self._said(device) for device in self._speaking)
            await asyncio.sleep(SEND_EVERY_S)

    def _said(self, device: str) -> tuple[str, bytes]:
        offset_ms = (-HOUR_MS, 0, HOUR_MS)[int(device[-1]) % 3]
        message = fleet_pb2.Telemetry(
            device_id=device, timestamp=now_ms() + offset_ms, temperature_c=20, battery_pct=80, cpu_load=0.5
        )
        return device, message.SerializeToString()

    async def _put(self, puts: Iterator[tuple[str, bytes]]) -> None:
        await self.fleet.streams.put(self.fleet.stream(live_fleet.TELEMETRY), list(puts))

    async def end(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)


# Outages


async def down_with_a_backlog(scene: Scene) -> None:
    scene.worker.kill()
    await asyncio.sleep(OUTAGE_S)
    scene.worker.start()
    await scene.worker.ready()


async def a_backlog_behind_empty_answers(scene: Scene) -> None:
    """Kinesis answers without records, and tells how far behind they are."""
    scene.worker.kill()
    await asyncio.sleep(OUTAGE_S)
    scene.proxy.holds_back, scene.proxy.millis_behind = True, round(OUTAGE_S * 1000) + 20_000
    scene.worker.start()
    await scene.worker.ready()
    await asyncio.sleep(LIMIT_MS / 1000)
    assert await scene.called_offline() == {}
    scene.proxy.holds_back, scene.proxy.millis_behind = False, None


async def cut_off_by_errors(scene: Scene) -> None:
    upstream = scene.proxy.upstream
    scene.proxy.forward_to(NOWHERE)
    await asyncio.sleep(OUTAGE_S)
    assert await scene.called_offline() == {}
    scene.proxy.forward_to(upstream)


async def cut_off_by_lost_replies(scene: Scene) -> None:
    rule = scene.proxy.add(proxy.Rule("GetRecords", times=1_000_000, lose_reply=True))
    await asyncio.sleep(OUTAGE_S)
    assert await scene.called_offline() == {}
    rule.times = 0


async def frozen(scene: Scene) -> None:
    """The process stands still, as a paused virtual machine does."""
    scene.worker.pause()
    await asyncio.sleep(OUTAGE_S)
    scene.worker.resume()


OUTAGES: list[Callable[[Scene], Coroutine[Any, Any, None]]] = [
    down_with_a_backlog,
    a_backlog_behind_empty_answers,
    cut_off_by_errors,
    cut_off_by_lost_replies,
    frozen,
]


@pytest.mark.parametrize("outage", OUTAGES)
async def test_only_the_silent_are_called_offline_after_an_outage(
    outage: Callable[[Scene], Coroutine[Any, Any, None]], scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    await scene.begin()
    await scene.fall_silent()
    await outage(scene)
    caught_up_ms = await scene.caught_up_ms()
    late_ms = await scene.reported(scene.silent, lambda device: caught_up_ms)
    await scene.fall_silent(everyone=True)
    last_ms = await scene.last_spoke_ms()
    after_ms = await scene.reported(scene.faithful, lambda device: last_ms[device])
    await right(scene)
    with capsys.disabled():
        print(
            f"\nthe silent told {late_ms} ms after catching up, later ones {after_ms} ms after their last word", end=""
        )
    assert late_ms <= REPORTED_MS_MAX
    assert after_ms <= REPORTED_MS_MAX


async def test_down_without_a_backlog(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody spoke meanwhile: who has a short limit is offline, and told at once; who has a long one isn't."""
    await scene.begin()
    await scene.fall_silent(everyone=True)
    await scene.caught_up_ms()
    scene.worker.kill()
    await asyncio.sleep(OUTAGE_S)
    scene.worker.start()
    await scene.worker.ready()
    caught_up_ms = await scene.caught_up_ms()
    late_ms = await scene.reported([*scene.silent, *scene.faithful], lambda device: caught_up_ms)
    await right(scene)
    with capsys.disabled():
        print(f"\nthe silent told {late_ms} ms after catching up", end="")
    assert late_ms <= REPORTED_MS_MAX
    assert not set(scene.patient) & (await scene.called_offline()).keys()


@pytest.fixture
async def scene(kinesis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    aws_env.apply(monkeypatch)
    async with contextlib.AsyncExitStack() as stack:
        kinesis = await stack.enter_async_context(streams.Streams.at(kinesis_url))
        between = await stack.enter_async_context(proxy.FaultProxy(kinesis_url))
        fleet = await stack.enter_async_context(live_fleet.made(tmp_path, kinesis, between.endpoint_url, shards=2))
        worker = await stack.enter_async_context(fleet.worker())
        found = Scene(fleet, worker, between)
        stack.push_async_callback(found.end)
        yield found


async def right(scene: Scene) -> None:
    """The worker stops cleanly and all of it is as the reference says; and by the plain arrivals as well."""
    await catching_up.caught_up(scene.fleet, scene.worker)
    assert await scene.worker.stop() < worker_process.STOP_S_MAX
    judgement = await live_judge.judged(scene.fleet)
    assert not judgement.problems, "\n".join(judgement.problems[:40])
    await scene.nobody_is_called_offline_who_spoke(now_ms())


def now_ms() -> int:
    return time.time_ns() // 1_000_000
