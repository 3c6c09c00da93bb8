"""What a partition's status becomes by this worker: its own words where it is the owner, its own entry where it is a standby, and nothing
where another one speaks by now.
"""

from __future__ import annotations

import dataclasses

from fleet_model import twin_partition
from fleet_worker import claimed, holding


def told(held: holding.Holding, worker: str, stored: twin_partition.Status) -> twin_partition.Status:
    """The status to store after the stored one."""
    stored = dataclasses.replace(stored, standby=_standbys(held, worker, stored))
    if held.closed.is_set() and held.is_shared:
        # The manifest says so, whoever wrote it: its children wait for the word.
        return dataclasses.replace(
            _only_phase(held, stored), worker=worker, epoch=held.wanted.spec.epoch, manifest_epoch=0
        )
    is_ours = stored.worker in ("", worker)
    if held.was_fenced:
        return _fenced(held, worker, stored) if is_ours and _speaks_last(held, stored) else stored
    if held.is_shared and not held.has_claim:
        return _not_yet_claimed(held, stored, is_ours=is_ours) if held.role is holding.Role.OWNER else stored
    if held.role is not holding.Role.OWNER and not is_ours:
        return stored
    if held.is_shared and held.tenure is not None and stored.epoch > held.tenure.epoch:
        # By who has claimed it over us. We don't know of that yet, and our word over theirs would be our own proof that we own it.
        return stored
    return _by_owner(held, worker, stored)


def _speaks_last(held: holding.Holding, stored: twin_partition.Status) -> bool:
    """Of who was fenced: whether nobody has spoken since. That's so while our own claim stands there, and while the claim that fenced us was
    never told: its owner may be gone, and nobody but us would ever say that the partition isn't run. A fence by no other claim (the
    manifest is gone, or carries a nonce of ours that we never wrote) would meet the next epoch's claim as well, at once and for ever."""
    if held.tenure is not None and stored.nonce == held.tenure.nonce:
        return True
    is_untold = held.fenced_by not in ("", stored.nonce)
    return is_untold and stored.epoch <= held.wanted.spec.epoch


def _standbys(
    held: holding.Holding, worker: str, stored: twin_partition.Status
) -> tuple[twin_partition.StandbyStatus, ...]:
    others = tuple(entry for entry in stored.standby if entry.worker != worker)
    if held.standby is None:
        return others
    number = held.standby.copy.number if held.standby.copy is not None else 0
    return (*others, twin_partition.StandbyStatus(worker, number, held.standby.is_warm))


def _only_phase(held: holding.Holding, stored: twin_partition.Status) -> twin_partition.Status:
    return dataclasses.replace(stored, phase=held.life.phase, message=held.life.message)


def _fenced(held: holding.Holding, worker: str, stored: twin_partition.Status) -> twin_partition.Status:
    """Still named at the very epoch of the claim that was fenced, it was by another process of our own name, which may not live for long:
    like a refusal, that asks for the next epoch."""
    spec = held.wanted.spec
    manifest_epoch = spec.epoch if spec.worker == worker else stored.manifest_epoch
    return dataclasses.replace(_only_phase(held, stored), manifest_epoch=manifest_epoch)


def _not_yet_claimed(held: holding.Holding, stored: twin_partition.Status, *, is_ours: bool) -> twin_partition.Status:
    """Owner and epoch stay who they were until the claim stands; that it is refused, and by what, has to be known."""
    stored = dataclasses.replace(stored, manifest_epoch=held.refused_epoch)
    return _only_phase(held, stored) if is_ours else stored


def _by_owner(held: holding.Holding, worker: str, stored: twin_partition.Status) -> twin_partition.Status:
    claim, piped = held.tenure, held.pipeline
    if claim is None:  # without checkpoints it may fail before it has one
        return dataclasses.replace(_only_phase(held, stored), worker=worker)
    checkpoint = stored.checkpoint
    if claim.checkpoint is not None:
        checkpoint = claimed.checkpoint_status(held.shard_id, claim.epoch, claim.checkpoint)
    return dataclasses.replace(
        _only_phase(held, stored),
        worker=worker,
        epoch=claim.epoch,
        nonce=claim.nonce,
        twins=len(piped.engine.table) + piped.engine.table.stored_elsewhere if piped is not None else stored.twins,
        checkpoint=checkpoint,
        checkpoint_stale=claim.is_checkpoint_stale,
        manifest_epoch=0,
    )
