"""A tenure where there are checkpoints: the manifest in the object store says who owns the partition and where it stands.

The claim comes first, and fences whoever was before. Then the environment on this disk is used only if it is the one that the
manifest speaks of; else it is replaced by the checkpoint, and Kinesis replays the rest. While it lasts, checkpoints are taken beside
the pipeline, and nothing is published when it has been unknown for too long whether the claim still stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import zlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fleet_model import manifest, partition, twin_partition
from fleet_worker import checkpointing, custody, environments, errors, ports, restoring, surroundings, tenure
from fleet_worker.core import commits

log = logging.getLogger(__name__)

BEAT_S = 1.0
VERIFY_AGAIN_S = 1.0
LEAVING_S_MAX = 20.0
"""A checkpoint that is to make a hand-off short may take so long; after that the hand-off goes on without it."""
RETRY_S_MAX = 10.0
"""A checkpoint that failed is tried again after this long, or after the interval if that is shorter."""
WAY_OUT = (
    "The way out is to go on from a later time, each device's last arrival lifted to it: set spec.skipToTime of its TwinPartition "
    "(`fleet-twin partitions skip`)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoints:
    """A worker's. objects: the fleet's folder in the bucket. one_at_a_time: held while a checkpoint is taken. new_nonce: 16 hex digits,
    other ones each time."""

    objects: ports.ObjectStore
    manifests: custody.Manifests
    interval_s: float
    one_at_a_time: asyncio.Semaphore
    new_nonce: Callable[[], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Outlook:
    """What a tenure sees of the world around it. worker: the name to claim by. wanted: a partition's object as last seen. ask: this
    partition's status as the control plane has it now. tell: this partition's status has
    changed. is_behind: whether the worker is catching up, so that checkpoints have to be slow."""

    worker: str
    wanted: Callable[[str], twin_partition.TwinPartition | None]
    ask: Callable[[], Coroutine[Any, Any, twin_partition.Status]]
    tell: Callable[[], None]
    is_behind: Callable[[], bool]


class ClaimedTenure:
    """tenure.Tenure."""

    way_out = WAY_OUT

    def __init__(
        self,
        around: surroundings.Surroundings,
        checkpoints: Checkpoints,
        place: environments.Place,
        settled: partition.Start,
        outlook: Outlook,
    ) -> None:
        self._around = around
        self._checkpoints = checkpoints
        self._place = place
        self._settled = settled
        self._outlook = outlook
        self.is_closed = False
        self._asking: custody.Custody | None = None
        self._spec: twin_partition.Spec | None = None
        self._parents: list[manifest.Manifest] = []
        self._before: manifest.Manifest | None = None
        self._custody: custody.Custody | None = None
        self._checkpointer: checkpointing.Checkpointer | None = None
        self._verifying = asyncio.Lock()
        self._taken_at: float | None = None

    # ── before it is ours ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def nonce(self) -> str:
        return self._custody.nonce if self._custody is not None else ""

    @property
    def epoch(self) -> int:
        return self._custody.epoch if self._custody is not None else 0

    @property
    def checkpoint(self) -> manifest.Checkpoint | None:
        return self._custody.manifest.checkpoint if self._custody is not None else None

    @property
    def is_checkpoint_stale(self) -> bool:
        if self._taken_at is None:
            return False
        return self._around.clock.monotonic() - self._taken_at > 2 * self._checkpoints.interval_s

    async def waits_for(self) -> str:
        shard_id = self._place.identity.shard_id
        own = await self._checkpoints.manifests.read(shard_id)
        self.is_closed = own is not None and own[0].final and own[0].ended
        wanted = self._outlook.wanted(shard_id)
        if (own is not None and own[0].checkpoint is not None) or wanted is None:
            return ""
        self._parents = []
        for parent in wanted.spec.parents:
            known = self._outlook.wanted(parent)
            if known is not None and known.status.phase is not twin_partition.Phase.CLOSED:
                return f"waits for its parent {parent}"
            found = await self._checkpoints.manifests.read(parent)
            if found is not None and found[0].final and found[0].ended:
                self._parents.append(found[0])
            elif known is None and (found is None or wanted.spec.skip_to_ms):
                continue  # nothing of ours was ever in it, or it was given up
            elif known is None:
                raise errors.PositionExpiredError(
                    f"partition {shard_id}: its parent {parent} was not read to its end, and the stream no longer lists it: records are "
                    f"lost. {WAY_OUT}; it begins without that parent's twins then"
                )
            else:
                return f"waits for the final checkpoint of its parent {parent}"
        return ""

    async def claim(self, spec: twin_partition.Spec) -> None:
        """Again by the same custody when the last try's answer didn't come: it may have been carried out."""
        if self._asking is None:
            self._asking = custody.Custody(
                self._checkpoints.manifests,
                self._place.identity,
                spec.parents,
                self._outlook.worker,
                self._checkpoints.new_nonce(),
                self._around.clock,
                2 * self._checkpoints.interval_s,
            )
        self._before = await self._asking.claim(spec.epoch, spec.takeover, spec.first_epoch)
        self._custody, self._spec = self._asking, spec

    # ── the environment ──────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, copy: manifest.Checkpoint | None) -> ports.TwinStore:
        assert self._custody is not None, "not claimed"
        assert self._spec is not None
        store = await self._filled(copy)
        skip_to_ms = self._spec.skip_to_ms
        if store.state.clock_ms and store.state.clock_ms < skip_to_ms:
            await self._in_thread(restoring.lift, store, skip_to_ms)
        tenure.check_age(self._around, self._place.identity.shard_id, store.state, WAY_OUT)
        # From here on this environment and no other is the one that the manifest speaks of.
        state = dataclasses.replace(
            store.state,
            epoch=self._custody.epoch,
            nonce=self._custody.nonce,
            commit_number=store.state.commit_number + 1,
        )
        await self._in_thread(store.commit, commits.Commit(state, commits.no_rows(), [], [], [], [], [], []))
        self._checkpointer = checkpointing.Checkpointer(
            self._checkpoints.objects,
            store,
            self._custody,
            self._around.clock,
            self._around.metrics,
            checkpointing.Pace(self._outlook.is_behind),
            continues=self._before.checkpoint if self._before is not None else None,
        )
        return store

    async def _filled(self, copy: manifest.Checkpoint | None) -> ports.TwinStore:
        """The environment as of the manifest, or further."""
        objects, clock, before = self._checkpoints.objects, self._around.clock, self._before
        store = await self._place.open()
        newest = before.checkpoint if before is not None else None
        if copy is not None and newest is not None and before is not None:
            if copy.number != newest.number:
                await restoring.bring_forward(objects, store, copy, before, clock)
            return store
        why = unfit(store.state, before)
        if why:
            log.info("partition %s: the environment on this disk isn't used: %s", self._place.identity.shard_id, why)
            store = await self._place.anew()
            if before is not None and newest is not None:
                await restoring.restore(objects, before, store, clock)
                return store
        if store.state.commit_number == 0 and self._parents:
            key_range = self._place.identity.hash_key_range
            await restoring.inherit(objects, self._parents, key_range, store, clock)
        return store

    def start(self, store: ports.TwinStore) -> partition.Position | int | None:
        position = store.state.position
        if position.sequence_number:
            return position
        skip_to_ms = self._spec.skip_to_ms if self._spec is not None else 0
        return max(skip_to_ms, self._settled.time_ms or 0) or None

    # ── beside the pipeline ──────────────────────────────────────────────────────────────────────────────────────

    def companions(self) -> Sequence[Coroutine[Any, Any, None]]:
        return (self._beat(), self._take_regularly())

    async def _beat(self) -> None:
        """A loop that stood still for long is noticed here, and at each publishing."""
        assert self._custody is not None
        while True:
            self._custody.heartbeat(self._around.clock.monotonic())
            await self._around.clock.sleep(BEAT_S)

    async def _take_regularly(self) -> None:
        clock, interval_s = self._around.clock, self._checkpoints.interval_s
        if self._taken_at is None:
            self._taken_at = clock.monotonic()
        # Partitions that started together don't take theirs together.
        await clock.sleep(interval_s * (zlib.crc32(self._place.identity.shard_id.encode()) % 1_000) / 1_000)
        told: tuple[bool, bool] | None = None
        while True:
            wait_s = interval_s if await self._take_or_tell() else min(interval_s, RETRY_S_MAX)
            # Whether it can be moved safely hangs on these two.
            if told != (told := (self.checkpoint is not None, self.is_checkpoint_stale)):
                self._outlook.tell()
            await clock.sleep(wait_s)

    async def _take_or_tell(self) -> bool:
        """A checkpoint; False when it failed, which stops nothing: Kinesis replays more, that is all."""
        try:
            await self._take()
        except (errors.ObjectStoreUnavailableError, errors.ObjectStoreRefusedError, errors.DiskFullError) as error:
            log.warning("partition %s: no checkpoint: %s", self._place.identity.shard_id, error)
            return False
        return True

    async def _take(self, *, final: bool = False, ended: bool = False) -> None:
        """A final one doesn't wait for other partitions': the next owner waits for it."""
        assert self._checkpointer is not None, "not open"
        async with contextlib.nullcontext() if final else self._checkpoints.one_at_a_time:
            await self._checkpointer.take(final=final, ended=ended)
        self._taken_at = self._around.clock.monotonic()
        if not final:
            await self._checkpointer.collect()

    async def may_publish(self) -> None:
        assert self._custody is not None, "not claimed"
        clock = self._around.clock
        while not self.may_go_on():
            async with self._verifying:
                if self.may_go_on():
                    return
                if self.is_released:  # taken back, but the manifest doesn't say so yet
                    await clock.sleep(VERIFY_AGAIN_S)
                    continue
                try:
                    await self._verify()
                except (
                    errors.ObjectStoreUnavailableError,
                    errors.ControlPlaneUnavailableError,
                    errors.PartitionGoneError,  # whoever deleted its object decides; until that is heard, nothing is published
                ) as error:
                    log.warning(
                        "partition %s: effects wait, as it is unknown whether it is still ours: %s",
                        self._place.identity.shard_id,
                        error,
                    )
                    await clock.sleep(VERIFY_AGAIN_S)

    def may_go_on(self) -> bool:
        assert self._custody is not None, "not claimed"
        return self._custody.may_publish(self._around.clock.monotonic())

    async def _verify(self) -> None:
        """By the manifest; where that can't be read, by what the control plane has stored of us."""
        assert self._custody is not None
        try:
            await self._custody.verify()
        except errors.ObjectStoreUnavailableError:
            asked_at_s = self._around.clock.monotonic()
            if not self._custody.seen_in_control_plane(await self._outlook.ask(), asked_at_s):
                raise

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def drain_max_s(self) -> float | None:
        return self._around.fleet.rebalance.drain_timeout_ms / 1000

    async def before_leaving(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVING_S_MAX):
                await self._take_or_tell()

    async def release(self, *, ended: bool) -> None:
        await self._take(final=True, ended=ended)

    async def resume(self, epoch: int) -> None:
        assert self._custody is not None, "not claimed"
        await self._custody.resume(epoch)

    @property
    def is_released(self) -> bool:
        return self._custody is not None and self._custody.manifest.final

    async def _in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        await self._around.clock.in_thread(functools.partial(function, *arguments))


def checkpoint_status(shard_id: str, epoch: int, checkpoint: manifest.Checkpoint) -> twin_partition.CheckpointStatus:
    """As the control plane tells it. epoch: of the owner who tells."""
    newest = checkpoint.parts[-1].name if checkpoint.parts else ""
    return twin_partition.CheckpointStatus(
        f"{shard_id}/{newest}", epoch, checkpoint.time_ms, checkpoint.position.sequence_number
    )


def unfit(state: commits.PartitionState, before: manifest.Manifest | None) -> str:
    """Why an environment isn't the one that the manifest before the claim speaks of; "" when it is, or when it is empty and there is
    nothing else to go on from."""
    is_empty = state.commit_number == 0
    if before is None:
        return "" if is_empty or not state.nonce else "there is no manifest, and it was claimed under one"
    if before.checkpoint is None and is_empty:
        return ""
    if state.nonce != before.nonce:
        return "another owner has claimed the partition since" if not is_empty else "it is empty"
    newest = before.checkpoint
    if newest is not None and (
        state.commit_number < newest.commit_number or state.position.key() < newest.position.key()
    ):
        return "it is behind the checkpoint"
    return ""
