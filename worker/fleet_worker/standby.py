"""Keeps a warm copy of a partition that another worker owns: the newest checkpoint, brought forward by each that follows.

It never claims and never judges. A planned move warms its receiver by it, and `standbyReplicas` keeps some warm all the time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fleet_model import manifest
from fleet_worker import claimed, environments, errors, ports, restoring

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0


class Standby:
    """copy: the checkpoint that the place's store equals; None before the first."""

    def __init__(
        self, checkpoints: claimed.Checkpoints, place: environments.Place, clock: ports.Clock, tell: Callable[[], None]
    ) -> None:
        """tell: called when `copy` or `is_warm` changed."""
        self.copy: manifest.Checkpoint | None = None
        self.is_warm = False
        self._checkpoints = checkpoints
        self._place = place
        self._clock = clock
        self._tell = tell

    async def follow(self, is_wanted: Callable[[], bool], wait: Callable[[float], Awaitable[None]]) -> None:
        """Until it isn't wanted any more. wait: returns after so many seconds, or sooner. Raises StoreBrokenError, DiskFullError."""
        while is_wanted():
            try:
                await self._look()
            except (
                errors.ObjectStoreUnavailableError,
                errors.ObjectMissingError,  # collected between our two looks; the manifest names others by now
                errors.CheckpointBrokenError,
            ) as error:
                self._note(is_warm=False)
                log.warning("partition %s: the standby can't follow: %s", self._place.identity.shard_id, error)
            await wait(LOOK_EVERY_S)

    async def _look(self) -> None:
        found = await self._checkpoints.manifests.read(self._place.identity.shard_id)
        newest = found[0].checkpoint if found is not None else None
        if found is None or newest is None:
            return
        objects = self._checkpoints.objects
        if self.copy is None:
            store = await self._place.anew()
            await restoring.restore(objects, found[0], store, self._clock)
        elif self.copy.number != newest.number:
            copy, self.copy = self.copy, None  # until it is brought forward whole
            await restoring.bring_forward(objects, self._place.store, copy, found[0], self._clock)
        self._note(newest, is_warm=True)

    def _note(self, copy: manifest.Checkpoint | None = None, *, is_warm: bool) -> None:
        copy = copy or self.copy
        if (copy, is_warm) != (self.copy, self.is_warm):
            self.copy, self.is_warm = copy, is_warm
            self._tell()
