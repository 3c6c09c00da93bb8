"""What the replaying endpoint has seen of partitions that changed hands, as figures. Pure.

A pause is measured where records leave the stream: from the last answer whose records the former owner applied (they lie before
the position at which the new owner asked for its iterator) to the first answer that brings the new owner records. A caught-up worker reads each
shard once a second, so about a second of every pause is no more than what lies between two reads anyway.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence

Read = tuple[int, int, int]
"""When (ms), the first record of the answer, and the one after its last."""
Begun = tuple[int, int]
"""When somebody asked for an iterator (ms), and at which record it stands."""

LATE_MS = 1_250
"""A caught-up partition is read once a second; by then, with some room for a busy machine."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Of hands, of one shard. before_ms: the former owner's last read that counts. after_ms: the new one's first. again: records that both
    were given."""

    shard_id: str
    before_ms: int
    begun_ms: int
    after_ms: int
    again: int

    @property
    def pause_ms(self) -> int:
        return self.after_ms - self.before_ms


def changes(reads: Mapping[str, Sequence[Read]], begun: Mapping[str, Sequence[Begun]], since_ms: int) -> list[Change]:
    """Those that began since then and are over."""
    found = []
    for shard_id, beginnings in begun.items():
        for at_ms, position in beginnings:
            before = [read for read in reads.get(shard_id, ()) if read[0] <= at_ms]
            applied = [read for read in before if read[2] <= position]
            after = next((read for read in reads.get(shard_id, ()) if read[0] >= at_ms and read not in before), None)
            if at_ms >= since_ms and applied and after is not None:
                again = max(read[2] for read in before) - position
                found.append(Change(shard_id, applied[-1][0], at_ms, after[0], again))
    return found


def first_reads(
    reads: Mapping[str, Sequence[Read]], begun: Mapping[str, Sequence[Begun]], since_ms: int
) -> dict[str, int]:
    """By shard id: when its first record since then was given to somebody who had begun since then."""
    found = {}
    for shard_id, beginnings in begun.items():
        since = next((at_ms for at_ms, _ in beginnings if at_ms >= since_ms), None)
        first = next((read for read in reads.get(shard_id, ()) if since is not None and read[0] >= since), None)
        if first is not None:
            found[shard_id] = first[0]
    return found


def others_lost(
    reads: Mapping[str, Sequence[Read]], span_ms: tuple[int, int], changed: Sequence[Change]
) -> float | None:
    """The share of records that arrived in that time for partitions while they stayed where they were, and were given out more than
    LATE_MS after the read before: what moves of others have cost them. None when nothing was read."""
    begin, end = span_ms
    ends = {(change.shard_id, change.after_ms) for change in changed}
    late = total = 0
    for shard_id, answers in reads.items():
        for earlier, (at_ms, first, last) in itertools.pairwise(answers):
            if not begin <= at_ms < end or (shard_id, at_ms) in ends:
                continue
            total += last - first
            late += (last - first) * max(0, at_ms - earlier[0] - LATE_MS) // max(1, at_ms - earlier[0])
    return late / total if total else None


def gaps_ms(reads: Mapping[str, Sequence[Read]], span_ms: tuple[int, int], without: Iterable[Change] = ()) -> list[int]:
    """Between two answers with records of a shard, in that time. without: changes of hands whose pause is none of those."""
    begin, end = span_ms
    changed = {(change.shard_id, change.after_ms) for change in without}
    return [
        later[0] - earlier[0]
        for shard_id, answers in reads.items()
        for earlier, later in itertools.pairwise(answers)
        if begin <= later[0] < end and (shard_id, later[0]) not in changed
    ]


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Interpolated; the largest when there are too few to tell them apart. None without values."""
    if not values:
        return None
    if len(values) < 2:
        return float(values[0])
    return float(statistics.quantiles(values, n=100, method="inclusive")[percent - 1])
