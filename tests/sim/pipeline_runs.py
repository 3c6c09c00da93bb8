"""Seeded runs of one partition's pipeline, with restarts and full disks, each judged by the reference."""

from __future__ import annotations

import random

from tests.property import driving, histories, piping


def checked(seed: int) -> list[str]:
    """What is wrong with the seed's run; nothing, if all is well."""
    dice = random.Random(seed)
    history = histories.draw(dice, records_max=60)
    manner = piping.Manner(dice, rows_max=dice.choice([0, 1, 2, 3]), restarts=dice.randint(0, 3), full_percent=15)
    run = piping.run(history, manner)
    if run.outcome is None:
        return ["the run came to no end"]
    return driving.disagreements(history, run.outcome)
