"""What a worker has made durable so far, read beside it or after it was killed, and what follows from that."""

from __future__ import annotations

import base64
from pathlib import Path

import lmdb
import orjson

from fleet_model import partition
from fleet_proto import fleet_pb2
from fleet_worker.adapters import lmdb_codec
from fleet_worker.core import commits
from tests.support import live_fleet


def states(fleet: live_fleet.LiveFleet) -> dict[str, commits.PartitionState]:
    """The last committed state of each partition that has an environment, by shard id."""
    found = {}
    for data in sorted(fleet.partitions_folder.glob("*/environment/data.mdb")):
        state = _state(data.parent)
        if state is not None:
            found[data.parent.parent.name] = state
    return found


def _state(environment: Path) -> commits.PartitionState | None:
    try:
        with lmdb.open(str(environment), readonly=True, max_dbs=8) as opened, opened.begin() as transaction:
            meta = opened.open_db(b"meta", txn=transaction, create=False)
            value = transaction.get(b"state", db=meta)
    except lmdb.Error:
        return None  # killed while it was created
    return None if value is None else lmdb_codec.decode_state(value)


class PublishingWatch:
    """Invariant 2 as it can be seen from outside: at the moment that an alert leaves the worker its commit is durable. Nobody
    would notice afterwards: a replay brings the same alert with the same id."""

    def __init__(self, fleet: live_fleet.LiveFleet) -> None:
        self._fleet = fleet
        self.problems: list[str] = []
        self.seen = 0

    def __call__(self, operation: str, body: bytes) -> None:
        """proxy.FaultProxy.watch."""
        if operation != "PutRecords":
            return
        told = orjson.loads(body)
        if told["StreamName"] != self._fleet.stream(live_fleet.ALERTS):
            return
        committed = states(self._fleet)
        for entry in told["Records"]:
            alert = fleet_pb2.DeviceAlert.FromString(base64.b64decode(entry["Data"]))
            self.seen += 1
            state = committed.get(alert.shard_id, commits.PartitionState())
            if not _covers(state, alert):
                self.problems.append(f"published before its commit: {alert}; committed: {state}")


def _covers(state: commits.PartitionState, alert: fleet_pb2.DeviceAlert) -> bool:
    if alert.trigger == "offline" and alert.state == fleet_pb2.FIRING:
        return bool(alert.timestamp <= max(state.clock_ms, state.high_arrival_ms))
    return partition.Position(alert.sequence_number, alert.subsequence_number).key() <= state.position.key()
