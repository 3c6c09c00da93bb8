"""What is known of the API server's objects without asking it: filled by watches, put right by sweeps, and by the answers to our own writes.

Watches are quick and may be wrong: one that breaks off misses a deletion for good. Sweeps (a list of everything, each minute) are slow and
right. So whatever a plan rests on is at most a sweep old, and never older than the operator's own last write; and since every write is
conditional or harmless when repeated, an old look costs another round. A sweep also proves the watches: what it finds newer than the last event
must arrive as an event before the next one. No I/O in here; safe to use from any thread.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fleet_operator import kinds
from fleet_operator.kinds import FleetKey, Kind

Found = Mapping[str, Any]
Wake = Callable[[FleetKey, Kind], None]
Name = tuple[str, str]
"""Of an object within its kind: namespace and name."""

DELETED = "DELETED"
LATE_S = 45.0
"""An event that doesn't come within this, doesn't come."""


def version_of(found: Found) -> int:
    """metadata.resourceVersion as a number: they rise (since Kubernetes 1.35 that is a promise; before, it was how it worked)."""
    text = str(found.get("metadata", {}).get("resourceVersion") or "")
    return int(text) if text.isdigit() else 0


def name_of(found: Found) -> Name:
    metadata = found["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


@dataclasses.dataclass(slots=True)
class _Shelf:
    """Objects of one kind. seen: the newest version that came as an event. missed: what a sweep found newer than that, and when
    it did. swept: the version of the last sweep of a namespace (None: of all)."""

    objects: dict[Name, Found] = dataclasses.field(default_factory=dict)
    by_fleet: dict[FleetKey, dict[Name, Found]] = dataclasses.field(default_factory=dict)
    seen: dict[Name, int] = dataclasses.field(default_factory=dict)
    missed: dict[Name, tuple[int, float]] = dataclasses.field(default_factory=dict)
    swept: dict[str | None, int] = dataclasses.field(default_factory=dict)


class Cache:
    """wake: called, outside of the lock, for the fleet of each object that changed."""

    def __init__(self, wake: Wake = lambda fleet, kind: None) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._shelves = {kind.name: _Shelf() for kind in kinds.WATCHED}

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def fleets(self) -> list[FleetKey]:
        with self._lock:
            return list(self._shelves[kinds.FLEET.name].objects)

    def get(self, kind: Kind, namespace: str, name: str) -> Found | None:
        with self._lock:
            return self._shelves[kind.name].objects.get((namespace, name))

    def of_fleet(self, kind: Kind, fleet: FleetKey) -> list[Found]:
        """By name."""
        with self._lock:
            found = self._shelves[kind.name].by_fleet.get(fleet, {})
            return [found[name] for name in sorted(found)]

    def counts(self) -> dict[str, int]:
        with self._lock:
            return {name: len(shelf.objects) for name, shelf in self._shelves.items()}

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def event(self, kind: Kind, event: str | None, found: Found) -> None:
        """What a watch tells; event None: from its first list. Events that are older than what is known change nothing."""
        name, version = name_of(found), version_of(found)
        with self._lock:
            shelf = self._shelves[kind.name]
            if event == DELETED:
                shelf.seen.pop(name, None)
            else:
                shelf.seen[name] = max(version, shelf.seen.get(name, 0))
            if shelf.missed.get(name, (version + 1, 0.0))[0] <= version:
                del shelf.missed[name]
            woken = self._removed(kind, shelf, name, version) if event == DELETED else self._put(kind, shelf, found)
        self._tell(woken, kind)

    def written(self, kind: Kind, found: Found) -> None:
        """The API server's answer to a write of ours."""
        with self._lock:
            self._put(kind, self._shelves[kind.name], found)

    def swept(
        self, kind: Kind, namespace: str | None, found: Iterable[Found], version: int, now_s: float
    ) -> list[Name]:
        """All objects of the kind in the namespace (None: in all) as of `version`. now_s: monotonic. Returns those whose events should have
        come by now, and didn't: an earlier sweep found them newer already, LATE_S ago."""
        listed = {name_of(each): each for each in found}
        woken: set[FleetKey] = set()
        with self._lock:
            shelf = self._shelves[kind.name]
            shelf.swept[namespace] = version
            gone = [
                name
                for name, kept in shelf.objects.items()
                if name not in listed and namespace in (None, name[0]) and version_of(kept) <= version
            ]
            for name in gone:
                woken |= self._removed(kind, shelf, name, version)
            late = []
            for name, each in listed.items():
                if version_of(each) > shelf.seen.get(name, 0):
                    _, since_s = shelf.missed.setdefault(name, (version_of(each), now_s))
                    if now_s - since_s >= LATE_S:
                        late.append(name)
                woken |= self._put(kind, shelf, each, is_swept=True)
            in_scope = [name for name in shelf.missed if namespace in (None, name[0]) and name not in listed]
            for name in in_scope:
                del shelf.missed[name]
        self._tell(woken, kind)
        return late

    def _put(self, kind: Kind, shelf: _Shelf, found: Found, *, is_swept: bool = False) -> set[FleetKey]:
        name, version = name_of(found), version_of(found)
        known = shelf.objects.get(name)
        if known is None:
            # A sweep that was later than this didn't find it any more.
            is_gone = not is_swept and version <= max(shelf.swept.get(name[0], 0), shelf.swept.get(None, 0))
            if is_gone:
                return set()
        elif version_of(known) >= version:
            return set()
        woken = self._removed(kind, shelf, name, version)
        found = shelf.objects[name] = kinds.kept(kind, found)
        fleet = kinds.fleet_of(kind, found)
        if fleet is not None:
            shelf.by_fleet.setdefault(fleet, {})[name] = found
            woken.add(fleet)
        return woken

    def _removed(self, kind: Kind, shelf: _Shelf, name: Name, version: int) -> set[FleetKey]:
        """version: of its end; one that is newer than that was made anew."""
        known = shelf.objects.get(name)
        if known is None or version_of(known) > version:
            return set()
        del shelf.objects[name]
        fleet = kinds.fleet_of(kind, known)
        if fleet is None:
            return set()
        del shelf.by_fleet[fleet][name]
        if not shelf.by_fleet[fleet]:
            del shelf.by_fleet[fleet]
        return {fleet}

    def _tell(self, woken: Iterable[FleetKey], kind: Kind) -> None:
        for fleet in woken:
            self._wake(fleet, kind)
