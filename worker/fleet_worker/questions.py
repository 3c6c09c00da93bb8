"""What the API asks a partition's store, each answer read in a thread. It answers from what is committed and changes nothing;
what only the table knows is the asker's to lay over it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from fleet_model import hashing
from fleet_worker import ports
from fleet_worker.api import directory
from fleet_worker.core import commits, records


class StoreQuestions:
    """The reading half of directory.PartitionView. Raises StoreBrokenError."""

    def __init__(self, store: ports.TwinStore, clock: ports.Clock) -> None:
        self._asked = store
        self._threads = clock

    async def telemetry(self, device_ids: Sequence[str]) -> dict[str, bytes]:
        return await self._threads.in_thread(functools.partial(self._asked.telemetry, device_ids))

    async def fetch(self, device_ids: Sequence[str]) -> commits.TwinRows:
        return await self._threads.in_thread(functools.partial(self._asked.fetch, device_ids))

    async def stored(self, key_range: hashing.HashKeyRange) -> directory.StoredRows:
        rows, is_all = await self._threads.in_thread(functools.partial(self._asked.first, key_range))
        return directory.StoredRows(rows, complete=is_all)

    async def dead_letters(self, limit: int) -> list[records.DeadLetter]:
        return await self._threads.in_thread(functools.partial(self._asked.dead_letters, limit))
