"""Ownership outside Kubernetes with a single worker: every shard of the stream is its own."""

from __future__ import annotations

from fleet_model import partition
from fleet_worker import ports


class EveryShard:
    """ports.Ownership."""

    def __init__(self, stream: ports.Stream) -> None:
        self._stream = stream

    async def owned(self) -> list[partition.Shard]:
        return await self._stream.list_shards()
