"""The first process of a node: it gives the node its own folders, reaps orphans, and takes everything along when it dies.

Run as a script, without the project, in fresh process, mount and network namespaces: `python node_init.py DISK READY`. The kernel
ends every process of the namespace together with this one, and with the last of them the node's mounts: as a power cut does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

KEPT = {"/var/lib/kubelet": "kubelet", "/var/log/pods": "pods"}
"""Folder of a node → where on its disk it is."""
VOLATILE = ("/run/containerd", "/var/lib/cni", "/var/log/containers")
"""Gone after a power cut."""


def main(disk: Path, ready: Path) -> None:
    # Kubelet's mounts must show in containers.
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    for place, name in KEPT.items():
        Path(place).mkdir(parents=True, exist_ok=True)
        (disk / name).mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(disk / name), place], check=True)
        subprocess.run(["mount", "--make-rshared", place], check=True)
    for place in VOLATILE:
        Path(place).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    ready.touch()
    # The children that are waited for are others' orphans: containers' processes whose parents are gone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        while _reaped():
            pass


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
