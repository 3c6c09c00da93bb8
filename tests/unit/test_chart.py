"""What of the chart can be judged without Helm: its schema is closed, its pages are up to date, its alerts and dashboard name what is there."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from fleet_model import parse
from tests.support import admission, charts, pod_security

VALUES = yaml.safe_load((charts.CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((charts.CHART / "values.schema.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((charts.CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((charts.CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
METRICS_PAGES = sorted((charts.PROJECT / "docs" / "reference").glob("*metrics*.md"))
"""The workers', the operator's."""
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
OF_PROMETHEUS = ("up", "process_cpu_seconds_total", "process_resident_memory_bytes")
"""Metrics that aren't ours, without labels of ours."""
OF_TARGETS = {"namespace", "fleet", "pod", "container", "le"}
"""Labels that PodMonitors give, or histograms have."""
FLEETS = [
    (name, document)
    for name in ("minimal.yaml", "production-aws.yaml", "try-out.yaml")
    for document in charts.example(name)
    if document["kind"] == "DeviceFleet"
]


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────


def objects_of(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of the schema that describes a mapping."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" or "properties" in schema:
            yield path, schema
        for key, part in schema.items():
            yield from objects_of(part, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from objects_of(part, f"{path}/{index}")


def test_the_schema_is_closed_everywhere() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    described = dict(objects_of(SCHEMA))
    assert len(described) > 40
    for path, schema in described.items():
        if path == "/properties/global":
            continue  # Helm's own, of a chart that has this one as a part
        more = schema.get("additionalProperties")
        assert more is False or (isinstance(more, dict) and more.get("type") == "string"), path


def test_the_schema_knows_every_value_and_no_other() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        known = set(schema["properties"]) - {"global"}
        assert set(values) == known, path
        for key, value in values.items():
            below = schema["properties"][key]
            if isinstance(value, dict) and "properties" in below:
                compare(value, below, f"{path}.{key}")

    compare(VALUES, SCHEMA, "")
    jsonschema.validate(VALUES, SCHEMA)


def test_generated_files_are_up_to_date() -> None:
    told = subprocess.run(
        [sys.executable, "scripts/chart.py", "--check"], cwd=charts.PROJECT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_definitions_are_those_of_the_project() -> None:
    own = {path.name: path.read_bytes() for path in (charts.CHART / "files" / "crds").glob("*.yaml")}
    assert own == {path.name: path.read_bytes() for path in (charts.PROJECT / "crds").glob("*.yaml")}
    assert len(own) == 2
    for text in own.values():
        assert yaml.safe_load(text)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert b"{{" not in text


def test_the_version_is_the_projects() -> None:
    chart = yaml.safe_load((charts.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (charts.PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{chart["appVersion"]}"\n' in project


# ── alerts and dashboard ─────────────────────────────────────────────────────────────────────────────────────────


def known_metrics() -> dict[str, set[str]]:
    """Labels of every metric that the reference pages have, under each name that Prometheus knows it by."""
    known: dict[str, set[str]] = {name: set() for name in OF_PROMETHEUS}
    for line in itertools.chain(*(page.read_text(encoding="utf-8").splitlines() for page in METRICS_PAGES)):
        found = re.match(r"\| `(fleet_twin_\w+)` \| (\w+) \| (.*?) \|", line)
        if found:
            name, kind, labels = found.groups()
            names = [name] if kind != "histogram" else [f"{name}_{end}" for end in ("bucket", "sum", "count")]
            known |= {each: set(re.findall(r"`(\w+)`", labels)) for each in names}
    return known


def expressions() -> dict[str, str]:
    """Every alert's, every panel's, by name; Grafana's variables filled in."""
    told = {rule["alert"]: rule["expr"] for rule in RULES}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            told[f"{panel['title']}, {target['legendFormat']}"] = target["expr"].replace("$__rate_interval", "5m")
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            told[variable["label"]] = re.sub(r"label_values\((.*), \w+\)", r"\1", variable["definition"])
    return told


@pytest.mark.parametrize("name", expressions())
def test_an_expression_names_metrics_and_labels_that_are_there(name: str) -> None:
    expression = expressions()[name]
    known = known_metrics()
    named = set(re.findall(r"\b(?:fleet_twin_\w+|process_\w+|up)\b(?!=)", expression))
    assert named, expression
    assert named <= known.keys(), f"{named - known.keys()} isn't in docs/reference"
    for metric, chosen in re.findall(r"\b(\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+) ?(?:=~|!~|!=|=)", chosen):
            assert label in known[metric] | OF_TARGETS, f"{metric} has no label {label}"
    labels = OF_TARGETS | set().union(*(known[metric] for metric in named))
    for grouping in re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", expression):
        for label in filter(None, (part.strip() for part in grouping.split(","))):
            assert label in labels, f"by {label}, which none of {named} has"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_it_is_and_leads_to_its_runbook(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"FleetTwin[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page = charts.PROJECT / rule["annotations"]["runbook_url"]
    assert page.is_relative_to(charts.PROJECT / "docs" / "runbooks")
    assert rule["alert"] in page.read_text(encoding="utf-8"), "the page names the alert that leads to it"
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    kept = re.search(r"by \(([^)]*)\)", rule["expr"])
    if kept and rule["expr"].startswith(("max", "min", "sum", "histogram")):
        assert used <= {part.strip() for part in kept[1].split(",")}, "a label that the expression drops"


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))


def test_panels_have_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x, y in itertools.product(range(panel["gridPos"]["w"]), range(panel["gridPos"]["h"]))
    ]
    assert len(places) == len(set(places)), "panels overlap"
    assert max(x for x, _ in places) < 24


# ── examples ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "document"), FLEETS, ids=[name for name, _ in FLEETS])
def test_an_example_is_a_fleet(name: str, document: dict[str, Any]) -> None:
    fleet = parse.parse(document)
    assert fleet.checkpoint.bucket, "partitions of a fleet in Kubernetes move through it"
    assert admission.refusals("devicefleets", document) == []


@pytest.mark.parametrize("name", ["production-values.yaml", "try-out-values.yaml"])
def test_the_examples_values_are_values(name: str) -> None:
    jsonschema.validate(charts.example(name)[0], SCHEMA)


def test_the_try_outs_devices_speak_to_its_fleet() -> None:
    documents = charts.example("try-out.yaml")
    told = yaml.safe_load(charts.one(documents, "ConfigMap", "devices")["data"]["fleet.yaml"])
    devices, fleet = parse.parse(told), parse.parse(charts.one(documents, "DeviceFleet"))
    assert devices.streams.telemetry.name == fleet.streams.telemetry.name
    assert devices.streams.commands == fleet.streams.commands
    assert devices.aws.endpoint_url == fleet.aws.endpoint_url
    assert devices.rules == fleet.rules


@pytest.mark.parametrize("name", ["production-aws.yaml", "try-out.yaml"])
def test_pods_of_examples_keep_to_the_restricted_standard(name: str) -> None:
    for pod, spec in charts.pod_specs(charts.example(name)):
        assert pod_security.mistakes(spec) == [], pod
