"""Kubernetes' own programs and etcd, built once from their Go modules into the user's cache folder.

One file holds all of them (tests/e2e/cluster/binaries), linked to the name of each. `python -m tests.support.kubernetes_programs`
builds them ahead of the tests, which are timed, and prints their folder. Go checks every module against the go.sum that is kept here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support import go_toolchain, node

VERSION = "1.36.3"
MODULE = Path(__file__).parents[1] / "e2e" / "cluster" / "binaries"
NAMES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
BUILD_S_MAX = 3_600
"""Cold, on two busy cores; six minutes on two idle ones."""


def folder() -> Path:
    """Where the programs are, built if need be. Raises go_toolchain.NoGoError where a test has to be skipped."""
    told = hashlib.sha256(b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")))
    built = node.cache_folder() / f"kubernetes-{VERSION}-{told.hexdigest()[:12]}"
    if not built.exists():
        # Whoever comes second waits: two builds at once take longer than one after the other, which then finds it done.
        with _alone(node.cache_folder() / ".kubernetes.lock"):
            node.once(built, _build)
    return built


def program(name: str) -> Path:
    """Raises go_toolchain.NoGoError."""
    assert name in NAMES, name
    return folder() / name


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _build(made: Path) -> None:
    go = go_toolchain.find()
    major, minor, _patch = VERSION.split(".")
    # Without these the programs call themselves v0.0.0, and refuse each other.
    told = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
    linked = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in told.items())
    done = subprocess.run(
        [
            *(str(go), "build", "-mod=readonly", "-trimpath", "-buildvcs=false"),
            *("-ldflags", f"-s -w {linked}", "-o", str(made / "kubernetes"), "."),
        ],
        cwd=MODULE,
        env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"},
        capture_output=True,
        text=True,
        timeout=BUILD_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"go build failed with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    for name in NAMES:
        (made / name).symlink_to("kubernetes")


if __name__ == "__main__":
    print(folder())
