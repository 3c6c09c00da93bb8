"""Sets the gauges that follow from the partitions' state, when somebody scrapes: the hot path never pays for them."""

from __future__ import annotations

from fleet_worker import metrics
from fleet_worker.api import directory, walk


async def refresh(worker: directory.WorkerView, measured: metrics.Metrics, wall_ms: int) -> None:
    """One pass over the partitions; a few milliseconds per million twins, in blocks."""
    measured.rules_generation.set(worker.rules_generation)
    for entry in worker.partitions():
        gauges = measured.partition(entry.identity.shard_id)
        twin_table, outbox = entry.engine.table, entry.outbox
        gauges.set_phase(entry.phase)
        gauges.twins.set(len(twin_table) + twin_table.stored_elsewhere)
        gauges.twins_in_memory.set(len(twin_table))
        gauges.outbox_effects.set(outbox.effects)
        gauges.set_outbox_oldest(0 if outbox.oldest_ms is None else max(0, wall_ms - outbox.oldest_ms))
        if entry.lag_ms is not None:
            gauges.set_lag(entry.lag_ms)
        if entry.state.clock_ms:
            gauges.set_clock_age(max(0, wall_ms - entry.state.clock_ms))
        gauges.set_open_alerts(await walk.open_alerts(entry))
