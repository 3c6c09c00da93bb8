"""Reading a partition's environment inside one read transaction, so that everything read belongs together.

The store's own reads are each one short snapshot; a checkpoint takes one for all of it. It writes nothing, and it isn't
to be kept: a snapshot held for long makes the file grow, since the pages it sees can't be used again.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fleet_model import hashing
from fleet_worker.adapters import lmdb_codec
from fleet_worker.core import commits, effects, records

if TYPE_CHECKING:
    import lmdb

    from fleet_worker.adapters import lmdb_environment

CHUNK_ROWS = 2_500
"""Rows of a scan's chunk, and keys of one call into LMDB: about a millisecond in which Python's lock is held, and few
enough that a chunk stays in the processor's cache (larger chunks were measured to be slower)."""
WHOLE_RANGE = hashing.HashKeyRange()

Pairs = list[tuple[bytes, bytes]]


class LmdbSnapshot:
    """What one read transaction sees."""

    def __init__(self, environment: lmdb_environment.Environment, transaction: lmdb.Transaction[bytes]) -> None:
        self._environment = environment
        self._transaction = transaction

    @property
    def state(self) -> commits.PartitionState:
        value = self._transaction.get(b"state", db=self._environment.meta)
        return commits.PartitionState() if value is None else lmdb_codec.decode_state(value)

    def count(self) -> int:
        return self._transaction.stat(self._environment.twins)["entries"]

    def pairs(self, start: bytes, key_range: hashing.HashKeyRange) -> Pairs:
        """Stored (key, value) of the range's next twins from the key `start` on, ascending, at most CHUNK_ROWS."""
        cursor = self._transaction.cursor(self._environment.twins)
        if not cursor.set_range(max(start, key_range.first_key)):
            return []
        found = list(itertools.islice(cursor.iternext(), CHUNK_ROWS))
        if key_range.end < hashing.HASH_KEY_MAX:
            del found[bisect.bisect_left(found, (_beyond(key_range),)) :]
        return found

    def has_any(self, start: bytes, key_range: hashing.HashKeyRange) -> bool:
        """Whether the range holds a twin from the key `start` on."""
        cursor = self._transaction.cursor(self._environment.twins)
        if not cursor.set_range(max(start, key_range.first_key)):
            return False
        return key_range.end == hashing.HASH_KEY_MAX or cursor.key() < _beyond(key_range)

    def scan(
        self,
        key_range: hashing.HashKeyRange | None = None,
        *,
        with_telemetry: bool = False,
        changed_after: int | None = None,
    ) -> Iterator[commits.TwinRows]:
        """Every twin of the range in key order, in chunks; with changed_after, what each chunk has of those with a higher commit
        number, be it nothing."""
        start = b""
        while pairs := self.pairs(start, key_range or WHOLE_RANGE):
            yield lmdb_codec.twin_rows(pairs, with_telemetry=with_telemetry, changed_after=changed_after)
            start = pairs[-1][0] + b"\0"

    def fetch(self, device_ids: Sequence[str]) -> commits.TwinRows:
        return lmdb_codec.twin_rows(self._stored(device_ids))

    def telemetry(self, device_ids: Sequence[str]) -> dict[str, bytes]:
        rows = lmdb_codec.twin_rows(self._stored(device_ids), with_telemetry=True)
        found = zip(rows.device_ids, rows.telemetry, strict=True)
        return {device_id: raw for device_id, raw in found if raw is not None}

    def _stored(self, device_ids: Sequence[str]) -> Pairs:
        keys = lmdb_codec.sorted_keys(device_ids)
        cursor = self._transaction.cursor(self._environment.twins)
        found: Pairs = []
        for first in range(0, len(keys), CHUNK_ROWS):
            found += cursor.getmulti(keys[first : first + CHUNK_ROWS])
        return found

    def outbox(self) -> list[effects.OutboxEntry]:
        return [
            effects.OutboxEntry(lmdb_codec.key_number(key), lmdb_codec.decode_effect(value))
            for key, value in self._transaction.cursor(self._environment.outbox)
        ]

    def dead_letters(self, limit: int) -> list[records.DeadLetter]:
        cursor = self._transaction.cursor(self._environment.dead_letters)
        newest_first = cursor.iterprev(keys=False, values=True)
        return [lmdb_codec.decode_dead_letter(value) for value in itertools.islice(newest_first, limit)]

    def index_before(
        self, last_arrival_ms: int, limit: int, after: tuple[int, str] | None = None
    ) -> list[tuple[int, str]]:
        cursor = self._transaction.cursor(self._environment.offline_index)
        if not cursor.set_range(b"" if after is None else lmdb_codec.index_key(*after) + b"\0"):
            return []
        found = []
        for key in itertools.islice(cursor.iternext(keys=True, values=False), limit):
            entry = lmdb_codec.index_entry(key)
            if entry[0] >= last_arrival_ms:
                break
            found.append(entry)
        return found

    def index_keys(self, start: bytes) -> list[bytes]:
        """The offline index's next keys from `start` on, as stored, at most CHUNK_ROWS."""
        cursor = self._transaction.cursor(self._environment.offline_index)
        if not cursor.set_range(start):
            return []
        return list(itertools.islice(cursor.iternext(keys=True, values=False), CHUNK_ROWS))


def _beyond(key_range: hashing.HashKeyRange) -> bytes:
    """The first key after a range that doesn't reach the end of the hash space."""
    return (key_range.end + 1).to_bytes(lmdb_codec.DIGEST_BYTES, "big")
