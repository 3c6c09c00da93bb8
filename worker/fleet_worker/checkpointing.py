"""Taking a partition's checkpoints beside its pipeline, and clearing away the files that no checkpoint needs any more.

    one snapshot of the store → files, in turns → the object store, new names only → the manifest, by custody

All of a checkpoint is from one snapshot: twins, outbox, position. What a take has put and then couldn't confirm is garbage that some
`collect` removes. A take that fails changes nothing and stops nothing: the caller tries again at the next interval. It never deletes what
another owner may need, and lets the hot path never wait for long: between two pieces of work it rests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np

from fleet_model import manifest as fleet_manifest
from fleet_model import partition
from fleet_worker import checkpoint_reading, errors, metrics, ports
from fleet_worker.core import checkpoint_format, commits

Answer = TypeVar("Answer")

DELTAS_MAX = 8
"""Deltas over a base; reading lays all of them over it at once."""
DELTA_SPAN_MS_MAX = 3_600_000
"""A delta doesn't tell of twins that are gone. None is deleted but a forgotten one's stamp, a stream's retention (24 h at least) after
the forgetting: within an hour no twin can be both, so every stamp is in some checkpoint, and one too many goes by itself."""
CLOCK_SLACK_MS = 60_000
"""A record may arrive a little behind the partition clock."""
FILE_BYTES_MAX = 32 * 2**20
UPLOADING_BYTES_MAX = 128 * 2**20
"""Files that are finished and not yet uploaded; beyond it the snapshot is held until there is room."""
PUT_TRIES_MAX = 3
COLLECT_AGE_MS = 3_600_000
COLLECT_FILES_MAX = 1_000
NAME = re.compile(r"[a-zA-Z]+-\d+-e(?P<epoch>\d+)-(?P<nonce>[^-]+)-\d+-\d+\.parquet")


class Custodian(Protocol):
    """What is needed of custody.Custody."""

    @property
    def nonce(self) -> str: ...

    @property
    def epoch(self) -> int: ...

    @property
    def manifest(self) -> fleet_manifest.Manifest: ...

    async def confirm(
        self, checkpoint: fleet_manifest.Checkpoint, *, final: bool = False, ended: bool = False
    ) -> None: ...

    async def verify(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """How much of a core a checkpoint may take: the share of its time that it works, the rest it rests. is_behind: whether the pipelines
    have records waiting. What it takes is counted in CPU seconds, so waiting for Python's lock makes nothing slower."""

    is_behind: Callable[[], bool] = lambda: False
    share_behind: float = 0.15
    share: float = 0.5

    def rest_s(self, worked_s: float) -> float:
        share = self.share_behind if self.is_behind() else self.share
        return worked_s * (1 - share) / share


class Checkpointer:
    """One partition's, for one custody of it."""

    def __init__(
        self,
        objects: ports.ObjectStore,
        store: ports.TwinStore,
        custody: Custodian,
        clock: ports.Clock,
        counted: metrics.Metrics,
        pace: Pace | None = None,
        *,
        continues: fleet_manifest.Checkpoint | None = None,
    ) -> None:
        """continues: the checkpoint that the store was restored from, or that it was confirmed to hold by an earlier custody of this
        same environment: deltas may build on it. None: the first take is a base."""
        self._objects = objects
        self._store = store
        self._custody = custody
        self._clock = clock
        self._told = counted.checkpoints(custody.manifest.identity.shard_id)
        self._pace = pace or Pace()
        self._own = [] if continues is None else [continues]
        self._number = 0
        self._serial = 0

    async def take(self, *, final: bool = False, ended: bool = False) -> fleet_manifest.Checkpoint:
        """Takes one and confirms it. final: the partition is drained, so nothing waits and there is no resting. One take at a time; cancel
        and await it before the store is closed.

        Raises ObjectStoreUnavailableError, ObjectStoreRefusedError, FencedError, StoreBrokenError, CheckpointBrokenError.
        """
        started_s = self._clock.monotonic()
        try:
            checkpoint, written = await self._taken(final)
            self._own = [*self._own[-3:], checkpoint]  # the confirmation may stand though its reply is lost
            await self._custody.confirm(checkpoint, final=final, ended=ended)
        except errors.FleetTwinError:
            self._told.failures.inc()
            raise
        self._told.taken(checkpoint.time_ms, self._clock.monotonic() - started_s, written)
        return checkpoint

    async def _taken(self, final: bool) -> tuple[fleet_manifest.Checkpoint, list[fleet_manifest.Part]]:
        """A checkpoint with its files in the object store, and those of them that are new."""
        standing = self._custody.manifest
        before = standing.checkpoint if standing.checkpoint in self._own else None
        self._number = max(self._number, standing.checkpoint.number if standing.checkpoint else 0) + 1
        uploads = _Uploads(self._objects, standing.identity.shard_id)
        try:
            async with _held(self._store, self._clock) as snapshot:
                time_ms = self._clock.wall_ms()
                state = await self._clock.in_thread(lambda: snapshot.state)
                names = _Names(self, time_ms)
                count = await self._clock.in_thread(snapshot.count)
                walk = _Walk(self, snapshot, names, uploads, standing.identity, state, rests=not final)
                parts = await walk.parts(before, count, final)
                entries = await self._clock.in_thread(snapshot.outbox)
                letters = await self._clock.in_thread(
                    functools.partial(snapshot.dead_letters, checkpoint_format.DEAD_LETTERS_MAX)
                )
            about = functools.partial(_about, standing.identity, since=0, through=state.commit_number)
            if entries:
                kind = fleet_manifest.Kind.OUTBOX
                make = functools.partial(checkpoint_format.outbox_file, about(kind), names.next(kind), entries)
                parts.append(await uploads.add(await self._clock.in_thread(make)))
            if kept := checkpoint_format.newest_that_fit(letters):
                kind = fleet_manifest.Kind.DEAD_LETTERS
                make = functools.partial(checkpoint_format.dead_letters_file, about(kind), names.next(kind), kept)
                parts.append(await uploads.add(await self._clock.in_thread(make)))
            await uploads.finish()
        finally:
            uploads.stop()
        checkpoint = fleet_manifest.Checkpoint(
            number=self._number,
            time_ms=time_ms,
            twins=count,
            position=state.position,
            clock_ms=state.clock_ms,
            high_arrival_ms=state.high_arrival_ms,
            commit_number=state.commit_number,
            outbox_next=state.outbox_next,
            parts=tuple(parts),
        )
        return checkpoint, uploads.added

    async def worked(self, job: Callable[[], Answer], *, rests: bool) -> Answer:
        """A piece of work in a thread, and the rest that it earns."""

        def measured() -> tuple[Answer, float]:
            started_s = time.thread_time()
            return job(), time.thread_time() - started_s

        began_s = self._clock.monotonic()
        answer, cpu_s = await self._clock.in_thread(measured)
        # CPU time is never more than what passed, but where a virtual clock says that none did.
        worked_s = min(cpu_s, self._clock.monotonic() - began_s)
        rest_s = self._pace.rest_s(worked_s) if rests else 0.0
        if rest_s > 0:
            await self._clock.sleep(rest_s)
        return answer

    def name(self, kind: fleet_manifest.Kind, time_ms: int) -> str:
        """Of a new file; no two of all owners are the same."""
        self._serial += 1
        custody = self._custody
        return f"{kind.value}-{self._number}-e{custody.epoch}-{custody.nonce}-{time_ms}-{self._serial}.parquet"

    # ── garbage ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def collect(self) -> int:
        """Deletes files that neither the manifest's checkpoint nor one of the last few names: those of lower epochs and of this start's
        own making, older than an hour by the object store's clock, a bounded number of them. Returns how many.

        Raises FencedError, and as the object store does.
        """
        await self._custody.verify()  # what stands in the manifest is known now, and only we write it
        standing = self._custody.manifest
        shard_id = standing.identity.shard_id
        listed = await self._objects.list(f"{shard_id}/")
        needed = {part.name for part in standing.checkpoint.parts} if standing.checkpoint else set()
        needed.update(name for names in standing.kept for name in names)
        now_ms = max((entry.modified_ms for entry in listed), default=0)
        unneeded = []
        for entry in listed:
            name = entry.key.removeprefix(f"{shard_id}/")
            found = NAME.fullmatch(name)
            if found is None or name in needed or now_ms - entry.modified_ms < COLLECT_AGE_MS:
                continue
            if int(found["epoch"]) < self._custody.epoch or found["nonce"] == self._custody.nonce:
                unneeded.append(entry.key)
        unneeded = unneeded[:COLLECT_FILES_MAX]
        if unneeded:
            await self._objects.delete(unneeded)
        return len(unneeded)


class _Names:
    """New names for one take's files."""

    def __init__(self, checkpointer: Checkpointer, time_ms: int) -> None:
        self._checkpointer = checkpointer
        self._time_ms = time_ms

    def next(self, kind: fleet_manifest.Kind) -> str:
        return self._checkpointer.name(kind, self._time_ms)


class _TooMany(Exception):
    """More rows changed than a delta is worth."""


class _Walk:
    """One walk through a snapshot's twins."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        snapshot: ports.StoreSnapshot,
        names: _Names,
        uploads: _Uploads,
        identity: partition.PartitionIdentity,
        state: commits.PartitionState,
        *,
        rests: bool,
    ) -> None:
        self._checkpointer = checkpointer
        self._snapshot = snapshot
        self._names = names
        self._uploads = uploads
        self._identity = identity
        self._state = state
        self._rests = rests

    async def parts(
        self, before: fleet_manifest.Checkpoint | None, count: int, final: bool
    ) -> list[fleet_manifest.Part]:
        """The twins' files of the checkpoint: those of `before` with a delta, or a new base."""
        if before is not None and before.commit_number == self._state.commit_number:
            return checkpoint_reading.twin_parts(before)
        rows_max = delta_rows_max(before, self._state, count, final)
        if before is not None and rows_max > 0 and await self._looks_worth(before, count, rows_max):
            with contextlib.suppress(_TooMany):
                new = await self._written(fleet_manifest.Kind.DELTA, before.commit_number, rows_max)
                return [*checkpoint_reading.twin_parts(before), *new]
        return await self._written(fleet_manifest.Kind.BASE, None, count)

    async def _looks_worth(self, before: fleet_manifest.Checkpoint, count: int, rows_max: int) -> bool:
        """Judged by the first chunk: keys are hashes, so its devices are as good as drawn by lot."""
        chunk = await self._checkpointer.worked(lambda: next(self._snapshot.scan(), None), rests=self._rests)
        if chunk is None:
            return False
        changed = np.count_nonzero(chunk.rows["commit"] > before.commit_number)
        return bool(changed * count <= rows_max * len(chunk.device_ids) * 1.1)

    async def _written(self, kind: fleet_manifest.Kind, since: int | None, rows_max: int) -> list[fleet_manifest.Part]:
        """New files, on their way."""
        chunks = self._snapshot.scan(with_telemetry=True, changed_after=since)
        about = _about(self._identity, kind, since=since or 0, through=self._state.commit_number)
        parts: list[fleet_manifest.Part] = []
        writer = checkpoint_format.TwinsWriter(about)
        rows = 0
        more = True
        while more:
            more, added = await self._checkpointer.worked(
                functools.partial(_add_next, writer, chunks), rests=self._rests
            )
            rows += added
            if rows > rows_max:
                raise _TooMany
            if writer.rows and (not more or writer.size >= FILE_BYTES_MAX):
                finish = functools.partial(writer.finish, self._names.next(kind))
                parts.append(await self._uploads.add(await self._checkpointer.worked(finish, rests=self._rests)))
                writer = checkpoint_format.TwinsWriter(about)
        return parts


def _add_next(writer: checkpoint_format.TwinsWriter, chunks: Iterator[commits.TwinRows]) -> tuple[bool, int]:
    """Whether there was a chunk, and its rows."""
    rows = next(chunks, None)
    if rows is None:
        return False, 0
    writer.add(rows)
    return True, len(rows.device_ids)


def delta_rows_max(
    before: fleet_manifest.Checkpoint | None, state: commits.PartitionState, count: int, final: bool
) -> int:
    """How many changed rows are still worth a delta on `before`; 0: a new base it is. A drained partition's last one is to be quick, so
    its chain may be longer."""
    if before is None:
        return 0
    reached_ms = max(state.clock_ms, state.high_arrival_ms)
    if reached_ms - max(before.high_arrival_ms, before.clock_ms - CLOCK_SLACK_MS) > DELTA_SPAN_MS_MAX:
        return 0
    layers = checkpoint_reading.layers_of(before.parts)
    if not layers or layers[0][0].kind is not fleet_manifest.Kind.BASE:
        return 0
    if len(layers) > (2 * DELTAS_MAX if final else DELTAS_MAX):
        return 0
    base, *deltas = [sum(part.rows for part in files) for files in layers]
    return count // 2 if final else min(count // 2, base // 2 - sum(deltas))


def _about(
    identity: partition.PartitionIdentity, kind: fleet_manifest.Kind, *, since: int, through: int
) -> checkpoint_format.Contents:
    return checkpoint_format.Contents(
        kind, identity.namespace, identity.fleet, identity.stream, identity.shard_id, since, through
    )


class _held:
    """A snapshot of the store, begun in a thread; ended here, as that waits for nothing and has to happen."""

    def __init__(self, store: ports.TwinStore, clock: ports.Clock) -> None:
        self._snapshot, self._clock, self._has_begun = store.snapshot(), clock, False

    async def __aenter__(self) -> ports.StoreSnapshot:
        try:
            return await self._clock.in_thread(self._begin)
        except asyncio.CancelledError:
            if self._has_begun:  # by now the thread has ended (Clock.in_thread)
                self._snapshot.__exit__(None, None, None)
            raise

    def _begin(self) -> ports.StoreSnapshot:
        begun, self._has_begun = self._snapshot.__enter__(), True
        return begun

    async def __aexit__(self, *error: object) -> None:
        self._snapshot.__exit__(*error)  # type: ignore[arg-type]


class _Uploads:
    """Puts files into the object store beside the making of the next ones, one at a time."""

    def __init__(self, objects: ports.ObjectStore, shard_id: str) -> None:
        self.added: list[fleet_manifest.Part] = []
        self._objects = objects
        self._shard_id = shard_id
        self._waiting_bytes = 0
        self._last: asyncio.Task[None] | None = None

    async def add(self, file: checkpoint_format.File) -> fleet_manifest.Part:
        """Returns as soon as there is room for another one. Raises what an earlier put failed with, and FencedError."""
        if self._last is not None and (self._last.done() or self._waiting_bytes + len(file.data) > UPLOADING_BYTES_MAX):
            await self._last
        self._waiting_bytes += len(file.data)
        self._last = asyncio.create_task(self._put(file, self._last))
        self.added.append(file.part)
        return file.part

    async def finish(self) -> None:
        if self._last is not None:
            await self._last

    def stop(self) -> None:
        """What is still on its way isn't wanted any more, and nobody asks how it ended."""
        if self._last is not None:
            self._last.cancel()
            self._last.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _put(self, file: checkpoint_format.File, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        key = f"{self._shard_id}/{file.part.name}"
        try:
            await self._objects.put_new(key, file.data)
        except errors.PreconditionFailedError as error:
            # The name has our nonce: it is our own try, whose reply was lost; or somebody writes in our name.
            found = await self._objects.get(key)
            if (
                found is None
                or len(found.data) != file.part.size
                or checkpoint_format.sha256(found.data) != file.part.sha256
            ):
                raise errors.FencedError(
                    f"{key} exists with other contents than this start of the process wrote: another one uses its nonce; it stops here"
                ) from error
        self._waiting_bytes -= len(file.data)
