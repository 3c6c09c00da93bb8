"""Network namespaces: one for the cluster's control plane and the tests, one per node, joined by a bridge.

Nothing of the machine's own network is touched, and nothing in here reaches the world outside. Addresses are fixed: no two of these
namespaces see each other unless they are of one cluster.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.cluster import errors

CLONE_NEWNET = 0x40000000
COMMAND_S_MAX = 30
BRIDGE = "fleet0"
PODS_BRIDGE = "cni0"
"""Of each node."""
CONTROL = "10.245.0.1"
"""Of the API server, of DNS, and of whatever the tests start: pods reach it."""
PODS = "10.246.0.0/16"
SERVICES = "10.96.0.0/16"
NODES_MAX = 9


def node_address(number: int) -> str:
    """number: of the node, from 1."""
    return f"10.245.0.{10 + number}"


def pod_subnet(number: int) -> str:
    return f"10.246.{number}.0/24"


def run(*command: str) -> str:
    """Raises NodeFailedError with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)
    if done.returncode != 0:
        raise errors.NodeFailedError(f"{' '.join(command)}: {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def path_of(namespace: str) -> Path:
    return Path("/run/netns") / namespace


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This thread, and whatever thread, socket or process it begins meanwhile, is in the namespace."""
    with Path("/proc/thread-self/ns/net").open() as before, path_of(namespace).open() as inside:
        _set(inside.fileno())
        try:
            yield
        finally:
            _set(before.fileno())


def enter(namespace: str) -> None:
    """For good."""
    with path_of(namespace).open() as inside:
        _set(inside.fileno())


def make_cluster(namespace: str) -> None:
    run("ip", "netns", "add", namespace)
    with entered(namespace):
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{CONTROL}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        run("ip", "route", "add", "default", "dev", BRIDGE)


def make_node(cluster: str, namespace: str, number: int) -> None:
    """Joined to the bridge; every other node's pods are told their way already."""
    run("ip", "netns", "add", namespace)
    run(
        *("ip", "-n", cluster, "link", "add", _link(number), "type", "veth"),
        *("peer", "name", "eth0", "netns", namespace),
    )
    run("ip", "-n", cluster, "link", "set", _link(number), "master", BRIDGE, "up")
    run("ip", "-n", cluster, "route", "add", pod_subnet(number), "via", node_address(number))
    with entered(namespace):
        run("ip", "link", "set", "lo", "up")
        run("ip", "address", "add", f"{node_address(number)}/24", "dev", "eth0")
        run("ip", "link", "set", "eth0", "up")
        run("ip", "route", "add", "default", "via", CONTROL)
        for other in range(1, NODES_MAX + 1):
            if other != number:
                run("ip", "route", "add", pod_subnet(other), "via", node_address(other))
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def plug(cluster: str, number: int, is_in: bool) -> None:
    """The node's cable."""
    run("ip", "-n", cluster, "link", "set", _link(number), "up" if is_in else "down")


def forget_pods(namespace: str) -> None:
    """Of a node without power: its pods' links. The kernel keeps a dead pod's namespace, and with it its address, for as long as connections of
    its wait for answers, and pods after a boot get the same addresses."""
    links = json.loads(run("ip", "-n", namespace, "-json", "link", "show", "type", "veth") or "[]")
    for link in links:
        if link.get("master") == PODS_BRIDGE:
            run("ip", "-n", namespace, "link", "delete", link["ifname"])


def services_through(cluster: str, number: int) -> None:
    """Services' addresses lead to that node, which translates them: the control plane's own namespace has no kube-proxy."""
    run("ip", "-n", cluster, "route", "replace", SERVICES, "via", node_address(number))


def remove(namespace: str) -> None:
    """Idempotent. What still runs in it keeps it alive, nameless."""
    if path_of(namespace).exists():
        run("ip", "netns", "delete", namespace)


def _link(number: int) -> str:
    return f"node{number}"


def _set(file: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
