"""The data folder of a worker outside Kubernetes: whose it is, where the fleet started, which rules judged when.

    DIR/lock                                  held by the one process that uses DIR
    DIR/<namespace>/<fleet>/start.json        the settled start, written once
    DIR/<namespace>/<fleet>/generations.json  every rules generation that a replay may still need
    DIR/<namespace>/<fleet>/partitions/<shard id>/    one partition's environment, the store's business

It refuses a folder that another process holds and a file that it can't read: guessing either would judge records by
other rules than before. It reads no clock. All methods block on the disk: call them through Clock.in_thread.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from types import TracebackType

from fleet_model import partition, rules
from fleet_worker import errors
from fleet_worker.adapters import durable, fleet_documents

GENERATIONS_MAX = 1_000
"""Edits kept at once. A stream retains a year at most, so a fleet edited twice a day stays below it."""

_HOLDER_WIDTH = 20
_GOING = ".going"
"""Ends the name of a partition's folder that is being removed; no shard id has a dot."""
_NAME_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
"""Of a namespace, fleet or shard id; none can leave the folder."""


class LocalFolder:
    """The open, locked data folder of one fleet. Close it at the end; closing is idempotent and gives the lock back.

    The lock is the process' own: a child made by a bare fork would share it, one made by exec doesn't.
    """

    def __init__(self, root: Path, namespace: str, fleet: str) -> None:
        """Raises DataFolderInUseError, DataFolderError, DiskFullError."""
        self.path = root / _checked(namespace) / _checked(fleet)
        durable.make_folder(root)
        self._lock: int | None = _locked(root)
        try:
            durable.make_folder(self.path)
            self._start = fleet_documents.read_start(self._start_path)
            self._generations = fleet_documents.read_generations(self._generations_path)
        except errors.FleetTwinError:
            self.close()
            raise
        self._in_doubt = False

    @property
    def start(self) -> partition.Start | None:
        """The settled start, None before the first."""
        return self._start

    @property
    def generations(self) -> tuple[rules.RulesGeneration, ...]:
        """The kept generations, by effective_ms; empty before the first start."""
        return self._generations

    def settle_start(self, start: partition.Start) -> partition.Start:
        """Keeps the start unless there is one already; returns the one that holds, from now on and for good."""
        assert self._lock is not None, "the data folder is closed"
        if self._start is None:
            durable.replace(self._start_path, fleet_documents.encoded(fleet_documents.start_document(start)))
            self._start = start
        return self._start

    def append_generation(self, generation: rules.RulesGeneration, oldest_arrival_ms: int = 0) -> None:
        """Keeps a generation; on return it survives any crash, so it may take effect. Call it before that.

        oldest_arrival_ms: of the records that the stream still retains; generations which judge none of these go.
        Raises DiskFullError (nothing changed) or DataFolderError (unknown what is on disk: end the process).
        """
        assert self._lock is not None, "the data folder is closed"
        if self._in_doubt:
            raise errors.DataFolderError(f"{self._generations_path}: an earlier write is in doubt; start again")
        kept = fleet_documents.with_next(
            self._generations, generation, oldest_arrival_ms, GENERATIONS_MAX, self._generations_path
        )
        document = fleet_documents.generations_document(kept)
        try:
            durable.replace(self._generations_path, fleet_documents.encoded(document))
        except errors.DataFolderError:
            self._in_doubt = True
            raise
        self._generations = kept

    def partition_folder(self, shard_id: str) -> Path:
        """The folder of a partition, made if need be."""
        folder = self.path / "partitions" / _checked(shard_id)
        durable.make_folder(folder)
        return folder

    def partitions(self) -> list[str]:
        """Shard ids that have a folder, in order."""
        folder = self.path / "partitions"
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.suffix != _GOING)

    def remove_partition(self, shard_id: str) -> None:
        """Removes a partition's folder and all that is in it. Idempotent; a crash on the way leaves the folder whole or none
        that `partitions` tells of. Raises DataFolderError."""
        folder = self.path / "partitions" / _checked(shard_id)
        going = folder.with_name(folder.name + _GOING)
        try:
            if going.exists():
                shutil.rmtree(going)
            if folder.exists():
                folder.rename(going)
                durable.sync_folder(folder.parent)
                shutil.rmtree(going)
        except OSError as error:
            raise errors.DataFolderError(
                f"{folder}: can't be removed ({error}); nothing needs it any more: remove it by hand"
            ) from error

    def close(self) -> None:
        if self._lock is not None:
            # Closing the last descriptor releases the lock. The file stays: removing it would let two processes lock
            # two files of the same name.
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> LocalFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _start_path(self) -> Path:
        return self.path / "start.json"

    @property
    def _generations_path(self) -> Path:
        return self.path / "generations.json"


def _locked(root: Path) -> int:
    """The descriptor that holds the folder's lock."""
    path = root / "lock"
    descriptor: int | None = None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Of fixed width and never cut off, so that on a full disk the room of the last holder's id is written again.
        os.pwrite(descriptor, f"{os.getpid():<{_HOLDER_WIDTH}}\n".encode(), 0)
    except BlockingIOError as error:
        assert descriptor is not None
        holder = os.pread(descriptor, _HOLDER_WIDTH, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        by = f"process {holder}" if holder.isdigit() else "another process"
        raise errors.DataFolderInUseError(
            f"{root}: the data folder is in use by {by}; end that worker, or give this one a folder of its own"
        ) from error
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if error.errno in durable.NO_ROOM:
            raise errors.DiskFullError(f"{path}: no room to write it; make room on this disk") from error
        raise errors.DataFolderError(
            f"{path}: can't be locked ({error}); check the folder's owner, and that its file system knows flock"
        ) from error
    return descriptor


def _checked(name: str) -> str:
    assert _NAME_PATTERN.fullmatch(name), f"{name!r} can't name a folder"
    return name
