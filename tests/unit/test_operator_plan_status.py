"""What the operator tells of a fleet, and that all it writes is what definitions and documentation know."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from fleet_model import control, twin_partition_document
from fleet_operator import actions, observed, plan, pod_template, reasons
from tests.support import operator_objects as objects
from tests.support.operator_cluster import NOW_MS, running

# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_condition_keeps_its_time_until_its_status_turns() -> None:
    cluster = running()
    before = {each["type"]: each["lastTransitionTime"] for each in cluster.status["conditions"]}
    cluster.now_ms += 60_000
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    cluster.owner = dataclasses.replace(cluster.owner, generation=4)
    cluster.round()
    after = {each["type"]: each["lastTransitionTime"] for each in cluster.status["conditions"]}
    assert {kind for kind in before if before[kind] != after[kind]} == {"Progressing"}
    assert {each["observedGeneration"] for each in cluster.status["conditions"]} == {4}
    assert cluster.status["observedGeneration"] == 4


def test_conditions_always_come_in_the_same_order_and_each_reason_has_its_place() -> None:
    cluster = running()
    assert tuple(each["type"] for each in cluster.status["conditions"]) == reasons.KINDS
    for each in cluster.status["conditions"]:
        assert reasons.TABLE[each["type"], each["reason"]][0] == (each["status"] == "True")


def test_a_reason_of_another_condition_is_a_bug() -> None:
    with pytest.raises(KeyError):
        reasons.told("Ready", "Settled", "")


def test_events_tell_only_what_turns() -> None:
    cluster = running()
    cluster.round()
    assert cluster.events == []
    cluster.shards = None
    cluster.run()
    assert cluster.events == ["StreamNotListed"]


def test_the_last_checkpoint_is_the_oldest_of_the_partitions() -> None:
    cluster = running()
    first, *_ = cluster.partitions.values()
    assert first.status.checkpoint is not None
    old = dataclasses.replace(first.status.checkpoint, time_ms=NOW_MS - 3_600_000)
    cluster.partitions[first.spec.shard_id] = dataclasses.replace(
        first, status=dataclasses.replace(first.status, checkpoint=old)
    )
    cluster.round()
    assert cluster.status["lastCheckpoint"] == "2023-11-14T21:13:20Z"


def test_defaults_hold_for_every_fleet() -> None:
    defaults = pod_template.Defaults("i", "Always", "critical")
    made = pod_template.pod_template(objects.fleet(), defaults)["spec"]
    assert (made["priorityClassName"], made["containers"][0]["imagePullPolicy"]) == ("critical", "Always")


def test_rules_are_applied_only_when_whoever_still_judges_has_them_also_a_worker_that_leaves() -> None:
    cluster = running(replicas=3)
    look = cluster.look()
    behind = dataclasses.replace(look.signs.answers["trucks-2"], generation=0)
    signs = dataclasses.replace(look.signs, answers={**look.signs.answers, "trucks-2": behind})
    cluster.document["spec"]["replicas"] = 2
    made = plan.plan(dataclasses.replace(look, signs=signs, reading=observed.read(cluster.document)))
    (written,) = (action for action in made.actions if isinstance(action, actions.WriteStatus))
    assert written.status["rules"]["appliedWorkers"] == 2
    (told,) = (each for each in written.status["conditions"] if each["type"] == "RulesApplied")
    assert (told["status"], told["message"]) == ("False", "2 of 3 workers judge by generation 1")


# ── what others rely on ──────────────────────────────────────────────────────────────────────────────────────────────

ROOT = objects.GOLDEN.parents[2]


def unknown(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Fields of the value that the schema doesn't have: the API server would drop them."""
    if isinstance(value, list):
        return [
            each for number, entry in enumerate(value) for each in unknown(entry, schema["items"], f"{path}[{number}]")
        ]
    if not isinstance(value, dict):
        return []
    known = schema.get("properties", {})
    found = [f"{path}.{name}" for name in value if name not in known]
    return found + [
        each for name, entry in value.items() if name in known for each in unknown(entry, known[name], f"{path}.{name}")
    ]


def schema(kind: str) -> dict[str, Any]:
    definition = yaml.safe_load((ROOT / "crds" / f"fleettwin.io_{kind}.yaml").read_text())
    found: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return found


def test_nothing_of_what_is_written_is_dropped_by_the_api_server() -> None:
    cluster = running()
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    cluster.round()
    cluster.settle()
    cluster.round()
    assert "restarting" in cluster.status
    assert unknown(cluster.status, schema("devicefleets")["status"]) == []
    for entry in cluster.partitions.values():
        assert unknown(twin_partition_document.spec_document(entry.spec), schema("twinpartitions")["spec"]) == []
    assert unknown({"nobody": 1}, schema("devicefleets")["status"]) == [".nobody"]


def test_the_documentation_has_every_reason_as_the_table_has_it() -> None:
    text = (ROOT / "docs" / "reference" / "kubernetes.md").read_text()
    rows = [
        f"| `{kind}` | `{reason}` | {status} | {meaning} |"
        for (kind, reason), (status, meaning) in reasons.TABLE.items()
    ]
    told = [line for line in text[text.index("## Conditions") :].splitlines() if line.startswith("| `")]
    assert told == rows


def test_every_reason_of_the_model_has_its_place() -> None:
    placed = {str(reason) for _, reason in reasons.TABLE}
    assert {str(reason) for reason in (*control.Reason, *reasons.Own)} == placed
