"""What the rules of one partition share."""

from __future__ import annotations

import dataclasses

from fleet_worker.core import emit, limits, table


@dataclasses.dataclass(slots=True)
class Context:
    """The partition's table, the limits in force now, and the writer of its effects."""

    table: table.TwinTable
    limits: limits.Limits
    emitter: emit.Emitter
