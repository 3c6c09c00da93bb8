"""Kubernetes' own programs, etcd and CoreDNS, built once from their Go modules into the user's cache folder.

One file holds Kubernetes' and etcd (tests/e2e/cluster/binaries), linked to the name of each. `python -m tests.support.kubernetes_programs`
builds them ahead of the tests, which are timed, and prints their folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support import go_module, go_toolchain

VERSION = "1.36.3"
DNS_VERSION = "1.15.0"
NAMES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
_MODULES = Path(__file__).parents[1] / "e2e" / "cluster"
_TOLD = "k8s.io/component-base/version"
KUBERNETES = go_module.Module(
    "kubernetes",
    VERSION,
    _MODULES / "binaries",
    NAMES,
    # Without these the programs call themselves v0.0.0, and refuse each other.
    (
        (f"{_TOLD}.gitVersion", f"v{VERSION}"),
        (f"{_TOLD}.gitMajor", VERSION.split(".")[0]),
        (f"{_TOLD}.gitMinor", VERSION.split(".")[1]),
    ),
)
COREDNS = go_module.Module("coredns", DNS_VERSION, _MODULES / "dns")


def folder() -> Path:
    """Where Kubernetes' programs are, built if need be. Raises go_toolchain.NoGoError where a test has to be skipped."""
    return go_module.built(KUBERNETES)


def program(name: str) -> Path:
    """Raises go_toolchain.NoGoError."""
    assert name in NAMES, name
    return folder() / name


def coredns() -> Path:
    """Raises go_toolchain.NoGoError."""
    return go_module.built(COREDNS) / "coredns"


def main() -> None:
    """What can't be built is told, and no failure: the tests that need it say so once more, and are skipped."""
    try:
        print(folder())
    except go_toolchain.NoGoError as missing:
        print(f"fleet-twin: no tests on a real API server: {missing}", file=sys.stderr)


if __name__ == "__main__":
    main()
