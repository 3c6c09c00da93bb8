"""An fsync of a partition's store now and then, beside its loop: nothing waits for it but the store's end.

It never runs two at a time, and it doesn't decide what a failed one means: `check` raises what the store said.
"""

from __future__ import annotations

import asyncio

from fleet_model import spec
from fleet_worker import metrics, ports


class Syncing:
    """`if_due` often, `check` for errors, `ended` before the store is closed."""

    def __init__(
        self, store: ports.TwinStore, clock: ports.Clock, measured: metrics.Metrics, storage: spec.Storage
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = measured
        self._storage = storage
        self._synced_at = clock.monotonic()
        self._task: asyncio.Task[None] | None = None

    def if_due(self) -> None:
        """Begins one when the interval is over and none is under way. With an fsync per commit there is nothing to do."""
        now = self._clock.monotonic()
        is_early = now - self._synced_at < self._storage.sync_interval_ms / 1000
        if is_early or self._storage.sync is spec.Sync.COMMIT or (self._task is not None and not self._task.done()):
            return
        self._synced_at = now
        self._task = asyncio.create_task(self._sync())

    def check(self) -> None:
        """Raises StoreBrokenError when one has failed."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def ended(self) -> None:
        """Waits for the one under way. It isn't cancelled: its thread would go on, and the store must not be closed beside it. If it
        fails, the store knows, and closing it leaves no clean mark."""
        if self._task is not None:
            await asyncio.wait((self._task,))
            self._task.exception()  # looked at, so that asyncio doesn't call it forgotten

    async def _sync(self) -> None:
        with self._metrics.sync.time():
            await self._clock.in_thread(self._store.sync)
