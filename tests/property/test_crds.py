"""The definitions and the parser agree: what one refuses for its shape, bounds or rules, the other refuses, too.

Where the two differ on purpose is written down in docs/reference/crds.md; `DIFFERENCES` is the same list, and each entry is tested
to be one.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from fleet_model import durations, parse, sections, twin_partition
from fleet_model import twin_partition_document as documents
from tests.property import ownership_world, test_handoff
from tests.property import test_twin_partition_document as partition_documents
from tests.support import admission, fleets
from tests.unit import test_parse

PROJECT = pathlib.Path(__file__).parents[2]
KUBERNETES_OWN = ("apiVersion", "kind", "metadata")
"""Judged by the API server without a schema, but for the fleet's name."""

DIFFERENCES: list[tuple[str, Any, bool]] = [
    # path, value, whether the parser takes it. The definition does the opposite.
    ("spec.storage.size", "67108863.5", True),  # rounded up by the parser, compared as it is by the API server
    ("spec.template", {"a": [[]] * parse.TEMPLATE_VALUES_MAX}, False),  # the definition counts the first level only
]


def is_accepted_by_the_parser(fleet: Any) -> bool:
    return not fleets.mistakes(fleet)


def is_accepted_by_the_definition(fleet: Any) -> bool:
    return not admission.refusals("devicefleets", fleet)


def is_json(value: Any) -> bool:
    """Whether a Kubernetes object can hold it at all."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value) and _fits(value)
    except (TypeError, ValueError, UnicodeError):
        return False


def _fits(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_fits, value.values()))
    if isinstance(value, list):
        return all(map(_fits, value))
    if isinstance(value, str):
        return sections.is_unicode(value)
    return not isinstance(value, int) or abs(value) < 2**63


def parametrized(test: Any) -> list[Any]:
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return list(mark.args[1])


WRONG = [
    (path, value)
    for path, value in parametrized(test_parse.test_a_wrong_value_is_the_one_mistake_and_has_its_path)
    if not path.startswith(KUBERNETES_OWN) and is_json(value)
]
RIGHT = parametrized(test_parse.test_the_bounds_themselves_are_accepted)
TELEMETRY = [
    ("spec.streams.telemetry", telemetry)
    for telemetry, _path in parametrized(test_parse.test_a_telemetry_stream_that_is_not_told_apart_is_refused)
    if is_json(telemetry)
]
PROFILES = [
    ("spec.profiles", [{"name": "good", "match": {"firmware": "2"}}, profile])
    for profile, _path in parametrized(test_parse.test_a_wrong_profile_is_refused)
    if is_json(profile)
]


@pytest.mark.parametrize(("path", "value"), WRONG + TELEMETRY + PROFILES)
def test_what_the_parser_refuses_the_definition_refuses(path: str, value: Any) -> None:
    fleet = fleets.with_field(path, value)
    assert not is_accepted_by_the_parser(fleet)
    assert not is_accepted_by_the_definition(fleet)


@pytest.mark.parametrize(("path", "value"), RIGHT)
def test_bounds_that_the_parser_accepts_the_definition_accepts(path: str, value: Any) -> None:
    assert admission.refusals("devicefleets", fleets.with_field(path, value)) == []


def test_the_cases_are_many() -> None:
    """Most cases of the parser's tests are JSON; should that change, these tests would fall silent."""
    assert len(WRONG) > 75
    assert len(TELEMETRY) > 8
    assert len(PROFILES) > 10


def test_a_fleet_that_gives_every_field_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = parse.parse

    def parse_seen(fleet: Any) -> Any:
        seen.append(fleet)
        return original(fleet)

    monkeypatch.setattr(parse, "parse", parse_seen)
    test_parse.test_every_field_is_read()
    assert len(seen[0]["spec"]) > 10
    assert admission.refusals("devicefleets", seen[0]) == []


def test_the_example_is_accepted() -> None:
    text = (PROJECT / "examples" / "fleet.yaml").read_text()
    assert admission.refusals("devicefleets", yaml.safe_load(text)) == []


@pytest.mark.parametrize(("path", "value", "is_parsed"), DIFFERENCES)
def test_where_the_two_differ_is_known(path: str, value: Any, is_parsed: bool) -> None:
    fleet = fleets.with_field(path, value)
    assert is_accepted_by_the_parser(fleet) == is_parsed
    assert is_accepted_by_the_definition(fleet) != is_parsed


def _paths() -> list[tuple[str, dict[str, Any]]]:
    """Every field of a fleet's spec that isn't in a list, with its schema."""
    spec = admission.schema_of("devicefleets")["properties"]["spec"]
    return [(f"spec{path}", node) for path, node in admission.nodes(spec, "") if "[]" not in path and path]


def _values(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values at the edges of what a field takes, and a little of everything."""
    near: list[st.SearchStrategy[Any]] = [
        st.sampled_from([None, True, 0, 1, -1, 1.5, 3.0, "", "a", [], {}, "0", "x" * 600])
    ]
    if "enum" in node:
        near.append(st.sampled_from(node["enum"]) | st.sampled_from(node["enum"]).map(str.lower))
    if "minimum" in node:
        edges = [node["minimum"], node["maximum"]]
        near.append(st.sampled_from([edge + step for edge in edges for step in (-1, -0.5, 0, 0.5, 1)]))
    if "pattern" in node:
        near.append(
            st.from_regex(
                node["pattern"].replace("^", r"\A").replace("$", r"\Z"), alphabet=st.characters(codec="ascii")
            )
        )
        near.append(st.from_regex(node["pattern"], alphabet=st.characters(codec="ascii")).map(lambda text: text + "\n"))
    if "duration(" in str(node.get("x-kubernetes-validations")):
        near.append(st.integers(0, 3 * 10**9).map(durations.text_of_ms))
        bounds = re.findall(r"duration\('([0-9a-z]+)'\)", str(node["x-kubernetes-validations"]))
        near.append(
            st.builds(
                lambda bound, step: durations.text_of_ms(max(0, durations.parse_ms(bound) + step)),
                st.sampled_from(bounds),
                st.sampled_from([-1, 0, 1]),
            )
        )
    if "quantity(" in str(node.get("x-kubernetes-validations")):
        near.append(
            st.builds(lambda number, suffix: f"{number}{suffix}", st.integers(0, 10**6), st.sampled_from(
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "k", "M", "G", "T", "P", "E", "m", "GB"]
            ))
        )  # fmt: skip
    return st.one_of(near)


fields = st.sampled_from(_paths()).flatmap(lambda field: st.tuples(st.just(field[0]), _values(field[1])))


@hypothesis.settings(max_examples=100, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(fields)
def test_the_parser_and_the_definition_agree_on_any_field(field: tuple[str, Any]) -> None:
    path, value = field
    hypothesis.assume(is_json(value) and not (path == "spec.storage.size" and "." in str(value)))
    fleet = fleets.with_field(path, value)
    if path == "spec.streams.telemetry.startTime":
        fleet["spec"]["streams"]["telemetry"]["startPosition"] = "AtTimestamp"
    if path == "spec.streams.telemetry.arn":
        del fleet["spec"]["streams"]["telemetry"]["name"]
    told = admission.refusals("devicefleets", fleet)
    assert (told == []) == is_accepted_by_the_parser(fleet), (fleets.mistakes(fleet), told)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(partition_documents.partitions)
def test_every_partitions_document_is_accepted(partition: twin_partition.TwinPartition) -> None:
    """But for the two rules about what the control plane may ask for, which such a random one doesn't keep."""
    told = admission.refusals("twinpartitions", documents.document(partition))
    assert {refusal.path for refusal in told} <= {".spec.takeover", ".spec.receiver"}
    if partition.spec.takeover <= partition.spec.epoch and partition.spec.receiver in ("", *partition.spec.standby):
        assert told == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (path, value)
        for path, value in parametrized(partition_documents.test_a_mistake_names_its_field)
        if not path.startswith(KUBERNETES_OWN)
    ],
)
def test_what_the_partitions_parser_refuses_the_definition_refuses(path: str, value: Any) -> None:
    document: Any = json.loads(json.dumps(documents.document(partition_documents.EXAMPLE)))
    document["spec"]["parents"].append("shardId-000000000001")
    place, ways = document, [int(way) if way.isdigit() else way for way in re.findall(r"\w+", path)]
    for way in ways[:-1]:
        place = place[way]
    place[ways[-1]] = value
    assert admission.refusals("twinpartitions", document)


@pytest.mark.parametrize("seed", range(6))
def test_what_the_control_plane_asks_for_is_never_refused(seed: int) -> None:
    """A rule that refused a step of the hand-off would leave a partition where it is, for good."""
    world = ownership_world.World(seed, 3, test_handoff.settings_of(seed))
    known: dict[str, twin_partition.TwinPartition] = {}
    edits = 0
    for _ in range(200):
        if world.random.random() < 0.1:
            world.disturb()
        world.tick()
        for shard_id, entry in world.objects.items():
            before = known.get(shard_id)
            if before is None or before.spec != entry.spec:
                old = None if before is None else documents.document(before)
                assert admission.refusals("twinpartitions", documents.document(entry), old) == []
                edits += before is not None
        known = dict(world.objects)
    assert edits > 5
