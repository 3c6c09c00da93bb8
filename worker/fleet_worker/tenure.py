"""What makes a partition's environment the truth while this worker owns it: one class where there are checkpoints, one where not.

    waits_for → claim → open → the pipeline runs, `companions` beside it → (before_leaving) → release

Without a bucket there is one worker and one disk: what is on it is the truth, and a child copies its twins from its parents' environments.
With one the manifest is (see `claimed`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from fleet_model import manifest, partition, twin_partition
from fleet_worker import environments, errors, ports, surroundings
from fleet_worker.core import commits


class Tenure(Protocol):
    """One owner's stay, from its claim to its release. A tenure that failed isn't used again."""

    @property
    def way_out(self) -> str:
        """What to do when records are lost."""

    @property
    def nonce(self) -> str:
        """Of the claim; "" before it."""

    @property
    def epoch(self) -> int:
        """That it acts under; 0 before the claim."""

    @property
    def is_released(self) -> bool:
        """Whether the next claim is free."""

    @property
    def checkpoint(self) -> manifest.Checkpoint | None:
        """The newest confirmed one."""

    @property
    def is_checkpoint_stale(self) -> bool: ...

    @property
    def is_closed(self) -> bool:
        """Whether there is nothing left to own: known after waits_for."""

    async def waits_for(self) -> str:
        """Why the partition can't begin yet; "" when it can. Raises PositionExpiredError when it never can."""

    async def claim(self, spec: twin_partition.Spec) -> None:
        """Makes this worker the owner. Raises ClaimRefusedError, FencedError."""

    async def open(self, copy: manifest.Checkpoint | None) -> ports.TwinStore:
        """The environment, brought to where its owner may go on from. copy: the checkpoint that the place's open store equals,
        where it was a standby's."""

    def start(self, store: ports.TwinStore) -> partition.Position | int | None:
        """Where reading begins (Stream.open_shard)."""

    def companions(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What runs beside the pipeline, without end. Raises FencedError."""

    async def may_publish(self) -> None:
        """Returns when effects may go out. Raises FencedError."""

    def may_go_on(self) -> bool:
        """Whether effects still may, without asking anybody."""

    def drain_max_s(self) -> float | None:
        """As pipeline.Stay."""

    async def before_leaving(self) -> None:
        """While the pipeline still runs: makes what is left to do short."""

    async def release(self, *, ended: bool) -> None:
        """Lets go of the drained partition. Raises ObjectStoreUnavailableError: it is still ours; FencedError."""

    async def resume(self, epoch: int) -> None:
        """Taken back, before or after it was released: it stays ours, under this epoch. Raises ObjectStoreUnavailableError, FencedError."""


def way_out(where: str) -> str:
    """Where no checkpoint could help. where: the environment is."""
    return f"To go on with what the stream still holds, the twins begun anew, stop the worker and move {where} away"


class LocalTenure:
    """Without checkpoints. parents: those that this fleet knows, each with whether it is read to its end."""

    nonce = ""
    epoch = 1
    checkpoint = None
    is_checkpoint_stale = False
    is_released = False
    is_closed = False

    def __init__(
        self,
        around: surroundings.Surroundings,
        place: environments.Place,
        everywhere: environments.Environments,
        stream: ports.Stream,
        settled: partition.Start,
        parents: Callable[[], Sequence[tuple[partition.PartitionIdentity, bool]]],
    ) -> None:
        self._around = around
        self._place = place
        self._everywhere = everywhere
        self._stream = stream
        self._settled = settled
        self._parents = parents

    @property
    def way_out(self) -> str:
        return way_out(self._everywhere.disk.where(self._place.identity.shard_id))

    async def waits_for(self) -> str:
        missing = [parent.shard_id for parent, is_closed in self._parents() if not is_closed]
        return f"waits for its parent {missing[0]}" if missing else ""

    async def claim(self, spec: twin_partition.Spec) -> None:
        """Nobody else asks."""

    async def open(self, copy: manifest.Checkpoint | None) -> ports.TwinStore:
        store = await self._place.open()
        shard_id = self._place.identity.shard_id
        if store.state.ended:
            if any(shard.shard_id == shard_id and not shard.closed for shard in await self._stream.list_shards()):
                raise errors.StreamGoneError(
                    f"partition {shard_id} was read to its end, but its shard is open: the stream isn't the one that it was read from. "
                    "Give the fleet a data folder of its own for this stream, or wait if the shard was closed just now"
                )
            return store
        if store.state.commit_number == 0:
            await self._inherit(store)
        check_age(self._around, shard_id, store.state, self.way_out)
        return store

    def start(self, store: ports.TwinStore) -> partition.Position | int | None:
        position = store.state.position
        return position if position.sequence_number else self._settled.time_ms

    def companions(self) -> Sequence[Coroutine[Any, Any, None]]:
        return ()

    async def may_publish(self) -> None:
        """Nobody else could have."""

    def may_go_on(self) -> bool:
        return True

    def drain_max_s(self) -> float | None:
        return None

    async def before_leaving(self) -> None:
        """There is nothing to make short."""

    async def release(self, *, ended: bool) -> None:
        """The environment tells it."""

    async def resume(self, epoch: int) -> None:
        """It never was anybody else's."""

    async def _inherit(self, store: ports.TwinStore) -> None:
        """A child's first twins: its hash range of every parent's, durable before it reads its first record."""
        parents = sorted((parent for parent, _ in self._parents()), key=lambda parent: parent.shard_id)
        if not parents:
            return
        async with contextlib.AsyncExitStack() as stack:
            stores = []
            for parent in parents:  # in the order of their ids, so that two children never wait for each other
                place = await stack.enter_async_context(self._everywhere.place(parent))
                stores.append(await place.open())
            inherit = functools.partial(
                self._everywhere.disk.inherit,
                store,
                stores,
                self._place.identity.hash_key_range,
                first_state([entry.state for entry in stores]),
            )
            await self._around.clock.in_thread(inherit)


def first_state(parents: Sequence[commits.PartitionState]) -> commits.PartitionState:
    """A child's, after its parents'."""
    return commits.PartitionState(
        clock_ms=min(entry.clock_ms for entry in parents),
        high_arrival_ms=max(entry.high_arrival_ms for entry in parents),
        commit_number=max(entry.commit_number for entry in parents) + 1,
    )


def check_age(around: surroundings.Surroundings, shard_id: str, state: commits.PartitionState, way_out: str) -> None:
    """Records that left the stream before they were read are a loud failure, never a silent jump."""
    age_ms = around.clock.wall_ms() - state.clock_ms
    if state.clock_ms and age_ms > around.retention_ms:
        raise errors.PositionExpiredError(
            f"partition {shard_id} stands {age_ms // 60_000} min back, the stream retains "
            f"{around.retention_ms // 60_000} min: records are lost. {way_out}"
        )
