"""The two workers of `bench move`, with all that is around them: the replaying endpoint, S3, the control loop.

Workers are processes as users run them; the control loop runs in here, and S3 is moto's server in a process of its own. It measures nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from aiobotocore import session as aio_session

from fleet_cli.bench import replay
from fleet_cli.control import loop as control_loop
from fleet_model import twin_partition
from fleet_model.twin_partition import Phase
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import control_files, control_folder, fleet_file, kinesis

FIRST, SECOND = "worker-0", "worker-1"
BUCKET = "bench"
LOOK_S = 0.1
READY_S_MAX = 120.0
_FLEET = """\
apiVersion: fleettwin.io/v1alpha1
kind: DeviceFleet
metadata: {name: bench}
spec:
  replicas: 2
  aws: {region: us-east-1}
  streams:
    telemetry: {name: device-telemetry, startPosition: TrimHorizon}
    alerts: {name: device-alerts}
    commands: {name: device-commands}
  checkpoint: {bucket: %s, interval: %ds}
  rebalance: {maxConcurrentMoves: %d}
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """folder: for tapes, data and logs. moves: planned ones, at least. at_once: of those. interval_s: of checkpoints. silent_after_ms: of
    a worker, until others take over; what is measured begins only then."""

    folder: pathlib.Path
    moves: int
    at_once: int
    interval_s: int
    silent_after_ms: int = 5_000


Partitions = Mapping[str, twin_partition.TwinPartition]


class Crew:
    """The two workers, and which of them is to leave."""

    def __init__(self, options: Options, environment: Mapping[str, str]) -> None:
        self.leaving: set[str] = set()
        self.standbys = 0
        self.standbys_changed = asyncio.Event()
        self.controlling: asyncio.Task[None] | None = None
        self.children: dict[str, replay.Child] = {}
        self.control = options.folder / "control"
        self.fleet_path = options.folder / "fleet.yaml"
        self._folder = options.folder
        self._environment = environment
        self._look = control_files.Look(control_files.ControlFiles(self.control))

    def start(self, name: str) -> replay.Child:
        command = [sys.executable, "-m", "fleet_cli", "worker", "--fleet", str(self.fleet_path), "--port", "0"]
        command += ["--data", str(self._data(name)), "--control", str(self.control), "--name", name]
        self.children[name] = child = replay.Child(name, command, self._folder, None, self._environment)
        return child

    def check(self) -> None:
        """Raises what a process of it ended by."""
        for child in self.children.values():
            child.check()
        if self.controlling is not None and self.controlling.done():
            self.controlling.result()

    def kill(self, name: str) -> None:
        child = self.children.pop(name)
        child.process.kill()
        child.process.wait()
        for pipe in (child.process.stdin, child.process.stdout):
            if pipe is not None:
                pipe.close()

    def remove_disk(self, name: str) -> None:
        shutil.rmtree(self._data(name))

    def stop(self) -> None:
        for child in self.children.values():
            if child.process.poll() is None:
                child.stop()

    def want_standbys(self, count: int) -> None:
        """Of each partition."""
        self.standbys = count
        self.standbys_changed.set()

    def partitions(self) -> Partitions:
        return self._look.partitions()

    def _data(self, name: str) -> pathlib.Path:
        return self._folder / "data" / name


class Bench:
    """One run: the endpoint, S3, the workers."""

    def __init__(self, crew: Crew, endpoint: replay.Endpoint, tell: Callable[[str], None]) -> None:
        self.crew = crew
        self.endpoint = endpoint
        self.tell = tell

    async def ask(self, what: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.endpoint.ask, what)

    async def until(
        self, what: str, condition: Callable[[Partitions], bool], seconds: float = READY_S_MAX
    ) -> Partitions:
        """Looks at the control folder until it is so; the objects then. Raises BenchError."""
        self.tell(what)
        deadline = time.monotonic() + seconds
        while True:
            known = await asyncio.to_thread(self.crew.partitions)
            if condition(known):
                return known
            self.crew.check()
            self.endpoint.child.check()
            if time.monotonic() > deadline:
                told = "\n".join(f"{shard_id}: {entry.spec} {entry.status}" for shard_id, entry in known.items())
                raise replay.BenchError(f"{what}: not within {seconds:.0f} s\n{told}")
            await asyncio.sleep(LOOK_S)

    async def caught_up(self) -> None:
        """Every record that lies there is given out, but for the last poll's."""
        deadline = time.monotonic() + READY_S_MAX
        while (await self.ask("report"))["behind_ms"] > replay.CAUGHT_UP_MS:
            if time.monotonic() > deadline:
                raise replay.BenchError(f"the workers are still behind after {READY_S_MAX:.0f} s")
            await asyncio.sleep(LOOK_S)


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def running(options: Options, tell: Callable[[str], None]) -> AsyncIterator[Bench]:
    """The endpoint, S3 and the control loop; all processes end with the block."""
    tell("making the answers")
    folder = options.folder
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "bench")  # the control loop in here needs some, too
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "bench")
    async with contextlib.AsyncExitStack() as stack:
        endpoint = replay.Child(
            "endpoint", [sys.executable, "-m", "fleet_cli.bench.endpoint", str(folder / "tapes")], folder, None
        )
        stack.callback(endpoint.stop)
        store = replay.Child("store", [sys.executable, "-m", "fleet_cli.emulator"], folder, None)
        stack.callback(store.stop)
        port = await asyncio.to_thread(replay.port_of, endpoint)
        kinesis_url, store_url = (
            f"http://127.0.0.1:{found}" for found in (port, await asyncio.to_thread(replay.port_of, store))
        )
        await _make_bucket(store_url)
        environment = {"AWS_ENDPOINT_URL_KINESIS": kinesis_url, "AWS_ENDPOINT_URL_S3": store_url}
        crew = Crew(options, environment)
        crew.fleet_path.write_text(_FLEET % (BUCKET, options.interval_s, options.at_once))
        crew.controlling = asyncio.create_task(_control(crew, kinesis_url, options))
        stack.push_async_callback(_ended, crew.controlling)
        stack.callback(crew.stop)
        yield Bench(crew, replay.Endpoint(endpoint, port), tell)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def _make_bucket(store_url: str) -> None:
    plain = aio_session.get_session().create_client("s3", region_name="us-east-1", endpoint_url=store_url)
    async with plain as client:
        await client.create_bucket(Bucket=BUCKET)


async def _control(crew: Crew, kinesis_url: str, options: Options) -> None:
    """The control loop, until cancelled."""
    with clocks.RealClock() as clock:
        watched = fleet_file.FleetFile(crew.fleet_path, clock)
        fleet = await clock.in_thread(watched.load)
        plane = control_folder.ControlFolder(crew.control, clock)
        await plane.prepare()
        aws = dataclasses.replace(fleet.aws, endpoint_url=kinesis_url)
        async with kinesis.KinesisConnection.open(aws) as connection:
            stream = connection.stream(fleet.streams.telemetry.stream_name, clock)
            while True:  # another one each time that another number of standbys is wanted
                crew.standbys_changed.clear()
                fleet = dataclasses.replace(fleet, standby_replicas=crew.standbys)
                loop = control_loop.ControlLoop(
                    plane, stream, fleet, clock, crew.leaving.__contains__, options.silent_after_ms
                )
                running = asyncio.create_task(loop.run(watched.edits()))
                changed = asyncio.create_task(crew.standbys_changed.wait())
                try:
                    await asyncio.wait((running, changed), return_when=asyncio.FIRST_COMPLETED)
                    if running.done():
                        running.result()
                finally:
                    for task in (running, changed):
                        task.cancel()
                    await asyncio.wait((running, changed))


# ── what the objects say ─────────────────────────────────────────────────────────────────────────────────────────────


def _runs(entry: twin_partition.TwinPartition) -> bool:
    """Where it is to run, and not about to go elsewhere."""
    wanted, told = entry.spec, entry.status
    return (
        told.phase is Phase.RUNNING
        and (wanted.worker, wanted.epoch) == (told.worker, told.epoch)
        and not wanted.receiver
    )


def all_at(known: Partitions, worker: str) -> bool:
    """Everything runs with that worker."""
    return bool(known) and all(_runs(entry) and entry.spec.worker == worker for entry in known.values())


def spread(known: Partitions, shards: int) -> bool:
    """Everything runs, and both workers have their half, as well as it can be halved."""
    own = sum(entry.spec.worker == SECOND for entry in known.values())
    return len(known) == shards and all(map(_runs, known.values())) and own in (shards // 2, shards - shards // 2)


def is_warm(known: Partitions, shards: int, standbys: int) -> bool:
    """As spread, and each has so many warm standbys."""
    return spread(known, shards) and all(
        len(entry.spec.standby) == standbys == sum(copy.warm for copy in entry.status.standby)
        for entry in known.values()
    )
