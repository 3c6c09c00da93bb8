"""The definitions are structural, described and bounded everywhere, with the model's defaults; each CEL rule accepts and refuses.

What they take and what the parser takes is compared in tests/property/test_crds.py.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from fleet_model import parse, twin_partition
from fleet_model import twin_partition_document as documents
from tests.property import test_twin_partition_document as partition_documents
from tests.support import admission, crd_cases, fleets

PROJECT = pathlib.Path(__file__).parents[2]
EXTENSIONS = {
    "x-kubernetes-validations",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
}
KEYWORDS = EXTENSIONS | {
    "type", "format", "description", "properties", "required", "items", "default", "nullable", "enum",
    "minimum", "maximum", "minLength", "maxLength", "maxItems", "maxProperties", "pattern",
}  # fmt: skip
"""What our schemas may use. None of it branches the shape, so what is left is structural."""


ALL_NODES = [
    (plural, path, node) for plural in crd_cases.PLURALS for path, node in admission.nodes(admission.schema_of(plural))
]


def test_the_files_are_up_to_date() -> None:
    told = subprocess.run([sys.executable, "scripts/crds.py", "--check"], cwd=PROJECT, capture_output=True, text=True)
    assert (told.stdout, told.returncode) == ("", 0), told.stderr
    assert len(list((PROJECT / "crds").glob("*.yaml"))) == len(crd_cases.PLURALS)


@pytest.mark.parametrize(("plural", "kind", "short"), [
    ("devicefleets", "DeviceFleet", "dfleet"), ("twinpartitions", "TwinPartition", "tpart"),
])  # fmt: skip
def test_a_definition_is_one_that_kubernetes_takes(plural: str, kind: str, short: str) -> None:
    definition = yaml.safe_load((PROJECT / "crds" / f"fleettwin.io_{plural}.yaml").read_text())
    spec = definition["spec"]
    (version,) = spec["versions"]
    assert definition["metadata"]["name"] == f"{plural}.{spec['group']}"
    assert (spec["scope"], spec["names"]["kind"], spec["names"]["shortNames"]) == ("Namespaced", kind, [short])
    assert f"{spec['group']}/{version['name']}" == parse.API_VERSION
    assert version["subresources"]["status"] == {}
    if kind == "DeviceFleet":
        assert version["subresources"]["scale"] == {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    known = {path.replace("[]", "") for path, _node in admission.nodes(version["schema"]["openAPIV3Schema"])}
    for column in version["additionalPrinterColumns"]:
        way = re.sub(r"\[\?\(@\.type=='\w+'\)\]", "", column["jsonPath"])
        assert way in known | {".metadata.creationTimestamp"}, column
        assert column["type"] in ("string", "integer", "date")


@pytest.mark.parametrize(
    ("plural", "path", "node"), ALL_NODES, ids=[f"{plural}{path}" for plural, path, _ in ALL_NODES]
)
def test_every_field_is_structural_described_and_bounded(plural: str, path: str, node: dict[str, Any]) -> None:
    assert set(node) <= KEYWORDS
    if path == ".metadata":
        assert node == {"type": "object"}, "the API server refuses a definition that says more of it"
        return
    kind = node["type"]
    assert node["description"].endswith((".", "…")), "words for a reader, as a sentence"
    if kind == "object":
        is_open = node.get("x-kubernetes-preserve-unknown-fields", False)
        assert is_open == (path == ".spec.template")
        assert "properties" in node or "maxProperties" in node
        assert set(node.get("required", [])) <= set(node.get("properties", {}))
    elif kind == "array":
        assert node["maxItems"] > 0
        assert node["items"]["type"] != "array"
        assert node["x-kubernetes-list-type"] in ("atomic", "map")
    elif kind == "string":
        assert node.get("enum") or node["maxLength"] > 0
    elif kind in ("integer", "number"):
        assert node["minimum"] < node["maximum"]
    else:
        assert kind == "boolean"
    if "default" in node:
        assert "nullable" not in node or isinstance(node["default"], str)
        assert path.rpartition(".")[2] not in _required_beside(plural, path), (
            "a default of a required field is never used"
        )


def _required_beside(plural: str, path: str) -> list[str]:
    above = dict(admission.nodes(admission.schema_of(plural))).get(path.rpartition(".")[0], {})
    return list(above.get("required", []))


@pytest.mark.parametrize("plural", crd_cases.PLURALS)
def test_every_rule_says_what_and_where(plural: str) -> None:
    root = admission.schema_of(plural)
    known = dict(admission.nodes(root))
    for path, node in known.items():
        for rule in node.get("x-kubernetes-validations", []):
            assert set(rule) <= {"rule", "message", "reason", "fieldPath"}
            assert "\n" not in rule["message"] + rule["rule"]
            # With the fourth reason, FieldValueDuplicate, the API server keeps the message to itself.
            assert rule["reason"] in ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired")
            assert path + rule.get("fieldPath", "") in known
            if "oldSelf" in rule["rule"]:
                assert "[]" not in path, "entries of an atomic list have no former self"


def test_defaults_are_the_models() -> None:
    smallest = fleets.smallest()
    completed = admission.completed(smallest, admission.schema_of("devicefleets"))
    assert parse.parse(completed) == parse.parse(smallest)
    assert completed["spec"]["rules"]["temperature"]["threshold"] == 60.0
    left = {
        path
        for path, node in admission.nodes(admission.schema_of("devicefleets")["properties"]["spec"])
        if "default" not in node and not path.startswith((".profiles", ".aws")) and node["type"] != "object"
    }
    assert left == {
        ".streams.telemetry.name", ".streams.telemetry.arn", ".streams.telemetry.startTime", ".streams.alerts.name",
        ".streams.commands.name", ".streams.control.name", ".streams.deadLetter.name", ".image",
        ".serviceAccountName", ".storage.storageClassName", ".checkpoint.bucket",
    }, "the model has no default for these alone"  # fmt: skip


def test_a_profile_inherits_and_so_has_no_defaults() -> None:
    profiles = admission.schema_of("devicefleets")["properties"]["spec"]["properties"]["profiles"]
    assert [path for path, node in admission.nodes(profiles) if "default" in node] == []
    fleet = fleets.with_field("spec.rules", {"temperature": {"threshold": 50}})
    fleet["spec"]["profiles"] = [{"name": "a", "match": {"firmware": "1"}, "rules": {"battery": {"command": None}}}]
    completed = admission.completed(fleet, admission.schema_of("devicefleets"))
    assert parse.parse(completed) == parse.parse(fleet)
    assert completed["spec"]["profiles"] == fleet["spec"]["profiles"], "null is a command's none, and must be kept"


@pytest.mark.parametrize("rule", ["temperature", "battery", "offline"])
@pytest.mark.parametrize("command", [None, ""])
def test_no_command_stays_no_command(rule: str, command: str | None) -> None:
    fleet = fleets.with_field(f"spec.rules.{rule}.command", command)
    completed = admission.completed(fleet, admission.schema_of("devicefleets"))
    assert admission.refusals("devicefleets", fleet) == []
    assert getattr(parse.parse(completed).rules, rule).command is None


def test_a_partitions_defaults_are_the_models() -> None:
    short = documents.document(partition_documents.EXAMPLE)
    spec: Any = short["spec"]
    short = short | {"spec": {name: spec[name] for name in ("fleet", "stream", "shardId", "hashKeyRange")}}
    del short["status"]
    completed = admission.completed(short, admission.schema_of("twinpartitions"))
    assert documents.parse_document(completed) == documents.parse_document(short)
    assert completed["status"]["phase"] == twin_partition.Phase.PENDING
    dated = {"assignedTime", "skipToTime", "standbyTime"}
    assert set(completed["spec"]) | dated == set(spec)


@pytest.mark.parametrize("plural", crd_cases.PLURALS)
def test_every_rule_has_a_case_that_is_accepted_and_one_that_is_refused(plural: str) -> None:
    """Wherever it stands: the same words may be a rule of many fields."""
    refused = {
        (re.sub(r"\[\d+\]", "[]", refusal.path), refusal.message)
        for case in crd_cases.cases(plural)
        if not case.is_accepted
        for refusal in admission.refusals(plural, case.new, case.old)
    }
    rules = {
        (path + rule.get("fieldPath", ""), rule["message"])
        for path, node in admission.nodes(admission.schema_of(plural))
        for rule in node.get("x-kubernetes-validations", [])
    }
    assert rules - refused == set()
    for begin in crd_cases.messages(plural):
        kinds = {case.is_accepted for case in crd_cases.cases(plural) if case.message == begin}
        assert kinds == {True, False}, begin


@pytest.mark.parametrize("case", [case for plural in crd_cases.PLURALS for case in crd_cases.cases(plural)], ids=str)
def test_a_case_is_judged_by_its_rule_alone(case: crd_cases.Case) -> None:
    if case.old is not None:
        assert admission.refusals(case.plural, case.old) == []
    told = admission.refusals(case.plural, case.new, case.old)
    if case.is_accepted:
        assert told == []
    else:
        assert told
        assert [refusal for refusal in told if not refusal.message.startswith(case.message)] == []
