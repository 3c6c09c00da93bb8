"""The TwinStore port in memory: for tests and the simulator, where disks fill up, fail and lose what wasn't synced.

It behaves as the LMDB store does (one contract suite judges both), and its faults come from a plan that is given, never
from chance. It keeps nothing beyond the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Iterator, Sequence

import numpy as np

from fleet_model import hashing, partition
from fleet_worker import errors
from fleet_worker.core import commits, effects, records, twins

DEAD_LETTERS_MAX = 10_000
DEAD_LETTER_BYTES_MAX = 64 * 2**20
CHUNK_ROWS = 2_500


class Survivor(enum.Enum):
    """What a crash leaves. COMMITTED: of the process. SYNCED: of the machine, where every page that was synced is believed.
    NOTHING: of the machine, where a copy that wasn't closed cleanly isn't."""

    COMMITTED = "committed"
    SYNCED = "synced"
    NOTHING = "nothing"


@dataclasses.dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which attempts fail, counted from 1 for commits and syncs apart."""

    full_commits: frozenset[int] = frozenset()
    broken_commits: frozenset[int] = frozenset()
    broken_syncs: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Twin:
    row: bytes
    extra: bytes | None
    telemetry: bytes | None


Key = tuple[bytes, str]


def _key(device_id: str) -> Key:
    return hashing.digest(device_id), device_id


@dataclasses.dataclass(slots=True)
class Contents:
    """All that is stored, and the reads of the port on it."""

    state: commits.PartitionState = dataclasses.field(default_factory=commits.PartitionState)
    twins: dict[Key, Twin] = dataclasses.field(default_factory=dict)
    entries: dict[int, effects.Effect] = dataclasses.field(default_factory=dict)
    letters: list[records.DeadLetter] = dataclasses.field(default_factory=list)
    index: set[tuple[int, Key]] = dataclasses.field(default_factory=set)

    def copy(self) -> Contents:
        return Contents(self.state, dict(self.twins), dict(self.entries), list(self.letters), set(self.index))

    def count(self) -> int:
        return len(self.twins)

    def scan(
        self,
        key_range: hashing.HashKeyRange | None = None,
        *,
        with_telemetry: bool = False,
        changed_after: int | None = None,
    ) -> Iterator[commits.TwinRows]:
        wanted = key_range or hashing.HashKeyRange()
        keys = sorted(key for key in self.twins if wanted.contains_digest(key[0]))
        for first in range(0, len(keys), CHUNK_ROWS):
            chunk = keys[first : first + CHUNK_ROWS]
            if changed_after is not None:
                chunk = [key for key in chunk if _commit_number(self.twins[key]) > changed_after]
            yield self._rows(chunk, with_telemetry=with_telemetry)

    def fetch(self, device_ids: Sequence[str]) -> commits.TwinRows:
        return self._rows(sorted(key for key in set(map(_key, device_ids)) if key in self.twins))

    def _rows(self, keys: Sequence[Key], *, with_telemetry: bool = False) -> commits.TwinRows:
        found = [self.twins[key] for key in keys]
        return commits.TwinRows(
            digests=np.frombuffer(bytearray().join(digest for digest, _ in keys), dtype=np.dtype("V16")),
            device_ids=[device_id for _, device_id in keys],
            rows=np.frombuffer(bytearray().join(twin.row for twin in found), dtype=twins.TWIN_DTYPE),
            extras={index: twin.extra for index, twin in enumerate(found) if twin.extra is not None},
            telemetry=[twin.telemetry if with_telemetry else None for twin in found],
        )

    def telemetry(self, device_ids: Sequence[str]) -> dict[str, bytes]:
        found = {device_id: self.twins.get(_key(device_id)) for device_id in device_ids}
        return {name: twin.telemetry for name, twin in found.items() if twin and twin.telemetry is not None}

    def outbox(self) -> list[effects.OutboxEntry]:
        return [effects.OutboxEntry(number, self.entries[number]) for number in sorted(self.entries)]

    def dead_letters(self, limit: int) -> list[records.DeadLetter]:
        return self.letters[::-1][:limit]

    def index_before(
        self, last_arrival_ms: int, limit: int, after: tuple[int, str] | None = None
    ) -> list[tuple[int, str]]:
        start = (-1, (b"", "")) if after is None else (after[0], _key(after[1]))
        older = sorted(entry for entry in self.index if start < entry and entry[0] < last_arrival_ms)
        return [(arrival_ms, device_id) for arrival_ms, (_, device_id) in older[:limit]]

    def apply(self, commit: commits.Commit) -> None:
        for device_id in commit.deleted:
            self.twins.pop(_key(device_id), None)
        self.put(commit.twins)
        for number in commit.outbox_removed:
            self.entries.pop(number, None)
        self.entries |= {entry.number: entry.effect for entry in commit.outbox_added}
        self.letters = _newest([*self.letters, *commit.dead_letters])
        self.index -= {(arrival_ms, _key(device_id)) for arrival_ms, device_id in commit.index_removed}
        self.index |= {(arrival_ms, _key(device_id)) for arrival_ms, device_id in commit.index_added}
        self.state = commit.state

    def put(self, given: commits.TwinRows) -> None:
        for index, key in enumerate(zip(given.digests.tolist(), given.device_ids, strict=True)):
            telemetry = given.telemetry[index]
            if telemetry is None and key in self.twins:
                telemetry = self.twins[key].telemetry
            self.twins[key] = Twin(given.rows[index].tobytes(), given.extras.get(index), telemetry)


def _commit_number(twin: Twin) -> int:
    return int(np.frombuffer(twin.row, dtype=twins.TWIN_DTYPE)["commit"][0])


def _newest(letters: list[records.DeadLetter]) -> list[records.DeadLetter]:
    """Those that the bounds let stay."""
    kept, size = 0, 0
    for letter in letters[: -DEAD_LETTERS_MAX - 1 : -1]:
        size += len(letter.data)
        if size > DEAD_LETTER_BYTES_MAX:
            break
        kept += 1
    return letters[len(letters) - kept :]


class MemoryTwinStore:
    """A partition's twins, outbox and state in dictionaries."""

    def __init__(
        self, identity: partition.PartitionIdentity, faults: FaultPlan | None = None, contents: Contents | None = None
    ) -> None:
        """contents: what the disk holds at opening."""
        self.identity = identity
        self.discarded: str | None = None
        self.disk_full = False
        """While true, every commit finds no room."""
        self.io_error = False
        """While true, the next commit or sync fails for good."""
        self._faults = faults or FaultPlan()
        self._contents = contents or Contents()
        self._synced = self._contents.copy()
        self._commits = 0
        self._syncs = 0
        self._unusable: str | None = None
        self._broken = ""
        self._is_closed = False

    @property
    def state(self) -> commits.PartitionState:
        return self._contents.state

    @property
    def contents(self) -> Contents:
        """As of the last successful commit, whatever became of the store."""
        return self._contents

    @property
    def is_open(self) -> bool:
        """Whether it holds its place: one that is broken does until it is closed or crashed."""
        return not self._is_closed

    @property
    def broken(self) -> str:
        """Why it can't be trusted; "" while it can."""
        return self._broken

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Contents]:
        self._check_usable()
        yield self._contents.copy()

    def scan(self, key_range: hashing.HashKeyRange | None = None) -> Iterator[commits.TwinRows]:
        self._check_usable()
        return self._contents.scan(key_range)

    def first(self, key_range: hashing.HashKeyRange) -> tuple[commits.TwinRows, bool]:
        self._check_usable()
        chunks = self._contents.scan(key_range)
        return next(chunks, commits.no_rows()), next(chunks, None) is None

    def count(self) -> int:
        self._check_usable()
        return self._contents.count()

    def fetch(self, device_ids: Sequence[str]) -> commits.TwinRows:
        self._check_usable()
        return self._contents.fetch(device_ids)

    def telemetry(self, device_ids: Sequence[str]) -> dict[str, bytes]:
        self._check_usable()
        return self._contents.telemetry(device_ids)

    def outbox(self) -> list[effects.OutboxEntry]:
        self._check_usable()
        return self._contents.outbox()

    def dead_letters(self, limit: int) -> list[records.DeadLetter]:
        self._check_usable()
        return self._contents.dead_letters(limit)

    def index_before(
        self, last_arrival_ms: int, limit: int, after: tuple[int, str] | None = None
    ) -> list[tuple[int, str]]:
        self._check_usable()
        return self._contents.index_before(last_arrival_ms, limit, after)

    def commit(self, commit: commits.Commit) -> None:
        self._check_usable()
        self._commits += 1
        if self.disk_full or self._commits in self._faults.full_commits:
            raise errors.DiskFullError(f"{self.identity.shard_id}: no room on the disk; nothing changed")
        if self.io_error or self._commits in self._faults.broken_commits:
            self._break("an I/O error while committing")
        self._contents.apply(commit)

    def append(self, rows: commits.TwinRows) -> None:
        self._check_usable()
        self._commits += 1
        if self.disk_full or self._commits in self._faults.full_commits:
            raise errors.DiskFullError(f"{self.identity.shard_id}: no room on the disk; nothing changed")
        if self.io_error or self._commits in self._faults.broken_commits:
            self._break("an I/O error while restoring")
        keys = list(zip(rows.digests.tolist(), rows.device_ids, strict=True))
        in_order = keys == sorted(keys) and (
            not keys or not self._contents.twins or max(self._contents.twins) < keys[0]
        )
        assert in_order, f"{self.identity.shard_id}: rows to append are beyond those that are stored"
        self._contents.put(rows)

    def clear(self) -> None:
        self._check_usable()
        self._contents = Contents(state=self._contents.state)

    def replace(self, contents: Contents) -> None:
        """All that is stored, at once; what was there must not have been begun with."""
        self._check_usable()
        assert self.state == commits.PartitionState(), f"{self.identity.shard_id} has begun already"
        self._contents = contents

    def sync(self) -> None:
        self._check_usable()
        self._syncs += 1
        if self.io_error or self._syncs in self._faults.broken_syncs:
            self._break("fsync failed")
        self._synced = self._contents.copy()

    def close(self) -> None:
        self._is_closed = True
        if self._unusable is None:
            self.sync()
            self._unusable = "closed"

    def crash(self, leaves: Survivor) -> MemoryTwinStore:
        """The process or the machine dies. Returns the store as it opens afterwards; this one is gone."""
        self._unusable = "crashed"
        self._is_closed = True
        kept = {
            Survivor.COMMITTED: self._contents,
            Survivor.SYNCED: self._synced,
            Survivor.NOTHING: Contents(),
        }[leaves]
        reopened = MemoryTwinStore(self.identity, contents=kept.copy())
        if leaves is Survivor.NOTHING:
            reopened.discarded = "not closed cleanly, and the machine has restarted since"
        return reopened

    def _check_usable(self) -> None:
        if self._unusable is not None:
            raise errors.StoreBrokenError(
                f"{self.identity.shard_id}: the store is not usable any more: {self._unusable}"
            )

    def _break(self, reason: str) -> None:
        self._unusable = self._broken = reason
        raise errors.StoreBrokenError(f"{self.identity.shard_id}: {reason}")


def copy_range(
    child: MemoryTwinStore,
    parents: Sequence[MemoryTwinStore],
    key_range: hashing.HashKeyRange,
    state: commits.PartitionState,
) -> None:
    """As lmdb_store.copy_range."""
    contents = Contents()
    number = 0
    for parent in parents:
        with parent.snapshot() as source:
            contents.twins |= {key: twin for key, twin in source.twins.items() if key_range.contains_digest(key[0])}
            contents.index |= {entry for entry in source.index if key_range.contains_digest(entry[1][0])}
            for entry in source.outbox():
                if effects.goes_to_child(entry.effect, parent.identity.hash_key_range, key_range):
                    number += 1
                    contents.entries[number] = entry.effect
    contents.state = dataclasses.replace(state, outbox_next=max(state.outbox_next, number + 1))
    child.replace(contents)
