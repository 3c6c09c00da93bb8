"""A small world to try the hand-off in: workers that keep to the protocol of partitions, at their own pace and with bad luck.

Nothing of the real worker is in it, only what it promises: how a manifest may be claimed, when a partition drains, who writes
which status. One call of `tick` is a second. Everything random comes from the seed.
"""

from __future__ import annotations

import dataclasses
import random

from fleet_model import control, handoff, hashing, partition, twin_partition
from fleet_model.twin_partition import Phase, Status, TwinPartition

TICK_MS = 1_000
NEVER = 10**15


@dataclasses.dataclass
class Manifest:
    epoch: int
    nonce: int
    worker: str
    final: bool = False
    ended: bool = False
    has_checkpoint: bool = False


@dataclasses.dataclass
class Holding:
    """A partition in a worker's hands. then_ms: when the next thing happens to it."""

    phase: Phase = Phase.PENDING
    epoch: int = 0
    nonce: int = 0
    then_ms: int = 0
    refused: int = 0
    fenced_epoch: int = -1
    is_stale: bool = False


@dataclasses.dataclass
class Process:
    """A worker. cut_until_ms: from the control plane. cold_until_ms: its copies don't become warm before."""

    name: str
    ordinal: int
    ready_ms: int
    is_alive: bool = True
    heard_ms: int = 0
    cut_until_ms: int = 0
    cold_until_ms: int = 0
    restarting_until_ms: int = 0
    start_again_ms: int = NEVER
    view: dict[str, TwinPartition] = dataclasses.field(default_factory=dict)
    held: dict[str, Holding] = dataclasses.field(default_factory=dict)
    copies: dict[str, int] = dataclasses.field(default_factory=dict)


class World:
    def __init__(self, seed: int, shards: int, settings: control.Settings) -> None:
        self.random = random.Random(seed)
        self.now_ms = 1_000_000_000
        self.settings = settings
        self.shards: dict[str, partition.Shard] = {}
        self.closed_ms: dict[str, int] = {}
        self.objects: dict[str, TwinPartition] = {}
        self.manifests: dict[str, Manifest] = {}
        self.processes: dict[str, Process] = {}
        self.loads: dict[str, float] = {}
        self.store_away_until_ms = 0
        self.loop_away_until_ms = 0
        self.watching_since_ms = self.now_ms
        self.dead = ""
        self.writes = 0
        self.in_flight: dict[str, tuple[int, int]] = {}
        self.last = control.Wanted()
        self._numbers = iter(range(1, NEVER))
        borders = [2**128 * number // shards for number in range(shards + 1)]
        for number in range(shards):
            self._add_shard(hashing.HashKeyRange(borders[number], borders[number + 1] - 1), ())
        for ordinal in range(settings.replicas):
            self._start(ordinal)

    # ── what happens to it ───────────────────────────────────────────────────────────────────────────────────────

    def _add_shard(self, key_range: hashing.HashKeyRange, parents: tuple[str, ...]) -> None:
        shard_id = f"shardId-{next(self._numbers):012d}"
        self.shards[shard_id] = partition.Shard(shard_id, key_range, parents)
        self.loads[shard_id] = self.random.choice([100.0, 100.0, 120.0, 300.0])

    def _close(self, shard_id: str) -> None:
        self.shards[shard_id] = dataclasses.replace(self.shards[shard_id], closed=True)
        self.closed_ms[shard_id] = self.now_ms

    def _open_shards(self) -> list[partition.Shard]:
        open_ones = [shard for shard in self.shards.values() if not shard.closed]
        return sorted(open_ones, key=lambda shard: shard.hash_key_range)

    def split(self) -> None:
        shard = self.random.choice(self._open_shards())
        middle = (shard.hash_key_range.start + shard.hash_key_range.end) // 2
        self._close(shard.shard_id)
        self._add_shard(hashing.HashKeyRange(shard.hash_key_range.start, middle), (shard.shard_id,))
        self._add_shard(hashing.HashKeyRange(middle + 1, shard.hash_key_range.end), (shard.shard_id,))

    def merge(self) -> None:
        ordered = self._open_shards()
        if len(ordered) > 1:
            place = self.random.randrange(len(ordered) - 1)
            left, right = ordered[place : place + 2]
            self._close(left.shard_id)
            self._close(right.shard_id)
            both = hashing.HashKeyRange(left.hash_key_range.start, right.hash_key_range.end)
            self._add_shard(both, (left.shard_id, right.shard_id))

    def kill(self, name: str, away_ms: int) -> None:
        process = self.processes[name]
        process.is_alive = False
        process.held.clear()
        process.copies.clear()
        process.view.clear()
        process.start_again_ms = self.now_ms + away_ms

    def restart_in_place(self, name: str) -> None:
        self.kill(name, self.random.randint(1, 40) * 1_000)
        self.processes[name].restarting_until_ms = self.now_ms + 60_000

    def _start(self, ordinal: int) -> None:
        name = f"worker-{ordinal}"
        self.processes[name] = Process(name, ordinal, self.now_ms + self.random.randint(0, 15) * 1_000)

    def disturb(self) -> None:
        """One piece of bad luck, or of work for the control plane."""
        draw, soon_ms = self.random, self.random.randint(1, 90) * 1_000
        somebody = self.processes[draw.choice(sorted(self.processes))]
        what = draw.choice(
            [
                "kill",
                "kill",
                "cut",
                "cut",
                "store",
                "scale",
                "scale",
                "split",
                "split",
                "merge",
                "loop",
                "roll",
                "cold",
                "fail",
            ]
        )
        if what == "kill" and somebody.is_alive:
            self.kill(somebody.name, soon_ms)
        elif what == "cut":
            somebody.cut_until_ms = self.now_ms + soon_ms
        elif what == "store":
            self.store_away_until_ms = self.now_ms + soon_ms
        elif what == "scale":
            self.settings = dataclasses.replace(self.settings, replicas=draw.randint(1, 5))
        elif what == "split" and len(self._open_shards()) < 12:
            self.split()
        elif what == "merge":
            self.merge()
        elif what == "loop":
            self.loop_away_until_ms = self.now_ms + soon_ms
        elif what == "roll" and somebody.is_alive:
            self.restart_in_place(somebody.name)
        elif what == "cold":
            somebody.cold_until_ms = self.now_ms + soon_ms
        elif what == "fail":
            for holding in somebody.held.values():
                if holding.phase is Phase.RUNNING:
                    holding.phase, holding.then_ms = Phase.FAILED, self.now_ms + soon_ms

    def calm(self) -> None:
        """From now on nothing bad happens any more, but that one worker may be gone for good: its disk, its node, its name."""
        workers = sorted(name for name, each in self.processes.items() if each.ordinal < self.settings.replicas)
        if len(workers) > 1 and self.random.random() < 0.4:
            self.dead = self.random.choice(workers)
            self.kill(self.dead, NEVER)
        self.store_away_until_ms = self.loop_away_until_ms = self.now_ms
        for process in self.processes.values():
            process.cut_until_ms = process.cold_until_ms = self.now_ms
            process.start_again_ms = min(process.start_again_ms, self.now_ms + 5_000)

    # ── a second of it ───────────────────────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        self.now_ms += TICK_MS
        for process in list(self.processes.values()):
            if not process.is_alive and self.now_ms >= process.start_again_ms and process.name != self.dead:
                process.is_alive, process.start_again_ms = True, NEVER
                process.ready_ms = self.now_ms + self.random.randint(0, 10) * 1_000
            if process.is_alive:
                self._act(process)
        for shard_id, closed_ms in list(self.closed_ms.items()):
            manifest = self.manifests.get(shard_id)
            if self.now_ms - closed_ms > 200_000 and manifest is not None and manifest.ended:
                del self.shards[shard_id], self.closed_ms[shard_id]
        if self.now_ms < self.loop_away_until_ms:
            self.watching_since_ms = self.now_ms
        elif self.random.random() < 0.7:
            self.step()

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _is_store_away(self) -> bool:
        return self.now_ms < self.store_away_until_ms

    def _act(self, process: Process) -> None:
        is_cut = self.now_ms < process.cut_until_ms
        if not is_cut and self.random.random() < 0.8:
            process.view = dict(self.objects)
        if not is_cut and self.now_ms % 2_000 == 0:
            process.heard_ms = self.now_ms
            if self.now_ms >= process.ready_ms:
                process.restarting_until_ms = 0
        for shard_id, entry in process.view.items():
            holding = process.held.get(shard_id)
            is_owner = entry.spec.worker == process.name
            if is_owner and holding is None and entry.status.phase is not Phase.CLOSED:
                holding = process.held[shard_id] = Holding()
            if holding is not None:
                if is_owner and entry.spec.epoch > holding.fenced_epoch:
                    self._own(process, entry, holding)
                else:
                    self._let_go(process, entry, holding)
            self._copy(process, entry, holding)
            if not is_cut and self.random.random() < 0.8:
                self._report(process, shard_id)

    def _own(self, process: Process, entry: TwinPartition, holding: Holding) -> None:
        shard_id, spec = entry.spec.shard_id, entry.spec
        if holding.epoch == 0:
            if self._parents_are_closed(process, entry) and not self._is_store_away and self.random.random() < 0.5:
                self._claim(process, spec, holding)
        elif self._is_fenced(shard_id, holding):
            self._fence(holding)
        elif holding.epoch < spec.epoch:
            if not self._is_store_away:
                self.manifests[shard_id].epoch = holding.epoch = spec.epoch
                self.manifests[shard_id].final = False
                holding.phase = Phase.RESTORING if holding.phase is Phase.RELEASED else Phase.RUNNING
        elif self.now_ms >= holding.then_ms:
            self._go_on(shard_id, holding)

    def _go_on(self, shard_id: str, holding: Holding) -> None:
        if holding.phase in (Phase.RESTORING, Phase.FAILED):
            holding.phase = Phase.RESTORING if holding.phase is Phase.FAILED else Phase.RUNNING
            holding.then_ms = self.now_ms + self.random.randint(1, 12) * 1_000
        elif holding.phase is Phase.DRAINING:
            holding.phase = Phase.RUNNING
        elif holding.phase is Phase.RUNNING:
            holding.is_stale = self._is_store_away
            if self._is_store_away:
                return
            manifest = self.manifests[shard_id]
            manifest.has_checkpoint = True
            shard = self.shards.get(shard_id)
            if shard is not None and shard.closed and self.random.random() < 0.5:
                manifest.final = manifest.ended = True
                holding.phase = Phase.CLOSED
            holding.then_ms = self.now_ms + self.random.randint(2, 8) * 1_000

    def _parents_are_closed(self, process: Process, entry: TwinPartition) -> bool:
        own = self.manifests.get(entry.spec.shard_id)
        if own is not None and own.has_checkpoint:
            return True
        for parent in entry.spec.parents:
            known, manifest = process.view.get(parent), self.manifests.get(parent)
            if known is not None and known.status.phase is not Phase.CLOSED:
                return False
            if manifest is not None and not manifest.ended:
                return False
            if manifest is None and known is not None:
                return False
        return True

    def _claim(self, process: Process, spec: twin_partition.Spec, holding: Holding) -> None:
        found = self.manifests.get(spec.shard_id)
        if found is None:
            assert spec.epoch == spec.first_epoch, f"{spec.shard_id} was never claimed, and can't be any more"
        else:
            may = found.final or found.worker == process.name or spec.takeover == spec.epoch
            holding.refused = 0 if may and spec.epoch >= found.epoch else found.epoch
            if holding.refused:
                return
        holding.epoch, holding.nonce, holding.phase = spec.epoch, next(self._numbers), Phase.RESTORING
        holding.then_ms = self.now_ms + self.random.randint(0, 12) * 1_000
        before = found or Manifest(0, 0, "")
        self.manifests[spec.shard_id] = dataclasses.replace(
            before, epoch=spec.epoch, nonce=holding.nonce, worker=process.name, final=False
        )
        if before.ended:
            self.manifests[spec.shard_id].final = True
            holding.phase = Phase.CLOSED

    def _is_fenced(self, shard_id: str, holding: Holding) -> bool:
        return not self._is_store_away and self.manifests[shard_id].nonce != holding.nonce

    def _fence(self, holding: Holding) -> None:
        if holding.phase is Phase.CLOSED:
            return
        holding.phase, holding.fenced_epoch = Phase.FAILED, holding.epoch
        holding.epoch = 0

    def _let_go(self, process: Process, entry: TwinPartition, holding: Holding) -> None:
        shard_id = entry.spec.shard_id
        is_succeeded = entry.status.worker == entry.spec.worker and entry.status.epoch == entry.spec.epoch
        if holding.epoch == 0:
            if holding.fenced_epoch < 0 or is_succeeded:
                del process.held[shard_id]
        elif self._is_fenced(shard_id, holding):
            self._fence(holding)
        elif holding.phase in (Phase.RUNNING, Phase.RESTORING):
            holding.phase, holding.then_ms = Phase.DRAINING, self.now_ms + self.random.randint(1, 10) * 1_000
        elif holding.phase is Phase.DRAINING and self.now_ms >= holding.then_ms and not self._is_store_away:
            self.manifests[shard_id].final = self.manifests[shard_id].has_checkpoint = True
            holding.phase = Phase.RELEASED
        elif holding.phase is Phase.RELEASED and is_succeeded:
            del process.held[shard_id]

    def _copy(self, process: Process, entry: TwinPartition, holding: Holding | None) -> None:
        """A standby's warm copy. copies: from when on it is warm."""
        shard_id, manifest = entry.spec.shard_id, self.manifests.get(entry.spec.shard_id)
        if process.name not in entry.spec.standby or holding is not None:
            process.copies.pop(shard_id, None)
        elif manifest is not None and manifest.has_checkpoint and not self._is_store_away:
            late_ms = max(self.now_ms + self.random.randint(1, 15) * 1_000, process.cold_until_ms)
            process.copies.setdefault(shard_id, late_ms)
            if self.random.random() < 0.05:
                process.copies[shard_id] = late_ms

    def _report(self, process: Process, shard_id: str) -> None:
        """Level-based: what is lost now is told at the next tick."""
        entry = self.objects.get(shard_id)
        if entry is None:
            return
        status, holding = entry.status, process.held.get(shard_id)
        others = tuple(other for other in status.standby if other.worker != process.name)
        told = dataclasses.replace(status, standby=others)
        if holding is None:
            if process.name in entry.spec.standby:
                is_warm = self.now_ms >= process.copies.get(shard_id, NEVER)
                ours = twin_partition.StandbyStatus(process.name, 1, is_warm)
                told = dataclasses.replace(told, standby=(*others, ours))
        else:
            told = self._told(process, shard_id, holding, told)
        if told != status:
            self.objects[shard_id] = dataclasses.replace(entry, status=told, resource_version=str(next(self._numbers)))

    def _told(self, process: Process, shard_id: str, holding: Holding, stored: Status) -> Status:
        is_ours = stored.worker in ("", process.name)
        if holding.epoch == 0:
            if holding.fenced_epoch >= 0 and is_ours and stored.nonce == str(holding.nonce):
                return dataclasses.replace(stored, phase=Phase.FAILED)
            if process.view[shard_id].spec.worker != process.name:
                return stored
            stored = dataclasses.replace(stored, manifest_epoch=holding.refused)
            return dataclasses.replace(stored, phase=holding.phase) if is_ours else stored
        if not is_ours and process.view[shard_id].spec.worker != process.name:
            return stored
        checkpoint = stored.checkpoint
        if self.manifests[shard_id].has_checkpoint:
            checkpoint = twin_partition.CheckpointStatus("key", holding.epoch, 1, "1")
        return dataclasses.replace(
            stored,
            phase=holding.phase,
            worker=process.name,
            epoch=holding.epoch,
            nonce=str(holding.nonce),
            checkpoint=checkpoint,
            checkpoint_stale=holding.is_stale,
            manifest_epoch=0,
        )

    # ── the control loop ─────────────────────────────────────────────────────────────────────────────────────────

    def observe(self) -> control.Observed:
        workers = [
            control.Worker(
                process.name,
                process.ordinal,
                ready=process.heard_ms >= process.ready_ms,
                heard_ms=process.heard_ms,
                restarting_until_ms=process.restarting_until_ms,
                load={shard_id: self.loads[shard_id] for shard_id in process.held},
            )
            for process in self.processes.values()
        ]
        return control.Observed(
            now_ms=self.now_ms,
            namespace="default",
            fleet="fleet",
            stream="telemetry",
            settings=self.settings,
            partitions=list(self.objects.values()),
            workers=workers,
            shards=list(self.shards.values()),
            watching_since_ms=self.watching_since_ms,
        )

    def step(self) -> None:
        """One step of the control plane, written at once, but for what is lost on its way."""
        observed = self.observe()
        wanted = self.last = handoff.step(observed)
        self.check(observed, wanted)
        for entry in wanted.create + wanted.change:
            if self.random.random() < 0.9:
                self._write(entry)
        for entry in wanted.delete:
            self.writes += 1
            del self.objects[entry.spec.shard_id]
        for ordinal in range(wanted.workers_kept):
            if f"worker-{ordinal}" not in self.processes:
                self._start(ordinal)
        for name, process in list(self.processes.items()):
            if process.ordinal >= wanted.workers_kept:
                self.remove(name)

    def _write(self, entry: TwinPartition) -> None:
        self.writes += 1
        shard_id, spec = entry.spec.shard_id, entry.spec
        before = self.objects.get(shard_id)
        if before is not None:
            assert entry.resource_version == before.resource_version
            if spec.worker != before.spec.worker and before.status.epoch and not spec.takeover:
                self.in_flight[shard_id] = (spec.epoch, self.now_ms)
        self.objects[shard_id] = dataclasses.replace(entry, resource_version=str(next(self._numbers)))

    def remove(self, name: str) -> None:
        """The StatefulSet shrank: the pod goes."""
        for shard_id, entry in self.objects.items():
            assert entry.spec.worker != name or entry.status.phase is Phase.CLOSED, f"{shard_id} is left on {name}"
        if self.now_ms >= self.processes[name].cut_until_ms:  # else it can't know yet, and is fenced
            for shard_id, holding in self.processes[name].held.items():
                if holding.epoch and holding.phase in (Phase.RUNNING, Phase.DRAINING):
                    is_succeeded = self.manifests[shard_id].nonce != holding.nonce
                    assert is_succeeded, f"{shard_id} was still {holding.phase} at {name}"
        del self.processes[name]

    # ── what must hold at each step ──────────────────────────────────────────────────────────────────────────────

    def check(self, observed: control.Observed, wanted: control.Wanted) -> None:
        workers = {worker.name: worker for worker in observed.workers}
        for entry in wanted.change:
            before = self.objects[entry.spec.shard_id]
            self._check_change(before, entry.spec, workers)
        self._check_moves(wanted)
        self._check_idempotence(observed, wanted)

    def _check_change(
        self, entry: TwinPartition, spec: twin_partition.Spec, workers: dict[str, control.Worker]
    ) -> None:
        before, status = entry.spec, entry.status
        assert spec.epoch >= before.epoch, "an epoch fell"
        assert spec.worker == before.worker or spec.epoch > before.epoch, "an owner changed without its epoch"
        assert spec.worker not in spec.standby
        assert not spec.receiver or spec.receiver in spec.standby
        assert spec.hash_key_range == before.hash_key_range
        assert status.phase is not Phase.CLOSED, "a closed partition is nobody's business"
        if spec.epoch == before.epoch:
            return
        worker = workers[spec.worker]
        assert self.now_ms - worker.heard_ms < self.settings.silent_after_ms, "given to a silent worker"
        if spec.worker == before.worker:
            return
        is_taken_back = spec.worker == status.worker
        assert is_taken_back or worker.ready, "given to a worker that isn't ready"
        assert is_taken_back or worker.ordinal < self.settings.replicas, "given to a worker that leaves"
        if not spec.takeover and status.epoch:
            is_warm = any(each.worker == spec.worker and each.warm for each in status.standby)
            assert is_warm, "moved to a cold worker"
            assert status.checkpoint is not None, "moved without a checkpoint"
            assert not status.checkpoint_stale, "moved without a fresh checkpoint"
            assert status.phase is Phase.RUNNING, "moved though it didn't run"

    def _check_moves(self, wanted: control.Wanted) -> None:
        """Planned moves under way by our own count, those just begun included."""
        for shard_id, (epoch, since_ms) in list(self.in_flight.items()):
            entry = self.objects.get(shard_id)
            is_over = (
                entry is None
                or entry.spec.epoch > epoch
                or entry.status.phase is Phase.CLOSED
                or (entry.status.epoch == epoch and entry.status.phase is Phase.RUNNING)
                or self.now_ms - since_ms >= self.settings.drain_timeout_ms + 30_000
            )
            if is_over:
                del self.in_flight[shard_id]
        begun = [
            entry
            for entry in wanted.change
            if (before := self.objects[entry.spec.shard_id]).status.epoch
            and entry.spec.worker != before.spec.worker
            and not entry.spec.takeover
        ]
        assert len(self.in_flight) + len(begun) <= self.settings.max_concurrent_moves, "too many moves at once"

    def _check_idempotence(self, observed: control.Observed, wanted: control.Wanted) -> None:
        after = dict(self.objects)
        after |= {entry.spec.shard_id: entry for entry in wanted.create + wanted.change}
        for entry in wanted.delete:
            del after[entry.spec.shard_id]
        again = handoff.step(dataclasses.replace(observed, partitions=list(after.values())))
        specs = {entry.spec.shard_id: entry.spec for entry in after.values()}
        changes = [(entry.spec, specs.get(entry.spec.shard_id)) for entry in again.create + again.change]
        assert not changes, f"a second step wants more: {changes}"
        assert not again.delete
        assert again.conditions == wanted.conditions
        assert again.workers_kept <= wanted.workers_kept
