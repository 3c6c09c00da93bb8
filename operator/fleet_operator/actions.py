"""What the operator may do to the API server, one word each: what `plan` decides, and the handlers carry out.

Each is idempotent, or conditional on what was read, so doing the same again after a crash does no harm. Nothing is done here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from fleet_model import twin_partition
from fleet_operator import naming, status


@dataclasses.dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Before anything is made that has to be ended in order."""


@dataclasses.dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """The fleet may go; everything that it owns goes with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class WriteStatus:
    """All of it, over the fleet's resourceVersion that was read (or that AddFinalizer left)."""

    status: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Apply:
    """By server-side apply, with force: the fields are ours."""

    manifest: naming.Manifest


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """An object of ours that isn't wanted any more. uid: only this one; "": whichever has the name. orphan: what it owns stays."""

    kind: str
    name: str
    uid: str
    orphan: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class GrowClaim:
    """spec.resources.requests.storage of a PersistentVolumeClaim."""

    name: str
    size: str


@dataclasses.dataclass(frozen=True, slots=True)
class Create:
    """Fails when it exists, and then it is looked at again."""

    manifest: naming.Manifest


@dataclasses.dataclass(frozen=True, slots=True)
class ChangePartition:
    """Replaces the spec, over the resource_version that was read."""

    entry: twin_partition.TwinPartition


@dataclasses.dataclass(frozen=True, slots=True)
class DeletePartition:
    """Over the resource_version that was read."""

    entry: twin_partition.TwinPartition


@dataclasses.dataclass(frozen=True, slots=True)
class RestartPod:
    """Deletes it, if it still has this uid; with its own grace period, so that it drains."""

    name: str
    uid: str


Action: TypeAlias = (
    AddFinalizer
    | RemoveFinalizer
    | WriteStatus
    | Apply
    | Delete
    | GrowClaim
    | Create
    | ChangePartition
    | DeletePartition
    | RestartPod
)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """actions: in this order; none after one that failed. why: one sentence: done, or why not yet. again_ms: look again after so long,
    whatever happens."""

    actions: tuple[Action, ...]
    why: str
    events: tuple[status.Event, ...] = ()
    again_ms: int = 5_000
