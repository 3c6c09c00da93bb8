"""The TwinStore port on LMDB: one environment per partition, in a folder of its own.

    <folder>/environment/          data.mdb, lock.mdb
    <folder>/opened closed broken  what may be trusted after a crash: see marks
    <folder>/discarded/            the last environment that wasn't, for whoever wants to look

One transaction a commit, without fsync: it survives the death of the process, since the pages are the kernel's. What a
crash of the machine may have torn is never read: opening moves it aside and starts empty (`discarded` says why), and the
supervisor restores and replays. One writer; reads may come from other threads at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from fleet_model import hashing, partition, spec
from fleet_worker import errors
from fleet_worker.adapters import lmdb_codec, lmdb_environment, lmdb_look, lmdb_snapshot, marks
from fleet_worker.core import commits, effects, kept_telemetry, records, twins

DEAD_LETTERS_MAX = 10_000
DEAD_LETTER_BYTES_MAX = 64 * 2**20
"""Bytes of kept dead letters, keys and values; the oldest go first."""
COPY_ROWS = 20_000
"""Twins of one transaction of a copy: about 5 MB of changed pages."""
SLICE_ROWS = lmdb_snapshot.CHUNK_ROWS


class LmdbTwinStore:
    """A partition's twins, outbox and state on disk."""

    def __init__(
        self,
        folder: Path,
        identity: partition.PartitionIdentity,
        environment: lmdb_environment.Environment,
        discarded: str | None,
    ) -> None:
        """Use `open`."""
        self.folder = folder
        self.identity = identity
        self.discarded = discarded
        """Why the environment found in the folder was moved aside; None when it wasn't, or there was none."""
        self._environment = environment
        self._unusable: str | None = None
        with self.snapshot() as snapshot:
            self._state = snapshot.state

    @classmethod
    def open(
        cls, folder: Path, identity: partition.PartitionIdentity, settings: spec.Storage, boot_id: str
    ) -> LmdbTwinStore:
        """Opens or creates the partition's environment; one found there is used only if no crash of the machine can
        have torn it. boot_id: the machine's boot id, with the pod's token where there is one.

        Raises StoreBrokenError when the folder belongs to another partition or row version (nothing is touched then),
        DiskFullError when there is no room for opening it.
        """
        path = folder / "environment"
        folder.mkdir(parents=True, exist_ok=True)
        discarded = None
        if path.exists():
            discarded = marks.reason_against(folder, boot_id) or lmdb_look.reason_unreadable(path)
            if discarded is None:
                lmdb_look.check_contents(path, identity)
            else:
                _move_aside(folder, path)
        if not path.exists():
            marks.clear(folder)
        # Until its first own fsync this environment may hold pages that an earlier run left to the kernel.
        marks.leave_opened(folder, boot_id, spec.Sync.INTERVAL)
        environment = lmdb_environment.Environment(path, settings)
        try:
            environment.check_readers()
            _sign(environment, identity)
            if settings.sync is spec.Sync.COMMIT:
                environment.sync()
                marks.leave_opened(folder, boot_id, spec.Sync.COMMIT)
            return cls(folder, identity, environment, discarded)
        except errors.FleetTwinError:
            environment.close()  # A process may have it open only once, and the supervisor will try again.
            raise

    @property
    def state(self) -> commits.PartitionState:
        return self._state

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[lmdb_snapshot.LmdbSnapshot]:
        """One consistent view of everything, for a checkpoint. Bounded: while it is held the file may grow."""
        self._check_usable()
        with self._environment.read() as transaction:
            try:
                yield lmdb_snapshot.LmdbSnapshot(self._environment, transaction)
            except lmdb_codec.CodecError as error:
                raise errors.StoreBrokenError(f"{self.folder}: {error}") from error

    def scan(self, key_range: hashing.HashKeyRange | None = None) -> Iterator[commits.TwinRows]:
        """Each chunk is a snapshot of its own: what is committed in between may be seen. For one view, see snapshot."""
        start = b""
        while True:
            with self.snapshot() as snapshot:
                pairs = snapshot.pairs(start, key_range or lmdb_snapshot.WHOLE_RANGE)
                rows = lmdb_codec.twin_rows(pairs)
            if not pairs:
                return
            start = pairs[-1][0] + b"\0"
            del pairs
            yield rows

    def first(self, key_range: hashing.HashKeyRange) -> tuple[commits.TwinRows, bool]:
        with self.snapshot() as snapshot:
            pairs = snapshot.pairs(b"", key_range)
            is_all = not pairs or not snapshot.has_any(pairs[-1][0] + b"\0", key_range)
            return lmdb_codec.twin_rows(pairs), is_all

    def count(self) -> int:
        with self.snapshot() as snapshot:
            return snapshot.count()

    def fetch(self, device_ids: Sequence[str]) -> commits.TwinRows:
        with self.snapshot() as snapshot:
            return snapshot.fetch(device_ids)

    def telemetry(self, device_ids: Sequence[str]) -> dict[str, bytes]:
        with self.snapshot() as snapshot:
            return snapshot.telemetry(device_ids)

    def outbox(self) -> list[effects.OutboxEntry]:
        with self.snapshot() as snapshot:
            return snapshot.outbox()

    def dead_letters(self, limit: int) -> list[records.DeadLetter]:
        with self.snapshot() as snapshot:
            return snapshot.dead_letters(limit)

    def index_before(
        self, last_arrival_ms: int, limit: int, after: tuple[int, str] | None = None
    ) -> list[tuple[int, str]]:
        with self.snapshot() as snapshot:
            return snapshot.index_before(last_arrival_ms, limit, after)

    def commit(self, commit: commits.Commit) -> None:
        self._check_usable()
        twins_changed = len(commit.twins.device_ids) + len(commit.deleted)
        with self._marking_broken(), self._environment.write(twins_changed) as transaction:
            self._delete_twins(transaction, commit.deleted)
            self._put_twins(transaction, commit.twins)
            self._change_outbox(transaction, commit)
            self._keep_dead_letters(transaction, commit.dead_letters)
            self._change_index(transaction, commit)
            transaction.put(b"state", lmdb_codec.encode_state(commit.state), db=self._environment.meta)
        self._state = commit.state

    def append(self, rows: commits.TwinRows) -> None:
        """In slices, as commits are, so that Python's lock is never held for long."""
        self._check_usable()
        count = len(rows.device_ids)
        telemetry = kept_telemetry.KeptTelemetry.of(rows.device_ids, rows.telemetry)
        for begin in range(0, count, COPY_ROWS):
            end = min(begin + COPY_ROWS, count)
            with self._marking_broken(), self._environment.write(end - begin) as transaction:
                cursor = transaction.cursor(self._environment.twins)
                stored = cursor.key() if cursor.last() else b""
                for first in range(begin, end, SLICE_ROWS):
                    last = min(first + SLICE_ROWS, end)
                    keys = lmdb_codec.twin_keys(rows.digests[first:last], rows.device_ids[first:last])
                    assert stored < keys[0], f"{self.folder}: rows to append are beyond those that are stored"
                    stored = keys[-1]
                    extras = {index - first: extra for index, extra in rows.extras.items() if first <= index < last}
                    forms, rests = telemetry.forms[first:last], telemetry.rests[first:last]
                    values = lmdb_codec.twin_values(rows.rows[first:last], extras, forms, rests)
                    cursor.putmulti(zip(keys, values, strict=True), append=True)

    def clear(self) -> None:
        """Drops everything but the state and the identity."""
        self._check_usable()
        with self._marking_broken(), self._environment.write(twins_changed=0) as transaction:
            for database in self._environment.contents():
                transaction.drop(database, delete=False)
            transaction.delete(b"dead_letter_bytes", db=self._environment.meta)

    def load(self, source: LmdbTwinStore, key_range: hashing.HashKeyRange) -> None:
        """Adds another store's twins and offline index entries of the range, all beyond those that are here, as stored, in
        transactions of bounded size."""
        start = b""
        while pairs := source.pairs(start, key_range):
            with self._marking_broken(), self._environment.write(len(pairs)) as transaction:
                transaction.cursor(self._environment.twins).putmulti(pairs, append=True)
            start = pairs[-1][0] + b"\0"
        start = b""
        while True:
            with source.snapshot() as snapshot:
                keys = snapshot.index_keys(start)
            if not keys:
                return
            inside = [(key, b"") for key in keys if key_range.contains_digest(lmdb_codec.index_digest(key))]
            with self._marking_broken(), self._environment.write(len(inside)) as transaction:
                transaction.cursor(self._environment.offline_index).putmulti(inside)
            start = keys[-1] + b"\0"

    def pairs(self, start: bytes, key_range: hashing.HashKeyRange) -> lmdb_snapshot.Pairs:
        """Keys and values of the range's next twins from the key `start` on, as stored."""
        pairs: lmdb_snapshot.Pairs = []
        with self.snapshot() as snapshot:
            while len(pairs) < COPY_ROWS and (more := snapshot.pairs(start, key_range)):
                pairs += more
                start = pairs[-1][0] + b"\0"
        return pairs

    def sync(self) -> None:
        self._check_usable()
        with self._marking_broken():
            self._environment.sync()

    def check_readers(self) -> int:
        """Frees the slots of readers whose process died. Returns how many; call it now and then."""
        self._check_usable()
        return self._environment.check_readers()

    def figures(self) -> tuple[int, int]:
        """(bytes of the pages in use, bytes the file takes on disk): the file keeps two versions of what changes."""
        self._check_usable()
        return self._environment.figures()

    def close(self) -> None:
        """Syncs, closes and leaves the mark; a store that broke is closed without it. Raises StoreBrokenError when the
        sync fails, DiskFullError when there is no room for the mark: the environment is closed all the same."""
        if self._unusable is not None:
            self._environment.close()
            return
        try:
            self.sync()
        finally:
            self._unusable = self._unusable or "closed"
            self._environment.close()
        try:
            marks.leave_closed(self.folder)
        except OSError as error:
            raise lmdb_environment.our_error(error, self.folder, "closing") from error

    def _check_usable(self) -> None:
        if self._unusable is not None:
            raise errors.StoreBrokenError(f"{self.folder}: the store is not usable any more: {self._unusable}")

    @contextlib.contextmanager
    def _marking_broken(self) -> Iterator[None]:
        """A broken environment is never used again: not by this object, nor by the next one to open the folder."""
        try:
            yield
        except errors.StoreBrokenError as error:
            self._unusable = str(error)
            # The disk may be gone; the error that is raised says so already.
            with contextlib.suppress(OSError, errors.FleetTwinError):
                marks.leave_broken(self.folder, str(error))
            raise

    def _delete_twins(self, transaction: lmdb.Transaction[bytes], device_ids: Sequence[str]) -> None:
        for key in lmdb_codec.sorted_keys(device_ids):
            transaction.delete(key, db=self._environment.twins)

    def _put_twins(self, transaction: lmdb.Transaction[bytes], rows: commits.TwinRows) -> None:
        """In slices, so that Python's lock is never held for long: the event loop runs beside this thread."""
        cursor = transaction.cursor(self._environment.twins)
        first_of_all = transaction.stat(self._environment.twins)["entries"] == 0
        for first in range(0, len(rows.device_ids), SLICE_ROWS):
            last = first + SLICE_ROWS
            keys = lmdb_codec.twin_keys(rows.digests[first:last], rows.device_ids[first:last])
            extras = {index - first: extra for index, extra in rows.extras.items() if first <= index < last}
            packed = _packed_telemetry(cursor, keys, rows.device_ids[first:last], rows.telemetry[first:last])
            values = lmdb_codec.twin_values(rows.rows[first:last], extras, *packed)
            cursor.putmulti(zip(keys, values, strict=True), append=first_of_all)

    def _change_outbox(self, transaction: lmdb.Transaction[bytes], commit: commits.Commit) -> None:
        for number in commit.outbox_removed:
            transaction.delete(lmdb_codec.number_key(number), db=self._environment.outbox)
        transaction.cursor(self._environment.outbox).putmulti(
            [
                (lmdb_codec.number_key(entry.number), lmdb_codec.encode_effect(entry.effect))
                for entry in commit.outbox_added
            ]
        )

    def _keep_dead_letters(self, transaction: lmdb.Transaction[bytes], letters: Sequence[records.DeadLetter]) -> None:
        if not letters:
            return
        meta = self._environment.meta
        cursor = transaction.cursor(self._environment.dead_letters)
        number = lmdb_codec.key_number(cursor.key()) if cursor.last() else 0
        size = int(transaction.get(b"dead_letter_bytes", b"0", db=meta))
        for letter in letters[-DEAD_LETTERS_MAX:]:
            number += 1
            value = lmdb_codec.encode_dead_letter(letter)
            cursor.put(lmdb_codec.number_key(number), value, append=True)
            size += lmdb_codec.NUMBER_BYTES + len(value)
        kept = transaction.stat(self._environment.dead_letters)["entries"]
        while kept > DEAD_LETTERS_MAX or size > DEAD_LETTER_BYTES_MAX:
            cursor.first()
            size -= len(cursor.key()) + len(cursor.value())
            cursor.delete()
            kept -= 1
        transaction.put(b"dead_letter_bytes", str(size).encode(), db=meta)

    def _change_index(self, transaction: lmdb.Transaction[bytes], commit: commits.Commit) -> None:
        index = self._environment.offline_index
        for key in sorted(lmdb_codec.index_key(*entry) for entry in commit.index_removed):
            transaction.delete(key, db=index)
        added = sorted(lmdb_codec.index_key(*entry) for entry in commit.index_added)
        transaction.cursor(index).putmulti([(key, b"") for key in added])


def copy_range(
    child: LmdbTwinStore,
    parents: Sequence[LmdbTwinStore],
    key_range: hashing.HashKeyRange,
    state: commits.PartitionState,
) -> None:
    """Fills a child's store, after a split or merge, with the parents' twins of its range: rows, telemetry, offline index
    and, numbered anew, effects that are still in an outbox. The state is written last, with outbox_next raised where
    needed: until then the child's state is empty, and whatever an interrupted copy left is dropped by the next one.

    The parents' own ranges must not overlap. Raises DiskFullError, StoreBrokenError (of any of the stores).
    """
    assert child.state == commits.PartitionState(), f"{child.folder}: has begun already"
    child.clear()
    inherited: list[effects.Effect] = []
    for parent in sorted(parents, key=lambda store: store.identity.hash_key_range.start):
        own = parent.identity.hash_key_range
        if own.overlaps(key_range):
            shared = hashing.HashKeyRange(max(own.start, key_range.start), min(own.end, key_range.end))
            child.load(parent, shared)
            inherited += [
                entry.effect for entry in parent.outbox() if effects.goes_to_child(entry.effect, own, key_range)
            ]
    entries = [effects.OutboxEntry(number, effect) for number, effect in enumerate(inherited, start=1)]
    state = dataclasses.replace(state, outbox_next=max(state.outbox_next, len(entries) + 1))
    child.commit(commits.Commit(state, commits.no_rows(), [], entries, [], [], [], []))


def _packed_telemetry(
    cursor: lmdb.Cursor[bytes], keys: list[bytes], device_ids: Sequence[str], telemetry: Sequence[bytes | None]
) -> tuple[NDArray[np.uint8], list[bytes]]:
    """Markers and bytes of the new Telemetry or, where that is None, of the stored one."""
    given = [raw for raw in telemetry if raw is not None]
    if len(given) == len(telemetry):
        return lmdb_codec.pack_telemetry(device_ids, given)
    places = {key: place for place, (key, raw) in enumerate(zip(keys, telemetry, strict=True)) if raw is None}
    markers, rests = lmdb_codec.pack_telemetry(device_ids, [raw or b"" for raw in telemetry])
    markers[list(places.values())] = lmdb_codec.NO_TELEMETRY
    stored = cursor.getmulti(places)
    stored_markers, stored_rests = lmdb_codec.split_telemetry([value for _, value in stored])
    for (key, _), marker, rest in zip(stored, stored_markers.tolist(), stored_rests, strict=True):
        markers[places[key]] = marker
        rests[places[key]] = rest
    return markers, rests


def _sign(environment: lmdb_environment.Environment, identity: partition.PartitionIdentity) -> None:
    """Writes identity and row version into a new environment."""
    with environment.read() as transaction:
        if transaction.get(b"identity", db=environment.meta) is not None:
            return
    with environment.write(twins_changed=0) as transaction:
        transaction.put(b"identity", lmdb_codec.encode_identity(identity), db=environment.meta)
        transaction.put(b"row_version", str(twins.ROW_VERSION).encode(), db=environment.meta)


def _move_aside(folder: Path, path: Path) -> None:
    """Keeps the unfit environment for a look, at most one."""
    kept = folder / "discarded"
    if kept.exists():
        shutil.rmtree(kept)
    path.rename(kept)
