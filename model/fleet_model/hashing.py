"""Kinesis' partition hash and ranges of it.

Kinesis places a record by MD5 of its partition key, read as a 128-bit unsigned big-endian integer; a shard owns a
contiguous, inclusive range of these. Source: Kinesis API reference, `PutRecord` and `HashKeyRange`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

HASH_KEY_MAX = 2**128 - 1


def digest(device_id: str) -> bytes:
    """The 16 bytes that lead a twin's key, so that key order is hash-key order."""
    return hashlib.md5(device_id.encode(), usedforsecurity=False).digest()


def hash_key(device_id: str) -> int:
    """The 128-bit hash key of a device id."""
    return int.from_bytes(digest(device_id), "big")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class HashKeyRange:
    """An inclusive range of hash keys, 0 <= start <= end < 2**128."""

    start: int = 0
    end: int = HASH_KEY_MAX

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= HASH_KEY_MAX:
            raise ValueError(f"hash key range {self.start}..{self.end}: need 0 <= start <= end < 2**128")

    def __contains__(self, key: int) -> bool:
        return self.start <= key <= self.end

    def contains_digest(self, key_digest: bytes) -> bool:
        return self.start <= int.from_bytes(key_digest, "big") <= self.end

    def overlaps(self, other: HashKeyRange) -> bool:
        return self.start <= other.end and other.start <= self.end

    @property
    def size(self) -> int:
        return self.end - self.start + 1

    @property
    def first_key(self) -> bytes:
        """The smallest 16-byte digest inside."""
        return self.start.to_bytes(16, "big")

    @property
    def last_key(self) -> bytes:
        """The largest 16-byte digest inside."""
        return self.end.to_bytes(16, "big")


def covers(parts: Iterable[HashKeyRange], whole: HashKeyRange) -> bool:
    """Whether every key of the whole lies in one of the parts; they may overlap."""
    reached = whole.start
    for part in sorted(parts):
        if part.start > reached:
            break
        reached = max(reached, part.end + 1)
    return reached > whole.end


def spanning(parts: Iterable[HashKeyRange]) -> HashKeyRange:
    """The smallest range that holds all of the parts, at least one."""
    known = list(parts)
    return HashKeyRange(min(part.start for part in known), max(part.end for part in known))
