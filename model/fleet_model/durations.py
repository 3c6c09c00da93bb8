"""Durations and sizes as people write them: Go durations ("1h30m") and Kubernetes quantities ("10Gi").

Both are what Kubernetes objects use, so the YAML reads the same everywhere. Only spellings that give whole milliseconds
(or bytes, rounded up) are accepted: nothing a user wrote is rounded away. A bare number is refused: its unit is a guess.
"""

from __future__ import annotations

import datetime
import fractions
import math
import re

import durationpy

DURATION_PATTERN = re.compile(r"0|(?:[0-9]{1,12}ms|[0-9]{1,12}(?:\.[0-9]{1,3})?[smh])+")
"""With at most three decimals every unit gives whole milliseconds: 0.001s is one."""

DURATION_LENGTH_MAX = 64

QUANTITY_PATTERN = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?")

_POWERS = {prefix: index + 1 for index, prefix in enumerate("kMGTPE")}
_MILLISECOND = datetime.timedelta(milliseconds=1)


def parse_ms(text: str) -> int:
    """Milliseconds of a Go duration in h, m, s and ms. Raises ValueError."""
    if len(text) > DURATION_LENGTH_MAX or DURATION_PATTERN.fullmatch(text) is None:
        raise ValueError("not a duration")
    # The library adds up doubles, so the sum may lie a little beside the whole millisecond that is meant.
    return round(durationpy.from_str(text) / _MILLISECOND)


def text_of_ms(duration_ms: int) -> str:
    """The Go duration of whole milliseconds: 5400000 is "1h30m". parse_ms reads it back exactly, up to 10**15."""
    if duration_ms == 0:
        return "0s"
    seconds, milliseconds = divmod(duration_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (seconds, "s"), (milliseconds, "ms"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def parse_bytes(text: str) -> int:
    """Bytes of a Kubernetes quantity, rounded up: "10Gi" is 10 * 2**30, "10G" is 10**10. Raises ValueError."""
    match = QUANTITY_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError("not a quantity")
    number, suffix = match.groups()
    return math.ceil(fractions.Fraction(number) * _factor(suffix))


def text_of_bytes(size_bytes: int) -> str:
    """The shortest exact quantity with a binary suffix: 2**30 is "1Gi"."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        if size_bytes and size_bytes % _factor(suffix) == 0:
            return f"{size_bytes // _factor(suffix)}{suffix}"
    return str(size_bytes)


def _factor(suffix: str | None) -> int:
    if suffix is None:
        return 1
    if suffix.endswith("i"):
        return int(1024 ** _POWERS["k" if suffix == "Ki" else suffix[0]])
    return int(1000 ** _POWERS[suffix])
