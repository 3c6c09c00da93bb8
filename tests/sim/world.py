"""Runs a schedule: a whole fleet of production workers under the production control loop, in virtual time, over everything in memory.

    outcome = world.run(schedule.draw(17))
    assert not outcome.problems

First the schedule's events fall, then everything heals, the fleet has to come to rest, and is judged.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import random
import traceback
from collections.abc import AsyncIterator, Iterator
from unittest import mock

from fleet_cli.control import loop
from fleet_model import parse, partition, spec, twin_partition
from fleet_worker import (
    checkpointing,
    reading,
    standby,
)
from fleet_worker.adapters import kinesis, memory_kinesis, memory_store
from tests.sim import ending, events, parts, processes, rest, schedule, serving, surroundings, watch
from tests.sim.schedule import Event, Kind
from tests.support import fleets

REST_S_MAX = 900.0
"""After everything has healed, a fleet is at rest within this long, or something is stuck."""
STOP_S_MAX = 120.0
LOOK_EVERY_S = 1.0


def run(planned: schedule.Schedule) -> parts.Outcome:
    """A run that can't go on tells so among its problems."""
    with quiet(), coarse():
        try:
            return processes.run(World(planned).run())
        except Exception:  # noqa: BLE001
            return parts.Outcome([f"the run itself failed: {traceback.format_exc()}"], collections.Counter(), "")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Workers log what is done to them."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def coarse() -> Iterator[None]:
    """Idle loops look less often: it is their number that a run's time goes into. What takes hours takes a minute. And what a
    checkpoint's making costs isn't measured, or no run would be like another."""
    with (
        mock.patch.object(reading, "READ_WAIT_S", 3.0),
        mock.patch.object(standby, "LOOK_EVERY_S", 4.0),
        mock.patch.object(loop, "ROUND_S", 2.0),
        mock.patch.object(checkpointing, "COLLECT_AGE_MS", 45_000),
        mock.patch.object(checkpointing, "time", _Timed()),
    ):
        yield


class _Timed:
    """Every piece of work takes as long as any other."""

    def __init__(self) -> None:
        self._spent_s = 0.0

    def thread_time(self) -> float:
        self._spent_s += 0.02
        return self._spent_s


class World:
    """One run."""

    def __init__(self, planned: schedule.Schedule) -> None:
        self.planned = planned
        self.setting = planned.setting
        self.fleet = _fleet(planned.setting)
        self.workers: dict[int, parts.Worker] = {}
        self.wanted = self.setting.workers
        self.outcome = parts.Outcome([], collections.Counter(), "")
        self.ghosts: list[parts.Running] = []
        self._stopping: list[asyncio.Task[None]] = []
        self._troubled_at_s = 0.0
        self._troubles = 0
        self.loop_starts = 0

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> parts.Outcome:
        setting = self.setting
        self.clock = surroundings.Clock()
        self.watch = watch.Watch(self.clock.monotonic, setting.interval_s)
        self.sky = surroundings.Sky(setting.seed, setting.weather)
        self.kinesis = memory_kinesis.MemoryKinesis(
            self.clock, self.sky.kinesis, clock_offset_ms=setting.clock_offset_ms
        )
        self.kinesis.create_stream(parts.TELEMETRY, setting.shards)
        for name in (parts.ALERTS, parts.COMMANDS, parts.DEAD_LETTERS):
            self.kinesis.create_stream(name)
        self.bucket = surroundings.Bucket(self.clock, self.watch, list_lag_s=setting.list_lag_s)
        self.control = surroundings.Control(self.clock, self.sky, self.watch)
        await self.control.append_generation(lambda kept, late_ms: setting.generation, 0)
        self.loop_network = surroundings.Network()
        self.start_loop()
        for ordinal in range(setting.workers):
            self.start(ordinal)
        looking = asyncio.create_task(self._look())
        tasks = [asyncio.create_task(self._befalls(event)) for event in self.planned.events]
        await self.clock.sleep(setting.ends_s)
        await asyncio.gather(*tasks)
        await self._heal()
        if await self._rests():
            await ending.end(self)
        looking.cancel()
        self.outcome.problems = self.watch.problems + self.outcome.problems
        self.outcome.seen += self.sky.seen
        self.outcome.seen["(claims)"] = self.watch.claims
        self.outcome.seen["(claims over an owner that hadn't released)"] = self.watch.takeovers
        self.outcome.seen["(alerts by an owner that didn't know yet of its successor)"] = self.watch.fenced_publishes
        if self.outcome.judgement is not None:
            self.outcome.seen["(effects)"] = self.outcome.judgement.effects
            self.outcome.seen["(effects that came again)"] = self.outcome.judgement.repeated
        self.outcome.digest = self.watch.digest
        self.outcome.seconds = self.clock.monotonic()
        return self.outcome

    async def _look(self) -> None:
        while True:
            is_judged = bool(self.control.state()) and self._is_healed
            self.watch.look_at_ranges(self.control.state(), is_judged)
            self._scale_down()
            await self.clock.sleep(LOOK_EVERY_S)

    def problem(self, what: str) -> None:
        self.outcome.problems.append(f"at {self.clock.monotonic():.2f} s: {what}")

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def worker(self, ordinal: int) -> parts.Worker:
        return self.workers.setdefault(ordinal, parts.Worker(ordinal))

    def start(self, ordinal: int) -> None:
        worker = self.worker(ordinal)
        if worker.running is not None or worker.down or not self._is_kept(worker):
            return
        worker.starts += 1
        process = processes.Process(worker.name, worker.starts)
        running = worker.running = parts.Running(process, worker.network, asyncio.Event())
        if worker.network.control:
            self.control.cut(str(process))
        process.start(self._work(worker, running))

    async def _work(self, worker: parts.Worker, running: parts.Running) -> None:
        """A worker's whole life. Whatever ends it but its stop is a bug, and what this is for."""
        try:
            await serving.serve(self, worker, running)
        except Exception:  # noqa: BLE001
            if not running.process.is_dead:
                self.problem(f"{running.process} ended by a bug: {traceback.format_exc()}")

    def start_loop(self) -> None:
        self.loop_starts += 1
        process = processes.Process("control", self.loop_starts)
        self.loop_process = process
        api = surroundings.Kinesis(self.kinesis, process, self.loop_network, self.watch)
        connection = kinesis.KinesisConnection(api, random.Random(f"{self.setting.seed} {process}"))
        stream = connection.stream(parts.TELEMETRY, self.clock, parts.PACING)
        kept = self.control.known_generations()[-1]
        fleet = dataclasses.replace(self.fleet, rules=kept.default, profiles=kept.profiles)
        control_loop = loop.ControlLoop(self.control, stream, fleet, self.clock, self._is_leaving)

        async def main() -> None:
            try:
                await control_loop.run(_no_edits())
            except Exception:  # noqa: BLE001
                if not process.is_dead:
                    self.problem(f"the control loop ended by a bug: {traceback.format_exc()}")

        process.start(main())

    def _is_leaving(self, name: str) -> bool:
        return loop.ordinal_of(name) >= self.wanted

    def _is_kept(self, worker: parts.Worker) -> bool:
        """As handoff's workers_kept has it: wanted, or it owns something, or holds what another is to own."""
        if worker.ordinal < self.wanted:
            return True
        open_ones = [
            entry for entry in self.control.state().values() if entry.status.phase is not twin_partition.Phase.CLOSED
        ]
        return any(
            worker.name == entry.spec.worker
            or (worker.name == entry.status.worker and entry.status.phase is not twin_partition.Phase.RELEASED)
            for entry in open_ones
        )

    def _scale_down(self) -> None:
        """Workers that aren't kept stop, and are forgotten."""
        for worker in self.workers.values():
            running = worker.running
            if self._is_kept(worker):
                continue
            if running is None and not worker.down:
                self.control.forget(worker.name)
            elif running is not None and not running.stop.is_set():
                self._stopping.append(asyncio.create_task(self.stop(worker, running)))

    async def stop(self, worker: parts.Worker, running: parts.Running) -> None:
        """A clean stop; the process is killed if it takes too long, as a container's is."""
        running.stop.set()
        assert running.process.main is not None
        await asyncio.wait((running.process.main,), timeout=STOP_S_MAX)
        if worker.running is running:
            if not running.process.main.done():
                self.outcome.seen["a stop took too long"] += 1
            self.die(worker, memory_store.Survivor.COMMITTED)

    def die(self, worker: parts.Worker, leaves: memory_store.Survivor) -> None:
        running, worker.running = worker.running, None
        if running is not None:
            running.process.kill()
        worker.disk.crash(leaves)

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _befalls(self, event: Event) -> None:
        await self.clock.sleep(event.at_s)
        if event.kind is Kind.PUT:
            self.kinesis.put(parts.TELEMETRY, event.key, event.data, event.hash_key)
            return
        self.watch.note(str(event))
        if event.kind in schedule.TROUBLES:
            with self._trouble():
                happened = await events.HAPPENS[event.kind](self, event)
        else:
            happened = await events.HAPPENS[event.kind](self, event)
        if happened:
            self.outcome.seen[event.kind.value] += 1

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        self._troubles += 1
        self._troubled_at_s = self.clock.monotonic()
        yield
        self._troubles -= 1
        self._troubled_at_s = self.clock.monotonic()

    def calm_s(self) -> float:
        """Asked while a trouble happens: for how long it has been alone; 0 = it isn't."""
        return self.clock.monotonic() - self._troubled_at_s if self._troubles == 1 else 0.0

    # ── to rest, and to the end ──────────────────────────────────────────────────────────────────────────────────

    async def _heal(self) -> None:
        """Every event has ended, and mended what it broke. A disk error that hasn't struck by now would spoil the stop before the
        judgement, after which nobody starts again."""
        self.sky.is_clear = True
        for worker in self.workers.values():
            worker.disk.mend()
        for ordinal in range(schedule.WORKERS_MAX):
            self.start(ordinal)

    @property
    def _is_healed(self) -> bool:
        return self.sky.is_clear

    async def _rests(self) -> bool:
        began_s = self.clock.monotonic()
        while (why := rest.unrest(self)) and not self.outcome.problems:
            if self.clock.monotonic() - began_s > REST_S_MAX:
                self.problem(f"no rest within {REST_S_MAX:g} s: {why}\n{rest.picture(self)}")
            await self.clock.sleep(LOOK_EVERY_S)
        return not self.outcome.problems

    def shards(self) -> list[partition.Shard]:
        return [shard.listed() for shard in self.kinesis.shards(parts.TELEMETRY)]

    def open_shards(self) -> list[partition.Shard]:
        return sorted((shard for shard in self.shards() if not shard.closed), key=lambda shard: shard.hash_key_range)


async def _no_edits() -> AsyncIterator[spec.FleetSpec | parse.InvalidFleetError]:
    """The world stamps edits itself, when all can hear of them."""
    await asyncio.Event().wait()
    yield parse.InvalidFleetError(())


def _fleet(setting: schedule.Setting) -> spec.FleetSpec:
    document = fleets.smallest()
    document["spec"]["streams"]["deadLetter"] = {"name": parts.DEAD_LETTERS}
    document["spec"]["checkpoint"] = {"bucket": "fleet", "interval": f"{setting.interval_s:g}s"}
    document["spec"]["rebalance"] = {"drainTimeout": f"{setting.drain_s:g}s"}
    document["spec"]["standbyReplicas"] = setting.standby_replicas
    return parse.parse(document)
