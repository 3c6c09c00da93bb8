"""The fleet's very first start, settled once for all workers before any of them polls: `Latest` becomes a time by Kinesis' clock.

It is kept where every worker of the fleet looks: in the bucket beside the partitions' folders, else in the control folder, else in
the one worker's data folder. Whoever is first decides; it never changes afterwards, whatever the fleet file says by then.
"""

from __future__ import annotations

import functools
from typing import Protocol

from fleet_model import partition, spec
from fleet_worker import errors, ports
from fleet_worker.adapters import fleet_documents, local_folder

KEY = "start.json"


class Keeper(Protocol):
    """Where it is kept. Raises what its place raises."""

    async def start(self) -> partition.Start | None:
        """None before it is settled."""

    async def settle_start(self, start: partition.Start) -> partition.Start:
        """Keeps the start unless there is one; returns the one that holds."""


async def settled(keeper: Keeper, telemetry: spec.TelemetryStream, stream: ports.Stream) -> partition.Start:
    """Raises FleetTwinError when the fleet was started on another stream; StreamGoneError, StreamUnavailableError."""
    start = await keeper.start()
    if start is None:
        start = await keeper.settle_start(await _chosen(telemetry, stream))
    if start.stream != telemetry.stream_name:
        raise errors.FleetTwinError(
            f"spec.streams.telemetry: this fleet was started on the stream {start.stream}, not on {telemetry.stream_name}; "
            "give the fleet another name, or folder and checkpoint prefix of its own"
        )
    return start


async def _chosen(telemetry: spec.TelemetryStream, stream: ports.Stream) -> partition.Start:
    match telemetry.start_position:
        case spec.StartPosition.LATEST:
            return partition.Start(telemetry.stream_name, await stream.now_ms())
        case spec.StartPosition.AT_TIMESTAMP:
            return partition.Start(telemetry.stream_name, telemetry.start_time_ms)
        case spec.StartPosition.TRIM_HORIZON:
            return partition.Start(telemetry.stream_name, None)


class InBucket:
    """Keeper. The first conditional write wins, whosever it is."""

    def __init__(self, objects: ports.ObjectStore) -> None:
        self._objects = objects

    async def start(self) -> partition.Start | None:
        """Raises CheckpointBrokenError, ObjectStoreUnavailableError, ObjectStoreRefusedError."""
        found = await self._objects.get(KEY)
        if found is None:
            return None
        try:
            return fleet_documents.parse_start(fleet_documents.checked(found.data))
        except ValueError as error:
            raise errors.CheckpointBrokenError(
                f"{KEY} of the fleet's prefix in the bucket can't be read: {error}; bring it back from an older version, or use the "
                "version of Fleet Twin that wrote it"
            ) from error

    async def settle_start(self, start: partition.Start) -> partition.Start:
        """Raises as start."""
        try:
            await self._objects.put_new(KEY, fleet_documents.encoded(fleet_documents.start_document(start)))
        except errors.PreconditionFailedError:
            theirs = await self.start()  # or ours, whose reply was lost
            if theirs is None:
                raise errors.CheckpointBrokenError(f"{KEY} of the fleet's prefix in the bucket was removed") from None
            return theirs
        return start


class InDataFolder:
    """Keeper, of a worker that is alone."""

    def __init__(self, folder: local_folder.LocalFolder, clock: ports.Clock) -> None:
        self._folder = folder
        self._clock = clock

    async def start(self) -> partition.Start | None:
        return self._folder.start

    async def settle_start(self, start: partition.Start) -> partition.Start:
        """Raises DiskFullError, DataFolderError."""
        return await self._clock.in_thread(functools.partial(self._folder.settle_start, start))
