"""A process that counts up its own entry in a partition's status, as a standby does: one of many writers at once.

Run as `python -m tests.support.status_writer CONTROL_FOLDER SHARD_ID ROUNDS NAME`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path

from fleet_model import twin_partition
from fleet_worker.adapters import clock, control_folder


async def main(path: Path, shard_id: str, rounds: int, name: str) -> None:
    def counted(status: twin_partition.Status) -> twin_partition.Status:
        entries = {entry.worker: entry for entry in status.standby}
        own = entries.get(name, twin_partition.StandbyStatus(name))
        entries[name] = dataclasses.replace(own, checkpoint_number=own.checkpoint_number + 1)
        return dataclasses.replace(status, standby=tuple(entries.values()))

    with clock.RealClock() as real:
        owner = control_folder.ControlFolder(path, real).ownership(name)
        for _ in range(rounds):
            await owner.report(shard_id, counted)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))
