"""Small files that are replaced as a whole and survive a crash of the process or of the machine.

A reader finds the old contents or the new ones, never a part. It refuses to leave in doubt what happened: DiskFullError
means that nothing changed, DataFolderError after a rename that only the next start will tell.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fleet_worker import errors

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def replace(path: Path, data: bytes) -> None:
    """Writes a draft beside the file, syncs it, renames it over the file, syncs the folder. One writer at a time.

    Raises DiskFullError (nothing changed; try again when there is room) or DataFolderError (don't try again).
    """
    put(draft(path, data), path)


def draft(path: Path, data: bytes) -> Path:
    """The first half of `replace`, all that may take long: the draft, synced. Raises DiskFullError, DataFolderError."""
    made = path.with_name(path.name + ".new")
    try:
        # A buffered file writes all of it or raises; a bare write may end early when the disk fills up.
        with made.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _refusal(path, error) from error
    return made


def put(made: Path, path: Path) -> None:
    """The second half: from now on readers find the draft's contents. Raises DataFolderError."""
    try:
        made.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise errors.DataFolderError(
            f"{path}: it is unknown whether the new contents will last ({error}); check the disk, then start again"
        ) from error


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it that are missing, and makes that durable. Idempotent. Raises as `replace`."""
    missing = [level for level in (folder, *folder.parents) if not level.is_dir()]
    try:
        for level in reversed(missing):
            level.mkdir(exist_ok=True)
            sync_folder(level.parent)
    except OSError as error:
        raise _refusal(folder, error) from error


def sync_folder(folder: Path) -> None:
    """Makes creations, renames and removals in the folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(path: Path, error: OSError) -> errors.FleetTwinError:
    if error.errno in NO_ROOM:
        return errors.DiskFullError(f"{path}: no room to write it; nothing changed, make room on this disk")
    return errors.DataFolderError(f"{path}: can't be written ({error}); check the folder's owner and the disk")
