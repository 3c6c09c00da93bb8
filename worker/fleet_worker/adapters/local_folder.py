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
import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from fleet_model import generations, partition, rules, sections
from fleet_worker import errors
from fleet_worker.adapters import durable

FORMAT = 1
"""Of both files. A newer one is refused rather than half understood."""

GENERATIONS_MAX = 1_000
"""Edits kept at once. A stream retains a year at most, so a fleet edited twice a day stays below it."""

FILE_SIZE_BYTES_MAX = 256 * 2**20
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
            self._start = self._read_start()
            self._generations = self._read_generations()
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
            document = {"format": FORMAT, "stream": start.stream, "timeMs": start.time_ms}
            durable.replace(self._start_path, _encoded(document))
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
        last = self._generations[-1] if self._generations else None
        is_next = (
            generation.generation == last.generation + 1 and generation.effective_ms > last.effective_ms
            if last is not None
            else generation.effective_ms == 0
        )
        assert is_next, f"generation {generation.generation} doesn't follow what is kept"
        kept = generations.still_needed((*self._generations, generation), oldest_arrival_ms)
        if len(kept) > GENERATIONS_MAX:
            raise errors.TooManyGenerationsError(
                f"{self._generations_path}: {GENERATIONS_MAX} edits of the rules are kept already, and the stream "
                "still retains records of each; edit the rules less often"
            )
        document = {"format": FORMAT, "generations": [generations.rules_document(entry) for entry in kept]}
        try:
            durable.replace(self._generations_path, _encoded(document))
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

    def _read_start(self) -> partition.Start | None:
        document = _read(self._start_path)
        if document is None:
            return None
        stream, time_ms = document.get("stream"), document.get("timeMs")
        if not isinstance(stream, str) or isinstance(time_ms, bool) or not isinstance(time_ms, (int, type(None))):
            raise _unreadable(self._start_path, "stream or timeMs is missing or of another type")
        return partition.Start(stream, time_ms)

    def _read_generations(self) -> tuple[rules.RulesGeneration, ...]:
        document = _read(self._generations_path)
        if document is None:
            return ()
        entries = document.get("generations")
        if not isinstance(entries, list) or not entries:
            raise _unreadable(self._generations_path, "it holds no generation")
        try:
            read = tuple(generations.parse_rules_document(entry) for entry in entries)
        except sections.InvalidFleetError as error:
            raise _unreadable(self._generations_path, str(error.mistakes[0])) from error
        for earlier, later in itertools.pairwise(read):
            if later.generation != earlier.generation + 1 or later.effective_ms <= earlier.effective_ms:
                raise _unreadable(self._generations_path, f"generation {earlier.generation} isn't followed by the next")
        return read


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


def _read(path: Path) -> Mapping[str, object] | None:
    """The file's document, None when there is no file."""
    try:
        if path.stat().st_size > FILE_SIZE_BYTES_MAX:
            raise _unreadable(path, f"it is larger than {FILE_SIZE_BYTES_MAX} bytes")
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(document, dict):
        raise _unreadable(path, "it isn't a JSON object")
    if document.get("format") != FORMAT:
        written = sections.shown(document.get("format"))
        raise _unreadable(path, f"its format is {written}, this version knows {FORMAT}")
    return document


def _unreadable(path: Path, why: str) -> errors.DataFolderError:
    return errors.DataFolderError(
        f"{path}: can't be read: {why}. Bring the file back from a copy, or use the version that wrote it; to start the "
        f"fleet anew, its twins lost, move {path.parent} away"
    )


def _encoded(document: object) -> bytes:
    return json.dumps(document, allow_nan=False, indent=1).encode() + b"\n"


def _checked(name: str) -> str:
    assert _NAME_PATTERN.fullmatch(name), f"{name!r} can't name a folder"
    return name
