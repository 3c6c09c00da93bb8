"""What the kernel says of a process and of a disk: CPU, anonymous memory, writes that reached the device.

Linux only. Nothing here estimates: a figure that the kernel doesn't give is None. A process' own write counters are left
alone on purpose: they count pages made dirty, which the kernel folds before they reach a disk.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

_SECTOR_BYTES = 512
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def anonymous_bytes(pid: int) -> int:
    """RssAnon: memory that is the process' own. Mapped files (LMDB's pages, the tape) are the kernel's cache and not in it."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.split()[0]) * 1024
    raise AssertionError("the kernel gives no RssAnon")


@dataclasses.dataclass(frozen=True, slots=True)
class Writes:
    """Completed writes and their bytes, since the machine started."""

    count: int
    size_bytes: int


class Disk:
    """The block device that holds a folder. name: None where the file system has no such device (tmpfs, network)."""

    def __init__(self, folder: pathlib.Path) -> None:
        device = folder.stat().st_dev
        self._path = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        self.name = self._path.resolve().name if (self._path / "stat").exists() else None

    def writes(self) -> Writes:
        """By everything on the machine, so a measurement wants a quiet one. Needs a name."""
        fields = (self._path / "stat").read_text().split()
        return Writes(int(fields[4]), int(fields[6]) * _SECTOR_BYTES)


def pin(pid: int, cpus: set[int]) -> None:
    """The process and the threads that it will start run on these CPUs only."""
    os.sched_setaffinity(pid, cpus)


def allowed_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))
