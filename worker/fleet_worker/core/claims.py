"""Who may claim a partition, by its manifest (design invariant 4). Pure: what stands there and what is asked for in, a reason or none out.

It knows nothing of how a manifest is written; that a claim is the only one of its moment is the business of `custody`.
"""

from __future__ import annotations

import dataclasses

from fleet_model import manifest, partition

FIRST_EPOCH = 1


def manifest_key(shard_id: str) -> str:
    return f"{shard_id}/manifest.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """What someone asks for. takeover: the epoch for which the control plane grants it, 0 = none. first_epoch: the one claim that may
    find no manifest; above 1 where no assignee of before ever told of a claim."""

    identity: partition.PartitionIdentity
    worker: str
    epoch: int
    takeover: int = 0
    first_epoch: int = FIRST_EPOCH


def refusal(found: manifest.Manifest | None, claim: Claim) -> str | None:
    """Why the manifest doesn't let the claim pass, and what to do; None when it does (design invariant 4)."""
    shard_id = claim.identity.shard_id
    if found is None:
        if claim.epoch == claim.first_epoch:
            return None
        return (
            f"partition {shard_id}: there is no {manifest_key(shard_id)} at epoch {claim.epoch}, though it was claimed before: its manifest is lost, "
            "or spec.checkpoint names another bucket or prefix; name the right one or bring the object back. Only if its twins may be "
            "lost, too: delete its TwinPartition, and it begins anew"
        )
    if found.identity != claim.identity:
        return _of_another_partition(found.identity, claim.identity)
    if claim.epoch < found.epoch:
        return (
            f"partition {shard_id}: epoch {claim.epoch} is below {found.epoch}, which {found.worker} claimed it with; "
            f"it needs an epoch above that"
        )
    if found.final or found.worker == claim.worker or claim.takeover == claim.epoch:
        return None
    return (
        f"partition {shard_id}: {found.worker} claimed it at epoch {found.epoch} and hasn't released it; wait until it has, or let epoch "
        f"{claim.epoch} take it over"
    )


def _of_another_partition(found: partition.PartitionIdentity, wanted: partition.PartitionIdentity) -> str:
    differing = [
        f"{name} is {getattr(found, name)}, not {getattr(wanted, name)}"
        for name in ("namespace", "fleet", "stream", "shard_id", "hash_key_range")
        if getattr(found, name) != getattr(wanted, name)
    ]
    return (
        f"partition {wanted.shard_id}: {manifest_key(wanted.shard_id)} is another partition's ({'; '.join(differing)}); give this fleet "
        "a bucket or prefix of its own (spec.checkpoint), or remove what is left of the other one"
    )
