"""What the control plane is told, and when."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from fleet_model import twin_partition
from fleet_worker import errors, metrics, reporting
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
            metrics.Metrics(),
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


class Refusing(Stored):
    """Takes nothing while `error` is set; tries: when which shard was tried."""

    def __init__(self, clock: virtual_time.VirtualClock) -> None:
        super().__init__()
        self.error: errors.FleetTwinError | None = None
        self.tries: list[tuple[float, str]] = []
        self._clock = clock

    async def report(
        self, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
    ) -> twin_partition.Status:
        self.tries.append((self._clock.monotonic(), shard_id))
        if self.error is not None:
            raise self.error
        self.status = change(self.status)
        return self.status


def test_what_is_refused_for_good_is_told_once_counted_and_tried_ever_more_seldom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        clock = virtual_time.VirtualClock()
        stored, measured = Refusing(clock), metrics.Metrics()
        reporter = reporting.Reporter(
            stored, clock, measured, lambda shard_id: lambda status: dataclasses.replace(status, message="new")
        )
        running = asyncio.create_task(reporter.run())
        stored.error = errors.ControlPlaneRefusedError("answered 403: no", "look at the Role")
        for shard_id in (SHARD, "shardId-000000000001"):
            reporter.tell(shard_id)
        began = clock.monotonic()
        await clock.sleep(600.0)
        tried = [at for at, shard_id in stored.tries if shard_id == SHARD]
        assert [round(at - began) for at in tried[:7]] == [0, 1, 3, 7, 15, 31, 63]
        waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert max(waits) <= reporting.REFUSED_S_MAX + reporting.GROWTH_LOOK_S
        assert len(tried) > 13, "it gave up"
        assert measured.status_refused._value.get() == len(stored.tries)
        assert "look at the Role" in reporter.trouble
        told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(told) == 1
        assert "look at the Role" in told[0]
        stored.error = None
        await clock.sleep(reporting.REFUSED_S_MAX + reporting.GROWTH_LOOK_S)
        assert (stored.status.message, reporter.trouble) == ("new", "")
        assert "takes the partitions' statuses again" in caplog.messages[-1]
        running.cancel()
        await asyncio.wait((running,))

    virtual_time.run(main())


def test_what_only_finds_nobody_is_tried_each_second_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        clock = virtual_time.VirtualClock()
        stored, measured = Refusing(clock), metrics.Metrics()
        reporter = reporting.Reporter(stored, clock, measured, lambda shard_id: lambda status: status)
        running = asyncio.create_task(reporter.run())
        stored.error = errors.ControlPlaneUnavailableError("nobody answers")
        reporter.tell(SHARD)
        await clock.sleep(30.0)
        assert len(stored.tries) >= 29
        assert (reporter.trouble, measured.status_refused._value.get(), caplog.messages) == ("", 0, [])
        running.cancel()
        await asyncio.wait((running,))

    virtual_time.run(main())


def test_the_first_twins_of_a_new_fleet_are_told_soon() -> None:
    async def main() -> None:
        clock = virtual_time.VirtualClock()
        stored, twins = Refusing(clock), 0
        reporter = reporting.Reporter(
            stored, clock, metrics.Metrics(), lambda shard_id: lambda status: dataclasses.replace(status, twins=twins)
        )
        running = asyncio.create_task(reporter.run())
        reporter.tell(SHARD)
        await clock.sleep(60.0)
        twins = 1
        await clock.sleep(2 * reporting.GROWTH_LOOK_S)
        assert stored.status.twins == 1
        twins = 2  # not much more: with the next full figures
        await clock.sleep(2 * reporting.GROWTH_LOOK_S)
        assert stored.status.twins == 1
        await clock.sleep(reporting.FIGURES_EVERY_S)
        assert stored.status.twins == 2
        running.cancel()
        await asyncio.wait((running,))

    virtual_time.run(main())
