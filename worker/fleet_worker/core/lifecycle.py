"""A partition's phases: one transition table. An event that isn't in it raises and changes nothing."""

from __future__ import annotations

import enum
from collections.abc import Callable

from fleet_model.twin_partition import Phase as Phase


class Event(enum.StrEnum):
    START = "start"
    RESTORED = "restored"
    DRAIN = "drain"
    TAKEN_BACK = "taken back"
    DRAINED = "drained"
    ENDED = "ended"
    REASSIGNED = "reassigned"
    FAIL = "fail"
    RETRY = "retry"


TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.PENDING, Event.START): Phase.RESTORING,
    (Phase.RESTORING, Event.RESTORED): Phase.RUNNING,
    (Phase.RUNNING, Event.DRAIN): Phase.DRAINING,
    (Phase.DRAINING, Event.TAKEN_BACK): Phase.RUNNING,
    (Phase.DRAINING, Event.DRAINED): Phase.RELEASED,
    (Phase.RUNNING, Event.ENDED): Phase.CLOSED,
    (Phase.DRAINING, Event.ENDED): Phase.CLOSED,
    (Phase.RESTORING, Event.ENDED): Phase.CLOSED,
    (Phase.RELEASED, Event.REASSIGNED): Phase.PENDING,
    (Phase.FAILED, Event.RETRY): Phase.RESTORING,
    **{(phase, Event.FAIL): Phase.FAILED for phase in Phase if phase is not Phase.FAILED},
}


class IllegalEventError(ValueError):
    """The phase has no transition for the event."""


def after(phase: Phase, event: Event) -> Phase:
    """The phase that the event leads to."""
    try:
        return TRANSITIONS[(phase, event)]
    except KeyError:
        raise IllegalEventError(f"a partition that is {phase.value} can't take the event {event.value!r}") from None


class Life:
    """One partition's phase at a worker, and why it is what it is. on_change: called after each change."""

    def __init__(self, phase: Phase = Phase.PENDING, on_change: Callable[[], None] = lambda: None) -> None:
        self.phase = phase
        self.message = ""
        self._on_change = on_change

    def step(self, event: Event, message: str = "") -> None:
        """Raises IllegalEventError, and then changes nothing."""
        self.phase = after(self.phase, event)
        self.message = message
        self._on_change()

    def tell(self, message: str) -> None:
        """Why it is still in its phase."""
        if message != self.message:
            self.message = message
            self._on_change()


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> Pending"]
    lines += [f"    {phase.value} --> {target.value}: {event.value}" for (phase, event), target in TRANSITIONS.items()]
    return "\n".join(lines) + "\n"
