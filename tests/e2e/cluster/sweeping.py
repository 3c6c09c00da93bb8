"""Clusters whose keeper was killed before it could take them down: their processes, namespaces and folders, found by the keeper's pid.

Whose keeper lives is left alone, and so is what has its name from somebody else: a namespace is ours by its name alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import psutil

from tests.e2e.cluster import network

_NAMESPACE = re.compile(r"fleet-twin-([0-9]+)(?:-[0-9]+)?")
_FOLDER = "fleet-twin-cluster-"
GONE_S_MAX = 10.0


def namespace() -> str:
    """Of a cluster that this process keeps."""
    return f"fleet-twin-{os.getpid()}"


def make_folder() -> Path:
    """For a cluster that this process keeps; pods' own users get through it to their volumes."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
    folder.chmod(0o755)
    return folder


def sweep() -> list[str]:
    """What was left and is gone now, by name. Idempotent."""
    swept = []
    spaces = network.path_of("any").parent
    for space in sorted(spaces.iterdir()) if spaces.is_dir() else []:
        found = _NAMESPACE.fullmatch(space.name)
        if found and not psutil.pid_exists(int(found[1])):
            _end_processes_in(space)
            network.remove(space.name)
            swept.append(space.name)
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_FOLDER}[0-9]*-*")):
        pid = int(folder.name.removeprefix(_FOLDER).partition("-")[0])
        if not psutil.pid_exists(pid):
            shutil.rmtree(folder)
            swept.append(folder.name)
    return swept


def _end_processes_in(space: Path) -> None:
    """With a node's first process goes all that it held."""
    inside = space.stat().st_ino
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if Path(f"/proc/{process.pid}/ns/net").stat().st_ino == inside:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=GONE_S_MAX)
