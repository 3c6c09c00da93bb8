"""Edits of a fleet's rules, drawn by a seed, as `spec.rules` and `spec.profiles` of a fleet file."""

from __future__ import annotations

import random
from typing import Any

Section = dict[str, Any]


def draw(dice: random.Random) -> tuple[Section, list[Section]]:
    """(rules, profiles). Nearly every draw differs from the one before in what matters."""
    profiles = [
        {"name": f"profile-{number}", "match": _match(dice), "rules": _rules(dice, sparse=True)}
        for number in range(dice.choice((0, 0, 1, 2)))
    ]
    return _rules(dice, sparse=False), profiles


def _match(dice: random.Random) -> Section:
    return dice.choice(
        (
            {"deviceIdPrefix": "truck-"},
            {"deviceIdRegex": r".*[02468](/a)?"},
            {"firmware": "2.0"},
            {"deviceIdPrefix": "drone-", "firmware": "1.0"},
        )
    )


def _rules(dice: random.Random, sparse: bool) -> Section:
    every = {
        "temperature": {
            "enabled": dice.randrange(10) > 0,
            "threshold": dice.choice((60.0, 58.5, 74.0, 45.0)),
            "consecutiveSamples": dice.choice((3, 2, 1)),
            "repeatInterval": dice.choice(("0s", "1s", "2500ms", "1h")),
            "hysteresis": dice.choice((2.0, 0.0, 10.0)),
            "severity": dice.choice(("critical", "warning")),
            "command": dice.choice(("cool_down", "vent", "")),
            "resolvedNotice": dice.randrange(2) == 0,
        },
        "battery": {
            "enabled": dice.randrange(10) > 0,
            "maxDropPerHour": dice.choice((10.0, 40.0, 100.0)),
            "minObservation": dice.choice(("10s", "1m", "10m")),
            "repeatInterval": dice.choice(("0s", "1s", "1h")),
            "hysteresis": dice.choice((1.0, 0.0, 5.0)),
            "resolvedNotice": dice.randrange(2) == 0,
        },
        "offline": {
            "enabled": dice.randrange(10) > 0,
            "after": dice.choice(("10s", "10s", "11s", "5m")),
            "repeatInterval": dice.choice(("0s", "0s", "1s", "1500ms")),
            "severity": dice.choice(("warning", "info")),
            "command": dice.choice(("ping", "wake", "")),
            "resolvedNotice": dice.randrange(4) > 0,
        },
    }
    return {name: rule for name, rule in every.items() if not sparse or dice.randrange(2) == 0} or every
