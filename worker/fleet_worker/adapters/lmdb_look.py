"""Looks at a partition's folder without opening its environment for use: whose it is, and what may be trusted.

It reads with neither lock nor write, so that what it looks at stays exactly as a crash left it. It decides nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import lmdb

from fleet_model import hashing, partition
from fleet_worker import errors
from fleet_worker.adapters import lmdb_codec, marks
from fleet_worker.core import twins


@dataclasses.dataclass(frozen=True, slots=True)
class Left:
    """What an earlier run left in a partition's folder. unfit: why its environment can't be trusted, None when it can; of one
    that can't nothing else is known. has_begun: its twins are its own: it has read, or inherited them."""

    key_range: hashing.HashKeyRange = hashing.HashKeyRange()
    has_begun: bool = False
    ended: bool = False
    unfit: str | None = None


def look(folder: Path, boot_id: str) -> Left | None:
    """What is in a partition's folder, without opening it for use or changing anything; None when nothing ever was committed.
    Raises StoreBrokenError when the environment can't be read."""
    path = folder / "environment"
    if not path.exists():
        return None
    unfit = marks.reason_against(folder, boot_id) or reason_unreadable(path)
    if unfit is not None:
        return Left(unfit=unfit)
    with lmdb.open(str(path), readonly=True, max_dbs=1, lock=False) as environment, environment.begin() as transaction:
        try:
            meta = environment.open_db(b"meta", txn=transaction, create=False)
        except lmdb.NotFoundError:
            return None
        identity, state = transaction.get(b"identity", db=meta), transaction.get(b"state", db=meta)
    if identity is None or state is None:
        return None
    try:
        key_range, found = lmdb_codec.decode_identity(identity).hash_key_range, lmdb_codec.decode_state(state)
    except lmdb_codec.CodecError as error:
        raise errors.StoreBrokenError(f"{folder}: {error}") from error
    return Left(key_range, has_begun=found.commit_number > 0, ended=found.ended)


def reason_unreadable(path: Path) -> str | None:
    """A process that died while it created the environment leaves a file that isn't one yet."""
    try:
        lmdb.open(str(path), readonly=True, max_dbs=1, lock=False).close()
    except lmdb.InvalidError as error:
        return f"never completely created ({error})"
    except lmdb.Error as error:
        data = path / "data.mdb"
        if not data.exists() or data.stat().st_size == 0:
            return f"never completely created ({error})"
        raise errors.StoreBrokenError(f"{path}: can't be opened: {error}") from error
    return None


def check_contents(path: Path, identity: partition.PartitionIdentity) -> None:
    """Raises StoreBrokenError, before anything is written, when the environment isn't this partition's or its rows
    are of another version."""
    with lmdb.open(str(path), readonly=True, max_dbs=1, lock=False) as environment, environment.begin() as transaction:
        try:
            meta = environment.open_db(b"meta", txn=transaction, create=False)
        except lmdb.NotFoundError:
            return  # Created, and nothing committed yet.
        version = transaction.get(b"row_version", db=meta)
        stored = transaction.get(b"identity", db=meta)
    if version is not None and version != str(twins.ROW_VERSION).encode():
        raise errors.StoreBrokenError(
            f"{path}: its twins have row version {version.decode(errors='replace')}, this worker reads and writes "
            f"version {twins.ROW_VERSION}. Run the version that wrote it, or remove the folder to restore the partition."
        )
    expected = lmdb_codec.encode_identity(identity)
    if stored is not None and stored != expected:
        raise errors.StoreBrokenError(
            f"{path}: belongs to {stored.decode(errors='replace')}, not to {expected.decode()}. "
            f"Give the fleet a data folder of its own, or remove this one."
        )
