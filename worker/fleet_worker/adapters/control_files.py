"""The control folder's files, and the order in which they are read and written. All methods block.

    DIR/version                   grows with every change of a partition; there as soon as the folder is in use
    DIR/lock                      held (flock) by whoever changes something
    DIR/partitions/<shard>.json   one TwinPartition each
    DIR/workers/<name>.json       each worker's last heartbeat
    DIR/fleet/generations.json    the rules generations
    DIR/start.json                the fleet's settled start, when there is no bucket to keep it

Files are replaced as a whole, so a reader needs no lock. A folder without `version` is no control folder (it was removed, or is not yet
made): that reads as out of reach, never as a fleet without partitions. Nothing here waits for a lock: BlockingIOError says
that another process holds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fleet_model import partition, rules, sections, twin_partition, twin_partition_document
from fleet_worker import control_plane, errors
from fleet_worker.adapters import durable, fleet_documents, local_folder

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
"""Of a worker or a shard; none can leave the folder."""

Signature = tuple[int, int, int]


def is_name(name: str) -> bool:
    """Whether it can name a worker."""
    return _NAME.fullmatch(name) is not None


class Look:
    """Reads all partitions again and again, and only those files anew that have changed. Of one reader."""

    def __init__(self, files: ControlFiles) -> None:
        self._files = files
        self._known: dict[str, tuple[Signature, twin_partition.TwinPartition]] = {}

    def partitions(self, anew: bool = False) -> dict[str, twin_partition.TwinPartition]:
        """By shard id. anew: every file, also those that look the same: two changes within a tick of the file system's clock may.

        Raises ControlPlaneUnavailableError.
        """
        known = {} if anew else self._known
        self._known = {}
        for name, signature in self._files.partition_files():
            before = known.get(name)
            if before is not None and before[0] == signature:
                self._known[name] = before
                continue
            with contextlib.suppress(errors.PartitionGoneError):  # it went since
                self._known[name] = (signature, self._files.read_partition(name))
        return {name: entry for name, (_, entry) in self._known.items()}


class ControlFiles:
    """One control folder."""

    def __init__(self, root: Path) -> None:
        self.path = root
        self._partitions = root / "partitions"
        self._workers = root / "workers"
        self._version = root / "version"
        self.generations_path = root / "fleet" / "generations.json"
        self.start_path = root / "start.json"

    def prepare(self) -> None:
        """Makes what is missing. Raises DiskFullError, DataFolderError."""
        for folder in (self._partitions, self._workers, self.generations_path.parent):
            durable.make_folder(folder)
        with self.locked():
            if not self._version.exists():
                durable.replace(self._version, b"0")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone in changing the folder. Raises BlockingIOError, ControlPlaneUnavailableError."""
        with self._reached():
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)  # gives the lock back

    # ── partitions ───────────────────────────────────────────────────────────────────────────────────────────────

    def version(self) -> bytes:
        """Differs after every change of a partition. Raises ControlPlaneUnavailableError."""
        with self._reached():
            return self._version.read_bytes()

    def partition_files(self) -> list[tuple[str, Signature]]:
        """Shard ids in order. Raises ControlPlaneUnavailableError."""
        self.version()
        found = []
        with self._reached(), os.scandir(self._partitions) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    with contextlib.suppress(FileNotFoundError):
                        told = entry.stat()
                        found.append((entry.name.removesuffix(".json"), (told.st_ino, told.st_mtime_ns, told.st_size)))
        return sorted(found)

    def read_partition(self, shard_id: str) -> twin_partition.TwinPartition:
        """Raises PartitionGoneError, ControlPlaneUnavailableError."""
        self.version()
        path = self._partition_path(shard_id)
        try:
            with self._reached():
                text = path.read_bytes()
        except FileNotFoundError as error:
            raise errors.PartitionGoneError(f"partition {shard_id}: {path} doesn't exist") from error
        try:
            read = twin_partition_document.parse_document(_mapping(text))
        except (ValueError, RecursionError, sections.InvalidFleetError) as error:
            raise errors.ControlPlaneUnavailableError(
                f"{path}: can't be read: {error}; remove it: the control loop makes it anew, and goes on from the partition's manifest"
            ) from error
        if read.spec.shard_id != shard_id:
            raise errors.ControlPlaneUnavailableError(f"{path}: is of {read.spec.shard_id}; give it that name")
        return read

    def create(self, wanted: twin_partition.TwinPartition) -> twin_partition.TwinPartition:
        """While locked. Raises PreconditionFailedError, ControlPlaneUnavailableError."""
        shard_id = wanted.spec.shard_id
        with self._reached():
            exists = self._partition_path(shard_id).exists()
        if exists:
            raise errors.PreconditionFailedError(f"partition {shard_id}: there is an object for it already")
        version = self._next(0)
        return self._write(dataclasses.replace(wanted, uid=str(version)), version)

    def update(
        self,
        shard_id: str,
        resource_version: str,
        *,
        spec: twin_partition.Spec | None = None,
        status: twin_partition.Status | None = None,
    ) -> twin_partition.TwinPartition:
        """Replaces spec or status; while locked. Raises PreconditionFailedError, PartitionGoneError, ControlPlaneUnavailableError."""
        stored = self._expected(shard_id, resource_version)
        changed = dataclasses.replace(
            stored,
            spec=stored.spec if spec is None else spec,
            status=stored.status if status is None else status,
        )
        assert changed.spec.shard_id == shard_id
        return self._write(changed, self._next(int(stored.resource_version)))

    def delete(self, shard_id: str, resource_version: str) -> None:
        """While locked. Raises as update."""
        stored = self._expected(shard_id, resource_version)
        path = self._partition_path(shard_id)
        with self._reached():
            path.unlink()
            durable.sync_folder(path.parent)
        self._announce(self._next(int(stored.resource_version)))

    def _expected(self, shard_id: str, resource_version: str) -> twin_partition.TwinPartition:
        stored = self.read_partition(shard_id)
        if stored.resource_version != resource_version:
            raise errors.PreconditionFailedError(
                f"partition {shard_id}: its object is at {stored.resource_version} by now, not {resource_version}"
            )
        return stored

    def _write(self, wanted: twin_partition.TwinPartition, version: int) -> twin_partition.TwinPartition:
        document = twin_partition_document.document(dataclasses.replace(wanted, resource_version=str(version)))
        data = json.dumps(document, allow_nan=False, indent=1).encode() + b"\n"
        with self._reached():
            self.version()  # a folder that is gone isn't made anew by a write
            durable.replace(self._partition_path(wanted.spec.shard_id), data)
        # Only now: whoever sees the new version finds the new object. Should we die in between, readers find it at their next
        # look at everything.
        self._announce(version)
        return twin_partition_document.parse_document(document)

    def _next(self, before: int) -> int:
        """A version above every one that was given, `before` among them. After a crash of the machine `version` may be torn."""
        text = self.version()
        if text.isdigit():
            return max(int(text), before) + 1
        known = [int(entry.resource_version) for entry in Look(self).partitions().values()]
        return max(known, default=before) + 1

    def _announce(self, version: int) -> None:
        _replace(self._version, str(version).encode())

    def _partition_path(self, shard_id: str) -> Path:
        assert is_name(shard_id), f"{shard_id!r} can't name a file"
        return self._partitions / f"{shard_id}.json"

    # ── workers, start, generations ──────────────────────────────────────────────────────────────────────────────

    def put_heartbeat(self, beat: control_plane.Heartbeat) -> None:
        """Not made to last: it is worth something for seconds. Raises ControlPlaneUnavailableError."""
        document = {
            "name": beat.name,
            "address": beat.address,
            "ready": beat.ready,
            "timeMs": beat.time_ms,
            "pid": beat.pid,
            "load": dict(beat.load),
        }
        self.version()
        _replace(self._worker_path(beat.name), json.dumps(document).encode() + b"\n")

    def heartbeats(self) -> dict[str, control_plane.Heartbeat]:
        """By name. One that a crash of the machine tore is left out: such a worker is silent. Raises ControlPlaneUnavailableError."""
        self.version()
        found = {}
        with self._reached():
            paths = sorted(self._workers.glob("*.json"))
        for path in paths:
            with (
                contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError),
                self._reached(),
            ):
                told = _mapping(path.read_bytes())
                load = {str(shard): float(rate) for shard, rate in told["load"].items()}  # type: ignore[attr-defined]
                beat = control_plane.Heartbeat(
                    str(told["name"]),
                    str(told["address"]),
                    told["ready"] is True,
                    int(str(told["timeMs"])),
                    int(str(told["pid"])),
                    load,
                )
                found[beat.name] = beat
        return found

    def remove_heartbeat(self, name: str) -> None:
        """Idempotent. Raises ControlPlaneUnavailableError."""
        self.version()
        with self._reached():
            self._worker_path(name).unlink(missing_ok=True)

    def start(self) -> partition.Start | None:
        """Raises ControlPlaneUnavailableError, DataFolderError when it can't be read as a start."""
        self.version()
        return fleet_documents.read_start(self.start_path)

    def settle_start(self, start: partition.Start) -> partition.Start:
        """While locked. Raises DiskFullError, DataFolderError."""
        settled = self.start()
        if settled is None:
            durable.replace(self.start_path, fleet_documents.encoded(fleet_documents.start_document(start)))
        return settled or start

    def generations(self) -> tuple[rules.RulesGeneration, ...]:
        """Raises ControlPlaneUnavailableError, DataFolderError."""
        self.version()
        return fleet_documents.read_generations(self.generations_path)

    def generations_signature(self) -> Signature | None:
        """Differs after every change. Raises ControlPlaneUnavailableError."""
        self.version()
        try:
            with self._reached():
                told = self.generations_path.stat()
        except FileNotFoundError:
            return None
        return (told.st_ino, told.st_mtime_ns, told.st_size)

    def append_generation(
        self, make: control_plane.Make, oldest_arrival_ms: int, monotonic: Callable[[], float]
    ) -> tuple[rules.RulesGeneration, ...]:
        """As ForTheLoop's; while locked. Also raises ControlPlaneUnavailableError when the disk is too slow to keep it in time."""
        path = self.generations_path
        kept = self.generations()
        late_ms = 0
        for _ in range(control_plane.STAMP_TRIES_MAX):
            began_s = monotonic()
            generation = make(kept, late_ms)
            if generation is None:
                return kept
            needed = fleet_documents.with_next(kept, generation, oldest_arrival_ms, local_folder.GENERATIONS_MAX, path)
            draft = durable.draft(path, fleet_documents.encoded(fleet_documents.generations_document(needed)))
            took_ms = round((monotonic() - began_s) * 1000)
            if took_ms <= late_ms + control_plane.STAMP_LATE_MS:
                durable.put(draft, path)
                return needed
            late_ms = 2 * took_ms
        raise errors.ControlPlaneUnavailableError(
            f"{path}: the disk takes ever longer to write it: {took_ms} ms just now"
        )

    def _worker_path(self, name: str) -> Path:
        assert is_name(name), f"{name!r} can't name a worker"
        return self._workers / f"{name}.json"

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """What the disk refuses counts as out of reach; a missing file of a folder in use is the caller's to judge."""
        try:
            yield
        except FileNotFoundError as error:
            if self._version.exists():
                raise
            raise errors.ControlPlaneUnavailableError(
                f"{self.path}: is no control folder (any more); the control loop makes it when it starts"
            ) from error
        except (OSError, errors.DiskFullError, errors.DataFolderError) as error:
            if isinstance(error, BlockingIOError):
                raise
            raise errors.ControlPlaneUnavailableError(f"{self.path}: can't be used: {error}") from error


def _replace(path: Path, data: bytes) -> None:
    """Whole for every reader, but not made to outlive a crash of the machine. Raises ControlPlaneUnavailableError."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        raise errors.ControlPlaneUnavailableError(f"{path}: can't be written: {error}") from error


def _mapping(text: bytes) -> dict[str, object]:
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("it isn't a JSON object")
    return document
