"""When a worker has caught up for good: everything on the stream applied, everything that follows published."""

from __future__ import annotations

from typing import Any

from tests.support import live_fleet, streams, worker_process

CAUGHT_UP_S_MAX = 90.0
SCANNED_MS = 1_001
"""A clock this far past the last record has been scanned at: from there on it moves by whole seconds, each with its scan."""


async def caught_up(
    fleet: live_fleet.LiveFleet, worker: worker_process.WorkerProcess, clock_ms: int = 0
) -> dict[str, Any]:
    """The worker's status then. clock_ms: every partition's clock has to have reached it as well. Raises
    WorkerFailedError."""
    stream = fleet.stream(live_fleet.TELEMETRY)
    kinesis = fleet.streams
    telemetry = await kinesis.read(stream)
    while True:
        expected = {shard.shard_id for shard in await kinesis.shards(stream) if not shard.closed}
        status = await worker.until(
            lambda status, telemetry=telemetry, expected=expected: _is_done(status, telemetry, expected, clock_ms),  # type: ignore[misc]
            "the worker hasn't caught up",
            CAUGHT_UP_S_MAX,
        )
        before, telemetry = telemetry, await kinesis.read(stream)  # misrouted records may have come back to it
        if before == telemetry:
            return status


def _is_done(
    status: dict[str, Any], telemetry: dict[str, list[streams.Record]], expected: set[str], clock_ms: int
) -> bool:
    """expected: the shards that are open."""
    partitions = {entry["shard_id"]: entry for entry in status["partitions"]}
    if not status["ready"] or not expected <= partitions.keys():
        return False
    for shard_id, partition in partitions.items():
        read = telemetry[shard_id]
        last = int(read[-1].sequence_number) if read else 0
        high_ms = max((record.arrival_ms for record in read), default=0)
        if int(partition["position"]["sequence_number"] or 0) < last or partition["outbox"]["effects"]:
            return False
        if partition["clock_ms"] < max(high_ms + SCANNED_MS, clock_ms):
            return False
    return True
