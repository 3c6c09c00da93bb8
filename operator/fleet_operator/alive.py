"""Whether the operator still does what it is there for: do events arrive, do rounds end? Judges from what the others tell; no I/O.

An API server that is away is no reason to be ended: nothing gets better by that. So whatever rests on it only counts while it answers.
"""

from __future__ import annotations

import dataclasses

BEAT_S_MAX = 60.0
"""The Lease is renewed each few seconds, by us or by whoever holds it: without an event of it for so long nothing arrives."""
RUN_S_MAX = 180.0
"""A round is a few seconds, and each of its requests ends by itself."""
SWEEP_S_MAX = 300.0
WATCHES_S_MAX = 120.0
ANSWERED_S_MAX = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Signs:
    """Ages in seconds; None: never. answered: the API server, to a look at the Lease. beat: an event of the Lease. swept: a whole
    sweep. watches_down: for so long nothing watches; 0 = something does. oldest_run: the longest round that goes on. late: kinds whose
    events don't come. age: of the process."""

    age: float
    answered: float | None
    beat: float | None
    swept: float | None
    watches_down: float
    oldest_run: float
    late: tuple[str, ...]


def why_not_healthy(signs: Signs) -> list[str]:
    """Reasons to be ended and begun anew; none: all is well."""
    why = []
    if signs.oldest_run > RUN_S_MAX:
        why.append(f"a round has been going on for {signs.oldest_run:.0f} s")
    if signs.answered is None or signs.answered > ANSWERED_S_MAX:
        return why
    if _older(signs.beat, signs.age, BEAT_S_MAX):
        why.append("no event of the Lease arrives, though it is renewed")
    if _older(signs.swept, signs.age, SWEEP_S_MAX):
        why.append("no sweep came to an end")
    if signs.watches_down > WATCHES_S_MAX:
        why.append("nothing is watched")
    if signs.late:
        why.append(f"events don't arrive: {', '.join(signs.late)}")
    return why


def why_not_ready(signs: Signs) -> list[str]:
    why = []
    if signs.answered is None or signs.answered > ANSWERED_S_MAX * 3:
        why.append("the API server doesn't answer")
    if signs.swept is None:
        why.append("the API server's objects aren't known yet")
    if signs.beat is None:
        why.append("no event has arrived yet")
    return why


def _older(age: float | None, process_age: float, limit: float) -> bool:
    return (process_age if age is None else age) > limit
