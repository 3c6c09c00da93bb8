"""What the operator measures about itself and says of its fleets. Names stay; see docs/reference/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from fleet_model import twin_partition
from fleet_model.twin_partition import Phase
from fleet_operator.kinds import FleetKey

_STATES = {"True": 1, "False": 0}
_READS = frozenset({"get", "list"})


class Metrics:
    """Of one operator, in a registry of its own. Safe from any thread."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)

        def name(text: str) -> str:
            return f"fleet_twin_operator_{text}"

        known: dict[str, Any] = {"registry": self.registry}
        fleet = ("namespace", "fleet")
        self.reconcile_seconds = Histogram(
            name("reconcile_seconds"),
            "Time of one round for one fleet.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            **known,
        )
        self.reconciles = Counter(
            name("reconciles"),
            "Rounds, by how they ended: done, waiting, cut, expired, conflict, refused, failed.",
            ["outcome"],
            **known,
        )
        self.last_reconcile = Gauge(
            name("last_reconcile_time_seconds"), "When a fleet's last round ended.", fleet, **known
        )
        self.api_writes = Counter(name("api_writes"), "Writes that the API server took.", ["kind", "verb"], **known)
        self.api_errors = Counter(
            name("api_errors"),
            "Requests that the API server answered with an error, or not at all.",
            ["verb", "code"],
            **known,
        )
        self.fleets = Gauge(name("fleets"), "Fleets that are looked after.", **known)
        self.condition = Gauge(
            name("fleet_condition"), "A fleet's condition: 1 = True, 0 = False.", [*fleet, "condition"], **known
        )
        self.reason = Gauge(
            name("fleet_reason"),
            "1 for the reason that a fleet's condition has now.",
            [*fleet, "condition", "reason"],
            **known,
        )
        self.partitions = Gauge(name("partitions"), "A fleet's partitions by phase.", [*fleet, "phase"], **known)
        self.moves = Gauge(name("moves"), "A fleet's partitions that are between two workers.", fleet, **known)
        self.workers_probed = Counter(
            name("workers_probed"), "Questions to workers: answered or silent.", ["outcome"], **known
        )
        self.events_missed = Counter(
            name("events_missed"), "Changes that a sweep found and no event had told of.", ["kind"], **known
        )
        self.watch_age = Gauge(
            name("watch_age_seconds"), "Since the last event of the Lease, which is renewed each few seconds.", **known
        )
        self.watch_restarts = Counter(
            name("watch_restarts"), "Times that all watches ended and were begun anew.", **known
        )
        self.is_leader = Gauge(name("is_leader"), "1 while this operator holds the Lease and acts.", **known)
        self._reasons: dict[FleetKey, dict[str, str]] = {}

    def request(self, kind: str, verb: str, outcome: str) -> None:
        """outcome: the HTTP status, or "unanswered"."""
        if not outcome.startswith("2"):
            if not (verb == "get" and outcome == "404"):
                self.api_errors.labels(verb, outcome).inc()
        elif verb not in _READS and kind != "Lease":
            self.api_writes.labels(kind, verb).inc()

    def fleet_is(
        self, fleet: FleetKey, status: Mapping[str, Any], partitions: Sequence[twin_partition.TwinPartition]
    ) -> None:
        now: dict[str, str] = {}
        for entry in status.get("conditions") or ():
            self.condition.labels(*fleet, entry["type"]).set(_STATES.get(entry["status"], -1))
            self.reason.labels(*fleet, entry["type"], entry["reason"]).set(1)
            now[entry["type"]] = entry["reason"]
        self._drop_reasons(fleet, now)
        for phase in Phase:
            self.partitions.labels(*fleet, phase.value).set(sum(entry.status.phase is phase for entry in partitions))
        self.moves.labels(*fleet).set(int((status.get("partitions") or {}).get("moving") or 0))

    def _drop_reasons(self, fleet: FleetKey, now: dict[str, str]) -> None:
        for condition, reason in self._reasons.get(fleet, {}).items():
            if now.get(condition) != reason:
                self.reason.remove(*fleet, condition, reason)
        self._reasons[fleet] = now

    def forget(self, fleet: FleetKey) -> None:
        for gauge in self._of_fleets():
            gauge.remove_by_labels({"namespace": fleet[0], "fleet": fleet[1]})
        self._reasons.pop(fleet, None)

    def forget_all(self) -> None:
        """Of who doesn't act any more: what is said of fleets is another's to say, and ours would never change again."""
        for gauge in self._of_fleets():
            gauge.clear()
        self._reasons.clear()

    def _of_fleets(self) -> tuple[Gauge, ...]:
        return self.condition, self.reason, self.partitions, self.moves, self.last_reconcile
