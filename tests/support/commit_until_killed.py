"""A process that commits to a store until it kills itself in the middle of a commit. Run by tests, as a module:

    python -m tests.support.commit_until_killed FOLDER SEED

It says on standard output which commit begins and which has ended. Every commit rewrites every twin and adds one effect.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from fleet_model import partition, spec
from fleet_worker.adapters import lmdb_store
from tests.support import commits as build

IDENTITY = partition.PartitionIdentity("default", "fleet", "telemetry", "shardId-000000000000")
DEVICE_IDS = [f"device-{number}" for number in range(4_000)]


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def die_after(seconds: float) -> None:
    threading.Event().wait(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, seed: int) -> None:
    moments = random.Random(seed)
    last = moments.randint(3, 6)
    store = lmdb_store.LmdbTwinStore.open(folder, IDENTITY, spec.Storage(map_size_bytes=2**30), "boot")
    took_s = 0.0
    for number in range(1, last + 1_000):
        commit = build.commit(DEVICE_IDS, number=number, outbox=([build.outbox_entry(number)], [max(number - 2, 0)]))
        say(f"begin {number}")
        if number == last:
            threading.Thread(target=die_after, args=(moments.uniform(0, took_s),), daemon=True).start()
        began = time.perf_counter()
        store.commit(commit)
        took_s = time.perf_counter() - began
        say(f"end {number}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
