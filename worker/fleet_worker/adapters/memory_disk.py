"""The Disk port in memory: a worker's volume that outlives its process, and loses what a crash of the machine loses.

What may be trusted after a crash is decided as on a real disk: an environment that was closed cleanly always, one that was open only when
the process alone died. A disk that is full or fails does so because it was told to, never by chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import cast

from fleet_model import hashing, partition
from fleet_worker import errors, ports
from fleet_worker.adapters import memory_store
from fleet_worker.core import commits


@dataclasses.dataclass(slots=True)
class Environment:
    """store: the last one that was opened. broken: why what lies here can't be trusted; "" when it can."""

    store: memory_store.MemoryTwinStore
    broken: str = ""

    @property
    def identity(self) -> partition.PartitionIdentity:
        return self.store.identity

    @property
    def unfit(self) -> str:
        return self.broken or self.store.broken


class MemoryDisk:
    """ports.Disk. One process at a time uses it; whoever starts the next one says how the last one ended."""

    def __init__(self) -> None:
        self._environments: dict[str, Environment] = {}
        self._is_full = False

    # ── what a test or the simulator does ────────────────────────────────────────────────────────────────────────

    @property
    def is_full(self) -> bool:
        """While true no commit finds room, and nothing new can be made."""
        return self._is_full

    @is_full.setter
    def is_full(self, full: bool) -> None:
        self._is_full = full
        for environment in self._environments.values():
            environment.store.disk_full = full

    def crash(self, leaves: memory_store.Survivor) -> None:
        """The process (COMMITTED) or the machine (SYNCED, NOTHING) dies."""
        for environment in self._environments.values():
            if environment.store.is_open:
                broken = environment.unfit
                environment.store = environment.store.crash(leaves)
                environment.broken = broken or environment.store.discarded or ""
                environment.store.close()

    def lose(self) -> None:
        """Another volume, empty, takes this one's place. Whoever still runs on the old one finds its files broken."""
        for environment in self._environments.values():
            environment.store.crash(memory_store.Survivor.NOTHING)
        self._environments = {}

    def fail_next(self, shard_id: str) -> bool:
        """The next commit or fsync of the partition's open environment is an I/O error. False: it isn't open."""
        environment = self._environments.get(shard_id)
        if environment is None or not environment.store.is_open:
            return False
        environment.store.io_error = True
        return True

    def mend(self) -> None:
        """What was to fail next doesn't."""
        for environment in self._environments.values():
            environment.store.io_error = False

    def shards(self) -> list[str]:
        return sorted(self._environments)

    def contents(self, shard_id: str) -> memory_store.Contents:
        """What lies there, open or not."""
        return self._environments[shard_id].store.contents

    # ── ports.Disk ───────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, identity: partition.PartitionIdentity) -> ports.OpenedStore:
        there = self._environments.get(identity.shard_id)
        assert there is None or not there.store.is_open, f"{identity.shard_id} is open already"
        discarded = there.unfit or None if there is not None else None
        if there is not None and not discarded and there.identity != identity:
            raise errors.StoreBrokenError(
                f"{identity.shard_id}: its environment belongs to {there.identity}, not to {identity}"
            )
        if self._is_full and (there is None or discarded):
            raise errors.DiskFullError(f"{identity.shard_id}: no room on the disk for a new environment")
        kept = there.store.contents.copy() if there is not None and not discarded else None
        store = memory_store.MemoryTwinStore(identity, contents=kept)
        store.disk_full = self._is_full
        store.discarded = discarded
        self._environments[identity.shard_id] = Environment(store)
        return ports.OpenedStore(store, discarded)

    def where(self, shard_id: str) -> str:
        return f"memory:{shard_id}"

    def remove(self, shard_id: str) -> None:
        there = self._environments.pop(shard_id, None)
        assert there is None or not there.store.is_open, f"{shard_id} is open"

    def inherit(
        self,
        child: ports.TwinStore,
        parents: Sequence[ports.TwinStore],
        key_range: hashing.HashKeyRange,
        state: commits.PartitionState,
    ) -> None:
        stores = cast(list[memory_store.MemoryTwinStore], [child, *parents])  # all of them came from `open`
        memory_store.copy_range(stores[0], stores[1:], key_range, state)

    def left(self, listed: Collection[str]) -> list[ports.LeftBehind]:
        begun = frozenset(
            shard_id
            for shard_id, there in self._environments.items()
            if shard_id in listed and not there.unfit and there.store.contents.state.commit_number
        )
        return [
            _left(shard_id, self._environments[shard_id], begun) for shard_id in self.shards() if shard_id not in listed
        ]


def _left(shard_id: str, there: Environment, begun: frozenset[str]) -> ports.LeftBehind:
    if there.unfit:
        trouble = f"what was kept of its twins can't be trusted ({there.unfit})"
        return ports.LeftBehind(shard_id, hashing.HashKeyRange(), False, trouble, begun)
    ended = there.store.contents.state.ended
    trouble = "" if ended else "the stream no longer lists its shard, which wasn't read to its end: records are lost"
    return ports.LeftBehind(shard_id, there.identity.hash_key_range, ended, trouble, begun)
