"""The demo with workers that share the fleet: the control loop beside the view, and what the view shows of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import time
from collections.abc import AsyncIterator

import aiohttp

from fleet_cli import partitions as partitions_command
from fleet_cli import running
from fleet_cli.control import loop as control_loop
from fleet_cli.control import watching
from fleet_cli.demonstration import crew, figures, scaling
from fleet_model import spec, twin_partition
from fleet_model.twin_partition import Phase
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import control_files, control_folder, fleet_file, kinesis


class Controlled:
    """rules_error: why the last edit of the fleet file wasn't taken up; "" when it was."""

    def __init__(
        self,
        path: pathlib.Path,
        fleet_path: pathlib.Path,
        fleet: spec.FleetSpec,
        workers: crew.Crew,
        now: figures.Figures,
    ) -> None:
        self._path = path
        self._fleet_path = fleet_path
        self._fleet = fleet
        self._crew = workers
        self._now = now
        self._files = control_files.ControlFiles(path)
        self._watch = watching.Watching(self._files, lambda move: now.move(move, time.monotonic()))
        self._scale_path = path.parent / "scale.json"
        self._asked: int | None = None
        self._loop: control_loop.ControlLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def rules_error(self) -> str:
        return self._loop.rules_error if self._loop is not None else ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The control loop and the watch run inside, until `end`."""
        demo = running.Demo(os.getpid(), self._path.parent.resolve(), self._path.resolve(), self._scale_path.resolve())
        async with contextlib.AsyncExitStack() as stack:
            clock = stack.enter_context(clocks.RealClock())
            plane = control_folder.ControlFolder(self._path, clock)
            await plane.prepare()
            connection = await stack.enter_async_context(kinesis.KinesisConnection.open(self._fleet.aws))
            telemetry = self._fleet.streams.telemetry
            stream = connection.stream(telemetry.arn or telemetry.stream_name, clock)
            self._loop = control_loop.ControlLoop(plane, stream, self._fleet, clock, self._crew.is_leaving)
            watched = fleet_file.FleetFile(self._fleet_path, clock)
            await clock.in_thread(watched.load)
            stack.enter_context(running.told(demo))
            self._tasks = [
                asyncio.create_task(self._loop.run(watched.edits()), name="control loop"),
                asyncio.create_task(self._watch.run(), name="watch"),
            ]
            stack.push_async_callback(self.end)
            yield

    async def end(self) -> None:
        """Nothing is given to anybody any more. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def raise_if_failed(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def tend(self) -> None:
        """Raises FleetTwinError when workers or the control loop can't go on."""
        self.raise_if_failed()
        wanted = await asyncio.to_thread(scaling.read_wanted, self._scale_path)
        if wanted is not None and wanted != self._asked:
            self._crew.want(wanted)
        self._asked = wanted
        for name in await self._crew.tend(self._watch.partitions, self._died, self._count):
            await asyncio.to_thread(self._files.remove_heartbeat, name)

    def _died(self, name: str) -> None:
        self._watch.moves.worker_ended(name, time.monotonic())

    async def _count(self, name: str) -> None:
        """What a leaving worker has done since it was last asked."""
        addresses = {key: url for key, url in self.addresses().items() if key.startswith(f"{name}/")}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            for key, url in addresses.items():
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{url}/metrics") as answer:
                        self._now.count(key, await answer.text())

    def why_not_ready(self) -> str:
        """The same words as `scale` uses."""
        if not self._watch.partitions:
            return "there are no partitions yet"
        return scaling.why_unsettled(self._watch.partitions, self._watch.heartbeats, self._crew.wanted)

    def addresses(self) -> dict[str, str]:
        return crew.addresses(self._crew, self._watch.heartbeats)

    def show(self) -> None:
        """Takes workers and partitions into the figures."""
        entries = list(self._watch.partitions.values())
        pids, now_ms = self._crew.pids(), time.time_ns() // 1_000_000
        self._now.workers = []
        for name in sorted(self._crew.children, key=control_loop.ordinal_of):
            beat = self._watch.heartbeats.get(name)
            is_here = beat is not None and beat.pid == pids.get(name)
            state = "ready" if is_here and beat is not None and beat.ready else "starting"
            rate = sum(beat.load.values()) if is_here and beat is not None else 0.0
            owned = sum(entry.spec.worker == name for entry in entries if entry.status.phase is not Phase.CLOSED)
            state = "leaving" if self._crew.is_leaving(name) else state
            self._now.workers.append(figures.Worker(name, state, owned, rate))
        self._now.partitions = [self._seen(entry, now_ms / 1000) for entry in entries]

    def _seen(self, entry: twin_partition.TwinPartition, now_s: float) -> figures.Partition:
        """Its figures as its worker tells them just now, else as the object does."""
        status, shard_id = entry.status, entry.spec.shard_id
        saved_s = status.checkpoint.time_ms / 1000 if status.checkpoint is not None else None
        saved_s = self._now.shard_checkpoint_s.get(shard_id) or saved_s
        return figures.Partition(
            shard_id,
            partitions_command.whose(entry),
            str(status.phase),
            entry.spec.epoch,
            int(self._now.shard_twins.get(shard_id, status.twins)),
            None if saved_s is None else max(0.0, now_s - saved_s),
            status.message,
        )
