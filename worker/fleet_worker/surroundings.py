"""What the partitions of a worker share. It holds; it does nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from fleet_model import spec
from fleet_worker import metrics, ports, reading, turns


async def _at_once(arrival_ms: int) -> None:
    """Whoever stamps the generations itself knows them all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """rules_known: returns when every generation that starts up to that arrival time is known here. rules_settled: cleared while a new generation is being stamped and kept, so that no record is judged past its start
    before it holds. turns, places: time on the event loop, and memory for answers."""

    clock: ports.Clock
    sink: ports.EffectSink
    metrics: metrics.Metrics
    fleet: spec.FleetSpec
    retention_ms: int
    rules_settled: asyncio.Event
    turns: turns.Turns = dataclasses.field(default_factory=turns.Turns)
    places: reading.Places = dataclasses.field(default_factory=reading.Places)
    rules_known: Callable[[int], Awaitable[None]] = _at_once
