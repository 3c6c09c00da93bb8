"""From checkpoints to a store: a partition's own, its parents' by range, or only what is new since the copy that is there.

The store's state is written last, in one transaction with the outbox: whatever is interrupted leaves a store that hasn't begun, and is
done again from the start. The offline index isn't restored: the pipeline makes entries for the rows that find no room in its table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fleet_model import hashing, manifest, partition
from fleet_worker import checkpoint_reading, errors, ports
from fleet_worker.core import checkpoint_format, commits, effects, kept_telemetry, records, twin_rows

OVERLAY_ROWS = 20_000
LIFT_ROWS = 20_000


async def restore(
    objects: ports.ObjectStore, restored: manifest.Manifest, store: ports.TwinStore, clock: ports.Clock
) -> manifest.Checkpoint:
    """Makes the store what the manifest's checkpoint is, whatever it was before; the checkpoint. Its state has epoch and nonce of the
    given manifest.

    Raises CheckpointBrokenError, ObjectStoreUnavailableError, ObjectStoreRefusedError, DiskFullError, StoreBrokenError: the store
    hasn't begun then.
    """
    shard_id, checkpoint = restored.identity.shard_id, _checkpoint(restored)
    await clock.in_thread(functools.partial(_empty, store))
    await _append(objects, shard_id, checkpoint, store, clock, checkpoint_reading.WHOLE_RANGE)
    entries = await checkpoint_reading.outbox(objects, shard_id, checkpoint, clock)
    letters = await checkpoint_reading.dead_letters(objects, shard_id, checkpoint, clock)
    await _begin(store, clock, state_of(restored, checkpoint), entries, letters[::-1])
    return checkpoint


async def inherit(
    objects: ports.ObjectStore,
    parents: Sequence[manifest.Manifest],
    key_range: hashing.HashKeyRange,
    store: ports.TwinStore,
    clock: ports.Clock,
) -> None:
    """Fills a child's store after a split or merge: its range of every parent's final checkpoint, and of the effects that are still in
    their outboxes those that go to this child, numbered anew. Raises as restore."""
    known = sorted(parents, key=lambda parent: parent.identity.hash_key_range.start)
    checkpoints = [_checkpoint(parent) for parent in known]
    for parent in known:
        if not (parent.final and parent.ended):
            raise errors.CheckpointBrokenError(
                f"partition {parent.identity.shard_id} isn't closed with a final checkpoint; its children wait for that"
            )
    await clock.in_thread(functools.partial(_empty, store))
    inherited: list[effects.Effect] = []
    for parent, checkpoint in zip(known, checkpoints, strict=True):
        own, shard_id = parent.identity.hash_key_range, parent.identity.shard_id
        if not own.overlaps(key_range):
            continue
        shared = hashing.HashKeyRange(max(own.start, key_range.start), min(own.end, key_range.end))
        await _append(objects, shard_id, checkpoint, store, clock, shared)
        entries = await checkpoint_reading.outbox(objects, shard_id, checkpoint, clock)
        inherited += [entry.effect for entry in entries if effects.goes_to_child(entry.effect, own, key_range)]
    state = commits.PartitionState(
        clock_ms=min(checkpoint.clock_ms for checkpoint in checkpoints),
        high_arrival_ms=max(checkpoint.high_arrival_ms for checkpoint in checkpoints),
        commit_number=max(checkpoint.commit_number for checkpoint in checkpoints) + 1,
        outbox_next=len(inherited) + 1,
    )
    numbered = [effects.OutboxEntry(number, effect) for number, effect in enumerate(inherited, start=1)]
    await _begin(store, clock, state, numbered, [])


async def bring_forward(
    objects: ports.ObjectStore,
    store: ports.TwinStore,
    have: manifest.Checkpoint,
    want: manifest.Manifest,
    clock: ports.Clock,
) -> manifest.Checkpoint:
    """Makes a store that equals the checkpoint `have` equal the manifest's: by the deltas in between, or anew where those don't
    connect. Returns the manifest's checkpoint. Raises as restore."""
    newest, shard_id = _checkpoint(want), want.identity.shard_id
    new = _new_parts(have, newest)
    is_intact = (store.state.commit_number, store.state.position) == (have.commit_number, have.position)
    if new is None or not is_intact:
        return await restore(objects, want, store, clock)
    entries = await checkpoint_reading.outbox(objects, shard_id, newest, clock)
    letters = await checkpoint_reading.dead_letters(objects, shard_id, newest, clock)
    if new:
        await clock.in_thread(functools.partial(_unbegin, store))
        changed = checkpoint_reading.twins(objects, shard_id, new, clock)
        async with contextlib.aclosing(changed):  # type: ignore[type-var]
            async for rows in changed:
                await clock.in_thread(functools.partial(_overlay, store, rows))
    await _replace(store, clock, state_of(want, newest), entries, letters)
    return newest


def state_of(of: manifest.Manifest, checkpoint: manifest.Checkpoint) -> commits.PartitionState:
    """The partition's state in a checkpoint."""
    return commits.PartitionState(
        position=checkpoint.position,
        clock_ms=checkpoint.clock_ms,
        high_arrival_ms=checkpoint.high_arrival_ms,
        commit_number=checkpoint.commit_number,
        outbox_next=checkpoint.outbox_next,
        ended=of.ended,
        epoch=of.epoch,
        nonce=of.nonce,
    )


def lift(store: ports.TwinStore, to_ms: int) -> None:
    """The documented way out of a position that the stream no longer holds (design §4.8): reading goes on at the arrival time to_ms, and
    every device counts as heard then, so that none is called offline for what nobody could read. Blocks; done again after an
    interruption it ends the same. Raises DiskFullError, StoreBrokenError."""
    state = store.state
    number = state.commit_number + 1
    for chunk in store.scan():
        arrival_ms = chunk.rows["last_arrival_ms"]
        at = np.flatnonzero((arrival_ms > 0) & (arrival_ms < to_ms))
        if not len(at):
            continue
        lifted = twin_rows.take(chunk, at)
        index = list(zip(arrival_ms[at].tolist(), list(lifted.device_ids), strict=True))
        lifted.rows["last_arrival_ms"] = to_ms
        lifted.rows["commit"] = number
        # What the index has of them is no longer true; the pipeline makes it anew for those without room in its table.
        rows = dataclasses.replace(lifted, telemetry=[None] * len(at))
        store.commit(commits.Commit(dataclasses.replace(state, commit_number=number), rows, [], [], [], [], [], index))
    state = dataclasses.replace(
        state,
        position=partition.Position(),
        clock_ms=max(state.clock_ms, to_ms),
        high_arrival_ms=max(state.high_arrival_ms, to_ms),
        commit_number=number,
    )
    store.commit(commits.Commit(state, commits.no_rows(), [], [], [], [], [], []))


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _checkpoint(of: manifest.Manifest) -> manifest.Checkpoint:
    if of.checkpoint is None:
        raise errors.CheckpointBrokenError(f"partition {of.identity.shard_id} has no checkpoint to restore")
    return of.checkpoint


def _unbegin(store: ports.TwinStore) -> None:
    if store.state != commits.PartitionState():
        store.commit(commits.Commit(commits.PartitionState(), commits.no_rows(), [], [], [], [], [], []))


def _empty(store: ports.TwinStore) -> None:
    _unbegin(store)
    store.clear()


async def _append(
    objects: ports.ObjectStore,
    shard_id: str,
    checkpoint: manifest.Checkpoint,
    store: ports.TwinStore,
    clock: ports.Clock,
    key_range: hashing.HashKeyRange,
) -> None:
    stored = checkpoint_reading.twins(objects, shard_id, checkpoint.parts, clock, key_range)
    async with contextlib.aclosing(stored):  # type: ignore[type-var]
        async for rows in stored:
            await clock.in_thread(functools.partial(store.append, rows))


async def _begin(
    store: ports.TwinStore,
    clock: ports.Clock,
    state: commits.PartitionState,
    entries: list[effects.OutboxEntry],
    letters: list[records.DeadLetter],
) -> None:
    commit = commits.Commit(state, commits.no_rows(), [], entries, [], letters, [], [])
    await clock.in_thread(functools.partial(store.commit, commit))


def _new_parts(have: manifest.Checkpoint, newest: manifest.Checkpoint) -> list[manifest.Part] | None:
    """The deltas that are to be laid over `have`; None when the chain of the newest one doesn't go through it."""
    stored, wanted = checkpoint_reading.twin_parts(have), checkpoint_reading.twin_parts(newest)
    if not stored or wanted[: len(stored)] != stored:
        return None
    return wanted[len(stored) :]


def _overlay(store: ports.TwinStore, rows: commits.TwinRows) -> None:
    for first in range(0, len(rows.device_ids), OVERLAY_ROWS):
        some = twin_rows.cut(rows, first, min(first + OVERLAY_ROWS, len(rows.device_ids)))
        kept = kept_telemetry.KeptTelemetry.of(some.device_ids, some.telemetry)
        # To a commit, no telemetry means: leave the stored one. Here it means that there is none.
        bare = [some.device_ids[index] for index in np.flatnonzero(kept.forms == kept_telemetry.NONE).tolist()]
        store.commit(commits.Commit(commits.PartitionState(), some, bare, [], [], [], [], []))


async def _replace(
    store: ports.TwinStore,
    clock: ports.Clock,
    state: commits.PartitionState,
    entries: list[effects.OutboxEntry],
    letters: list[records.DeadLetter],
) -> None:
    """Ends bringing a store forward. letters: newest first."""

    def commit() -> None:
        stored = store.dead_letters(checkpoint_format.DEAD_LETTERS_MAX)
        unknown = next(
            (index for index in range(len(letters)) if letters[index:] == stored[: len(letters) - index]), None
        )
        newer = letters if unknown is None else letters[:unknown]
        removed = [entry.number for entry in store.outbox()]
        store.commit(commits.Commit(state, commits.no_rows(), [], entries, removed, newer[::-1], [], []))

    await clock.in_thread(commit)
