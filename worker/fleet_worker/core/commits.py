"""What one commit makes durable, all of it in one transaction: twins, outbox and position (design invariant 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_model import partition
from fleet_worker.core import effects, records, twins


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionState:
    """A partition's own facts. position: the last applied record. clock_ms: the partition clock.
    high_arrival_ms: highest arrival seen in the shard. commit_number: of the last commit. outbox_next: number of the
    next outbox entry. ended: the shard was read to its end. epoch, nonce: of the claim (0 and "" without S3)."""

    position: partition.Position = partition.Position()
    clock_ms: int = 0
    high_arrival_ms: int = 0
    commit_number: int = 0
    outbox_next: int = 1
    ended: bool = False
    epoch: int = 0
    nonce: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class TwinRows:
    """n twins outside the table, in ascending key order where a function asks for it.

    digests: (n,) V16, MD5 of the device ids. device_ids: n. rows: (n,) TWIN_DTYPE. extras: index → (,) EXTRA_DTYPE
    bytes, for the rows with Flag.EXTRA. telemetry: n raw Telemetry messages; None = leave the stored one as it is.
    """

    digests: NDArray[np.void]
    device_ids: Sequence[str]
    rows: NDArray[np.void]
    extras: dict[int, bytes]
    telemetry: Sequence[bytes | None]


def no_rows() -> TwinRows:
    return TwinRows(np.zeros(0, dtype="V16"), [], np.zeros(0, dtype=twins.TWIN_DTYPE), {}, [])


@dataclasses.dataclass(frozen=True, slots=True)
class Commit:
    """One transaction. twins: the changed rows, ascending keys. deleted: device ids whose twins go.
    outbox_added: with rising numbers. outbox_removed: numbers Kinesis acknowledged. dead_letters: to keep.
    index_added: (last_arrival_ms, device id) of rows about to leave the table; index_removed: entries no longer true."""

    state: PartitionState
    twins: TwinRows
    deleted: list[str]
    outbox_added: list[effects.OutboxEntry]
    outbox_removed: list[int]
    dead_letters: list[records.DeadLetter]
    index_added: list[tuple[int, str]]
    index_removed: list[tuple[int, str]]
