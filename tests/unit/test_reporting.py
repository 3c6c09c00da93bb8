"""What the control plane is told, and when."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping

from fleet_model import twin_partition
from fleet_worker import reporting
from tests.support import virtual_time

SHARD = "shardId-000000000000"


class Stored:
    """ports.Ownership of one partition; a report waits until it is let through."""

    trouble = ""

    def __init__(self) -> None:
        self.status = twin_partition.Status()
        self.open = asyncio.Event()

    async def assignments(self) -> AsyncIterator[Mapping[str, twin_partition.TwinPartition]]:
        return
        yield

    async def report(
        self, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
    ) -> twin_partition.Status:
        await self.open.wait()
        self.status = change(self.status)
        return self.status

    def look_again(self) -> None:
        """There is nothing to look at."""


def test_a_report_that_a_stop_cuts_off_is_told_by_the_last_flush() -> None:
    async def main() -> None:
        stored = Stored()
        reporter = reporting.Reporter(
            stored,
            virtual_time.VirtualClock(),
            lambda shard_id: lambda status: dataclasses.replace(status, message="unclean"),
        )
        reporter.tell(SHARD)
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait((running,))
        assert stored.status.message == ""
        stored.open.set()
        await reporter.flush()
        assert stored.status.message == "unclean"

    virtual_time.run(main())
