"""Starts of several workers that fight over one partition in an object store that answers badly, and a judge of what they wrote.

Everything is drawn from a seed and runs in virtual time, so a seed replays. The judge sees each write at the moment the store carries it out,
knows nothing of how custody decides, and states the rules a second time in its own words.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random

from fleet_model import manifest
from fleet_worker import custody, errors
from fleet_worker.adapters import memory_objects
from tests.support import custodies, virtual_time

WORKERS = ("worker-0", "worker-1", "worker-2")
STARTS = 10
STEPS = 12
NO_FAULT = memory_objects.NO_FAULT


@dataclasses.dataclass(frozen=True)
class Granted:
    """What a start was told by the control plane when it claimed."""

    worker: str
    epoch: int
    takeover: int


@dataclasses.dataclass(frozen=True)
class Write:
    before: manifest.Manifest | None
    after: manifest.Manifest


class Judge:
    """log: every write that was carried out. violations: what must never be, in words."""

    def __init__(self) -> None:
        self.log: list[Write] = []
        self.violations: list[str] = []
        self.granted: dict[str, list[Granted]] = {}
        self._retired: set[str] = set()
        self._seen: set[bytes] = set()

    def on_change(self, key: str, before_data: bytes | None, after_data: bytes) -> None:
        before = None if before_data is None else manifest.parse(before_data)
        after = manifest.parse(after_data)
        self.log.append(Write(before, after))
        if after_data in self._seen:
            self.tell("the same manifest was written twice")
        self._seen.add(after_data)
        if after.nonce in self._retired:
            self.tell(f"{after.nonce} wrote after it was fenced")
        if before is not None:
            self._check_successor(before, after)
        elif after.epoch != 1:
            self.tell(f"a first manifest at epoch {after.epoch}")

    def _check_successor(self, before: manifest.Manifest, after: manifest.Manifest) -> None:
        if after.epoch < before.epoch:
            self.tell(f"the epoch fell from {before.epoch} to {after.epoch}")
        if after.nonce == before.nonce:
            number, following = _number(before), _number(after)
            if following < number:
                self.tell(f"{after.nonce} went back from checkpoint {number} to {following}")
            if following != number and _newest(before) not in after.kept and number:
                self.tell(f"checkpoint {number} is not among the kept ones")
            return
        self._retired.add(before.nonce)
        if after.checkpoint != before.checkpoint or after.final:
            self.tell(f"the claim of {after.nonce} changed more than the owner")
        is_granted = any(
            asked.worker == after.worker and asked.epoch == after.epoch and asked.takeover == after.epoch
            for asked in self.granted.get(after.nonce, ())
        )
        if not (before.final or before.worker == after.worker or is_granted):
            self.tell(f"{after.worker} took {before.worker}'s partition without a right to")

    def tell(self, words: str) -> None:
        self.violations.append(f"write {len(self.log)}: {words}")

    def claims(self, nonce: str) -> list[Write]:
        """The writes by which the nonce became the manifest's."""
        return [
            write
            for write in self.log
            if write.after.nonce == nonce and (write.before is None or write.before.nonce != nonce)
        ]

    def stood_since(self, nonce: str, index: int) -> bool:
        """Whether the nonce was the manifest's at some moment since so many writes."""
        return any(write.after.nonce == nonce for write in self.log[max(0, index - 1) :])

    def has_written_since(self, nonce: str, index: int) -> bool:
        return any(write.after.nonce == nonce for write in self.log[index:])


def _number(of: manifest.Manifest) -> int:
    return of.checkpoint.number if of.checkpoint is not None else 0


def _newest(of: manifest.Manifest) -> tuple[str, ...]:
    return tuple(part.name for part in of.checkpoint.parts) if of.checkpoint is not None else ()


@dataclasses.dataclass
class ControlPlane:
    """Who is to own the partition. It makes up its mind at random, as it would after failures of every kind."""

    draw: random.Random
    worker: str = WORKERS[0]
    epoch: int = 1
    takeover: int = 0

    def move(self) -> None:
        self.worker = self.draw.choice(WORKERS)
        self.epoch += 1
        self.takeover = self.epoch if self.draw.random() < 0.4 else self.draw.choice((0, 0, self.epoch - 1))

    def after_refusal(self, manifest_epoch: int) -> None:
        if manifest_epoch >= self.epoch:
            self.epoch, self.takeover = manifest_epoch, 0
            self.move()


class Fight:
    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.judge = Judge()
        self.world = custodies.World()
        self.world.bucket.on_change = self.judge.on_change
        self.plane = ControlPlane(self.draw)
        self.faults = True
        self.fenced_at: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.custodies: list[custody.Custody] = []
        self.counts = {"claimed": 0, "refused": 0, "fenced": 0, "unknown": 0, "confirmed": 0}

    async def run(self) -> None:
        await asyncio.gather(*(self._start() for _ in range(STARTS)))
        await asyncio.sleep(1_000.0)  # what is on its way arrives
        self.faults = False
        await self._check_end()

    def _plan(self, call: memory_objects.Call) -> memory_objects.Fault:
        chance = self.draw.random() if self.faults else 1.0
        if chance < 0.1:
            return memory_objects.Fault(lost_reply=True, delay_s=self.draw.choice((0.0, 1.0, 30.0)))
        if chance < 0.2:
            return memory_objects.Fault(late_s=self.draw.choice((0.001, 0.2, 3.0, 100.0)))
        if chance < 0.3:
            return memory_objects.Fault(failure=memory_objects.CONFLICT)
        if chance < 0.4:
            return memory_objects.Fault(failure=memory_objects.UNAVAILABLE)
        return memory_objects.Fault(delay_s=self.draw.choice((0.0, 0.0, 0.1, 5.0)) if self.faults else 0.0)

    async def _start(self) -> None:
        """A process' life: it claims, and goes on until it is fenced or dies, never knowing more than it is told."""
        await asyncio.sleep(self.draw.uniform(0.0, 200.0))
        worker = self.draw.choice(WORKERS)
        mine = self.world.custody(worker, plan=self._plan)
        self.custodies.append(mine)
        self.judge.granted[mine.nonce] = []
        for _ in range(STEPS):
            try:
                await self._step(mine, worker)
            except errors.FencedError:
                self.counts["fenced"] += 1
                self.fenced_at[mine.nonce] = len(self.judge.log)
                return
            except errors.ClaimRefusedError as error:
                self.counts["refused"] += 1
                if self.judge.claims(mine.nonce) and self.judge.log[-1].after.nonce != mine.nonce:
                    self.judge.tell(f"{mine.nonce} was told it is refused, and had been fenced")
                self.refused[mine.nonce] = len(self.judge.log)
                self.plane.after_refusal(error.manifest_epoch)
            except errors.ObjectStoreUnavailableError:
                self.counts["unknown"] += 1
            await asyncio.sleep(self.draw.choice((0.0, 0.1, 5.0, 60.0)))

    async def _step(self, mine: custody.Custody, worker: str) -> None:
        index = len(self.judge.log)
        if not mine.is_claimed:
            if self.draw.random() < 0.5:
                self.plane.move()
            # A stale order is as good as a new one to a process that was paused.
            epoch = self.plane.epoch if self.draw.random() < 0.8 else max(1, self.plane.epoch - 1)
            takeover = self.plane.takeover
            self.judge.granted[mine.nonce].append(Granted(worker, epoch, takeover))
            self.refused.pop(mine.nonce, None)
            before = await mine.claim(epoch, takeover)
            self.counts["claimed"] += 1
            if [write.before for write in self.judge.claims(mine.nonce)] != [before]:
                self.judge.tell(f"{mine.nonce} was told that it claimed over what it didn't")
            return
        match self.draw.choice(("confirm", "confirm", "confirm", "final", "verify", "resume")):
            case "verify":
                await mine.verify()
                if not self.judge.stood_since(mine.nonce, index):
                    self.judge.tell(f"{mine.nonce} was told that it stands")
            case "resume":
                await mine.resume(self.draw.choice((0, mine.epoch, mine.epoch + 1)))
            case kind if not mine.manifest.final:
                wanted = custodies.checkpoint(_number(mine.manifest) + 1, commit_number=self.draw.randrange(10**9))
                await mine.confirm(wanted, final=kind == "final")
                self.counts["confirmed"] += 1
                written = [write.after for write in self.judge.log[index:] if write.after.nonce == mine.nonce]
                if not any(each.checkpoint == wanted and each.final == (kind == "final") for each in written):
                    self.judge.tell(f"{mine.nonce} was told that checkpoint {wanted.number} is confirmed")

    async def _check_end(self) -> None:
        for nonce, index in self.fenced_at.items():
            if self.judge.has_written_since(nonce, index):
                self.judge.tell(f"{nonce} wrote after it was told that it is fenced")
        for nonce, index in self.refused.items():
            if self.judge.has_written_since(nonce, index):
                self.judge.tell(f"{nonce} was told it is refused, and claimed later")
        stands = self.world.standing() if self.judge.log else None
        sure = []
        for mine in self.custodies:
            if mine.is_claimed and not mine.is_fenced:
                try:
                    await mine.verify()
                    sure.append(mine.nonce)
                except errors.FencedError:
                    continue
        if len(sure) > 1 or (stands is not None and any(nonce != stands.nonce for nonce in sure)):
            self.judge.tell(f"{sure} all stand")
        epoch = 1 if stands is None else stands.epoch + 1
        last = self.world.custody("worker-9")
        self.judge.granted[last.nonce] = [Granted("worker-9", epoch, epoch)]
        if await last.claim(epoch, epoch) != stands:
            self.judge.tell("a takeover wasn't told what it took over")


def fight(seed: int) -> Fight:
    async def main() -> Fight:
        one = Fight(seed)
        await one.run()
        return one

    return virtual_time.run(main())
