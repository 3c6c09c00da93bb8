"""Whether this machine can have the cluster at all, said before anything is begun."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from tests.e2e.cluster import errors, node_files
from tests.support import go_toolchain, kubernetes_programs

PROGRAMS = ("containerd", "ctr", "runc", "ip", "iptables", "mount", "nsenter", "unshare")
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
PACKAGES = Path(__file__).parents[1] / "packages.sh"
INSTALL_S_MAX = 1_200


def check() -> None:
    """Raises NotHereError with everything that is missing."""
    lacks = list(_lacks())
    if lacks:
        raise errors.NotHereError("no cluster can be made on this machine: " + "; ".join(lacks))
    try:
        kubernetes_programs.folder()
        kubernetes_programs.coredns()
    except go_toolchain.NoGoError as missing:
        raise errors.NotHereError(f"Kubernetes' programs can't be built here: {missing}") from missing


def install() -> None:
    """The Debian packages. Raises NotHereError with the script's words."""
    done = subprocess.run([str(PACKAGES)], capture_output=True, text=True, timeout=INSTALL_S_MAX, check=False)
    if done.returncode != 0:
        raise errors.NotHereError(done.stderr.strip()[-1000:])


def environment() -> dict[str, str]:
    """For the node's programs: where Debian keeps what they call, whatever the caller's PATH is."""
    known = os.environ.get("PATH", "").split(os.pathsep)
    return os.environ | {"PATH": os.pathsep.join([*known, *(at for at in SYSTEM_FOLDERS if at not in known)])}


def _lacks() -> list[str]:
    if platform.system() != "Linux":
        return [f"it needs Linux, this is {platform.system()}"]
    if os.geteuid() != 0:
        return ["it needs root (network namespaces, mounts, containers): run it with sudo"]
    lacks = []
    search = environment()["PATH"]
    missing = [name for name in PROGRAMS if shutil.which(name, path=search) is None]
    if not (Path(node_files.BINARIES) / "bridge").exists():
        missing.append("the CNI plugin bridge")
    if missing:
        lacks.append(f"{', '.join(missing)} missing: run {PACKAGES.relative_to(PACKAGES.parents[2])}")
    elif (
        subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode != 0
    ):
        lacks.append("root here may not make namespaces (a container without CAP_SYS_ADMIN?)")
    return lacks
