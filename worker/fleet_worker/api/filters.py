"""Filters over twins: on a block of the table's columns, and once more on the rows that a page copied.

Both ask the same questions; only the first must be fast. A filter hides forgotten devices' stamps, always.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from fleet_worker.api import directory
from fleet_worker.core import health, limits, twins, views

STAMP = int(twins.Flag.FORGOTTEN)
STAMP_MASK = int(twins.Flag.FORGOTTEN | twins.Flag.ANY_OVERRIDE)
"""A forgotten device's stamp is kept against late records, but is no twin any more, unless an override came after it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """Which twins. any_of: for each mask at least one of its flags is set. none_of: flags that are not set.
    health_below: a score, and below this. prefix: of the device id. firmware, profile: exactly; None = whatever."""

    any_of: tuple[int, ...] = ()
    none_of: int = 0
    health_below: float | None = None
    prefix: str = ""
    firmware: str | None = None
    profile: str | None = None


def matching_slots(partition: directory.PartitionView, wanted: Wanted, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the slots that match, firmware aside. The cheap questions first."""
    twin_table, judging = partition.engine.table, partition.engine.context.limits
    slots = slots[flags_match(wanted, twin_table.rows["flags"][slots])]
    if wanted.profile is not None:
        slots = slots[np.isin(twin_table.profile[slots], profile_indices(judging, wanted.profile))]
    if wanted.prefix:
        device_ids, prefix = twin_table.device_ids.at(slots), wanted.prefix
        matches = [device_id.startswith(prefix) for device_id in device_ids]
        slots = slots[np.array(matches, dtype=np.bool_)]
    if wanted.health_below is not None:
        overrides = np.zeros((len(slots), 3))
        indices = twin_table.extra_index[slots]
        overrides[indices > 0] = twin_table.extras["override"][indices[indices > 0] - 1]
        rows = twin_table.rows.take(slots)  # a tenth of what indexing costs on structured rows
        slots = slots[_ill(wanted.health_below, partition, rows, (twin_table.profile[slots], overrides))]
    return slots


def matches(partition: directory.PartitionView, wanted: Wanted, found: views.Twins) -> NDArray[np.bool_]:
    """(n,) of twins copied out, by every filter but the prefix, which can't change."""
    matching = flags_match(wanted, found.rows["flags"])
    if wanted.profile is not None:
        judging = partition.engine.context.limits
        matching &= np.isin(found.profiles, profile_indices(judging, wanted.profile))
    if wanted.health_below is not None:
        held = (found.profiles, found.extras["override"])
        matching &= _ill(wanted.health_below, partition, found.rows, held)
    if wanted.firmware is not None:
        matching &= np.array([views.firmware(raw) == wanted.firmware for raw in found.telemetry], dtype=np.bool_)
    return matching


def flags_match(wanted: Wanted, flags: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """(n,) by what the flags tell."""
    matching: NDArray[np.bool_] = flags & STAMP_MASK != STAMP
    for mask in wanted.any_of:
        matching &= flags & mask != 0
    if wanted.none_of:
        matching &= flags & wanted.none_of == 0
    return matching


def profile_indices(judging: limits.Limits, name: str) -> list[int]:
    """A profile may be called like the fleet's default; then both are meant."""
    names = [views.DEFAULT_PROFILE, *(profile.name for profile in judging.generation.profiles)]
    return [index for index, known in enumerate(names) if known == name]


def _ill(
    below: float,
    partition: directory.PartitionView,
    rows: NDArray[np.void],
    held_by: tuple[NDArray[np.uint8], NDArray[np.float64]],
) -> NDArray[np.bool_]:
    """Which have a score below. held_by: profiles and overrides."""
    profiles, overrides = held_by
    limit = health.held(partition.engine.context.limits, profiles, rows["flags"], overrides)
    score: NDArray[np.float64] = health.assess(rows, limit, partition.state.clock_ms).score
    return score < below
