"""Tells the control plane what this worker's partitions are doing: transitions at once, figures seldom, but soon when they double: the
first twins of a new fleet shouldn't look like none for minutes.

What can't be told now is told later, the newest only; nothing waits for it. What the control plane doesn't take, whatever is tried, is told
to whoever can mend that, and tried again ever more seldom.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from fleet_model import twin_partition
from fleet_worker import errors, metrics, ports

log = logging.getLogger(__name__)

AGAIN_S = 1.0
REFUSED_S_MAX = 60.0
"""Between two tries of what is refused: AGAIN_S at first, doubled each time up to this."""
FIGURES_EVERY_S = 600.0
GROWTH_LOOK_S = 15.0
AT_ONCE = 8

Change = Callable[[twin_partition.Status], twin_partition.Status]


@dataclasses.dataclass(frozen=True, slots=True)
class _Refused:
    """A shard's status that isn't taken. wait_s: from this try to the next, at again_at."""

    error: errors.ControlPlaneRefusedError
    wait_s: float
    again_at: float


class Reporter:
    """`tell` of a shard whenever something changed, `run` beside."""

    def __init__(
        self,
        ownership: ports.Ownership,
        clock: ports.Clock,
        measured: metrics.Metrics,
        change: Callable[[str], Change | None],
    ) -> None:
        """change: what a shard's status is to become; None when there is nothing more to say of it."""
        self._ownership = ownership
        self._clock = clock
        self._measured = measured
        self._change = change
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._told: dict[str, twin_partition.Status] = {}
        self._refused: dict[str, _Refused] = {}

    @property
    def trouble(self) -> str:
        """Why what is said isn't taken; "" when it is, or just nobody answers."""
        return next((str(entry.error) for entry in self._refused.values()), "")

    def tell(self, shard_id: str) -> None:
        self._changed.add(shard_id)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        figures_at = self._clock.monotonic() + FIGURES_EVERY_S
        while True:
            await self._report_all([shard_id for shard_id in sorted(self._changed) if self._wait_s(shard_id) <= 0])
            try:
                async with asyncio.timeout(self._rest_s()):
                    await self._wake.wait()
                self._wake.clear()
            except TimeoutError:
                self._changed |= self._doubled()
                if self._clock.monotonic() >= figures_at:
                    figures_at += FIGURES_EVERY_S
                    self._changed |= self._told.keys()

    def _rest_s(self) -> float:
        """Until something is to be tried again, or looked at."""
        waits_s = [max(self._wait_s(shard_id), AGAIN_S) for shard_id in self._changed]
        return min([GROWTH_LOOK_S, *waits_s])

    def _wait_s(self, shard_id: str) -> float:
        refused = self._refused.get(shard_id)
        return refused.again_at - self._clock.monotonic() if refused is not None else 0.0

    def _doubled(self) -> set[str]:
        """Shards with more than twice the twins that were told. Nothing is asked for it."""
        found = set()
        for shard_id, told in self._told.items():
            change = self._change(shard_id)
            if change is not None and change(told).twins > 2 * told.twins:
                found.add(shard_id)
        return found

    async def flush(self) -> None:
        """Tells what has changed, and tries once more what was refused; what can't be told stays for the next time."""
        await self._report_all(sorted(self._changed))

    async def _report_all(self, shard_ids: list[str]) -> None:
        self._changed.difference_update(shard_ids)
        for first in range(0, len(shard_ids), AT_ONCE):
            try:
                await asyncio.gather(*(self._report(shard_id) for shard_id in shard_ids[first : first + AT_ONCE]))
            except asyncio.CancelledError:
                self._changed.update(shard_ids[first:])  # perhaps told, perhaps not: the last flush tells them again
                raise

    async def _report(self, shard_id: str) -> None:
        change = self._change(shard_id)
        if change is None:
            self._forget(shard_id)
            return
        try:
            self._told[shard_id] = await self._ownership.report(shard_id, change)
        except errors.ControlPlaneRefusedError as error:
            self._changed.add(shard_id)
            self._note_refusal(shard_id, error)
        except errors.ControlPlaneUnavailableError as error:
            log.debug("partition %s: its status can't be told now: %s", shard_id, error)
            self._changed.add(shard_id)
        except errors.PartitionGoneError:
            self._forget(shard_id)
        else:
            self._taken(shard_id)

    def _note_refusal(self, shard_id: str, error: errors.ControlPlaneRefusedError) -> None:
        """Told once for all that has the same remedy."""
        self._measured.status_refused.inc()
        before = self._refused.get(shard_id)
        wait_s = AGAIN_S if before is None else min(REFUSED_S_MAX, 2 * before.wait_s)
        is_known = any(entry.error.remedy == error.remedy for entry in self._refused.values())
        log.log(
            logging.DEBUG if is_known else logging.WARNING,
            "its status isn't taken, and tried again seldom, those of others that can't be told for the same reason too: %s",
            error,
        )
        self._refused[shard_id] = _Refused(error, wait_s, self._clock.monotonic() + wait_s)

    def _forget(self, shard_id: str) -> None:
        self._told.pop(shard_id, None)
        self._taken(shard_id)

    def _taken(self, shard_id: str) -> None:
        if self._refused.pop(shard_id, None) is not None and not self._refused:
            log.info("the control plane takes the partitions' statuses again")
