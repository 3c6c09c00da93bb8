"""The Lease: one holder at a time, whatever the order of looks, lost answers and clocks."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_operator import errors, kinds, lease
from tests.support.set_clock import SetClock


class Leases:
    """One Lease on an API server that may be away, and whose answers may get lost."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] | None = None
        self.version = 0
        self.is_away = self.loses_answers = False

    def get(self, kind: kinds.Kind, namespace: str, name: str) -> dict[str, Any]:
        self._answer()
        if self.kept is None:
            raise errors.MissingError(name)
        return self.kept

    def create(self, kind: kinds.Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        if self.kept is not None:
            raise errors.ConflictError("there is one")
        return self._keep(manifest)

    def replace(self, kind: kinds.Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        assert self.kept is not None
        if manifest["metadata"]["resourceVersion"] != self.kept["metadata"]["resourceVersion"]:
            raise errors.ConflictError("another version")
        return self._keep(manifest)

    def _keep(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        self.version += 1
        self.kept = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}
        if self.loses_answers:
            raise errors.ApiUnavailableError("the answer got lost")
        return self.kept

    def _answer(self) -> None:
        if self.is_away:
            raise errors.ApiUnavailableError("away")

    @property
    def holder(self) -> str:
        assert self.kept is not None
        return str(self.kept["spec"]["holderIdentity"])


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def leases() -> Leases:
    return Leases()


def operator(leases: Leases, clock: SetClock, name: str) -> lease.Lease:
    return lease.Lease(leases, lease.Where("fleet", "operator", name), clock)


def test_the_first_one_takes_it_and_the_second_waits(leases: Leases, clock: SetClock) -> None:
    first, second = operator(leases, clock, "first"), operator(leases, clock, "second")
    first.step()
    second.step()
    assert first.is_held
    assert not second.is_held
    first.check()
    with pytest.raises(errors.NotLeadingError):
        second.check()


def test_it_is_held_as_long_as_it_is_renewed(leases: Leases, clock: SetClock) -> None:
    first, second = operator(leases, clock, "first"), operator(leases, clock, "second")
    for _ in range(40):
        clock.s += min(first.step(), second.step())
        assert first.is_held
        assert not second.is_held


def test_a_holder_stops_before_anybody_can_take_it(leases: Leases, clock: SetClock) -> None:
    first, second = operator(leases, clock, "first"), operator(leases, clock, "second")
    first.step()
    second.step()
    ended_s = taken_s = 0.0
    for _ in range(400):
        clock.s += 0.1
        second.step()
        ended_s = ended_s or (0.0 if first.is_held else clock.s)
        taken_s = taken_s or (clock.s if second.is_held else 0.0)
        assert not (first.is_held and second.is_held)
    assert taken_s - ended_s > 5.0  # more than a request takes


def test_a_holder_is_judged_by_the_own_clock_and_not_by_the_times_that_it_writes(
    leases: Leases, clock: SetClock
) -> None:
    first, second = operator(leases, clock, "first"), operator(leases, clock, "second")
    first.step()
    assert leases.kept is not None
    leases.kept["spec"]["renewTime"] = "2001-01-01T00:00:00.000000Z"
    second.step()
    clock.s += 5
    second.step()
    assert not second.is_held


def test_an_api_server_that_is_away_ends_it_in_time(leases: Leases, clock: SetClock) -> None:
    first = operator(leases, clock, "first")
    first.step()
    leases.is_away = True
    for _ in range(20):
        clock.s += first.step()
    assert not first.is_held
    assert first.trouble
    leases.is_away = False
    first.step()
    assert first.is_held


def test_a_renewal_counts_from_its_beginning(leases: Leases, clock: SetClock) -> None:
    """Its answer may have been on its way for long."""
    first = operator(leases, clock, "first")
    real = leases.replace

    def slow(kind: kinds.Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        answer = real(kind, namespace, manifest)
        clock.s += 4
        return answer

    first.step()
    leases.replace = slow  # type: ignore[method-assign]
    first.step()
    clock.s += lease.HELD_S - 4
    assert not first.is_held


def test_a_lost_answer_isnt_a_renewal(leases: Leases, clock: SetClock) -> None:
    first = operator(leases, clock, "first")
    leases.loses_answers = True
    first.step()
    assert not first.is_held
    leases.loses_answers = False
    first.step()
    assert first.is_held


def test_given_back_it_is_taken_at_once(leases: Leases, clock: SetClock) -> None:
    first, second = operator(leases, clock, "first"), operator(leases, clock, "second")
    first.step()
    second.step()
    first.release()
    assert not first.is_held
    second.step()
    assert second.is_held
    first.step()
    assert not first.is_held


def test_who_doesnt_hold_it_gives_nothing_back(leases: Leases, clock: SetClock) -> None:
    first, second = operator(leases, clock, "first"), operator(leases, clock, "second")
    first.step()
    second.step()
    second.release()
    assert leases.holder == "first"


def test_two_that_begin_at_once(leases: Leases, clock: SetClock) -> None:
    """Both find it free, one writes."""
    first, second = operator(leases, clock, "first"), operator(leases, clock, "second")
    first.step()
    first.release()
    read = leases.get(kinds.LEASE, "fleet", "operator")
    second.step()
    with pytest.raises(errors.ConflictError):
        leases.replace(kinds.LEASE, "fleet", read)
    assert leases.holder == "second"
