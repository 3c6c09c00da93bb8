"""Moves of partitions, as somebody sees them who keeps looking at their objects: from whom, to whom, how long the pause was. Pure.

How a pause is measured: from the first look that finds the partition no longer Running with its former owner (it drains, or its process was
seen to end) to the first look that finds a record applied by the new one; when none comes, to the first that finds
it Running there. So a pause is right to about two looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fleet_model import twin_partition

IDLE_S = 2.0
"""A partition that runs so long without a record has nothing to apply."""


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """One partition's change of owner, or its owner's new start. pause_s: in which nobody applied its records."""

    shard_id: str
    former: str
    owner: str
    epoch: int
    pause_s: float

    @property
    def words(self) -> str:
        if self.former == self.owner:
            return f"{self.shard_id} back at {self.owner}, paused {self.pause_s:.1f} s"
        return f"{self.shard_id} {self.former} → {self.owner}, paused {self.pause_s:.1f} s"


@dataclasses.dataclass(frozen=True, slots=True)
class _Owner:
    worker: str
    epoch: int
    nonce: str


@dataclasses.dataclass(slots=True)
class _Seen:
    """owner: who ran it last. left_s: since when nobody does, None while somebody does. is_gone: the owner's process ended, and the
    object doesn't say so yet. running_s: since when the new one runs it without a record; after: the position that it began from."""

    owner: _Owner
    at_s: float
    left_s: float | None = None
    is_gone: bool = False
    former: _Owner | None = None
    running_s: float | None = None
    after: str = ""


class Moves:
    """Feed it with every look, in order."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def see(self, now_s: float, partitions: Mapping[str, twin_partition.TwinPartition]) -> list[Move]:
        """The moves that are over now."""
        over = []
        open_ones = {
            shard_id: entry
            for shard_id, entry in partitions.items()
            if entry.status.phase is not twin_partition.Phase.CLOSED
        }
        for shard_id, entry in open_ones.items():
            status = entry.status
            owner = _Owner(status.worker, status.epoch, status.nonce)
            seen = self._seen.get(shard_id)
            if seen is None:
                if status.phase is twin_partition.Phase.RUNNING:
                    self._seen[shard_id] = _Seen(owner, now_s)
            elif status.phase is not twin_partition.Phase.RUNNING:
                seen.left_s = now_s if seen.left_s is None else seen.left_s
                seen.running_s, seen.is_gone = None, False
            else:
                self._runs(seen, owner, entry, now_s)
                if seen.running_s is not None and now_s - seen.running_s >= IDLE_S:
                    over.append(_over(shard_id, seen, seen.running_s))
            if seen is not None:
                seen.at_s = now_s
        for shard_id in self._seen.keys() - open_ones.keys():
            del self._seen[shard_id]
        return over

    def _runs(self, seen: _Seen, owner: _Owner, entry: twin_partition.TwinPartition, now_s: float) -> None:
        if owner != seen.owner:
            seen.left_s = seen.at_s if seen.left_s is None else seen.left_s  # it went between two looks
            seen.is_gone = False
        if seen.is_gone:
            return
        if seen.left_s is None or (seen.running_s is not None and owner == seen.owner):
            return
        if seen.former is None:
            seen.former = seen.owner
        seen.owner, seen.running_s = owner, now_s
        checkpoint = entry.status.checkpoint
        seen.after = checkpoint.sequence_number if checkpoint is not None else ""

    def worker_ended(self, worker: str, now_s: float) -> None:
        """Its process is gone, whatever the objects still say."""
        for seen in self._seen.values():
            if seen.owner.worker == worker:
                seen.left_s = now_s if seen.left_s is None else seen.left_s
                seen.running_s, seen.is_gone = None, True

    def awaiting(self) -> dict[str, str]:
        """Shard id → worker of the partitions that run again, and whose next record is what is waited for."""
        return {shard_id: seen.owner.worker for shard_id, seen in self._seen.items() if seen.running_s is not None}

    def applied(self, shard_id: str, sequence_number: str, now_s: float) -> Move | None:
        """The owner's position just now; the move when that ends the pause."""
        seen = self._seen.get(shard_id)
        if seen is None or seen.running_s is None or sequence_number in ("", seen.after):
            return None
        return _over(shard_id, seen, now_s)

    def under_way(self) -> dict[str, str]:
        """Shard id → former owner of the partitions that nobody runs just now."""
        return {shard_id: seen.owner.worker for shard_id, seen in self._seen.items() if seen.left_s is not None}


def _over(shard_id: str, seen: _Seen, now_s: float) -> Move:
    assert seen.left_s is not None
    assert seen.former is not None
    move = Move(shard_id, seen.former.worker, seen.owner.worker, seen.owner.epoch, max(0.0, now_s - seen.left_s))
    seen.left_s = seen.running_s = seen.former = None
    return move
