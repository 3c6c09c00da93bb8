"""A disk of a few mebibytes that a test can fill: a tmpfs mounted on a folder, unmounted at the end.

Mounting takes root with CAP_SYS_ADMIN; where that isn't given `mounted` says so by MountRefusedError, the only reason to
skip. A tmpfs has no blocks to write back, so what this disk can't show is the kernel finding out late.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 4096
MOUNT_S_MAX = 20.0
BUSY_S_MAX = 10.0


class MountRefusedError(Exception):
    """This machine doesn't let the test mount anything; with mount's own words."""


class SmallDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> int:
        """Takes every block that is left, whoever else writes meanwhile; the bytes taken."""
        with self._filler.open("ab", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while filler.write(bytes(64 * BLOCK_BYTES)):
                    pass
            with contextlib.suppress(OSError):
                while filler.write(bytes(BLOCK_BYTES)):
                    pass
            return filler.tell()

    def make_room(self) -> None:
        self._filler.unlink()

    def free_bytes(self) -> int:
        told = os.statvfs(self.folder)
        return told.f_bavail * told.f_frsize


@contextlib.contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Raises MountRefusedError."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "fleet-twin-test", str(folder)],
        capture_output=True,
        text=True,
        timeout=MOUNT_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise MountRefusedError(done.stderr.strip())
    try:
        yield SmallDisk(folder)
    finally:
        deadline = time.monotonic() + BUSY_S_MAX
        while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < deadline, f"{folder} can't be unmounted: something still uses it"
            time.sleep(0.1)  # a poll with a deadline: a process that was ended may not be gone yet
