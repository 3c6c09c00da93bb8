"""The control plane as a folder that workers of one machine share: TwinPartition objects as files, and what else they need to know.

Workers look every POLL_S, which costs one small read while nothing changes. The control loop alone writes specs and generations, an
owner alone its status; that is theirs to keep to, here only a write after another's change is refused.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from fleet_model import generations, partition, rules, twin_partition
from fleet_worker import control_plane, errors, ports
from fleet_worker.adapters import control_files

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

POLL_S = 0.2
ANEW_EVERY_S = 10.0
"""Between looks at every file, whatever seems unchanged."""
LOCK_POLL_S = 0.01
LOCK_S_MAX = 5.0
"""A change takes milliseconds; longer holds only a process that was stopped in the middle of one."""


class ControlFolder:
    """control_plane.ControlPlane. `prepare` it once before anybody writes."""

    def __init__(self, path: Path, clock: ports.Clock) -> None:
        self.path = path
        self._files = control_files.ControlFiles(path)
        self._clock = clock
        self._look = control_files.Look(self._files)
        self._looking = asyncio.Lock()
        self._rules_known_until_ms: dict[str, int] = {}

    async def prepare(self) -> None:
        """Makes the folder; the control loop's task. Idempotent. Raises DiskFullError, DataFolderError, ControlPlaneUnavailableError."""
        await self._retried(self._files.prepare)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def ownership(self, worker: str) -> FolderOwnership:
        return FolderOwnership(self, worker)

    async def heartbeat(self, beat: control_plane.Heartbeat) -> None:
        await self._clock.in_thread(functools.partial(self._files.put_heartbeat, beat))

    async def follow_generations(self, worker: str) -> AsyncIterator[tuple[rules.RulesGeneration, ...]]:
        told: tuple[rules.RulesGeneration, ...] = ()
        seen: control_files.Signature | None = None
        trouble = _Trouble(worker, "rules generations")
        while True:
            began_ms = self._clock.wall_ms()
            try:
                signature = await self._clock.in_thread(self._files.generations_signature)
                if signature != seen:
                    kept = await self._clock.in_thread(self._files.generations)
                    seen = signature
                    trouble.over()
                    if kept and kept != told:
                        told = kept
                        yield kept
                trouble.over()
                self._rules_known_until_ms[worker] = began_ms + generations.AHEAD_MS - control_plane.SKEW_MS_MAX
            except (errors.ControlPlaneUnavailableError, errors.DataFolderError) as error:
                trouble.told(error)
            await self._clock.sleep(POLL_S)

    def rules_known_until_ms(self, worker: str) -> int:
        return self._rules_known_until_ms.get(worker, 0)

    async def start(self) -> partition.Start | None:
        return await self._clock.in_thread(self._files.start)

    async def settle_start(self, start: partition.Start) -> partition.Start:
        return await self.locked(functools.partial(self._files.settle_start, start))

    # ── the control loop ─────────────────────────────────────────────────────────────────────────────────────────

    async def partitions(self) -> dict[str, twin_partition.TwinPartition]:
        async with self._looking:
            return await self._clock.in_thread(self._look.partitions)

    async def create(self, wanted: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        return await self.locked(functools.partial(self._files.create, wanted))

    async def update_spec(
        self, shard_id: str, spec: twin_partition.Spec, resource_version: str
    ) -> twin_partition.TwinPartition:
        return await self.locked(functools.partial(self._files.update, shard_id, resource_version, spec=spec))

    async def delete(self, shard_id: str, resource_version: str) -> None:
        await self.locked(functools.partial(self._files.delete, shard_id, resource_version))

    async def heartbeats(self) -> dict[str, control_plane.Heartbeat]:
        return await self._clock.in_thread(self._files.heartbeats)

    async def forget_worker(self, name: str) -> None:
        await self._clock.in_thread(functools.partial(self._files.remove_heartbeat, name))

    async def generations(self) -> tuple[rules.RulesGeneration, ...]:
        return await self._clock.in_thread(self._files.generations)

    async def append_generation(
        self, make: control_plane.Make, oldest_arrival_ms: int
    ) -> tuple[rules.RulesGeneration, ...]:
        return await self.locked(
            functools.partial(self._files.append_generation, make, oldest_arrival_ms, self._clock.monotonic)
        )

    # ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def locked(self, work: Callable[[], Answer]) -> Answer:
        """Does the work alone. It waits for the lock here, not in a thread: the worker's threads are few, and commits need them."""
        return await self._retried(functools.partial(self._alone, work))

    def _alone(self, work: Callable[[], Answer]) -> Answer:
        with self._files.locked():
            return work()

    async def _retried(self, work: Callable[[], Answer]) -> Answer:
        deadline = self._clock.monotonic() + LOCK_S_MAX
        while True:
            try:
                return await self._clock.in_thread(work)
            except BlockingIOError as error:
                if self._clock.monotonic() > deadline:
                    raise errors.ControlPlaneUnavailableError(
                        f"{self.path}: another process has held its lock for over {LOCK_S_MAX:.0f} s; is one stopped (SIGSTOP)?"
                    ) from error
            await self._clock.sleep(LOCK_POLL_S)


class FolderOwnership:
    """ports.Ownership of one worker."""

    def __init__(self, folder: ControlFolder, worker: str) -> None:
        self._folder = folder
        self._worker = worker
        self._files = control_files.ControlFiles(folder.path)
        self._clock = folder._clock
        self._hint = asyncio.Event()
        self._trouble = _Trouble(worker, "assignments")

    @property
    def trouble(self) -> str:
        return self._trouble.words

    async def assignments(self) -> AsyncIterator[Mapping[str, twin_partition.TwinPartition]]:
        look = control_files.Look(self._files)
        told: dict[str, twin_partition.TwinPartition] | None = None
        version = b""
        anew_at = self._clock.monotonic()
        while True:
            try:
                now = await self._clock.in_thread(self._files.version)
                is_due = self._clock.monotonic() >= anew_at
                if now != version or is_due:
                    found = await self._clock.in_thread(functools.partial(look.partitions, is_due))
                    version = now
                    if is_due:
                        anew_at = self._clock.monotonic() + ANEW_EVERY_S
                    self._trouble.over()
                    if found != told:
                        told = found
                        yield dict(found)
                self._trouble.over()
            except errors.ControlPlaneUnavailableError as error:
                self._trouble.told(error)
            await self._pause()

    async def report(
        self, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
    ) -> twin_partition.Status:
        return await control_plane.report(self, shard_id, change)

    def look_again(self) -> None:
        self._hint.set()

    async def read(self, shard_id: str) -> twin_partition.TwinPartition:
        """control_plane.Statuses."""
        return await self._clock.in_thread(functools.partial(self._files.read_partition, shard_id))

    async def write_status(
        self, shard_id: str, status: twin_partition.Status, resource_version: str
    ) -> twin_partition.TwinPartition:
        """control_plane.Statuses."""
        return await self._folder.locked(
            functools.partial(self._files.update, shard_id, resource_version, status=status)
        )

    async def _pause(self) -> None:
        """POLL_S, or until a hint comes."""
        waits = [asyncio.ensure_future(self._clock.sleep(POLL_S)), asyncio.ensure_future(self._hint.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._hint.clear()


class _Trouble:
    """Says once that the folder is out of reach, and once that it is back. words: why nothing new comes, "" when all is well."""

    def __init__(self, worker: str, what: str) -> None:
        self.words = ""
        self._who = f"worker {worker}, {what}" if worker else what

    def told(self, error: errors.FleetTwinError) -> None:
        if not self.words:
            log.warning("%s: the control plane is out of reach, going on with what is known: %s", self._who, error)
        self.words = str(error)

    def over(self) -> None:
        if self.words:
            log.info("%s: the control plane is back", self._who)
        self.words = ""
