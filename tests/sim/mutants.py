"""Bugs planted on purpose, each in one production function: the fleet simulator has to find every one of them.

    python -m tests.sim.mutants                 all of them (make sim-mutants): which seed caught which, and by what
    python -m tests.sim.mutants "no hold"       those whose names hold the words

A bug is looked for in runs whose troubles are of the kinds that can bring it about at all (`kinds`); which they are, when and how
they meet is the seed's. Without the bug the same seeds find nothing: that is what the other runs are for.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from fleet_cli import parent_death
from fleet_model import control, handoff, hashing, manifest, partition, twin_partition
from fleet_worker import (
    checkpoint_reading,
    checkpointing,
    claimed,
    custody,
    orders,
    pipeline,
    publisher,
    restoring,
)
from fleet_worker.adapters import memory_store
from fleet_worker.core import claims, clock, commits, effects, watch
from tests.sim import schedule, serving, world
from tests.sim.schedule import Kind

SEEDS_MAX = 150
"""A bug that so many runs don't find is one that the simulator doesn't find."""
TOLD_CHARACTERS_MAX = 160

DEATHS = (Kind.KILL, Kind.MACHINE, Kind.DISK_LOSS, Kind.TWIN)
MOVES = (Kind.SCALE, Kind.SCALE, Kind.STOP)
RESHARDING = (Kind.SPLIT, Kind.MERGE)


@dataclasses.dataclass(frozen=True, slots=True)
class Bug:
    """plant: makes the changes, undone when its context ends."""

    plant: Callable[[], contextlib.AbstractContextManager[Any]]
    kinds: Sequence[Kind] = schedule.TROUBLES


def instead(owner: Any, name: str, wrong: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Fails at once, for every bug, when what it replaces has moved elsewhere."""
    getattr(owner, name)
    return lambda: mock.patch.object(owner, name, wrong)


def around(owner: Any, name: str, wrong: Callable[..., Any]) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """wrong: called with the right function and its arguments."""
    right = getattr(owner, name)
    return lambda: mock.patch.object(owner, name, lambda *arguments, **named: wrong(right, *arguments, **named))


# ── custody ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def overwrites_whoever_stands_there(
    self: custody.Custody, changing: Callable[[manifest.Manifest], manifest.Manifest]
) -> None:
    """As Custody._change, without a look at the nonce that it finds."""
    for _ in range(custody.SETTLE_TRIES_MAX):
        found, etag = await self._read()
        revision = (found.revision if found is not None else 0) + 1
        wanted = dataclasses.replace(changing(self.manifest), revision=revision)
        new_etag = await self._try(wanted, etag)
        if new_etag is not None:
            self._keep(wanted, new_etag, self._clock.monotonic())
            return
    raise self._unsettled()


async def writes_without_condition(
    right: Any, self: custody.Manifests, wanted: manifest.Manifest, etag: str | None
) -> str:
    found = await self._objects.get(claims.manifest_key(wanted.identity.shard_id))
    etag_now: str = await right(self, wanted, None if found is None else found.etag)
    return etag_now


def same_nonce_again(worker: str, dice: Any) -> str:
    return f"{sum(worker.encode()):016x}"


# ── commits and effects ──────────────────────────────────────────────────────────────────────────────────────────────


async def published_before_commit(right: Any, self: pipeline.PartitionPipeline) -> None:
    """What is about to be committed goes to the publisher first, which gets a turn."""
    add = self._publisher.add
    add(list(self._pending.effects))
    with mock.patch.object(self._publisher, "add"):
        await self._around.clock.sleep(0.05)
        await right(self)


def acknowledged_unseen(
    right: Any, self: publisher.Publisher, lane: Any, entries: Any, acknowledged: set[int], refused: Any
) -> None:
    """What wasn't acknowledged in time passes for acknowledged."""
    right(self, lane, entries, {entry.number for entry in entries}, refused)


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def without_outbox(right: Any, *arguments: Any, **named: Any) -> list[effects.OutboxEntry]:
    await right(*arguments, **named)
    return []


def delta_edge_too_high(right: Any, self: Any, *arguments: Any, **named: Any) -> Any:
    if named.get("changed_after") is not None:
        named["changed_after"] += 1
    return right(self, *arguments, **named)


async def without_position(right: Any, self: Any, checkpoint: manifest.Checkpoint, **named: Any) -> None:
    await right(self, dataclasses.replace(checkpoint, position=partition.Position()), **named)


async def old_position(right: Any, self: Any, checkpoint: manifest.Checkpoint, **named: Any) -> None:
    """The position of the one before: its records are applied twice."""
    before = self.manifest.checkpoint
    if before is not None:
        checkpoint = dataclasses.replace(checkpoint, position=before.position)
    await right(self, checkpoint, **named)


async def released_with_the_last_one(right: Any, self: claimed.ClaimedTenure, *, ended: bool) -> None:
    """Without a final checkpoint, where there is an older one."""
    assert self._custody is not None
    standing = self._custody.manifest.checkpoint
    if standing is None:
        await right(self, ended=ended)
    else:
        await self._custody.confirm(standing, final=True, ended=ended)


async def collects_everything(right: Any, self: checkpointing.Checkpointer) -> int:
    """Whatever this owner's last manifest doesn't name, whoever wrote it and however new it is."""
    standing = self._custody.manifest
    shard_id = standing.identity.shard_id
    needed = {part.name for part in standing.checkpoint.parts} if standing.checkpoint else set()
    needed.add("manifest.json")
    listed = await self._objects.list(f"{shard_id}/")
    await self._objects.delete([entry.key for entry in listed if entry.key.removeprefix(f"{shard_id}/") not in needed])
    return 0


def latest_delta_left_out(right: Any, have: manifest.Checkpoint, newest: manifest.Checkpoint) -> Any:
    new = right(have, newest)
    return new[:-1] if new else new


# ── children ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def waits_for_nobody(right: Any, self: claimed.ClaimedTenure) -> str:
    await right(self)
    return ""


async def half_the_range(right: Any, objects: Any, parents: Any, key_range: hashing.HashKeyRange, *others: Any) -> None:
    middle = key_range.start + key_range.size // 2
    await right(objects, parents, hashing.HashKeyRange(key_range.start, middle), *others)


def every_effect_to_both(right: Any, effect: Any, own: Any, child: Any) -> bool:
    return False


async def youngest_clock(right: Any, objects: Any, parents: Any, key_range: Any, store: Any, ticking: Any) -> None:
    """A child begins with the time of now instead of its parents'."""
    await right(objects, parents, key_range, store, ticking)
    state = dataclasses.replace(
        store.state, clock_ms=ticking.wall_ms() + 60_000, commit_number=store.state.commit_number + 1
    )
    store.commit(commits.Commit(state, commits.no_rows(), [], [], [], [], [], []))


# ── the control loop ─────────────────────────────────────────────────────────────────────────────────────────────────


def named_at_the_same_epoch(right: Any, observed: control.Observed) -> control.Wanted:
    """Another owner without a higher epoch."""
    wanted: control.Wanted = right(observed)
    known = {entry.spec.shard_id: entry.spec for entry in observed.partitions}

    def lowered(entry: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        before = known[entry.spec.shard_id]
        if not before.worker or entry.spec.worker == before.worker:
            return entry
        return dataclasses.replace(entry, spec=dataclasses.replace(entry.spec, epoch=before.epoch))

    return dataclasses.replace(wanted, change=tuple(lowered(entry) for entry in wanted.change))


def everybody_is_well(right: Any, observed: control.Observed) -> control.Wanted:
    """Whoever was ever heard counts as ready."""
    workers = [dataclasses.replace(worker, ready=True, heard_ms=observed.now_ms) for worker in observed.workers]
    wanted: control.Wanted = right(dataclasses.replace(observed, workers=workers))
    return wanted


def children_first(right: Any, entries: Any) -> Any:
    return list(reversed(right(entries)))


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def judges_at_once(self: orders.Controlled, arrival_ms: int) -> None:
    """Whether or not it is known by which rules."""


def moves_while_behind(
    right: Any, clock_ms: int, last_arrival_ms: int | None, poll_ms: int, millis_behind: int, shard_ended: bool
) -> int:
    moved: int = right(clock_ms, None, poll_ms, 0, shard_ended)
    return moved


BUGS: dict[str, Bug] = {
    "a claim looks at no epoch and asks nobody": Bug(
        instead(claims, "refusal", lambda found, claim: None), (*DEATHS, *MOVES, Kind.CUT_CONTROL, Kind.PAUSE)
    ),
    "the nonce that is found isn't looked at": Bug(
        instead(custody.Custody, "_change", overwrites_whoever_stands_there), (Kind.PAUSE, Kind.TWIN, Kind.CUT_CONTROL)
    ),
    "manifests are written without a condition": Bug(
        around(custody.Manifests, "write", writes_without_condition), (Kind.PAUSE, Kind.TWIN, Kind.STORM)
    ),
    "a start uses the nonce of the one before": Bug(instead(serving, "new_nonce", same_nonce_again), DEATHS),
    "after a standstill it publishes at once": Bug(
        instead(watch.Watch, "is_sure", lambda self, now_s: True), (Kind.PAUSE, Kind.PAUSE, Kind.KINESIS_AWAY)
    ),
    "published before committed": Bug(around(pipeline.PartitionPipeline, "_commit_once", published_before_commit)),
    "acknowledged before Kinesis did": Bug(
        around(publisher.Publisher, "_settle", acknowledged_unseen), (Kind.STORM, Kind.EFFECTS_AWAY)
    ),
    "a checkpoint forgets the outbox": Bug(
        around(checkpoint_reading, "outbox", without_outbox),
        (Kind.EFFECTS_AWAY, Kind.MACHINE, Kind.DISK_LOSS, Kind.SCALE),
    ),
    "a delta begins one commit too late": Bug(
        around(memory_store.Contents, "scan", delta_edge_too_high), (*DEATHS, *MOVES)
    ),
    "a checkpoint forgets the position": Bug(around(custody.Custody, "confirm", without_position), (*DEATHS, *MOVES)),
    "a checkpoint has the position of the one before": Bug(
        around(custody.Custody, "confirm", old_position), (*DEATHS, *MOVES)
    ),
    "released without a final checkpoint": Bug(
        around(claimed.ClaimedTenure, "release", released_with_the_last_one), (*MOVES, *RESHARDING)
    ),
    "collects its successor's files": Bug(
        around(checkpointing.Checkpointer, "collect", collects_everything), (Kind.PAUSE, Kind.TWIN, *MOVES)
    ),
    "brought forward without the last delta": Bug(
        around(restoring, "_new_parts", latest_delta_left_out), (*MOVES, Kind.SCALE)
    ),
    "any environment on the disk will do": Bug(
        instead(claimed, "unfit", lambda state, before: ""), (*DEATHS, *MOVES, Kind.PAUSE)
    ),
    "a child begins before its parents have ended": Bug(
        around(claimed.ClaimedTenure, "waits_for", waits_for_nobody), RESHARDING
    ),
    "a child inherits half of its range": Bug(around(restoring, "inherit", half_the_range), RESHARDING),
    "a child inherits no effects": Bug(
        around(effects, "goes_to_child", every_effect_to_both), (*RESHARDING, Kind.EFFECTS_AWAY)
    ),
    "a child's clock begins ahead": Bug(around(restoring, "inherit", youngest_clock), RESHARDING),
    "named without a higher epoch": Bug(around(handoff, "step", named_at_the_same_epoch), MOVES),
    "workers that are dead count as ready": Bug(around(handoff, "step", everybody_is_well), (Kind.KILL, Kind.SCALE)),
    "children get their objects before their parents": Bug(
        around(handoff, "parents_first", children_first), (*RESHARDING, Kind.CONTROL_AWAY, Kind.KINESIS_AWAY)
    ),
    "judged before the rules are known": Bug(
        instead(orders.Controlled, "rules_known", judges_at_once), (Kind.EDIT,) * 3 + (Kind.STORM,) * 3
    ),
    "the clock moves while it is behind": Bug(
        around(clock, "after_poll", moves_while_behind), (*DEATHS, Kind.KINESIS_AWAY, Kind.PAUSE)
    ),
}


QUICK_SEEDS_MAX = 30
QUICK = (
    "the nonce that is found isn't looked at",
    "a start uses the nonce of the one before",
    "published before committed",
    "a delta begins one commit too late",
    "acknowledged before Kinesis did",
    "named without a higher epoch",
    "children get their objects before their parents",
    "released without a final checkpoint",
    "a child begins before its parents have ended",
    "a child inherits half of its range",
)
"""Those that a few runs find."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """seed: 0 when no run found it."""

    name: str
    seed: int
    how: str
    seconds: float


def caught(name: str, seeds_max: int = SEEDS_MAX) -> Found:
    """The first seed that finds the bug."""
    bug = BUGS[name]
    began = time.monotonic()
    with bug.plant():
        for seed in range(1, seeds_max + 1):
            outcome = world.run(schedule.draw(seed, bug.kinds))
            if outcome.problems:
                how = outcome.problems[0].strip().splitlines()
                told = how[0] if len(how) == 1 else f"{how[0]} … {how[-1]}"
                return Found(name, seed, told[:TOLD_CHARACTERS_MAX], time.monotonic() - began)
    return Found(name, 0, "", time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants bugs and looks whether the fleet simulator finds them.")
    parser.add_argument("words", nargs="?", default="")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    names = [name for name in BUGS if options.words in name]
    missed = 0
    with concurrent.futures.ProcessPoolExecutor(options.processes, initializer=parent_death.end_with_parent) as pool:
        for found in pool.map(caught, names):
            missed += not found.seed
            told = f"seed {found.seed:4d}" if found.seed else "NOT FOUND"
            print(f"{told}  {found.seconds:6.1f} s  {found.name}: {found.how}", flush=True)
    print(f"{len(names) - missed} of {len(names)} planted bugs found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
