"""One look at a fleet: everything that a plan may depend on, read before it is made.

Plain values; whoever fills them (the handlers) asks the API server, the stream and the workers. Nothing is decided here but how a fleet whose
rules can't be read goes on: with all but its rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fleet_model import control, parse, partition, rules, sections, spec, twin_partition
from fleet_operator import history, naming, pod_template, status, workers


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """fleet: None when even without its rules it can't be read. rules_are_good: whether its rules are the document's; if not, they are
    the defaults, which nobody may judge by."""

    fleet: spec.FleetSpec | None
    rules_are_good: bool
    mistakes: tuple[sections.Mistake, ...] = ()


def read(document: Mapping[str, Any]) -> Reading:
    """A mistake in the rules must not keep partitions from being taken over."""
    try:
        return Reading(parse.parse(document), True)
    except sections.InvalidFleetError as error:
        rest = {key: value for key, value in (document.get("spec") or {}).items() if key not in ("rules", "profiles")}
        try:
            return Reading(parse.parse({**document, "spec": rest}), False, error.mistakes)
        except sections.InvalidFleetError:
            return Reading(None, False, error.mistakes)


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A PersistentVolumeClaim of a worker. size: that it asks for."""

    name: str
    size: str


@dataclasses.dataclass(frozen=True, slots=True)
class Deletion:
    """since_ms: metadata.deletionTimestamp. at_once: its user doesn't want to wait for the final checkpoint."""

    since_ms: int
    at_once: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """What rules are stamped by. published: what stands in the status. revisions: the ControllerRevisions, by name. effective_ms: from when on an edit that is seen now judges: a
    second ahead of the stream's clock and of ours; None: the stream's isn't known just now. oldest_ms: no older record is read any more."""

    revisions: Mapping[str, rules.RulesGeneration] = dataclasses.field(default_factory=dict, hash=False)
    effective_ms: int | None = None
    oldest_ms: int = 0
    broken: str = ""
    published: history.Published = history.Published()


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """status: the fleet's, as it stands. children: what was found of `resources.children`, and of our ServiceAccount, by kind and name.
    shards: None when the stream can't be listed. stream_why: the last question to it wasn't answered. unreadable: TwinPartitions of a
    fleet that is deleted, and why; any other fleet isn't looked at with one. refusals: what the API server refused for good when it was last tried.
    watching_since_ms: nobody is silent before it was looked at for long enough."""

    now_ms: int
    namespace: str
    owner: naming.Owner
    reading: Reading
    defaults: pod_template.Defaults
    has_finalizer: bool = True
    deletion: Deletion | None = None
    status: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    children: Mapping[tuple[str, str], Mapping[str, Any]] = dataclasses.field(default_factory=dict, hash=False)
    claims: Sequence[Claim] = ()
    pods: Sequence[workers.Pod] = ()
    signs: workers.Signs = workers.Signs()
    partitions: Sequence[twin_partition.TwinPartition] = ()
    unreadable: Sequence[str] = ()
    shards: Sequence[partition.Shard] | None = None
    stream_why: str = ""
    rules: Rules = Rules()
    refusals: Sequence[str] = ()
    watching_since_ms: int = 0

    @property
    def stateful_set(self) -> Mapping[str, Any] | None:
        return self.children.get(("StatefulSet", self.owner.name))

    @property
    def pods_asked_for(self) -> int:
        """Of the StatefulSet; 0 without one."""
        found = self.stateful_set
        return int((found.get("spec") or {}).get("replicas") or 0) if found is not None else 0


def of_partitions(look: Look) -> control.Observed:
    """What `handoff` has to know. Of a fleet that can't be read nothing is decided but how long to wait."""
    fleet = look.reading.fleet
    settings = control.settings(fleet) if fleet is not None else control.Settings()
    return control.Observed(
        now_ms=look.now_ms,
        namespace=look.namespace,
        fleet=look.owner.name,
        stream=fleet.streams.telemetry.stream_name if fleet is not None else "",
        settings=settings,
        partitions=look.partitions,
        workers=workers.observed(
            workers.Expected(look.owner.name, settings.replicas, look.pods_asked_for),
            look.pods,
            look.signs,
            status.restart_of(look.status),
            look.now_ms,
        ),
        shards=look.shards,
        shards_why=look.stream_why,
        watching_since_ms=look.watching_since_ms,
    )
