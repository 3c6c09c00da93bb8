"""The control loop: every second, and whenever a partition's object changes, list shards → observe → decide → write.

The decision is fleet_model.handoff's, from what is there now and nothing else, so a loop that dies in the middle of a move is simply
started again. What can't be reached is tried again in the next round; what another wrote in between is looked at again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from fleet_cli.control import edits
from fleet_model import control, handoff, loads, parse, partition, spec
from fleet_worker import control_plane, errors, ports

log = logging.getLogger(__name__)

ROUND_S = 1.0
SHARDS_EVERY_S = 2.0

PASSING = (
    errors.ControlPlaneUnavailableError,
    errors.StreamUnavailableError,
    errors.StreamGoneError,
    errors.PreconditionFailedError,
    errors.PartitionGoneError,
)
"""What the next round may find mended."""


class ControlLoop:
    """trouble: why the last round wasn't done; "" when it was. is_leaving: whether a worker, by name, is to own nothing any more."""

    def __init__(
        self,
        plane: control_plane.ControlPlane,
        stream: ports.Stream,
        fleet: spec.FleetSpec,
        clock: ports.Clock,
        is_leaving: Callable[[str], bool],
        silent_after_ms: int = control_plane.SILENT_AFTER_MS,
    ) -> None:
        self.trouble = ""
        self.conditions: Sequence[control.Condition] = ()
        self._plane = plane
        self._stream = stream
        self._fleet = fleet
        self._clock = clock
        self._is_leaving = is_leaving
        self._silent_after_ms = silent_after_ms
        self._stamping = edits.Stamping(plane, stream, fleet, clock)
        self._changed = asyncio.Event()
        self._shards: Sequence[partition.Shard] | None = None
        self._list_at = 0.0
        self._loads = loads.Loads()
        self._watching_since_ms = clock.wall_ms()

    @property
    def rules_error(self) -> str:
        """Why the last edit of the rules wasn't taken up."""
        return self._stamping.error

    async def run(self, watched: AsyncIterator[spec.FleetSpec | parse.InvalidFleetError]) -> None:
        """Until cancelled. watched: the fleet's edits. Raises what can't be mended by trying again."""
        tasks = [
            asyncio.create_task(self._rounds()),
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._stamping.run(watched)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _rounds(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self.round()
                self.trouble = ""
            except PASSING as error:
                if not self.trouble:
                    log.warning("this round of the control loop isn't done: %s", error)
                self.trouble = str(error)
            await self._pause()

    async def _listen(self) -> None:
        async for _ in self._plane.ownership("").assignments():
            self._changed.set()

    async def _pause(self) -> None:
        waits = [asyncio.ensure_future(self._clock.sleep(ROUND_S)), asyncio.ensure_future(self._changed.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def round(self) -> None:
        """Observe, decide, write. Raises one of PASSING when it could not be finished."""
        shards = await self._listed()
        found = await self._plane.partitions()
        beats = await self._plane.heartbeats()
        now_ms = self._clock.wall_ms()
        workers = observed_workers(beats, self._is_leaving, self._loads.see(self._clock.monotonic(), told_loads(beats)))
        observed = control.Observed(
            now_ms=now_ms,
            namespace=self._fleet.namespace,
            fleet=self._fleet.name,
            stream=self._fleet.streams.telemetry.stream_name,
            settings=dataclasses.replace(control.settings(self._fleet, self._silent_after_ms), replicas=len(workers)),
            partitions=found.values(),
            workers=workers,
            shards=shards,
            watching_since_ms=self._watching_since_ms,
        )
        wanted = handoff.step(observed)
        for new in wanted.create:
            await self._plane.create(new)
        for changed in wanted.change:
            await self._plane.update_spec(changed.spec.shard_id, changed.spec, changed.resource_version)
        for gone in wanted.delete:
            await self._plane.delete(gone.spec.shard_id, gone.resource_version)
        self._tell(wanted.conditions)

    def _tell(self, conditions: Sequence[control.Condition]) -> None:
        """Each condition when it turns."""
        before = {condition.kind: (condition.status, condition.reason) for condition in self.conditions}
        for condition in conditions:
            if before.get(condition.kind) != (condition.status, condition.reason):
                log.info("%s=%s %s: %s", condition.kind, condition.status, condition.reason, condition.message)
        self.conditions = conditions

    async def _listed(self) -> Sequence[partition.Shard] | None:
        """The stream's shards, those of the last listing when it can't be listed just now; None when it never could."""
        if self._clock.monotonic() >= self._list_at or self._shards is None:
            try:
                self._shards = await self._stream.list_shards()
            except (errors.StreamUnavailableError, errors.StreamGoneError) as error:
                log.warning("the stream's shards can't be listed, those known go on: %s", error)
            self._list_at = self._clock.monotonic() + SHARDS_EVERY_S
        return self._shards


def observed_workers(
    beats: Mapping[str, control_plane.Heartbeat], is_leaving: Callable[[str], bool], known: Mapping[str, float]
) -> list[control.Worker]:
    """Every worker that has told of itself; by the number that its name ends with, worker-2 before worker-10. known: loads by shard."""
    ordered = sorted(beats.values(), key=lambda beat: (ordinal_of(beat.name), beat.name))
    return [
        control.Worker(
            beat.name,
            place,
            beat.ready,
            beat.time_ms,
            leaving=is_leaving(beat.name),
            load={shard_id: known[shard_id] for shard_id in beat.load if shard_id in known},
        )
        for place, beat in enumerate(ordered)
    ]


def told_loads(beats: Mapping[str, control_plane.Heartbeat]) -> dict[str, float]:
    """Records/s of each shard, whoever reads it."""
    told: dict[str, float] = {}
    for beat in beats.values():
        for shard_id, load in beat.load.items():
            told[shard_id] = told.get(shard_id, 0.0) + load
    return told


def ordinal_of(name: str) -> int:
    """The number that a worker's name ends with; names without one come last."""
    digits = re.search(r"[0-9]{1,9}$", name)
    return int(digits[0]) if digits else 2**31
