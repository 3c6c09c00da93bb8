"""A partition's phases: what may follow what, and that the documentation shows exactly that."""

from __future__ import annotations

import pathlib

import pytest

from fleet_worker.core import lifecycle
from fleet_worker.core.lifecycle import Event, Phase

ARCHITECTURE = pathlib.Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_documentation_shows_the_table() -> None:
    assert f"```mermaid\n{lifecycle.diagram()}```\n" in ARCHITECTURE.read_text()


def test_the_diagram_has_each_transition_once() -> None:
    lines = lifecycle.diagram().splitlines()[2:]
    assert len(lines) == len(set(lines)) == len(lifecycle.TRANSITIONS)
    for (phase, event), target in lifecycle.TRANSITIONS.items():
        assert f"    {phase.value} --> {target.value}: {event.value}" in lines


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_an_event_that_the_table_does_not_have_raises(phase: Phase, event: Event) -> None:
    if (phase, event) in lifecycle.TRANSITIONS:
        assert lifecycle.after(phase, event) is lifecycle.TRANSITIONS[(phase, event)]
    else:
        with pytest.raises(lifecycle.IllegalEventError, match=f"{phase.value}.*{event.value}"):
            lifecycle.after(phase, event)


def test_whatever_happens_a_partition_can_fail_and_run_again() -> None:
    for phase in Phase:
        failed = phase if phase is Phase.FAILED else lifecycle.after(phase, Event.FAIL)
        restoring = lifecycle.after(failed, Event.RETRY)
        assert lifecycle.after(restoring, Event.RESTORED) is Phase.RUNNING


def test_a_shards_end_closes_from_every_phase_that_reads_or_restores() -> None:
    for phase in (Phase.RESTORING, Phase.RUNNING, Phase.DRAINING):
        assert lifecycle.after(phase, Event.ENDED) is Phase.CLOSED
