"""How much work each partition is: records/s since the last look, for whoever plans who owns what. Restless; smoothing is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fleet_worker import ports

LOOK_EVERY_S = 2.0


class Loads:
    """Of one worker."""

    def __init__(self) -> None:
        self._applied: Mapping[str, int] = {}
        self._seen_s: float | None = None

    def see(self, applied: Mapping[str, int], now_s: float) -> dict[str, float]:
        """applied: records judged since each partition began here, by shard id. Returns records/s; 0 of one that is new, or began anew."""
        seconds = max(now_s - self._seen_s, 1e-3) if self._seen_s is not None else 1.0
        before, self._applied, self._seen_s = self._applied, dict(applied), now_s
        return {
            shard_id: max(0.0, (count - before.get(shard_id, count)) / seconds) for shard_id, count in applied.items()
        }


class Worker(Protocol):
    """Whose partitions they are."""

    load: Mapping[str, float]

    def applied(self) -> Mapping[str, int]: ...


async def look(worker: Worker, clock: ports.Clock) -> None:
    """Keeps `load` up to date, until cancelled."""
    seen = Loads()
    while True:
        worker.load = seen.see(worker.applied(), clock.monotonic())
        await clock.sleep(LOOK_EVERY_S)
