"""What the rules of one partition share."""

from __future__ import annotations

import dataclasses

from fleet_worker.core import emit, limits, records, table


@dataclasses.dataclass(slots=True)
class Counts:
    """What happened since the counts were last set anew. second_hops: records that were put again and are misrouted still."""

    late: int = 0
    misrouted: int = 0
    baselines: int = 0
    created: int = 0
    second_hops: list[records.DeadLetter] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Context:
    """The partition's table, the limits in force now, the writer of its effects, and what happened."""

    table: table.TwinTable
    limits: limits.Limits
    emitter: emit.Emitter
    counts: Counts = dataclasses.field(default_factory=Counts)
