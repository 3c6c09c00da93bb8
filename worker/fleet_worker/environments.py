"""The worker's environments, one a partition: who has one open, and that nobody has it open twice.

An owner, a standby, and a child that copies its parents' twins all ask here; they wait for one another.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
from asyncio import Lock
from collections.abc import AsyncIterator, Collection

from fleet_model import partition
from fleet_worker import ports

log = logging.getLogger(__name__)


class Place:
    """A partition's place on the disk, held by one user. `store` once it is opened."""

    def __init__(self, identity: partition.PartitionIdentity, disk: ports.Disk, clock: ports.Clock) -> None:
        self.identity = identity
        self._disk = disk
        self._clock = clock
        self._store: ports.TwinStore | None = None

    @property
    def store(self) -> ports.TwinStore:
        assert self._store is not None, "the environment isn't open"
        return self._store

    async def open(self) -> ports.TwinStore:
        """The store; the same one when it is open already. Raises StoreBrokenError, DiskFullError."""
        if self._store is None:
            opened = await self._clock.in_thread(functools.partial(self._disk.open, self.identity))
            self._store = opened.store
            if opened.discarded is not None:
                log.warning(
                    "partition %s: its environment can't be trusted (%s) and was moved aside; the twins are built again",
                    self.identity.shard_id,
                    opened.discarded,
                )
        return self._store

    async def anew(self) -> ports.TwinStore:
        """An empty store in place of what is there."""
        await self.close()
        await self._clock.in_thread(functools.partial(self._disk.remove, self.identity.shard_id))
        return await self.open()

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await self._clock.in_thread(store.close)


class Environments:
    """A worker's."""

    def __init__(self, disk: ports.Disk, clock: ports.Clock) -> None:
        self.disk = disk
        self._clock = clock
        self._locks: collections.defaultdict[str, Lock] = collections.defaultdict(Lock)

    @contextlib.asynccontextmanager
    async def place(self, identity: partition.PartitionIdentity) -> AsyncIterator[Place]:
        """Waits until nobody else has it; closes the store at the end."""
        async with self._locks[identity.shard_id]:
            place = Place(identity, self.disk, self._clock)
            try:
                yield place
            finally:
                await place.close()

    async def remove(self, shard_id: str) -> None:
        """Raises DataFolderError."""
        async with self._locks[shard_id]:
            await self._clock.in_thread(functools.partial(self.disk.remove, shard_id))
        self._locks.pop(shard_id, None)

    async def shards(self) -> list[str]:
        """That have an environment here."""
        return await self._clock.in_thread(self.disk.shards)

    async def left(self, listed: Collection[str]) -> list[ports.LeftBehind]:
        return await self._clock.in_thread(functools.partial(self.disk.left, listed))
