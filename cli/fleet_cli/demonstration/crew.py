"""The demo's workers: started, started again when one dies, and ended; a leaving one only once it owns nothing.

It looks at who owns what, and never decides it.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import pathlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from fleet_cli import demonstration
from fleet_cli.control import loop
from fleet_cli.demonstration import processes
from fleet_model.twin_partition import Phase
from fleet_worker import errors

if TYPE_CHECKING:
    from fleet_model import twin_partition
    from fleet_worker import control_plane


DEATHS_MAX = 5
DEATHS_WITHIN_S = 60.0
END_S = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where workers run. control: the folder by which they share the fleet; None: there is one worker, which is alone. port: of the
    first one's API; the others take free ones."""

    fleet_path: pathlib.Path
    folder: pathlib.Path
    control: pathlib.Path | None
    port: int
    environment: Mapping[str, str]


def name_of(ordinal: int) -> str:
    return f"worker-{ordinal}"


class Crew:
    """wanted: how many workers there are to be. tell: hears what happens, as a sentence."""

    def __init__(self, place: Place, wanted: int, tell: Callable[[str], None]) -> None:
        self.wanted = wanted
        self.children: dict[str, processes.Child] = {}
        self.deaths = 0
        self._place = place
        self._tell = tell
        self._died_at: collections.deque[float] = collections.deque(maxlen=DEATHS_MAX)
        self._tending = asyncio.Lock()
        self._lost: set[str] = set()  # died while they left, and may still have partitions to give away

    @property
    def is_shared(self) -> bool:
        return self._place.control is not None

    def is_leaving(self, name: str) -> bool:
        return self.is_shared and loop.ordinal_of(name) >= self.wanted

    def names(self) -> list[str]:
        """Of those that are to stay."""
        return [name_of(ordinal) for ordinal in range(self.wanted)] if self.is_shared else ["worker"]

    def want(self, count: int) -> None:
        """Takes effect with the next `tend`."""
        count = max(1, min(demonstration.WORKERS_MAX, count))
        if count != self.wanted:
            self._tell(f"{count} {'worker' if count == 1 else 'workers'} wanted, {self.wanted} before")
            self.wanted = count

    def pids(self) -> dict[str, int]:
        return {name: child.process.pid for name, child in self.children.items() if not child.has_ended}

    async def start(self) -> None:
        for name in self.names():
            await self._start(name)

    async def tend(
        self,
        partitions: Mapping[str, twin_partition.TwinPartition],
        died: Callable[[str], None],
        leaves: Callable[[str], Awaitable[None]],
    ) -> list[str]:
        """Starts who is missing, ends who has left; the names of the latter. died: told of a worker whose process is gone. leaves: has
        the last word with one that is about to be ended.

        Raises FleetTwinError when a worker dies again and again.
        """
        async with self._tending:
            for name, child in list(self.children.items()):
                if child.has_ended:
                    self._died(name, child)
                    died(name)
            # One that is to leave comes back for as long as it has something to give away. Left to be taken over, several that died
            # at once would be too many silent ones to believe in, and nobody would get their partitions.
            returning = [name for name in sorted(self._lost) if is_needed(name, partitions)]
            for name in (*self.names(), *returning):
                if name not in self.children:
                    await self._start(name)
            left = [name for name in self.children if self.is_leaving(name) and not is_needed(name, partitions)]
            for name in left:
                await leaves(name)
                await self.children.pop(name).end(END_S)
                self._tell(f"{name} owned nothing any more and ended")
            gone, self._lost = sorted(self._lost), set()
            return left + gone

    def _died(self, name: str, child: processes.Child) -> None:
        del self.children[name]
        self.deaths += 1
        now_s = time.monotonic()
        is_often = len(self._died_at) == DEATHS_MAX and now_s - self._died_at[0] < DEATHS_WITHIN_S
        if not self.is_shared or is_often:
            raise child.ended_badly()
        self._died_at.append(now_s)
        again = "it is started again"
        if self.is_leaving(name):
            again = "it was leaving, and comes back if it has partitions to give away"
            self._lost.add(name)
        self._tell(f"{name} died with exit code {child.process.returncode}; {again}")

    async def end(self) -> errors.FleetTwinError | None:
        """Ends all of them at once; the error of one that did not end well. Ending twice does no harm."""
        async with self._tending:
            children = list(self.children.values())
            codes = await asyncio.gather(*(child.end(END_S) for child in children))
        return next((child.ended_badly() for child, code in zip(children, codes, strict=True) if code != 0), None)

    async def _start(self, name: str) -> None:
        place = self._place
        self._lost.discard(name)
        is_first = name in (name_of(0), "worker")
        arguments = ["fleet_cli", "worker", "--fleet", str(place.fleet_path)]
        if place.control is None:
            arguments += ["--data", str(place.folder / "data")]
        else:
            arguments += ["--data", str(place.folder / "data" / name), "--control", str(place.control), "--name", name]
        arguments += ["--port", str(place.port if is_first else 0)]
        self.children[name] = await processes.start(name, arguments, place.folder, place.environment)


def is_needed(name: str, partitions: Mapping[str, twin_partition.TwinPartition]) -> bool:
    """Whether a worker owns a partition, is to, or has yet to give one away."""
    return any(
        name in (entry.spec.worker, *entry.spec.standby)
        or (entry.status.worker == name and entry.status.phase not in (Phase.RELEASED, Phase.FAILED))
        for entry in partitions.values()
        if entry.status.phase is not Phase.CLOSED
    )


def addresses(crew: Crew, heartbeats: Mapping[str, control_plane.Heartbeat]) -> dict[str, str]:
    """Where the API of each running worker is, by the worker's name and pid: each start counts anew."""
    pids = crew.pids()
    return {
        f"{name}/{beat.pid}": beat.address
        for name, beat in heartbeats.items()
        if pids.get(name) == beat.pid and beat.address
    }
