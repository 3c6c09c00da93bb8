"""What a worker has made durable so far, read beside it or after it was killed, and what follows from that."""

from __future__ import annotations

import base64
import contextlib

import lmdb
import orjson

from fleet_proto import fleet_pb2
from fleet_worker.adapters import lmdb_codec
from fleet_worker.core import commits
from tests.support import live_fleet


def states(fleet: live_fleet.LiveFleet) -> dict[str, commits.PartitionState]:
    """The last committed state of each partition that has one, by shard id."""
    return {
        shard_id: lmdb_codec.decode_state(contents[b"state"])
        for shard_id, contents in _contents(fleet, "meta").items()
        if b"state" in contents
    }


def outbox_ids(fleet: live_fleet.LiveFleet) -> set[str]:
    """The ids of every effect in a committed outbox."""
    return {
        lmdb_codec.decode_effect(value).effect_id
        for contents in _contents(fleet, "outbox").values()
        for value in contents.values()
    }


def _contents(fleet: live_fleet.LiveFleet, name: str) -> dict[str, dict[bytes, bytes]]:
    """One database of each partition's environment, by shard id. What a kill left half created has none."""
    found = {}
    for data in sorted(fleet.partitions_folder.glob("*/environment/data.mdb")):
        if data.stat().st_size == 0:
            continue
        with (
            contextlib.suppress(lmdb.InvalidError, lmdb.NotFoundError),
            lmdb.open(str(data.parent), readonly=True, max_dbs=8) as environment,
            environment.begin() as transaction,
        ):
            database = environment.open_db(name.encode(), txn=transaction, create=False)
            found[data.parent.parent.name] = dict(transaction.cursor(database))
    return found


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
        committed = outbox_ids(self._fleet)
        for entry in told["Records"]:
            alert = fleet_pb2.DeviceAlert.FromString(base64.b64decode(entry["Data"]))
            self.seen += 1
            if alert.alert_id not in committed:
                self.problems.append(f"published, and in no committed outbox: {alert}")
