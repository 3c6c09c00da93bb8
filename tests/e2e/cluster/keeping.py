"""A cluster that stays until it is told to go: for people, and for tests that are run again and again.

A process of its own keeps it, found by a file in the user's cache folder; ending that process takes the cluster down.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.cluster import errors, local_cluster, network
from tests.support import node

UP_S_MAX = 600.0
DOWN_S_MAX = 120.0
LOOK_AGAIN_S = 0.2


def state_file() -> Path:
    return node.cache_folder() / "cluster.json"


def state() -> dict[str, Any] | None:
    """Of the cluster that is kept: namespace, kubeconfig, kubectl, pid, began. None when there is none, or its keeper has died."""
    try:
        told: dict[str, Any] = json.loads(state_file().read_text())
    except FileNotFoundError:
        return None
    return told if _is_alive(told) else None


def up(nodes: int, images: Sequence[Path]) -> dict[str, Any]:
    """Returns when the cluster is ready; at once when there is one. Raises NodeFailedError with the keeper's words."""
    there = state()
    if there is not None:
        return there
    state_file().parent.mkdir(parents=True, exist_ok=True)
    state_file().unlink(missing_ok=True)
    log = state_file().with_suffix(".log")
    with log.open("wb") as said:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.cluster", "keep", f"--nodes={nodes}", *map(str, images)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + UP_S_MAX
    while (told := state()) is None:
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise errors.NodeFailedError(f"the cluster didn't come up:\n{log.read_text()[-3000:]}")
        time.sleep(LOOK_AGAIN_S)  # a poll with a deadline
    return told


def keep(nodes: int, images: Sequence[Path]) -> None:
    """What the keeper does: a cluster until SIGTERM or SIGINT."""
    told_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: told_to_end.set())
    with local_cluster.running(nodes, images) as cluster:
        document = {
            "namespace": cluster.namespace,
            "kubeconfig": str(cluster.server.kubeconfig_path),
            "kubectl": str(cluster.server.kubectl),
            "pid": os.getpid(),
            "began": psutil.Process().create_time(),
        }
        scratch = state_file().with_suffix(".new")
        scratch.write_text(json.dumps(document))
        scratch.rename(state_file())
        told_to_end.wait()
    state_file().unlink(missing_ok=True)


def down() -> None:
    """Idempotent. Raises NodeFailedError when the keeper doesn't end."""
    told = state()
    if told is None:
        return
    os.kill(told["pid"], signal.SIGTERM)
    deadline = time.monotonic() + DOWN_S_MAX
    while _is_alive(told):
        if time.monotonic() > deadline:
            raise errors.NodeFailedError(f"process {told['pid']}, which keeps the cluster, doesn't end")
        time.sleep(LOOK_AGAIN_S)  # a poll with a deadline


def kubectl(words: Sequence[str]) -> None:
    """Becomes kubectl. Raises NodeFailedError when no cluster is up."""
    told = state()
    if told is None:
        raise errors.NodeFailedError("no cluster is up: python -m tests.e2e.cluster up")
    network.enter(told["namespace"])
    os.execve(told["kubectl"], ["kubectl", *words], os.environ | {"KUBECONFIG": told["kubeconfig"]})


def _is_alive(told: dict[str, Any]) -> bool:
    """By pid and beginning: a pid alone may be somebody else's by now."""
    try:
        process = psutil.Process(told["pid"])
        return bool(process.create_time() == told["began"] and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
