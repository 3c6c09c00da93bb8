"""Partitions that are to have no owner any more: of a fleet that is suspended or deleted.

A partition without a named worker is drained and released by whoever has it, which takes its final checkpoint; the next owner, if ever
there is one, begins there. So nothing but the object has to be written, and an operator that dies in between goes on from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from fleet_model import situation, twin_partition
from fleet_model.situation import Situation, Stage
from fleet_model.twin_partition import Phase, TwinPartition


def named_for_nobody(entries: Iterable[TwinPartition], now_ms: int) -> list[TwinPartition]:
    """Those that still name somebody, with the specs that they are to have."""
    return [
        dataclasses.replace(entry, spec=_released(entry, now_ms))
        for entry in entries
        if situation.stage(entry) is not Stage.CLOSED and entry.spec.worker
    ]


def _released(entry: TwinPartition, now_ms: int) -> twin_partition.Spec:
    """The epoch rises, as with any change of owner."""
    spec, status = entry.spec, entry.status
    epoch = max(spec.epoch, status.epoch, status.manifest_epoch) + 1
    return dataclasses.replace(
        spec, worker="", epoch=epoch, takeover=0, standby=(), receiver="", standby_ms=0, assigned_ms=now_ms
    )


def still_held(look: Situation) -> list[TwinPartition]:
    """Whose final checkpoint can still be expected: somebody who answers holds it, and the time for that isn't over."""
    return [entry for entry in look.partitions.values() if not has_let_go(entry) and not is_hopeless(look, entry)]


def without_final(look: Situation) -> list[TwinPartition]:
    """That ended, or will, with the last checkpoint there is; the rest would have to come from the stream."""
    return [entry for entry in look.partitions.values() if not has_let_go(entry) and is_hopeless(look, entry)]


def has_let_go(entry: TwinPartition) -> bool:
    """Its final checkpoint stands, or it never had any twins here."""
    is_final = entry.status.phase in (Phase.RELEASED, Phase.CLOSED)
    return is_final or (not entry.status.epoch and not entry.spec.worker)


def is_hopeless(look: Situation, entry: TwinPartition) -> bool:
    """Nobody who could let it go answers, or was given long enough to."""
    if entry.spec.worker:
        return False  # it isn't asked for yet
    return look.is_overdue(entry) or entry.status.worker in look.silent
