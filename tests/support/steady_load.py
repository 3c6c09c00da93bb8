"""A steady load of many devices: so many records a second, from devices that mostly have nothing to tell.

A hundred busy devices speak each second and are hot for ten seconds of a minute, so that effects come all the time and a pause of whoever
judges shows in their delay. A few quiet ones fall silent for longer than their profile allows. All others take turns. What a device says
depends on its number and the second only, not on a seed. It judges nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time

from fleet_proto import fleet_pb2
from tests.support import streams

TICKS_PER_S = 4
BUSY = 100
QUIET = 40
QUIET_PREFIX = "quiet-"
QUIET_AFTER_S = 12
"""The limit of the quiet ones' profile, for whoever writes the fleet."""
PERIOD_S = 60
HOT_S = 10
SPOKEN_S = 20
"""Of a minute a quiet device speaks for so long."""
BEHIND_TICKS_MAX = 8
"""Two seconds: a load that falls back further leaves out what it missed, and says so."""
PROFILES = [
    {
        "name": "quiet",
        "match": {"deviceIdPrefix": QUIET_PREFIX},
        "rules": {"offline": {"after": f"{QUIET_AFTER_S}s"}},
    }
]


@dataclasses.dataclass
class Told:
    """records: put and acknowledged. missed: ticks that were left out because the puts took too long."""

    records: int = 0
    missed: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Records/s."""
        return self.records / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return f"{self.records} records at {self.rate:.0f}/s" + (f", {self.missed} ticks missed" if self.missed else "")


class SteadyLoad:
    """`async with load.running():` puts records until its end; again and again, with the same devices."""

    def __init__(self, kinesis: streams.Streams, stream: str, devices: int = 20_000, rate: int = 2_000) -> None:
        """rate: records/s, above BUSY + QUIET."""
        assert rate > BUSY + QUIET, "nothing would be left for the others"
        self._kinesis, self._stream = kinesis, stream
        self._others = [f"truck-{number:06d}" for number in range(devices - BUSY - QUIET)]
        self._busy = [f"busy-{number:03d}" for number in range(BUSY)]
        self._quiet = [f"{QUIET_PREFIX}{number:03d}" for number in range(QUIET)]
        self._rate = rate
        self._next = 0
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.told = Told()

    @property
    def is_running(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        assert self._task is None, "it runs already"
        self._stop.clear()
        self._task = asyncio.create_task(self._run())

    def check(self) -> None:
        """Raises what the load ended with, if it ended by itself."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> Told:
        """What was put since `start`. Raises what it failed with."""
        if self._task is None:
            return Told()
        self._stop.set()
        task, self._task = self._task, None
        await task
        told, self.told = self.told, Told()
        return told

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        number = 0
        while not self._stop.is_set():
            late = int((loop.time() - began) * TICKS_PER_S) - number
            if late > BEHIND_TICKS_MAX:
                self.told.missed += late
                number += late
            records = self._tick(number, time.time_ns() // 1_000_000)
            await self._kinesis.put(self._stream, records)
            self.told.records += len(records)
            self.told.seconds = loop.time() - began
            number += 1
            wait_s = began + number / TICKS_PER_S - loop.time()
            if wait_s > 0:
                try:
                    await asyncio.wait_for(self._stop.wait(), wait_s)
                except TimeoutError:
                    continue

    def _tick(self, number: int, now_ms: int) -> list[tuple[str, bytes]]:
        """One record a device at most: a put's records may be stored in any order."""
        turn, second = number % TICKS_PER_S, now_ms // 1000
        records = [
            _record(self._busy[index], now_ms, is_hot=(second + index * 7) % PERIOD_S < HOT_S)
            for index in range(turn, BUSY, TICKS_PER_S)
        ]
        records += [
            _record(self._quiet[index], now_ms, is_hot=False)
            for index in range(turn, QUIET, TICKS_PER_S)
            if (second + index * 3) % PERIOD_S < SPOKEN_S
        ]
        for _ in range(min(len(self._others), (self._rate - BUSY - QUIET) // TICKS_PER_S)):
            records.append(_record(self._others[self._next], now_ms, is_hot=False))
            self._next = (self._next + 1) % len(self._others)
        return records


def _record(device_id: str, now_ms: int, is_hot: bool) -> tuple[str, bytes]:
    """Its numbers change from sample to sample, so that a twin that missed one differs."""
    wave = (now_ms // 250 + len(device_id) * 13 + ord(device_id[-1]) * 31) % 97
    told = fleet_pb2.Telemetry(
        device_id=device_id,
        timestamp=now_ms,
        temperature_c=(70.0 if is_hot else 45.0) + wave / 20,
        battery_pct=90.0 - wave / 10,
        cpu_load=wave / 100,
        firmware="1.0",
    )
    return device_id, told.SerializeToString()
