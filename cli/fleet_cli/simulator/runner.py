"""Runs the simulated fleet against a stream: paces the schedule by the clock, lets devices react, tells the counts.

When the stream takes less than the rate, the schedule falls behind and says so; it skips nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np

from fleet_cli import kinesis
from fleet_cli.simulator import commands, devices, encoding, faults, producer, schedule
from fleet_model import generations, spec
from fleet_worker.adapters import kinesis_api

RATE_MAX = 50_000.0
PER_DEVICE_RATE_MAX = 100.0
"""Records/s of one device: its timestamps have milliseconds and must rise."""
TOLD_EACH_S = 1.0
_OVERTIME_S = 5.0
_FIRST = asyncio.FIRST_COMPLETED


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """devices: how many. rate: records/s of all. duration_s: None = until stopped. listens: devices obey commands."""

    devices: int
    rate: float
    seed: int = 0
    shares: faults.Shares = faults.Shares()
    duration_s: float | None = None
    time_scale: float = 1.0
    listens: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """One second's figures. records: acknowledged so far. rate: records/s since the last report. late_s: how far the
    schedule is behind the clock. again, lost: records sent once more, given up. obeyed: commands."""

    elapsed_s: float
    records: int
    rate: float
    late_s: float
    waiting: int
    again: int
    lost: int
    obeyed: int


def limits(fleet: spec.FleetSpec, ids: list[str]) -> devices.Limits:
    """What the fleet's rules say of each device, by its profile."""
    generation = generations.first_generation(fleet)
    rules = [generation.rules(generation.profile_index(device_id, devices.FIRMWARES[0])) for device_id in ids]
    return devices.Limits(
        np.array([rule.temperature.threshold for rule in rules]),
        np.array([rule.offline.after_ms / 1000.0 for rule in rules]),
    )


def _now_s() -> float:
    return asyncio.get_running_loop().time()


class Simulation:
    """One run. `run` returns when the duration is over or `stop` is set, after what is queued was sent."""

    def __init__(self, fleet: spec.FleetSpec, options: Options, tell: Callable[[Report], None]) -> None:
        interval_s = options.devices / options.rate
        settings = devices.Settings(options.devices, interval_s, options.seed, options.time_scale, options.shares)
        self._streams = fleet.streams
        self._options = options
        self._tell = tell
        self._fleet = devices.Fleet(settings, limits(fleet, devices.device_ids(options.devices)))
        self._schedule = schedule.Schedule(options.devices, interval_s, options.seed)
        self._at_s = 0.0
        self._obeyed = 0
        self._last_told = (0.0, 0)

    async def run(self, api: kinesis_api.KinesisApi, stop: asyncio.Event) -> Report:
        """Raises StreamGoneError when a stream can't be used."""
        stream = self._streams.telemetry.arn or self._streams.telemetry.stream_name
        await kinesis.require_stream(api, stream)
        started = _now_s()
        sending = producer.Producer(api, stream, self._options.rate)
        telling, listening = self._beside(self._telling(sending, started)), self._beside(self._listening(api))
        async with telling as told, sending, listening as heard:
            await self._speak(sending, started, stop, [told, heard])
        return self._report(sending, started)

    async def _speak(
        self, sending: producer.Producer, started: float, stop: asyncio.Event, beside: list[asyncio.Task[None]]
    ) -> None:
        """Window after window, each when its time has come, until stopped, the end, or a task beside it failed."""
        start_ms = int(time.time() * 1000)
        duration_s = self._options.duration_s if self._options.duration_s is not None else math.inf
        stopping = asyncio.create_task(stop.wait())
        window = 0
        try:
            while (window + 1) * self._schedule.window_s <= duration_s and not stopping.done():
                due = started + (window + 1) * self._schedule.window_s
                # Falling behind must not keep a run with an end from ending.
                left_s = started + duration_s + _OVERTIME_S - _now_s()
                if left_s <= 0.0:
                    return
                await asyncio.wait([stopping, *beside], timeout=max(0.0, due - _now_s()), return_when=_FIRST)
                putting = asyncio.create_task(sending.put(self.records(window, start_ms)))
                await asyncio.wait(
                    [putting, stopping], timeout=None if left_s == math.inf else left_s, return_when=_FIRST
                )
                if not putting.done():
                    putting.cancel()
                    return
                putting.result()
                for task in beside:
                    if task.done():
                        task.result()
                window += 1
        finally:
            stopping.cancel()

    async def _telling(self, sending: producer.Producer, started: float) -> None:
        while True:
            await asyncio.sleep(TOLD_EACH_S)
            self._tell(self._report(sending, started))

    async def _listening(self, api: kinesis_api.KinesisApi) -> None:
        if self._options.listens:
            await kinesis.follow(api, self._streams.commands.name, self._obey)
        await asyncio.get_running_loop().create_future()

    def records(self, window: int, start_ms: int) -> list[encoding.Record]:
        """What the fleet sends in window 0, 1, 2 …: the same for the same options (until devices obey commands)."""
        generator = np.random.default_rng([self._options.seed, 3, window])
        index, at_s = self._schedule.due(window)
        self._at_s = (window + 1) * self._schedule.window_s
        samples = self._fleet.measure(index, at_s, generator)
        return encoding.records(self._fleet, samples, start_ms, generator)

    def _report(self, sending: producer.Producer, started: float) -> Report:
        elapsed_s = _now_s() - started
        counts = sending.counts
        last_s, last_put = self._last_told
        rate = (counts.put - last_put) / max(elapsed_s - last_s, 1e-9)
        self._last_told = (elapsed_s, counts.put)
        late_s = max(0.0, elapsed_s - self._at_s - TOLD_EACH_S)
        return Report(elapsed_s, counts.put, rate, late_s, counts.waiting, counts.again, counts.lost, self._obeyed)

    @contextlib.asynccontextmanager
    async def _beside(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
        """The work as a task, cancelled at the end."""
        task = asyncio.create_task(work)
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _obey(self, records: list[bytes]) -> None:
        for data in records:
            command = commands.read(data)
            if command is not None:
                reacted = self._fleet.react(command.device_id, command.command, command.target_c, self._at_s)
                self._obeyed += reacted
