"""Whatever was committed, whenever checkpoints were taken, moved to another store or failed: what the manifest names gives back
what the store held at that moment, and a standby that followed equals it, too."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import random
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_model import manifest
from fleet_worker import checkpointing, errors, restoring
from fleet_worker.adapters import memory_objects, memory_store
from fleet_worker.core import checkpoint_format, commits, twins
from tests.support import checkpoints, virtual_time
from tests.support import commits as build

NAMES = [f"device-{number}" for number in range(60)]
HOUR_MS = 3_600_000
RETENTION_MS = 24 * HOUR_MS


class History:
    """One partition's, drawn. Times pass by seconds, now and then by hours; a device is forgotten now and then, and its stamp deleted after
    the retention, as the engine does."""

    def __init__(self, dice: random.Random, world: checkpoints.World) -> None:
        self.dice = dice
        self.world = world
        self.store = world.store()
        self.number = 0
        self.outbox: list[int] = []
        self.next_effect = 1
        self.now_ms = build.FIRST_ARRIVAL_MS
        self.stamps: dict[str, int] = {}

    def commit(self) -> None:
        dice = self.dice
        self.number += 1
        self.now_ms += dice.choice((0, 1_000, 1_000, 1_000, HOUR_MS // 2, 2 * HOUR_MS, RETENTION_MS))
        gone = [name for name, at_ms in self.stamps.items() if self.now_ms - at_ms >= RETENTION_MS]
        for name in gone:
            del self.stamps[name]
        names = dice.sample(NAMES, dice.choice((0, 1, 3, 10, 29, 60)))
        forgotten = [name for name in names if dice.randint(0, 9) == 0]
        said = {name: dice.choice((b"new", b"", None)) for name in names} | dict.fromkeys(forgotten, b"")
        extras = {name: build.extra(dice.randint(0, 9)) for name in names if dice.randint(0, 5) == 0}
        extras = {name: extra for name, extra in extras.items() if name not in forgotten}
        rows = build.twin_rows(
            names, last_arrival_ms=self.now_ms, commit_number=self.number, telemetry=dict(said), extras=extras
        )
        for at, name in enumerate(rows.device_ids):
            if name in forgotten:
                rows.rows["flags"][at] = twins.Flag.FORGOTTEN
                self.stamps[name] = self.now_ms
            else:
                self.stamps.pop(name, None)
        added = [build.outbox_entry(self.next_effect + at) for at in range(dice.choice((0, 0, 1, 4)))]
        removed = self.outbox[: dice.randint(0, len(self.outbox))]
        self.outbox = self.outbox[len(removed) :] + [entry.number for entry in added]
        self.next_effect += len(added)
        letters = [build.dead_letter(100 * self.number + at) for at in range(dice.choice((0, 0, 2)))]
        state = build.state(
            self.number, clock_ms=self.now_ms, high_arrival_ms=self.now_ms, outbox_next=self.next_effect
        )
        full = build.commit(rows, number=self.number, deleted=gone, outbox=(added, removed), dead_letters=letters)
        self.store.commit(dataclasses.replace(full, state=state))

    async def restored(self, owner: checkpoints.Owner) -> checkpoints.Store:
        store: checkpoints.Store = self.world.store()
        await restoring.restore(self.world.objects(), owner.manifest, store, self.world.clock)
        return store

    def check(self, copy: checkpoints.Store) -> None:
        wanted, found = checkpoints.held(self.store), checkpoints.held(copy)
        extra = {name: found.twins.pop(name) for name in list(found.twins) if name not in wanted.twins}
        assert found == wanted
        for twin in extra.values():  # a stamp that has expired by this clock, so it goes again at the first scan
            row = np.frombuffer(twin[1], dtype=twins.TWIN_DTYPE)[0]
            assert row["flags"] == twins.Flag.FORGOTTEN
            assert wanted.state.clock_ms - row["last_arrival_ms"] >= RETENTION_MS


async def lived(dice: random.Random, world: checkpoints.World, steps: int) -> None:
    history = History(dice, world)
    history.commit()
    owner = await world.owner(history.store)
    epoch = 1
    standby = world.store()
    have: manifest.Checkpoint | None = None
    for _ in range(steps):
        event = dice.randint(0, 9)
        if event < 5:
            history.commit()
        elif event == 5:  # the object store goes away for a while
            owner.objects.api.plan = lambda call: memory_objects.Fault(
                failure=memory_objects.UNAVAILABLE if dice.randint(0, 1) else None, lost_reply=bool(dice.randint(0, 1))
            )
            with contextlib.suppress(errors.ObjectStoreUnavailableError):
                await owner.checkpointer.take()
            owner.objects.api.plan = memory_objects.no_faults
        elif event < 9 or owner.manifest.checkpoint is None:
            taken = await owner.checkpointer.take(final=dice.randint(0, 3) == 0)
            history.check(await history.restored(owner))
            if have is None:
                have = await restoring.restore(world.objects(), owner.manifest, standby, world.clock)
            elif dice.randint(0, 1):
                have = await restoring.bring_forward(world.objects(), standby, have, owner.manifest, world.clock)
            if have == taken:
                history.check(standby)
            await world.clock.sleep(dice.choice((1.0, 3_700.0)))
            await owner.custody.resume()
            await owner.checkpointer.collect()
        else:  # it moves: what was committed since is replayed, and comes as new commits
            history.store = await history.restored(owner)
            history.number = history.store.state.commit_number
            with history.store.snapshot() as snapshot:
                history.outbox = [entry.number for entry in snapshot.outbox()]
            history.next_effect = history.store.state.outbox_next
            history.now_ms = max(history.now_ms, history.store.state.clock_ms)
            history.stamps = {
                name: int(rows.rows["last_arrival_ms"][at])
                for rows in history.store.scan()
                for at, name in enumerate(rows.device_ids)
                if rows.rows["flags"][at] & twins.Flag.FORGOTTEN
            }
            epoch += 1
            continues = owner.manifest.checkpoint
            owner = await world.owner(history.store, epoch=epoch, continues=continues)
    await owner.checkpointer.take()
    history.check(await history.restored(owner))
    assert isinstance(history.store.state, commits.PartitionState)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a partition of sixty twins is chunks, row groups and files."""
    monkeypatch.setattr(memory_store, "CHUNK_ROWS", 7)
    monkeypatch.setattr("fleet_worker.adapters.lmdb_snapshot.CHUNK_ROWS", 7)
    monkeypatch.setattr(checkpoint_format, "BASE_GROUP_ROWS", 14)
    monkeypatch.setattr(checkpoint_format, "DELTA_GROUP_ROWS", 7)
    monkeypatch.setattr(checkpointing, "FILE_BYTES_MAX", 40_000)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False))
def test_a_checkpoint_is_the_store_at_any_cut(dice: random.Random) -> None:
    virtual_time.run(lived(dice, checkpoints.World(), 14))


@pytest.mark.parametrize("seed", range(3))
def test_a_checkpoint_is_the_store_at_any_cut_on_disk(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = checkpoints.lmdb_stores(pathlib.Path(folder))
        virtual_time.run(lived(random.Random(seed), checkpoints.World(made), 14))
