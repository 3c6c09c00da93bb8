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
import functools
import logging
import random
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import ClassVar
from unittest import mock

from fleet_cli.control import loop
from fleet_model import generations, manifest, parse, partition, rules, spec, twin_partition
from fleet_proto import fleet_pb2
from fleet_worker import (
    checkpointing,
    claimed,
    custody,
    metrics,
    orders,
    reading,
    restoring,
    standby,
    supervisor,
)
from fleet_worker import surroundings as worker_surroundings
from fleet_worker.adapters import kinesis, kinesis_source, memory_disk, memory_kinesis, memory_store
from tests.sim import judge, processes, schedule, surroundings, watch
from tests.sim.schedule import Event, Kind
from tests.support import fleets

TELEMETRY, ALERTS, COMMANDS, DEAD_LETTERS = "telemetry", "alerts", "commands", "dead-letters"
PACING = kinesis_source.Pacing(idle_s=3.0)
REST_S_MAX = 900.0
"""After everything has healed, a fleet is at rest within this long, or something is stuck."""
STOP_S_MAX = 120.0
LOOK_EVERY_S = 1.0


Happens = Callable[["World", Event], Awaitable[bool]]
"""Makes an event happen, to its end. False: it fell on nothing."""


@dataclasses.dataclass(slots=True)
class Outcome:
    """problems: in words; none is a pass. seen: how often what happened. digest: of everything that was written."""

    problems: list[str]
    seen: collections.Counter[str]
    digest: str
    judgement: judge.Judgement | None = None
    seconds: float = 0.0


@dataclasses.dataclass(slots=True)
class Running:
    """A start of a worker."""

    process: processes.Process
    network: surroundings.Network
    stop: asyncio.Event
    supervisor: supervisor.Supervisor | None = None


class Worker:
    """A name, its disk, and the process that runs under it, if one does. down: how many reasons keep it from starting."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.name = f"worker-{ordinal}"
        self.disk = memory_disk.MemoryDisk()
        self.network = surroundings.Network()
        self.running: Running | None = None
        self.down = 0
        self.starts = 0


def new_nonce(worker: str, dice: random.Random) -> str:
    """As a worker's main module draws one."""
    return f"{dice.getrandbits(64):016x}"


def run(planned: schedule.Schedule) -> Outcome:
    """A run that can't go on tells so among its problems."""
    with quiet(), coarse():
        try:
            return processes.run(World(planned).run())
        except Exception:  # noqa: BLE001
            return Outcome([f"the run itself failed: {traceback.format_exc()}"], collections.Counter(), "")


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
        self.workers: dict[int, Worker] = {}
        self.wanted = self.setting.workers
        self.outcome = Outcome([], collections.Counter(), "")
        self._ghosts: list[Running] = []
        self._stopping: list[asyncio.Task[None]] = []
        self.loop_starts = 0

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> Outcome:
        setting = self.setting
        self.clock = surroundings.Clock()
        self.watch = watch.Watch(self.clock.monotonic, setting.interval_s)
        self.sky = surroundings.Sky(setting.seed, setting.weather)
        self.kinesis = memory_kinesis.MemoryKinesis(
            self.clock, self.sky.kinesis, clock_offset_ms=setting.clock_offset_ms
        )
        self.kinesis.create_stream(TELEMETRY, setting.shards)
        for name in (ALERTS, COMMANDS, DEAD_LETTERS):
            self.kinesis.create_stream(name)
        self.bucket = surroundings.Bucket(self.clock, self.watch, list_lag_s=setting.list_lag_s)
        self.control = surroundings.Control(self.clock, self.sky, self.watch)
        await self.control.append_generation(lambda kept, late_ms: setting.generation, 0)
        self.loop_network = surroundings.Network()
        self._start_loop()
        for ordinal in range(setting.workers):
            self._start(ordinal)
        looking = asyncio.create_task(self._look())
        tasks = [asyncio.create_task(self._befalls(event)) for event in self.planned.events]
        await self.clock.sleep(setting.ends_s)
        await asyncio.gather(*tasks)
        await self._heal()
        if await self._rests():
            await self._end()
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

    def _problem(self, what: str) -> None:
        self.outcome.problems.append(f"at {self.clock.monotonic():.2f} s: {what}")

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _worker(self, ordinal: int) -> Worker:
        return self.workers.setdefault(ordinal, Worker(ordinal))

    def _start(self, ordinal: int) -> None:
        worker = self._worker(ordinal)
        if worker.running is not None or worker.down or not self._is_kept(worker):
            return
        worker.starts += 1
        process = processes.Process(worker.name, worker.starts)
        running = worker.running = Running(process, worker.network, asyncio.Event())
        if worker.network.control:
            self.control.cut(str(process))
        process.start(self._work(worker, running))

    async def _work(self, worker: Worker, running: Running) -> None:
        """A worker's whole life. Whatever ends it but its stop is a bug, and what this is for."""
        try:
            await self._serve(worker, running)
        except Exception:  # noqa: BLE001
            if not running.process.is_dead:
                self._problem(f"{running.process} ended by a bug: {traceback.format_exc()}")

    async def _serve(self, worker: Worker, running: Running) -> None:
        """As a worker's main module lays it out."""
        process = running.process
        dice = random.Random(f"{self.setting.seed} {process}")
        objects = surroundings.objects(
            self.bucket, self.clock, self.sky, running.network, f"{self.setting.seed} {process} objects"
        )
        api = surroundings.Kinesis(
            self.kinesis, process, running.network, self.watch, functools.partial(_committed, worker.disk)
        )
        connection = kinesis.KinesisConnection(api, dice)
        stream = connection.stream(TELEMETRY, self.clock, PACING)
        ordered = orders.Controlled(surroundings.Plane(self.control, process), worker.name, self.clock)
        around = worker_surroundings.Surroundings(
            clock=self.clock,
            sink=connection.sink(self.fleet.streams, self.clock),
            metrics=metrics.Metrics(),
            fleet=self.fleet,
            retention_ms=memory_kinesis.RETENTION_MS,
            rules_settled=asyncio.Event(),
            rules_known=ordered.rules_known,
        )
        around.rules_settled.set()
        known = await ordered.generations(stream, memory_kinesis.RETENTION_MS)
        checkpoints = claimed.Checkpoints(
            objects=objects,
            manifests=custody.Manifests(objects),
            interval_s=self.setting.interval_s,
            one_at_a_time=asyncio.Semaphore(1),
            new_nonce=lambda: new_nonce(worker.name, dice),
        )
        local = supervisor.Local(
            worker.name,
            worker.disk,
            ordered.ownership(stream),
            stream,
            partition.Start(TELEMETRY, None),
            checkpoints,
        )
        running.supervisor = supervisor.Supervisor(around, local, known)
        following = asyncio.create_task(ordered.follow(around, running.supervisor, f"http://{worker.name}"))
        try:
            await running.supervisor.run(running.stop)
        finally:
            following.cancel()
            await asyncio.wait((following,))
        if following.done() and not following.cancelled() and (error := following.exception()) is not None:
            raise error

    def _start_loop(self) -> None:
        self.loop_starts += 1
        process = processes.Process("control", self.loop_starts)
        self.loop_process = process
        api = surroundings.Kinesis(self.kinesis, process, self.loop_network, self.watch)
        connection = kinesis.KinesisConnection(api, random.Random(f"{self.setting.seed} {process}"))
        stream = connection.stream(TELEMETRY, self.clock, PACING)
        kept = self.control.known_generations()[-1]
        fleet = dataclasses.replace(self.fleet, rules=kept.default, profiles=kept.profiles)
        control_loop = loop.ControlLoop(self.control, stream, fleet, self.clock, self._is_leaving)

        async def main() -> None:
            try:
                await control_loop.run(_no_edits())
            except Exception:  # noqa: BLE001
                if not process.is_dead:
                    self._problem(f"the control loop ended by a bug: {traceback.format_exc()}")

        process.start(main())

    def _is_leaving(self, name: str) -> bool:
        return loop.ordinal_of(name) >= self.wanted

    def _is_kept(self, worker: Worker) -> bool:
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
                self._stopping.append(asyncio.create_task(self._stop(worker, running)))

    async def _stop(self, worker: Worker, running: Running) -> None:
        """A clean stop; the process is killed if it takes too long, as a container's is."""
        running.stop.set()
        assert running.process.main is not None
        await asyncio.wait((running.process.main,), timeout=STOP_S_MAX)
        if worker.running is running:
            if not running.process.main.done():
                self.outcome.seen["a stop took too long"] += 1
            self._die(worker, memory_store.Survivor.COMMITTED)

    def _die(self, worker: Worker, leaves: memory_store.Survivor) -> None:
        running, worker.running = worker.running, None
        if running is not None:
            running.process.kill()
        worker.disk.crash(leaves)

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _befalls(self, event: Event) -> None:
        await self.clock.sleep(event.at_s)
        if event.kind is Kind.PUT:
            self.kinesis.put(TELEMETRY, event.key, event.data, event.hash_key)
            return
        self.watch.note(str(event))
        happened = await self._HAPPENS[event.kind](self, event)
        if happened:
            self.outcome.seen[event.kind.value] += 1

    async def _acknowledge(self, event: Event) -> bool:
        alerts = [fleet_pb2.DeviceAlert.FromString(record.data) for record in self.kinesis.records_of(ALERTS)]
        known = [alert.alert_id for alert in alerts if alert.device_id == event.key]
        if not known:
            return False
        message = fleet_pb2.Telemetry(device_id=event.key)
        message.control.issued_ms = self.clock.wall_ms()
        message.control.acknowledge.alert_id = known[-1]
        self.kinesis.put(TELEMETRY, event.key, message.SerializeToString())
        return True

    async def _away(self, event: Event, leaves: memory_store.Survivor, *, lose_disk: bool = False) -> bool:
        worker = self._worker(event.who)
        if worker.running is None:
            return False
        worker.down += 1
        self._die(worker, leaves)
        if lose_disk:
            worker.disk.lose()
            worker.disk = memory_disk.MemoryDisk()
        await self.clock.sleep(event.seconds)
        worker.down -= 1
        self._start(event.who)
        return True

    async def _stop_and_start(self, event: Event) -> bool:
        worker = self._worker(event.who)
        if worker.running is None:
            return False
        worker.down += 1
        await self._stop(worker, worker.running)
        await self.clock.sleep(event.seconds)
        worker.down -= 1
        self._start(event.who)
        return True

    async def _pause(self, event: Event) -> bool:
        running = self._worker(event.who).running
        return running is not None and await self._stands_still(running.process, event.seconds)

    async def _stands_still(self, process: processes.Process, seconds: float) -> bool:
        if process.is_paused or process.is_dead:
            return False
        process.pause()
        await self.clock.sleep(seconds)
        if process.is_dead:
            return True
        self.watch.paused_for(process, seconds)
        process.go_on()
        return True

    async def _live_on(self, event: Event) -> bool:
        """The old process keeps its disk and its network, but for the control plane, which has given its name to another."""
        worker = self._worker(event.who)
        ghost = worker.running
        if ghost is None:
            return False
        await self._all_have_heard()
        if worker.running is not ghost:
            return False
        old_disk, worker.disk, worker.running = worker.disk, memory_disk.MemoryDisk(), None
        ghost.network = dataclasses.replace(worker.network)
        self.control.cut(str(ghost.process))
        self._ghosts.append(ghost)
        self._start(event.who)
        await self.clock.sleep(event.seconds)
        ghost.process.kill()
        old_disk.crash(memory_store.Survivor.NOTHING)
        return True

    async def _cut(self, event: Event, target: str) -> bool:
        return await self._cut_off([self._worker(event.who)], target, event.seconds)

    async def _cut_off(self, workers: list[Worker], target: str, seconds: float, *, loop: bool = False) -> bool:
        if target == "control":
            await self._all_have_heard()
        networks = [worker.network for worker in workers] + ([self.loop_network] if loop else [])
        for network in networks:
            setattr(network, target, getattr(network, target) + 1)
        self._apply_cuts()
        await self.clock.sleep(seconds)
        for network in networks:
            setattr(network, target, getattr(network, target) - 1)
        self._apply_cuts()
        return True

    def _apply_cuts(self) -> None:
        """The control plane knows its clients by name."""
        reached = [(str(worker.running.process), worker.network) for worker in self.workers.values() if worker.running]
        for client, network in [*reached, ("", self.loop_network)]:
            if network.control:
                self.control.cut(client)
            else:
                self.control.mend(client)

    async def _all_cut(self, event: Event, target: str) -> bool:
        return await self._cut_off(list(self.workers.values()), target, event.seconds, loop=True)

    async def _loop_paused(self, event: Event) -> bool:
        return await self._stands_still(self.loop_process, event.seconds)

    async def _loop_killed(self, event: Event) -> bool:
        if self.loop_process.is_dead:
            return False
        self.loop_process.kill()
        await self.clock.sleep(event.seconds)
        self._start_loop()
        return True

    async def _disk_full(self, event: Event) -> bool:
        disk = self._worker(event.who).disk
        if disk.is_full:
            return False
        disk.is_full = True
        await self.clock.sleep(event.seconds)
        disk.is_full = False
        return True

    async def _disk_error(self, event: Event) -> bool:
        disk = self._worker(event.who).disk
        shard_ids = disk.shards()
        return bool(shard_ids) and disk.fail_next(shard_ids[event.who % len(shard_ids)])

    async def _scale(self, event: Event) -> bool:
        if event.count == self.wanted:
            return False
        self.wanted = event.count
        for ordinal in range(self.wanted):
            self._start(ordinal)
        return True

    async def _split(self, event: Event) -> bool:
        open_ones = self._open_shards()
        if len(open_ones) >= 6:
            return False
        self.kinesis.split_shard(TELEMETRY, open_ones[event.who % len(open_ones)].shard_id)
        return True

    async def _merge(self, event: Event) -> bool:
        open_ones = self._open_shards()
        if len(open_ones) < 2:
            return False
        place = event.who % (len(open_ones) - 1)
        self.kinesis.merge_shards(TELEMETRY, open_ones[place].shard_id, open_ones[place + 1].shard_id)
        return True

    async def _edit(self, event: Event) -> bool:
        """Only at a moment in which no worker is cut off from the control plane: see docs/simulator.md."""
        assert event.rule is not None
        while not self._all_can_hear():
            await self.clock.sleep(0.5)
        rule = event.rule

        def stamped(kept: Sequence[rules.RulesGeneration], late_ms: int) -> rules.RulesGeneration:
            starts_ms = max(self.clock.wall_ms(), self.kinesis.now_ms()) + generations.AHEAD_MS + late_ms
            last = kept[-1]
            return dataclasses.replace(
                rule, generation=last.generation + 1, effective_ms=max(starts_ms, last.effective_ms + 1)
            )

        await self.control.append_generation(stamped, 0)
        return True

    def _all_can_hear(self) -> bool:
        running = [worker.running for worker in self.workers.values() if worker.running is not None]
        is_cut = bool(self.loop_network.control) or any(one.network.control for one in running)
        return not is_cut and all(ghost.process.is_dead for ghost in self._ghosts)

    async def _all_have_heard(self) -> None:
        """Of the newest rules, before anybody is cut off from the control plane: the other half of what `_edit` waits for."""
        while not all(
            self.control.has_heard(str(worker.running.process))
            for worker in self.workers.values()
            if worker.running is not None and worker.running.supervisor is not None
        ):
            await self.clock.sleep(0.5)

    async def _storm(self, event: Event) -> bool:
        self.sky.storms += 1
        await self.clock.sleep(event.seconds)
        self.sky.storms -= 1
        return True

    async def _effects_away(self, event: Event) -> bool:
        self.sky.effects_away += 1
        await self.clock.sleep(event.seconds)
        self.sky.effects_away -= 1
        return True

    _HAPPENS: ClassVar[dict[Kind, Happens]] = {
        Kind.ACKNOWLEDGE: _acknowledge,
        Kind.KILL: functools.partial(_away, leaves=memory_store.Survivor.COMMITTED),
        Kind.MACHINE: functools.partial(_away, leaves=memory_store.Survivor.NOTHING),
        Kind.DISK_LOSS: functools.partial(_away, leaves=memory_store.Survivor.NOTHING, lose_disk=True),
        Kind.STOP: _stop_and_start,
        Kind.PAUSE: _pause,
        Kind.TWIN: _live_on,
        Kind.CUT_OBJECTS: functools.partial(_cut, target="objects"),
        Kind.CUT_CONTROL: functools.partial(_cut, target="control"),
        Kind.CUT_KINESIS: functools.partial(_cut, target="kinesis"),
        Kind.OBJECTS_AWAY: functools.partial(_all_cut, target="objects"),
        Kind.KINESIS_AWAY: functools.partial(_all_cut, target="kinesis"),
        Kind.EFFECTS_AWAY: _effects_away,
        Kind.CONTROL_AWAY: functools.partial(_all_cut, target="control"),
        Kind.LOOP_PAUSE: _loop_paused,
        Kind.LOOP_KILL: _loop_killed,
        Kind.DISK_FULL: _disk_full,
        Kind.DISK_ERROR: _disk_error,
        Kind.SCALE: _scale,
        Kind.SPLIT: _split,
        Kind.MERGE: _merge,
        Kind.EDIT: _edit,
        Kind.STORM: _storm,
    }

    # ── to rest, and to the end ──────────────────────────────────────────────────────────────────────────────────

    async def _heal(self) -> None:
        """Every event has ended, and mended what it broke. A disk error that hasn't struck by now would spoil the stop before the
        judgement, after which nobody starts again."""
        self.sky.is_clear = True
        for worker in self.workers.values():
            worker.disk.mend()
        for ordinal in range(schedule.WORKERS_MAX):
            self._start(ordinal)

    @property
    def _is_healed(self) -> bool:
        return self.sky.is_clear

    async def _rests(self) -> bool:
        began_s = self.clock.monotonic()
        while (why := self._unrest()) and not self.outcome.problems:
            if self.clock.monotonic() - began_s > REST_S_MAX:
                self._problem(f"no rest within {REST_S_MAX:g} s: {why}\n{self._picture()}")
            await self.clock.sleep(LOOK_EVERY_S)
        return not self.outcome.problems

    def _unrest(self) -> str:
        """Why the fleet isn't at rest; "" when it is."""
        objects, manifests = self.control.state(), self.watch.manifests()
        by_name = {worker.name: worker for worker in self.workers.values()}
        if any(worker.running is not None and worker.ordinal >= self.wanted for worker in self.workers.values()):
            return "more workers than wanted"
        for shard in self._shards():
            shard_id, entry, stands = shard.shard_id, objects.get(shard.shard_id), manifests.get(shard.shard_id)
            if entry is None or stands is None:
                return f"{shard_id} has no object or manifest"
            if shard.closed:
                if entry.status.phase is not twin_partition.Phase.CLOSED:
                    return f"{shard_id} is {entry.status.phase.value}, though its shard ended"
                continue
            status = entry.status
            if (status.phase, status.worker, status.epoch) != (
                twin_partition.Phase.RUNNING,
                entry.spec.worker,
                entry.spec.epoch,
            ):
                return f"{shard_id}: {entry.spec.worker} should run it at epoch {entry.spec.epoch}, {status}"
            worker = by_name.get(entry.spec.worker)
            if worker is None or worker.running is None or worker.running.supervisor is None:
                return f"{shard_id}: {entry.spec.worker} isn't running"
            why = self._partition_unrest(shard_id, worker.running.supervisor, stands)
            if why:
                return f"{shard_id}: {why}"
        return ""

    def _partition_unrest(self, shard_id: str, view: supervisor.Supervisor, stands: manifest.Manifest) -> str:
        piped = [entry for entry in view.partitions() if entry.identity.shard_id == shard_id]
        if not piped:
            return "has no pipeline"
        last = self._last_record(shard_id)
        if last and piped[0].state.position.sequence_number != last:
            return f"stands at {piped[0].state.position}, its last record is {last}"
        if piped[0].outbox.effects:
            return f"{piped[0].outbox.effects} effects wait"
        if stands.checkpoint is None or (last and stands.checkpoint.position.sequence_number != last):
            return "its checkpoint isn't of now"
        if piped[0].state.clock_ms < (alert_ms := self._last_alert_ms(shard_id)):
            return f"its clock stands at {piped[0].state.clock_ms}, a former owner's was at {alert_ms}"
        return ""

    def _last_alert_ms(self, shard_id: str) -> int:
        """The time of the newest alert of a shard and its ancestors. A former owner that didn't know yet of its successor may have been
        ahead of it: what it said is judged when the successor has come that far."""
        parents = {shard.shard_id: shard.parents for shard in self._shards()}
        line = {shard_id}
        for child in reversed(parents):  # they are listed parents first
            line.update(parents[child] if child in line else ())
        alerts = (fleet_pb2.DeviceAlert.FromString(record.data) for record in self.kinesis.records_of(ALERTS))
        return max((alert.timestamp for alert in alerts if alert.shard_id in line), default=0)

    def _last_record(self, shard_id: str) -> str:
        records = self.kinesis.shard(TELEMETRY, shard_id).records
        return str(records[-1].sequence_number) if records else ""

    def _shards(self) -> list[partition.Shard]:
        return [shard.listed() for shard in self.kinesis.shards(TELEMETRY)]

    def _open_shards(self) -> list[partition.Shard]:
        return sorted((shard for shard in self._shards() if not shard.closed), key=lambda shard: shard.hash_key_range)

    def _picture(self) -> str:
        lines = [f"  {shard_id}: {entry.spec}\n    {entry.status}" for shard_id, entry in self.control.state().items()]
        for worker in self.workers.values():
            view = worker.running.supervisor if worker.running is not None else None
            told = [f"{view.name}: {view.elsewhere()} {view.not_ready_because()}"] if view is not None else []
            lines += [f"  {worker.name}: {worker.running and worker.running.process}, down {worker.down}", *told]
        return "\n".join(lines)

    async def _end(self) -> None:
        """A clean stop of everything, then the judgement."""
        self.loop_process.kill()
        owners = {
            shard_id: entry.spec.worker
            for shard_id, entry in self.control.state().items()
            if entry.status.phase is not twin_partition.Phase.CLOSED
        }
        running = [worker for worker in self.workers.values() if worker.running is not None]
        await asyncio.gather(*(self._stop(worker, worker.running) for worker in running if worker.running is not None))
        if self.outcome.problems:
            return
        by_name = {worker.name: worker for worker in self.workers.values()}
        lefts: dict[str, list[judge.Left]] = {}
        for shard in self._shards():
            shard_id = shard.shard_id
            lefts[shard_id] = [await self._restored(shard_id)]
            if shard_id in owners:
                disk = by_name[owners[shard_id]].disk
                lefts[shard_id].append(judge.left(f"{shard_id} on disk", disk.contents(shard_id)))
        streams = judge.Streams(
            shards=self.kinesis.shards(TELEMETRY),
            alerts=[record.data for record in self.kinesis.records_of(ALERTS)],
            commands=[record.data for record in self.kinesis.records_of(COMMANDS)],
            dead_letters=[record.data for record in self.kinesis.records_of(DEAD_LETTERS)],
        )
        found = judge.judged(
            (self.fleet.namespace, self.fleet.name, TELEMETRY),
            streams,
            self.control.known_generations(),
            lefts,
            memory_kinesis.RETENTION_MS,
        )
        self.outcome.judgement = found
        self.outcome.problems += found.problems

    async def _restored(self, shard_id: str) -> judge.Left:
        """What somebody would get who had nothing but the bucket. What is in its outbox was published since, or is its children's."""
        stands = self.watch.manifests()[shard_id]
        store = memory_store.MemoryTwinStore(stands.identity)
        network = surroundings.Network()
        objects = surroundings.objects(self.bucket, self.clock, self.sky, network, "judge")
        assert stands.checkpoint is not None
        await restoring.restore(objects, stands, store, self.clock)
        left = judge.left(f"{shard_id} in S3", store.contents)
        return dataclasses.replace(left, outbox=0, is_final=stands.final)


async def _no_edits() -> AsyncIterator[spec.FleetSpec | parse.InvalidFleetError]:
    """The world stamps edits itself, when all can hear of them."""
    await asyncio.Event().wait()
    yield parse.InvalidFleetError(())


def _committed(disk: memory_disk.MemoryDisk) -> set[bytes]:
    """What the outboxes on a disk hold."""
    return {effect.data for shard_id in disk.shards() for effect in disk.contents(shard_id).entries.values()}


def _fleet(setting: schedule.Setting) -> spec.FleetSpec:
    document = fleets.smallest()
    document["spec"]["streams"]["deadLetter"] = {"name": DEAD_LETTERS}
    document["spec"]["checkpoint"] = {"bucket": "fleet", "interval": f"{setting.interval_s:g}s"}
    document["spec"]["rebalance"] = {"drainTimeout": f"{setting.drain_s:g}s"}
    document["spec"]["standbyReplicas"] = setting.standby_replicas
    return parse.parse(document)
