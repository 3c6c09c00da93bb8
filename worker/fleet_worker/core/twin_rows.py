"""Several lots of twins made into one, one cut into several: what restoring and showing a checkpoint does with rows.

Rows keep the order of their keys (MD5 of the device id, then the id). Nothing here looks into a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_worker.core import commits, ids, kept_telemetry


def keys(rows: commits.TwinRows) -> list[bytes]:
    """What rows are ordered by: digest and id."""
    return [digest + name for digest, name in zip(rows.digests.tolist(), ids.encoded(rows.device_ids), strict=True)]


def cut(rows: commits.TwinRows, first: int, last: int) -> commits.TwinRows:
    """Rows first to last (excluded)."""
    return commits.TwinRows(
        rows.digests[first:last],
        rows.device_ids[first:last],
        rows.rows[first:last],
        {index - first: extra for index, extra in rows.extras.items() if first <= index < last},
        rows.telemetry[first:last],
    )


def take(rows: commits.TwinRows, at: NDArray[np.int64]) -> commits.TwinRows:
    """Those rows, copied."""
    names = ids.encoded(rows.device_ids)
    device_ids = ids.EncodedIds([names[index] for index in at.tolist()])
    telemetry = kept_telemetry.KeptTelemetry.of(rows.device_ids, rows.telemetry)
    return commits.TwinRows(
        rows.digests.take(at),
        device_ids,
        rows.rows.take(at),
        {new: rows.extras[old] for new, old in enumerate(at.tolist()) if old in rows.extras} if rows.extras else {},
        telemetry.take(at.tolist(), device_ids),
    )


def concatenated(lots: Sequence[commits.TwinRows]) -> commits.TwinRows:
    """All rows of one lot after those of the one before."""
    if len(lots) == 1:
        return lots[0]
    if not lots:
        return commits.no_rows()
    extras: dict[int, bytes] = {}
    before = 0
    for rows in lots:
        extras |= {before + index: extra for index, extra in rows.extras.items()}
        before += len(rows.device_ids)
    device_ids = ids.EncodedIds([name for rows in lots for name in ids.encoded(rows.device_ids)])
    kept = [kept_telemetry.KeptTelemetry.of(rows.device_ids, rows.telemetry) for rows in lots]
    return commits.TwinRows(
        np.concatenate([rows.digests for rows in lots]),
        device_ids,
        np.concatenate([rows.rows for rows in lots]),
        extras,
        kept_telemetry.KeptTelemetry(
            device_ids,
            np.concatenate([entry.forms for entry in kept]),
            [rest for entry in kept for rest in entry.rests],
        ),
    )


def overlaid(lots: Sequence[commits.TwinRows]) -> commits.TwinRows:
    """One row a device, in the order of keys: where several lots have one, the last of them wins. Each lot is in that order and has a
    device once."""
    filled = [rows for rows in lots if len(rows.device_ids)]
    if len(filled) <= 1:
        return filled[0] if filled else commits.no_rows()
    joined = concatenated(filled)
    halves = joined.digests.view(">u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal ones stay in the order of the lots
    same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    if same.any():
        order, same = _by_whole_key(joined, order, same)
    return take(joined, order[np.append(~same, True)])


def _by_whole_key(
    joined: commits.TwinRows, order: NDArray[np.int64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of equal digests are of one device, or else (MD5 can be made to collide) they are ordered by their ids."""
    names = ids.encoded(joined.device_ids)
    at = np.flatnonzero(same)
    if all(names[one] == names[other] for one, other in zip(order[at].tolist(), order[at + 1].tolist(), strict=True)):
        return order, same
    whole = keys(joined)
    order = np.array(sorted(range(len(whole)), key=whole.__getitem__), dtype=np.int64)
    ordered = [whole[index] for index in order.tolist()]
    return order, np.array([one == other for one, other in itertools.pairwise(ordered)], dtype=bool)
