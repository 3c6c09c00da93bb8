"""One partition's custody: the claim on its manifest, what is confirmed there, and whether it is still ours.

The manifest is the truth about who owns a partition. Every write of it is conditional on the one that was read before and carries the epoch
and a nonce that this start of the process made for itself, so of all who believe to own a partition at most one can write, and
each of the others finds that out at its next write or look: it is fenced, for good. A write whose outcome isn't known is settled by
reading back. It keeps no timers and starts no tasks: the supervisor calls, and brings the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

from fleet_model import manifest as fleet_manifest
from fleet_model import partition, twin_partition
from fleet_worker import errors, ports
from fleet_worker.core import claims, watch

SETTLE_TRIES_MAX = 8
"""Writes of one manifest that a call begins, each after a look at what stands there."""
CHECKPOINTS_KEPT = 3


class Manifests:
    """The manifests of a fleet. Raises ObjectStoreUnavailableError and ObjectStoreRefusedError as the store does."""

    def __init__(self, objects: ports.ObjectStore) -> None:
        self._objects = objects

    async def read(self, shard_id: str) -> tuple[fleet_manifest.Manifest, str] | None:
        """The manifest and its etag, None when there is none. Raises CheckpointBrokenError."""
        key = claims.manifest_key(shard_id)
        found = await self._objects.get(key)
        if found is None:
            return None
        try:
            return fleet_manifest.parse(found.data), found.etag
        except fleet_manifest.InvalidManifestError as error:
            raise errors.CheckpointBrokenError(
                f"partition {shard_id}: {key} can't be read: {error}; run a version of Fleet Twin that knows it, or bring back the "
                "object's last good version"
            ) from error

    async def write(self, wanted: fleet_manifest.Manifest, etag: str | None) -> str:
        """Over the one with the etag; None: where there is none. The new etag. Raises PreconditionFailedError."""
        key = claims.manifest_key(wanted.identity.shard_id)
        data = fleet_manifest.encode(wanted)
        return await (self._objects.put_new(key, data) if etag is None else self._objects.put_over(key, data, etag))


class Custody:
    """Of one partition, by one start of one process. nonce: 16 hex digits that this start made for this partition and nobody ever had.
    hold_after_s: two checkpoint intervals. Once FencedError was raised, every further call raises it."""

    def __init__(
        self,
        manifests: Manifests,
        identity: partition.PartitionIdentity,
        parents: tuple[str, ...],
        worker: str,
        nonce: str,
        clock: ports.Clock,
        hold_after_s: float,
    ) -> None:
        self.nonce = nonce
        self._manifests = manifests
        self._identity = identity
        self._parents = parents
        self._worker = worker
        self._clock = clock
        self._watch = watch.Watch(hold_after_s)
        self._standing: fleet_manifest.Manifest | None = None
        self._etag = ""
        self._tried_over: _Attempt | None = None
        self._fenced: errors.FencedError | None = None
        self._writing = asyncio.Lock()

    @property
    def manifest(self) -> fleet_manifest.Manifest:
        """The newest that this custody knows to have written."""
        assert self._standing is not None, f"partition {self._identity.shard_id} isn't claimed"
        return self._standing

    @property
    def epoch(self) -> int:
        return self.manifest.epoch

    @property
    def is_claimed(self) -> bool:
        return self._standing is not None

    @property
    def is_fenced(self) -> bool:
        return self._fenced is not None

    async def claim(
        self, epoch: int, takeover: int = 0, first_epoch: int = claims.FIRST_EPOCH
    ) -> fleet_manifest.Manifest | None:
        """What stood there before, None at the very first claim. Its checkpoint stays in the new manifest. Parameters: claims.Claim.

        Raises ClaimRefusedError (nothing changed), FencedError (another one claimed while this one did),
        ObjectStoreUnavailableError (unknown: call it again), ObjectStoreRefusedError, CheckpointBrokenError.
        """
        assert epoch >= claims.FIRST_EPOCH, f"epoch {epoch}"
        asked = claims.Claim(self._identity, self._worker, epoch, takeover, first_epoch)
        async with self._exclusive():
            for _ in range(SETTLE_TRIES_MAX):
                asked_at_s = self._clock.monotonic()
                found, etag = await self._read()
                if found is not None and found.nonce == self.nonce:
                    before = self._before_mine()
                    if found.epoch == epoch and not found.final:
                        self._keep_claim(found, etag, asked_at_s)
                        return before
                elif self._tried_over is not None and self._tried_over.lost_to(found):
                    raise self._fence(found)
                reason = claims.refusal(found, asked)
                if reason is not None:
                    raise errors.ClaimRefusedError(reason, 0 if found is None else found.epoch)
                wanted = self._claiming(found, epoch)
                if self._tried_over is None:
                    self._tried_over = _Attempt(found, epoch)
                elif self.is_claimed or found is None or found.nonce != self.nonce:
                    self._tried_over = self._tried_over.then(found, epoch)
                new_etag = await self._try(wanted, etag)
                if new_etag is not None:
                    self._keep_claim(wanted, new_etag, asked_at_s)
                    return self._tried_over.before
            raise self._unsettled()

    async def confirm(self, checkpoint: fleet_manifest.Checkpoint, *, final: bool = False, ended: bool = False) -> None:
        """Makes the checkpoint the partition's current one. final: drained, the next claim is free. ended: the shard was read to its end.
        Checkpoint numbers rise. The same call may be made again after an ObjectStoreUnavailableError.

        Raises FencedError, ObjectStoreUnavailableError (unknown), ObjectStoreRefusedError, CheckpointBrokenError.
        """

        def confirming(standing: fleet_manifest.Manifest) -> fleet_manifest.Manifest:
            before = standing.checkpoint
            kept = standing.kept
            if before is not None and before != checkpoint:
                kept = (tuple(part.name for part in before.parts), *kept)[:CHECKPOINTS_KEPT]
            return dataclasses.replace(
                standing, checkpoint=checkpoint, kept=kept, final=final, ended=ended or standing.ended
            )

        async with self._exclusive():
            before = self.manifest.checkpoint
            assert not self.manifest.final, f"partition {self._identity.shard_id} is released"
            assert before is None or before == checkpoint or before.number < checkpoint.number, (
                f"partition {self._identity.shard_id}: checkpoint {checkpoint.number} after {before.number}"
            )
            await self._change(confirming)

    async def resume(self, epoch: int = 0) -> None:
        """A released or draining owner that is asked to go on: the manifest isn't final any more, and of this epoch if that is
        higher. No new claim: it works only while this start's nonce stands. Raises as confirm."""

        def resuming(standing: fleet_manifest.Manifest) -> fleet_manifest.Manifest:
            return dataclasses.replace(standing, final=False, epoch=max(epoch, standing.epoch))

        async with self._exclusive():
            await self._change(resuming)

    async def verify(self) -> None:
        """Looks whether this start's nonce still stands. Raises FencedError, and as Manifests.read."""
        self._check()
        assert self._standing is not None, f"partition {self._identity.shard_id} isn't claimed"
        asked_at_s = self._clock.monotonic()
        found, _ = await self._read()
        self._check()
        if found is None or found.nonce != self.nonce:
            raise self._fence(found)
        self._watch.note_verified(asked_at_s)

    def seen_in_control_plane(self, told: twin_partition.Status, asked_at_s: float) -> bool:
        """Whether the status, as the control plane stores it, still carries this claim: then that counts as verified. asked_at_s: a
        monotonic time before it was asked for; what was delivered on its own account may be old and is no proof."""
        if not self._may_write() or (told.epoch, told.nonce) != (self.epoch, self.nonce):
            return False
        self._watch.note_verified(asked_at_s)
        return True

    def heartbeat(self, now_s: float) -> None:
        """The caller's loop is alive. Call it at least every few seconds; a gap is taken for a standstill."""
        self._watch.beat(now_s)

    def note_verified(self, asked_at_s: float) -> None:
        """The caller has proof, asked for at that monotonic time, that this claim stands."""
        self._watch.note_verified(asked_at_s)

    def may_publish(self, now_s: float) -> bool:
        """False: hold the outbox, and verify (design §4.2)."""
        return self._may_write() and not self.manifest.final and self._watch.is_sure(now_s)

    # The inside

    def _may_write(self) -> bool:
        return self._standing is not None and self._fenced is None

    def _check(self) -> None:
        if self._fenced is not None:
            raise errors.FencedError(str(self._fenced), self._fenced.by_nonce)

    @contextlib.asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        """One write at a time, and none once fenced."""
        self._check()
        async with self._writing:
            self._check()
            yield

    async def _read(self) -> tuple[fleet_manifest.Manifest | None, str | None]:
        return await self._manifests.read(self._identity.shard_id) or (None, None)

    async def _try(self, wanted: fleet_manifest.Manifest, etag: str | None) -> str | None:
        """The new etag; None when only reading back can tell what happened."""
        try:
            return await self._manifests.write(wanted, etag)
        except (errors.PreconditionFailedError, errors.ObjectStoreUnavailableError):
            return None

    def _keep(self, standing: fleet_manifest.Manifest, etag: str | None, asked_at_s: float) -> None:
        assert etag is not None
        self._standing, self._etag = standing, etag
        self._watch.note_verified(asked_at_s)

    def _keep_claim(self, standing: fleet_manifest.Manifest, etag: str | None, asked_at_s: float) -> None:
        self._keep(standing, etag, asked_at_s)
        self._watch.beat(self._clock.monotonic())

    async def _change(self, changing: Callable[[fleet_manifest.Manifest], fleet_manifest.Manifest]) -> None:
        """Writes what `changing` makes of the standing manifest. It writes also what stands there already: then a try of before that
        is still on its way finds its condition broken, and can't undo this one."""
        for _ in range(SETTLE_TRIES_MAX):
            asked_at_s = self._clock.monotonic()
            wanted = dataclasses.replace(changing(self.manifest), revision=self.manifest.revision + 1)
            etag = await self._try(wanted, self._etag)
            if etag is not None:
                self._keep(wanted, etag, asked_at_s)
                return
            asked_at_s = self._clock.monotonic()
            found, found_etag = await self._read()
            if found is None or found.nonce != self.nonce:
                raise self._fence(found)
            self._keep(found, found_etag, asked_at_s)
            if found == wanted:
                return
        raise self._unsettled()

    def _claiming(self, found: fleet_manifest.Manifest | None, epoch: int) -> fleet_manifest.Manifest:
        if found is None:
            return fleet_manifest.Manifest(self._identity, self._parents, epoch, self.nonce, self._worker, revision=1)
        return dataclasses.replace(
            found, epoch=epoch, nonce=self.nonce, worker=self._worker, final=False, revision=found.revision + 1
        )

    def _before_mine(self) -> fleet_manifest.Manifest | None:
        """What my last try was made over: my nonce stands, so that one was carried out. Nobody else's can have come in between, as
        it would have changed what the condition names."""
        if self._tried_over is None:
            raise self._fence_as(
                f"partition {self._identity.shard_id}: its manifest carries the nonce {self.nonce}, which this start never wrote there: two "
                "processes have the same; end one of them"
            )
        return self._tried_over.before

    def _fence(self, found: fleet_manifest.Manifest | None) -> errors.FencedError:
        shard_id = self._identity.shard_id
        if found is None:
            return self._fence_as(
                f"partition {shard_id}: its manifest is gone, so nobody can tell whose it is; bring {claims.manifest_key(shard_id)} back"
            )
        return self._fence_as(
            f"partition {shard_id}: {found.worker} has claimed it at epoch {found.epoch} (nonce {found.nonce}); it stops here",
            found.nonce,
        )

    def _fence_as(self, words: str, by_nonce: str = "") -> errors.FencedError:
        self._fenced = errors.FencedError(words, by_nonce)
        return self._fenced

    def _unsettled(self) -> errors.ObjectStoreUnavailableError:
        return errors.ObjectStoreUnavailableError(
            f"partition {self._identity.shard_id}: {SETTLE_TRIES_MAX} writes of its manifest in a row were neither done nor known to "
            "be refused; trying again later"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Attempt:
    """A claim that was sent and may have been carried out, or may yet be. before: what it was to replace. epoch: the lowest of those
    that were sent over it."""

    before: fleet_manifest.Manifest | None
    epoch: int

    def lost_to(self, found: fleet_manifest.Manifest | None) -> bool:
        """Whether it may have been carried out, and someone else has claimed since. One at a lower epoch can't have claimed over
        it, so then it never was, and never will be."""
        if found is None:
            return False
        is_as_before = self.before is not None and self.before.nonce == found.nonce
        return not is_as_before and found.epoch >= self.epoch

    def then(self, before: fleet_manifest.Manifest | None, epoch: int) -> _Attempt:
        """Another one was sent."""
        return _Attempt(before, min(epoch, self.epoch) if before == self.before else epoch)
