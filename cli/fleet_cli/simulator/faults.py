"""Which devices misbehave, how, and when: chosen by the seed alone, so that a run can be told again.

A fault comes in episodes: periodic per device, each device with an offset of its own, a pure function of time. Two
kinds of device never misbehave in the rules' sense but speak badly (wrong clock, poison, duplicates): `encoding` asks
for their masks. Nothing here knows a rule; it is told each device's limits.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class FaultsSpecError(ValueError):
    """The --faults text can't be read; the message says which part and what is allowed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shares:
    """The share of the fleet's devices, 0 to 1, that has each fault."""

    hot: float = 0.0
    """Runs hotter than its temperature limit for a while, until told to cool down."""
    drain: float = 0.0
    """Loses charge quickly while idle, until told to reduce its duty."""
    silent: float = 0.0
    """Says nothing for longer than its offline limit, then returns."""
    clock: float = 0.0
    """Has a clock that is minutes to days wrong."""
    poison: float = 0.0
    """Sends a record that nobody can use now and then."""
    duplicate: float = 0.0
    """Sends some samples twice."""
    json: float = 0.0
    """Speaks JSON instead of protobuf."""


NAMES = tuple(field.name for field in dataclasses.fields(Shares))
_PART = re.compile(r"\s*([a-z]+)\s*=\s*([0-9.]+)\s*(%?)\s*")


def parse(text: str) -> Shares:
    """`hot=1%,drain=0.5%,silent=0.01` → Shares. Raises FaultsSpecError."""
    shares: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PART.fullmatch(part)
        if match is None:
            raise FaultsSpecError(f"{part!r}: write NAME=SHARE, such as hot=1% or hot=0.01")
        name, number, percent = match.groups()
        if name not in NAMES:
            raise FaultsSpecError(f"{name!r} is no fault; there are {', '.join(NAMES)}")
        try:
            share = float(number) / (100.0 if percent else 1.0)
        except ValueError:
            raise FaultsSpecError(f"{part!r}: {number!r} is not a number") from None
        if not 0.0 <= share <= 1.0:
            raise FaultsSpecError(f"{part!r}: a share lies between 0% and 100% (1% is 0.01)")
        if name in shares:
            raise FaultsSpecError(f"{name!r} is given twice")
        shares[name] = share
    return Shares(**shares)


def describe(shares: Shares) -> str:
    """The shares that aren't 0, as `parse` reads them; "none" when all are."""
    parts = [f"{name}={getattr(shares, name) * 100:g}%" for name in NAMES if getattr(shares, name)]
    return ",".join(parts) or "none"


def chosen(generator: np.random.Generator, devices: int, share: float) -> Bools:
    """A mask of round(share · devices) devices, at least one when the share isn't 0."""
    mask = np.zeros(devices, dtype=np.bool_)
    if share > 0.0 and devices:
        count = min(devices, max(1, round(share * devices)))
        mask[generator.choice(devices, size=count, replace=False)] = True
    return mask


@dataclasses.dataclass(slots=True)
class Episodes:
    """When each device's fault is on. period_s, length_s, first_s: (n,) seconds; calmed_until_s: no fault before it.

    An episode starts at first_s and then each period_s, and lasts length_s.
    """

    prone: Bools
    period_s: Floats
    length_s: Floats
    first_s: Floats
    calmed_until_s: Floats

    def active(self, index: Ints, at_s: Floats) -> Bools:
        """Whether the fault is on for device index[i] at time at_s[i]."""
        since = at_s - self.first_s[index]
        inside = (since >= 0.0) & (np.mod(since, self.period_s[index]) < self.length_s[index])
        return np.asarray(self.prone[index] & inside & (at_s >= self.calmed_until_s[index]))

    def calm(self, device: int, at_s: float) -> None:
        """Ends the episode that is on; the next one comes in its time."""
        self.calmed_until_s[device] = at_s + self.length_s[device]


def episodes(generator: np.random.Generator, prone: Bools, period_s: float, length_s: Floats | float) -> Episodes:
    """Episodes of about length_s (±20 %) each period_s (at least twice the length).

    The prone devices' first ones are spread evenly over a period, in an order of their own, so that few devices don't all
    wait for the same moment.
    """
    devices = len(prone)
    length = np.asarray(length_s) * generator.uniform(0.8, 1.2, devices)
    period = np.maximum(period_s * generator.uniform(0.8, 1.2, devices), 2.0 * length)
    turn = np.zeros(devices)
    count = int(prone.sum())
    turn[prone] = (generator.permutation(count) + generator.random(count)) / max(1, count)
    return Episodes(prone, period, length, turn * period, np.zeros(devices))
