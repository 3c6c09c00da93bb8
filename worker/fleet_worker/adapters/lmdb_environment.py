"""One LMDB environment: how it is opened, its transactions, and what its errors mean for a partition.

No fsync per commit unless the fleet asks for it, so the kernel decides when pages go to disk; no writemap, so that a full
disk is an error and not a signal; a fixed map size, since growing it under an open reader kills the process. This
module knows nothing of twins: it hands out transactions, and turns LMDB's errors into ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb

from fleet_model import spec
from fleet_worker import errors
from fleet_worker.adapters import allocation

DATABASES = ("twins", "outbox", "dead_letters", "offline_index", "meta")
READERS_MAX = 126
LOCK_FILE_BYTES = 8192
"""LMDB's lock file for READERS_MAX readers: a header of 192 bytes and 64 for each further slot."""
FULL_BELOW_BYTES = 16 * 2**20
"""LMDB reports a write that was cut short as an I/O error; with less room than this it was the disk being full."""
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


RETAINED_BYTES_MAX = 64 * 2**20
"""LMDB keeps the memory of an environment's largest transaction, its changed pages, until the environment is closed. Beyond
this much in all environments of the process together, one is closed after its commit and opened again when it is next
used. That costs some milliseconds, and its next commit about a third more."""
PAGE_BYTES = 4096
RESTED_PAGES_MIN = 256
CLOSE_WAIT_S = 30.0
"""Transactions take milliseconds; one that is still open after this will never end."""


class Retained:
    """How much memory of changed pages the environments of this process keep."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: dict[Path, int] = {}

    def may_keep(self, environment: Path, size_bytes: int) -> bool:
        """Whether the environment may keep so much beside what the others keep; if so, it is counted."""
        with self._lock:
            others = sum(size for path, size in self._kept.items() if path != environment)
            if others + size_bytes > self.bytes_max:
                return False
            self._kept[environment] = size_bytes
            return True

    def gave_back(self, environment: Path) -> None:
        with self._lock:
            self._kept.pop(environment, None)


RETAINED = Retained(RETAINED_BYTES_MAX)
"""Of the process, since its memory is what is counted."""


class Environment:
    """An open environment with its named databases."""

    def __init__(self, path: Path, storage: spec.Storage) -> None:
        """Creates the environment when there is none. Raises DiskFullError, StoreBrokenError."""
        self.path = path
        self._storage = storage
        self._guard = threading.Condition()
        self._in_use = 0
        self._is_closed = False
        self._environment: lmdb.Environment | None = None
        self._changed_pages = 0
        self._changed_pages_max = 0
        try:
            path.mkdir(parents=True, exist_ok=True)
            reserve_lock_file(path)
        except OSError as error:
            raise our_error(error, path, "opening") from error
        self._data = -1
        with self._our_errors("opening"), self._opened():
            pass
        # Held as long as the store, so that no failed write of the kernel's goes unreported between two openings.
        try:
            self._data = os.open(path / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close()  # A process may have it open only once, and the partition will be tried again.
            raise our_error(error, path, "opening") from error

    @contextlib.contextmanager
    def _opened(self) -> Iterator[lmdb.Environment]:
        """The environment, opened when it isn't, and not closed meanwhile."""
        with self._guard:
            if self._is_closed:
                raise errors.StoreBrokenError(f"{self.path}: closed")
            if self._environment is None:
                self._environment = self._open()
            environment = self._environment
            self._in_use += 1
        try:
            yield environment
        finally:
            with self._guard:
                self._in_use -= 1
                self._guard.notify_all()

    def _open(self) -> lmdb.Environment:
        environment = lmdb.open(
            str(self.path),
            map_size=self._storage.map_size_bytes,
            sync=self._storage.sync is spec.Sync.COMMIT,
            max_dbs=len(DATABASES),
            max_readers=READERS_MAX,
        )
        try:
            self.twins, self.outbox, self.dead_letters, self.offline_index, self.meta = (
                environment.open_db(name.encode()) for name in DATABASES
            )
        except lmdb.Error:
            environment.close()  # A process may have it open only once, and whoever called will try again.
            raise
        return environment

    @property
    def is_open(self) -> bool:
        """Whether LMDB has it open just now; whoever needs it opens it."""
        return self._environment is not None

    def contents(self) -> tuple[lmdb._Database, ...]:
        """The databases that hold a partition's data, meta apart. Only inside a transaction: the handles change."""
        return self.twins, self.outbox, self.dead_letters, self.offline_index

    @contextlib.contextmanager
    def read(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A read transaction. Keep it short: pages freed meanwhile can't be used again, and the file grows."""
        with self._our_errors("reading"), self._opened() as environment, environment.begin() as transaction:
            yield transaction

    @contextlib.contextmanager
    def write(self, twins_changed: int) -> Iterator[lmdb.Transaction[bytes]]:
        """A write transaction: committed at the end of the block, or nothing of it when anything raises. twins_changed:
        about how many, which tells what the transaction costs in pages."""
        with self._our_errors("committing"), self._opened() as environment:
            self._let_pages_rest(environment, twins_changed)
            with environment.begin(write=True) as transaction:
                yield transaction
                statistics = transaction.stat(self.twins)
            self._changed_pages = min(twins_changed, statistics["leaf_pages"] + statistics["branch_pages"])
        self._changed_pages_max = max(self._changed_pages_max, self._changed_pages)
        self._give_memory_back()

    def _let_pages_rest(self, environment: lmdb.Environment, twins_changed: int) -> None:
        """A tiny transaction between two large ones. LMDB uses the pages that a transaction freed again only in the next
        but one, so without it a store that rewrites most of itself each time keeps three copies of every page, not two.
        Not when each commit has its fsync: that would double them."""
        small = min(self._changed_pages, twins_changed) < RESTED_PAGES_MIN
        if small or self._storage.sync is spec.Sync.COMMIT:
            return
        with environment.begin(write=True) as transaction:
            transaction.put(b"rested", str(transaction.id()).encode(), db=self.meta)

    def _give_memory_back(self) -> None:
        with self._guard:
            fits = RETAINED.may_keep(self.path, self._changed_pages_max * PAGE_BYTES)
            if self._in_use == 0 and not fits:
                self._close()

    def sync(self) -> None:
        """fsync. Raises StoreBrokenError: after a failed one nobody knows which pages are on disk."""
        try:
            os.fdatasync(self._data)
        except OSError as error:
            raise errors.StoreBrokenError(
                f"{self.path}: fsync failed ({error}): the twins on this disk can't be trusted any more. "
                f"Check the volume; the partition is restored from its checkpoint and replayed."
            ) from error
        allocation.RETURNS.if_due()  # this thread has just waited for a disk; some milliseconds more are nothing to it

    def check_readers(self) -> int:
        """Frees reader slots of dead processes, which would keep old pages for ever. Returns how many there were."""
        with self._our_errors("checking readers"), self._opened() as environment:
            return environment.reader_check()

    def figures(self) -> tuple[int, int]:
        """(bytes of the pages in use, bytes the file takes on disk)."""
        with self.read() as transaction:
            pages = sum(
                statistics["leaf_pages"] + statistics["branch_pages"] + statistics["overflow_pages"]
                for statistics in map(transaction.stat, (*self.contents(), self.meta))
            )
        return pages * PAGE_BYTES, os.fstat(self._data).st_blocks * 512

    def close(self) -> None:
        """Idempotent. Waits for the transactions of other threads (a query may be reading), and lets none begin."""
        with self._guard:
            self._is_closed = True
            ended = self._guard.wait_for(lambda: self._in_use == 0, CLOSE_WAIT_S)
            assert ended, f"{self.path}: still in use {CLOSE_WAIT_S} s after its closing"
            if self._data >= 0:
                os.close(self._data)
                self._data = -1
            self._close()

    def _close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None
            self._changed_pages_max = 0
            RETAINED.gave_back(self.path)

    @contextlib.contextmanager
    def _our_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise our_error(error, self.path, doing) from error


def our_error(error: lmdb.Error | OSError, path: Path, doing: str) -> errors.FleetTwinError:
    """What an error of LMDB or the file system means for the partition, and what to do about it."""
    if isinstance(error, lmdb.MapFullError):
        return errors.DiskFullError(
            f"{path}: the environment has grown to its map size; nothing changed. "
            f"Raise storage.mapSize and restart the worker."
        )
    if disk_is_full(error, path):
        return errors.DiskFullError(
            f"{path}: no room on the disk while {doing}; nothing changed. Make room or enlarge the volume: "
            f"it goes on by itself."
        )
    return errors.StoreBrokenError(f"{path}: {doing} failed: {error}")


def disk_is_full(error: lmdb.Error | OSError, path: Path) -> bool:
    """Whether a failed write means a full disk (or quota): by its error or, where that is ambiguous, by trying."""
    if isinstance(error, lmdb.DiskError):
        return True
    code = error.errno if isinstance(error, OSError) else getattr(error, "code", None)
    if code in FULL_ERRNOS:
        return True
    if code == errno.EIO or os.strerror(errno.EIO) in str(error):
        return not has_room(path)
    return False


def has_room(path: Path) -> bool:
    """Whether the folder can take a file of FULL_BELOW_BYTES. Any other trouble than no room is not its business."""
    probe = path / "room"
    try:
        descriptor = os.open(probe, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, FULL_BELOW_BYTES)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.errno not in FULL_ERRNOS
    return True


def reserve_lock_file(path: Path) -> None:
    """Gives LMDB's lock file its blocks: LMDB writes it through a map, where a full disk would kill the process."""
    descriptor = os.open(path / "lock.mdb", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, LOCK_FILE_BYTES)
    finally:
        os.close(descriptor)
