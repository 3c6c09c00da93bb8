"""What a worker that was killed has made durable, read without touching it: its environments stay as it left them."""

from __future__ import annotations

from pathlib import Path

import lmdb

from fleet_model import partition
from fleet_proto import fleet_pb2
from fleet_worker.adapters import lmdb_codec
from fleet_worker.core import commits
from tests.support import live_fleet


def states(fleet: live_fleet.LiveFleet) -> dict[str, commits.PartitionState]:
    """The last committed state of each partition that has an environment, by shard id. Also of a worker that runs."""
    found = {}
    for data in sorted(fleet.partitions_folder.glob("*/environment/data.mdb")):
        state = _state(data.parent)
        if state is not None:
            found[data.parent.parent.name] = state
    return found


def _state(environment: Path) -> commits.PartitionState | None:
    try:
        with lmdb.open(str(environment), readonly=True, lock=False, max_dbs=8) as opened, opened.begin() as transaction:
            meta = opened.open_db(b"meta", txn=transaction, create=False)
            value = transaction.get(b"state", db=meta)
    except lmdb.Error:
        return None  # killed while it was created
    return None if value is None else lmdb_codec.decode_state(value)


async def published_before_its_commit(fleet: live_fleet.LiveFleet) -> list[str]:
    """Alerts on the stream that no commit of the killed worker covers: invariant 2. A replay would bring them again with the
    same ids, so nobody would notice afterwards."""
    committed = states(fleet)
    found = []
    for record in await fleet.streams.read_all(fleet.stream(live_fleet.ALERTS)):
        alert = fleet_pb2.DeviceAlert.FromString(record.data)
        state = committed.get(alert.shard_id, commits.PartitionState())
        cause = partition.Position(alert.sequence_number, alert.subsequence_number)
        is_covered = cause.key() <= state.position.key()
        if alert.trigger == "offline" and alert.state == fleet_pb2.FIRING:
            is_covered = alert.timestamp <= max(state.clock_ms, state.high_arrival_ms)
        if not is_covered:
            found.append(f"published before its commit: {alert}; committed: {state}")
    return found
