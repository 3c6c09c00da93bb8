"""What a look is filled from: smooth loads, fleets of the same name that are gone, names that are somebody else's."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping
from typing import Any

import pytest

from fleet_model import generations, packed_generations, rules, twin_partition, twin_partition_document
from fleet_operator import cache, errors, kinds, looking, naming, observed, stream_watch, workers
from fleet_operator.kinds import FleetKey
from tests.support import operator_cluster as scenes
from tests.support import operator_objects as objects
from tests.support.set_clock import SetClock

FLEET: FleetKey = ("depot", "trucks")


class Streams:
    def __init__(self) -> None:
        self.known = stream_watch.Seen(is_asked=True)

    def follow(self, fleet: FleetKey, document: object) -> None:
        """Nothing to ask."""

    def seen(self, fleet: FleetKey) -> stream_watch.Seen:
        return self.known


class Probing:
    def __init__(self) -> None:
        self.told: dict[str, workers.Answer] = {}

    def answers(self, pods: object) -> dict[str, workers.Answer]:
        return self.told

    def nodes_ms(self, pods: object) -> dict[str, int]:
        return {}


class Scene:
    def __init__(self) -> None:
        self.cache, self.clock, self.streams, self.probing = cache.Cache(), SetClock(), Streams(), Probing()
        self.elsewhere: dict[tuple[str, str], dict[str, Any]] = {}
        self.asked = 0
        self.looks = looking.Looking(
            looking.Sources(self._get, self.cache, self.streams, self.probing, self.clock, objects.DEFAULTS)  # type: ignore[arg-type]
        )
        document = scenes.document()
        document["metadata"] |= {"uid": "uid-new", "resourceVersion": "1", "generation": 3}
        self.cache.event(kinds.FLEET, None, document)

    def _get(self, kind: kinds.Kind, namespace: str, name: str) -> dict[str, Any]:
        self.asked += 1
        if (kind.name, name) not in self.elsewhere:
            raise errors.MissingError(name)
        return self.elsewhere[kind.name, name]

    def look(self) -> observed.Look:
        taken = self.looks.look(FLEET, ())
        assert taken is not None
        return taken.look

    def partition(self, uid: str, **metadata: Any) -> None:
        key_range = scenes.shards(1)[0].hash_key_range
        entry = twin_partition.TwinPartition(
            "depot", "trucks-0", twin_partition.Spec("trucks", "s", "shardId-0", key_range), resource_version="5"
        )
        found: dict[str, Any] = {**twin_partition_document.document(entry)}
        found["metadata"] |= {"ownerReferences": [{"uid": uid, "controller": True}], **metadata}
        self.cache.event(kinds.PARTITION, None, found)


def test_no_fleet_no_look() -> None:
    assert Scene().looks.look(("depot", "vans"), ()) is None


def test_the_fleet_and_its_edit() -> None:
    look = Scene().look()
    assert look.owner == naming.Owner("trucks", "uid-new", 3)
    assert look.reading.rules_are_good
    assert look.deletion is None


def test_loads_are_smooth_and_unknown_at_first() -> None:
    scene = Scene()
    known = []
    for number in range(60):
        scene.clock.s += 1
        load = 10.0 if number % 2 else 30.0
        scene.probing.told = {"trucks-0": workers.Answer(scene.clock.now_ms(), True, 1, {"shardId-0": load})}
        known.append(scene.look().signs.answers["trucks-0"].load)
    assert known[0] == {}
    assert 18 < known[-1]["shardId-0"] < 22
    assert scene.look().signs.answers["trucks-0"].can_take


def test_what_a_fleet_of_the_same_name_left_behind_isnt_this_ones() -> None:
    scene = Scene()
    scene.partition("uid-old")
    assert list(scene.look().partitions) == []
    ours = Scene()
    ours.partition("uid-new")
    assert len(ours.look().partitions) == 1
    going = Scene()
    going.partition("uid-new", deletionTimestamp="2026-01-01T00:00:00Z")
    assert list(going.look().partitions) == []


def test_a_name_that_is_taken_is_found_though_nothing_labels_it() -> None:
    scene = Scene()
    scene.elsewhere["Service", "trucks-api"] = {"metadata": {"name": "trucks-api", "uid": "x"}}
    assert naming.is_anothers(scene.look().children["Service", "trucks-api"], scene.look().owner)


def test_a_generation_starts_after_what_it_takes_to_publish_it_by_the_later_clock() -> None:
    scene = Scene()
    assert scene.look().rules.effective_ms is None
    ahead = scene.clock.now_ms() + 5_000
    scene.streams.known = stream_watch.Seen(True, (), ahead, 86_400_000)
    look = scene.look()
    assert look.rules.effective_ms == ahead + looking.PUBLISH_MS_FIRST + looking.LATE_MS + 1_000
    assert look.rules.oldest_ms < look.now_ms - 86_400_000


def test_a_generation_that_was_published_too_late_gets_twice_the_time_until_one_is_in_time() -> None:
    scene = Scene()
    scene.streams.known = stream_watch.Seen(True, (), scene.clock.now_ms(), 86_400_000)
    first = looking.PUBLISH_MS_FIRST

    def given_ms() -> int:
        taken = scene.looks.look(FLEET, ())
        assert taken is not None
        given = round((taken.publish_by_s - scene.clock.monotonic()) * 1_000)
        assert taken.look.rules.effective_ms == taken.look.now_ms + given + looking.LATE_MS + 1_000
        return given

    assert given_ms() == first
    assert scene.looks.stamped(FLEET, in_time=False) == 2 * first / 1000
    assert given_ms() == 2 * first
    for _ in range(20):
        scene.looks.stamped(FLEET, in_time=False)
    assert given_ms() == looking.PUBLISH_MS_MAX
    for _ in range(20):
        scene.looks.stamped(FLEET, in_time=True)
    assert given_ms() == first


def test_a_status_that_changes_is_a_sign_of_life_and_one_that_stood_there_isnt() -> None:
    scene = Scene()
    scene.partition("uid-new")
    assert scene.look().signs.told_ms == {}
    found = dict(scene.cache.of_fleet(kinds.PARTITION, FLEET)[0])
    found["metadata"] = {**found["metadata"], "resourceVersion": "6"}
    found["status"] = {"phase": "Running", "worker": "trucks-1", "epoch": 1}
    scene.cache.event(kinds.PARTITION, "MODIFIED", found)
    scene.clock.s += 5
    assert scene.look().signs.told_ms == {"trucks-1": scene.clock.now_ms()}


@pytest.mark.parametrize(("annotation", "at_once"), [("true", True), ("false", False)])
def test_a_deletion(annotation: str, at_once: bool) -> None:
    scene = Scene()
    found = dict(scene.cache.get(kinds.FLEET, *FLEET) or {})
    found["metadata"] = {
        **found["metadata"],
        "resourceVersion": "9",
        "deletionTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {naming.FORCE_DELETION: annotation},
    }
    scene.cache.event(kinds.FLEET, "MODIFIED", found)
    deletion = scene.look().deletion
    assert deletion == observed.Deletion(1_767_225_600_000, at_once)


def _edited(found: Mapping[str, Any], version: str, **metadata: Any) -> dict[str, Any]:
    return {**found, "metadata": {**found["metadata"], "resourceVersion": version, **metadata}}


def test_a_partition_that_cant_be_read_holds_up_its_fleet_but_not_its_deletion() -> None:
    scene = Scene()
    scene.partition("uid-new")
    found = scene.cache.of_fleet(kinds.PARTITION, FLEET)[0]
    broken = _edited(found, "6") | {"spec": {**found["spec"], "epoch": "one"}}
    scene.cache.event(kinds.PARTITION, "MODIFIED", broken)
    with pytest.raises(errors.RefusedError, match="trucks-0 can't be read"):
        scene.look()
    fleet = scene.cache.get(kinds.FLEET, *FLEET)
    assert fleet is not None
    scene.cache.event(kinds.FLEET, "MODIFIED", _edited(fleet, "9", deletionTimestamp="2026-01-01T00:00:00Z"))
    look = scene.look()
    assert list(look.partitions) == []
    assert len(look.unreadable) == 1


def test_what_was_read_once_isnt_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many fleets there are."""
    scene = Scene()
    scene.partition("uid-new")
    first = scene.look()
    for name in ("observed.read", "twin_partition_document.parse_document"):
        monkeypatch.setattr(f"fleet_operator.looking.{name}", None)
    second = scene.look()
    assert second.partitions == first.partitions
    assert second.reading is first.reading


def test_of_published_rules_only_the_last_text_is_kept_as_read() -> None:
    """An operator that edits are made under for weeks mustn't remember each of them."""
    scene = Scene()
    first = generations.first_generation(objects.fleet())
    kept = tuple(dataclasses.replace(first, generation=1 + number, effective_ms=number) for number in range(30))
    before = generations_alive()
    for count in range(1, len(kept) + 1):
        document = {**scene.cache.get(kinds.FLEET, *FLEET)}  # type: ignore[dict-item]
        document["metadata"] = {**document["metadata"], "resourceVersion": str(count + 1)}
        document["status"] = {"rules": {"generations": packed_generations.pack(kept[:count])}}
        scene.cache.event(kinds.FLEET, "MODIFIED", document)
        assert scene.look().rules.published.kept == kept[:count]
    assert scene.look().rules.published is scene.look().rules.published
    assert generations_alive() - before <= len(kept)


def generations_alive() -> int:
    gc.collect()
    return sum(isinstance(each, rules.RulesGeneration) for each in gc.get_objects())


def test_a_standbys_word_is_no_sign_of_life_of_the_owner() -> None:
    scene = Scene()
    scene.partition("uid-new")
    found = scene.cache.of_fleet(kinds.PARTITION, FLEET)[0]
    status = {"phase": "Running", "worker": "trucks-1", "epoch": 1}
    scene.cache.event(kinds.PARTITION, "MODIFIED", _edited(found, "6") | {"status": status})
    scene.look()
    scene.clock.s += 5
    standby = [{"worker": "trucks-2", "checkpointNumber": 1, "warm": True}]
    scene.cache.event(kinds.PARTITION, "MODIFIED", _edited(found, "7") | {"status": {**status, "standby": standby}})
    assert scene.look().signs.told_ms == {}


def test_who_sets_the_clock_changes_no_age() -> None:
    scene = Scene()
    scene.looks.watching_since_s = scene.clock.monotonic()
    scene.partition("uid-new")
    scene.look()
    found = scene.cache.of_fleet(kinds.PARTITION, FLEET)[0]
    status = {"phase": "Running", "worker": "trucks-1", "epoch": 1}
    scene.cache.event(kinds.PARTITION, "MODIFIED", _edited(found, "6") | {"status": status})
    scene.look()
    scene.clock.s += 5
    scene.clock.ahead_s = 3_600
    look = scene.look()
    assert look.signs.told_ms == {"trucks-1": look.now_ms - 5_000}
    assert look.watching_since_ms == look.now_ms - 5_000


def test_two_fleets_are_forgotten_at_once() -> None:
    """Rounds run in threads of their own."""
    scene = Scene()
    scene.partition("uid-new")

    class Meanwhile(tuple[str, str]):
        __slots__ = ()
        __hash__ = tuple.__hash__

        def __eq__(self, other: object) -> bool:
            scene.looks.forget(FLEET)
            return tuple.__eq__(self, other)

    scene.look()
    scene.looks.forget(Meanwhile(("depot", "vans")))
    assert len(scene.look().partitions) == 1


def test_a_worker_whose_pod_is_gone_was_heard_of_when_that_lived_last() -> None:
    scene = Scene()
    pod: dict[str, Any] = {
        "metadata": {
            "name": "trucks-1",
            "namespace": "depot",
            "uid": "pod-1",
            "resourceVersion": "20",
            "labels": {naming.FLEET: "trucks"},
        },
        "status": {
            "containerStatuses": [{"name": "worker", "state": {"running": {}}}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    scene.cache.event(kinds.POD, None, pod)
    assert scene.look().pods
    seen_ms = scene.clock.now_ms()
    scene.cache.event(kinds.POD, "DELETED", {**pod, "metadata": {**pod["metadata"], "resourceVersion": "21"}})
    for _ in range(3):
        scene.clock.s += 5
        assert scene.look().signs.told_ms == {"trucks-1": seen_ms}
    scene.clock.s += looking.GONE_S_MAX
    assert scene.look().signs.told_ms == {}
    scene.looks.forget(FLEET)


def test_before_the_stream_was_asked_nothing_is_asked_of_the_api_server() -> None:
    scene = Scene()
    scene.streams.known = stream_watch.Seen()
    taken = scene.looks.look(FLEET, ())
    assert taken is not None
    assert (taken.is_early, scene.asked) == (True, 0)
    scene.streams.known = stream_watch.Seen(is_asked=True)
    taken = scene.looks.look(FLEET, ())
    assert taken is not None
    assert not taken.is_early
    assert scene.asked > 0
