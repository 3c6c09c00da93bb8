"""A store of twins in dictionaries, behind the table of an engine under test: commits that succeed or fail, rows that leave the
table and come back, the offline index. It keeps the rules of the store's port and nothing durable.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fleet_model import hashing
from fleet_proto import fleet_pb2
from fleet_worker.core import commits, engine, twins


class Store:
    """twins: device id → (row, extra's bytes or None, last raw Telemetry). index: device id → last arrival."""

    def __init__(self) -> None:
        self.twins: dict[str, tuple[np.void, bytes | None, bytes | None]] = {}
        self.index: dict[str, int] = {}

    def commit(self, commit: commits.Commit) -> None:
        for device_id in commit.deleted:
            self.twins.pop(device_id, None)
        changed = commit.twins
        digests = [digest.tobytes() for digest in changed.digests]
        assert digests == sorted(digests), "not in key order"
        assert digests == [hashing.digest(device_id) for device_id in changed.device_ids]
        for at, device_id in enumerate(changed.device_ids):
            _, _, telemetry = self.twins.get(device_id, (None, None, None))
            if changed.telemetry[at] is not None:
                telemetry = changed.telemetry[at]
            self.twins[device_id] = (changed.rows[at].copy(), changed.extras.get(at), telemetry)
        for last_arrival_ms, device_id in commit.index_removed:
            if self.index.get(device_id) == last_arrival_ms:
                del self.index[device_id]
        for last_arrival_ms, device_id in commit.index_added:
            self.index[device_id] = last_arrival_ms

    def load_into(self, machine: engine.TwinEngine, device_ids: Iterable[str]) -> None:
        """Those of the ids that are stored and not in the table."""
        wanted = [device_id for device_id in device_ids if device_id in self.twins]
        wanted = sorted(set(machine.table.only_stored(wanted)), key=hashing.digest)
        if not wanted:
            return
        machine.table.stored_elsewhere -= len(wanted)
        rows = np.array([self.twins[device_id][0] for device_id in wanted], dtype=twins.TWIN_DTYPE)
        extras = [self.twins[device_id][1] for device_id in wanted]
        machine.load(
            commits.TwinRows(
                digests=np.array([hashing.digest(device_id) for device_id in wanted], dtype="V16"),
                device_ids=wanted,
                rows=rows,
                extras={at: extra for at, extra in enumerate(extras) if extra is not None},
                telemetry=[None] * len(wanted),
            ),
            firmware=[self.firmware(device_id) for device_id in wanted],
        )
        machine.table.came_back([(self.index[device_id], device_id) for device_id in wanted if device_id in self.index])

    def load_due(self, machine: engine.TwinEngine, time_ms: int) -> None:
        """Twins outside the table that may be offline by then."""
        before_ms = time_ms - machine.offline_least_ms(time_ms)
        self.load_into(machine, [device_id for device_id, arrival_ms in self.index.items() if arrival_ms <= before_ms])

    def firmware(self, device_id: str) -> str:
        telemetry = self.twins[device_id][2]
        return fleet_pb2.Telemetry.FromString(telemetry).firmware if telemetry else ""
