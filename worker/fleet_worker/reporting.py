"""Tells the control plane what this worker's partitions are doing: transitions at once, figures seldom, but soon when they double: the
first twins of a new fleet shouldn't look like none for minutes.

What can't be told now is told later, the newest only; nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fleet_model import twin_partition
from fleet_worker import errors, ports

log = logging.getLogger(__name__)

AGAIN_S = 1.0
FIGURES_EVERY_S = 600.0
GROWTH_LOOK_S = 15.0
AT_ONCE = 8

Change = Callable[[twin_partition.Status], twin_partition.Status]


class Reporter:
    """`tell` of a shard whenever something changed, `run` beside."""

    def __init__(self, ownership: ports.Ownership, clock: ports.Clock, change: Callable[[str], Change | None]) -> None:
        """change: what a shard's status is to become; None when there is nothing more to say of it."""
        self._ownership = ownership
        self._clock = clock
        self._change = change
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._told: dict[str, twin_partition.Status] = {}

    def tell(self, shard_id: str) -> None:
        self._changed.add(shard_id)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        figures_at = self._clock.monotonic() + FIGURES_EVERY_S
        while True:
            await self.flush()
            wait_s = AGAIN_S if self._changed else GROWTH_LOOK_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                self._wake.clear()
            except TimeoutError:
                self._changed |= self._doubled()
                if self._clock.monotonic() >= figures_at:
                    figures_at += FIGURES_EVERY_S
                    self._changed |= self._told.keys()

    def _doubled(self) -> set[str]:
        """Shards with more than twice the twins that were told. Nothing is asked for it."""
        found = set()
        for shard_id, told in self._told.items():
            change = self._change(shard_id)
            if change is not None and change(told).twins > 2 * told.twins:
                found.add(shard_id)
        return found

    async def flush(self) -> None:
        """Tells what has changed; what can't be told stays for the next time."""
        shard_ids, self._changed = sorted(self._changed), set()
        for first in range(0, len(shard_ids), AT_ONCE):
            try:
                await asyncio.gather(*(self._report(shard_id) for shard_id in shard_ids[first : first + AT_ONCE]))
            except asyncio.CancelledError:
                self._changed.update(shard_ids[first:])  # perhaps told, perhaps not: the last flush tells them again
                raise

    async def _report(self, shard_id: str) -> None:
        change = self._change(shard_id)
        if change is None:
            self._told.pop(shard_id, None)
            return
        try:
            self._told[shard_id] = await self._ownership.report(shard_id, change)
        except errors.ControlPlaneUnavailableError as error:
            log.debug("partition %s: its status can't be told now: %s", shard_id, error)
            self._changed.add(shard_id)
        except errors.PartitionGoneError:
            self._told.pop(shard_id, None)
