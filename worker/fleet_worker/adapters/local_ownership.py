"""Ownership outside Kubernetes with a single worker: every shard of the stream is its own, and nobody else asks."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from fleet_model import partition, twin_partition
from fleet_worker import errors, ports

log = logging.getLogger(__name__)

SHARDS_EVERY_S = 5.0


class EveryShard:
    """ports.Ownership. The objects live in memory: with one worker there is nothing to agree on."""

    def __init__(self, stream: ports.Stream, namespace: str, fleet: str, worker: str) -> None:
        self.trouble = "the stream's shards aren't listed yet"
        self._stream = stream
        self._namespace = namespace
        self._fleet = fleet
        self._worker = worker
        self._objects: dict[str, twin_partition.TwinPartition] = {}
        self._look = asyncio.Event()

    async def assignments(self) -> AsyncIterator[Mapping[str, twin_partition.TwinPartition]]:
        known: dict[str, twin_partition.TwinPartition] | None = None
        while True:
            self._look.clear()
            try:
                shards = await self._stream.list_shards()
            except errors.FleetTwinError as error:
                log.warning("the stream's shards can't be listed, those known go on: %s", error)
                self.trouble = self.trouble and f"the stream's shards can't be listed: {error}"
            else:
                self.trouble = ""
                self._objects = {shard.shard_id: self._object(shard) for shard in shards}
                if self._objects != known:
                    known = dict(self._objects)
                    yield known
            try:
                async with asyncio.timeout(SHARDS_EVERY_S):
                    await self._look.wait()
            except TimeoutError:
                continue

    async def report(
        self, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
    ) -> twin_partition.Status:
        stored = self._objects.get(shard_id)
        if stored is None:
            raise errors.PartitionGoneError(f"partition {shard_id} is gone from the stream")
        status = change(stored.status)
        spec = stored.spec
        if status.manifest_epoch >= spec.epoch:
            # A manifest of former owners: this one is the only one who asks now.
            spec = dataclasses.replace(spec, epoch=status.manifest_epoch + 1, takeover=status.manifest_epoch + 1)
            self._look.set()
        self._objects[shard_id] = dataclasses.replace(stored, spec=spec, status=status)
        return status

    def look_again(self) -> None:
        self._look.set()

    def _object(self, shard: partition.Shard) -> twin_partition.TwinPartition:
        known = self._objects.get(shard.shard_id)
        if known is not None:
            return known
        spec = twin_partition.Spec(
            fleet=self._fleet,
            stream="",
            shard_id=shard.shard_id,
            hash_key_range=shard.hash_key_range,
            parents=shard.parents,
            worker=self._worker,
            epoch=1,
        )
        name = twin_partition.object_name(self._fleet, shard.shard_id)
        return twin_partition.TwinPartition(self._namespace, name, spec)
