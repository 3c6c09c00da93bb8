"""What a run consists of, and says at its end: streams, workers' places, an outcome."""

from __future__ import annotations

import asyncio
import collections
import dataclasses

from fleet_worker import supervisor
from fleet_worker.adapters import kinesis_source, memory_disk
from tests.sim import judge, processes, surroundings

TELEMETRY, ALERTS, COMMANDS, DEAD_LETTERS = "telemetry", "alerts", "commands", "dead-letters"
PACING = kinesis_source.Pacing(idle_s=3.0)


@dataclasses.dataclass(slots=True)
class Outcome:
    """problems: in words; none is a pass. seen: how often what happened. digest: of everything that was written."""

    problems: list[str]
    seen: collections.Counter[str]
    digest: str
    judgement: judge.Judgement | None = None
    seconds: float = 0.0


@dataclasses.dataclass(slots=True)
class Running:
    """A start of a worker."""

    process: processes.Process
    network: surroundings.Network
    stop: asyncio.Event
    supervisor: supervisor.Supervisor | None = None


class Worker:
    """A name, its disk, and the process that runs under it, if one does. down: how many reasons keep it from starting."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.name = f"worker-{ordinal}"
        self.disk = memory_disk.MemoryDisk()
        self.network = surroundings.Network()
        self.running: Running | None = None
        self.down = 0
        self.starts = 0
