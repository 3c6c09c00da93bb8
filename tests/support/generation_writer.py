"""A process that keeps appending rules generations to a data folder, and says so after each: something to kill.

Run as `python -m tests.support.generation_writer DIR`. A line "kept N" comes only after generation N is durable.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from fleet_model import partition, rules
from fleet_worker.adapters import local_folder


def main() -> None:
    with local_folder.LocalFolder(Path(sys.argv[1]), "default", "trucks") as folder:
        folder.settle_start(partition.Start("telemetry", 1_000))
        last = folder.generations[-1] if folder.generations else None
        print("open", flush=True)
        first = rules.RulesGeneration() if last is None else _following(last)
        for generation in itertools.accumulate(itertools.repeat(first), lambda before, _: _following(before)):
            folder.append_generation(generation, max(0, generation.effective_ms - 50))
            print(f"kept {generation.generation}", flush=True)


def _following(before: rules.RulesGeneration) -> rules.RulesGeneration:
    temperature = rules.TemperatureRule(threshold=float(before.generation + 1))
    return rules.RulesGeneration(before.generation + 1, before.effective_ms + 10, rules.Rules(temperature))


if __name__ == "__main__":
    main()
