"""A fleet's objects in Kubernetes: golden files, and the rules that no golden file would show to be broken."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from typing import Any

import pytest
import yaml

from fleet_model import hashing, sections, spec, twin_partition
from fleet_operator import naming, overlay, pod_template, resources
from tests.support import pod_security
from tests.support.operator_objects import DEFAULTS, GOLDEN, OWNER, fleet


def built(of: spec.FleetSpec) -> dict[str, dict[str, Any]]:
    made = resources.children(of, OWNER, DEFAULTS, of.replicas)
    return {f"{manifest['kind']}/{manifest['metadata']['name']}": manifest for manifest in made}


def pod(of: spec.FleetSpec) -> dict[str, Any]:
    template: dict[str, Any] = pod_template.pod_template(of, DEFAULTS)
    return template


def worker(of: spec.FleetSpec) -> dict[str, Any]:
    found: dict[str, Any] = pod(of)["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("name", ["minimal", "full"])
def test_the_objects_of_a_fleet_are_those_of_the_golden_file(name: str) -> None:
    """FLEET_TWIN_GOLDEN=1 writes it anew; look at the difference before you keep it."""
    text = yaml.safe_dump_all(built(fleet(name)).values(), sort_keys=False, width=120)
    path = GOLDEN / f"{name}.objects.yaml"
    if os.environ.get("FLEET_TWIN_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["minimal", "full"])
def test_the_same_fleet_gives_the_same_bytes(name: str) -> None:
    assert json.dumps(built(fleet(name))) == json.dumps(built(fleet(name)))


def test_building_changes_nothing_of_the_fleet() -> None:
    made = fleet("full")
    before = copy.deepcopy(made.template)
    built(made)
    assert made.template == before


def test_who_needs_something_comes_after_it() -> None:
    kinds = [key.split("/")[0] for key in built(fleet())]
    assert kinds == [
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "Service",
        "Service",
        "PodDisruptionBudget",
        "StatefulSet",
    ]


@pytest.mark.parametrize("name", ["minimal", "full"])
def test_everything_goes_with_the_fleet(name: str) -> None:
    for manifest in built(fleet(name)).values():
        (reference,) = manifest["metadata"]["ownerReferences"]
        assert (reference["kind"], reference["uid"], reference["controller"]) == ("DeviceFleet", OWNER.uid, True)
        assert manifest["metadata"]["namespace"] == "depot"


def test_a_worker_is_admitted_where_pod_security_is_restricted() -> None:
    assert pod_security.mistakes(pod(fleet())["spec"]) == []
    own = [each for each in pod_security.mistakes(pod(fleet("full"))["spec"]) if not each.startswith("telemetry-agent")]
    assert own == []


def test_the_token_of_the_pod_is_in_memory_and_the_root_needs_no_writing() -> None:
    volumes = {each["name"]: each for each in pod(fleet())["spec"]["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in worker(fleet())["volumeMounts"]}
    assert volumes[mounts[pod_template.TOKEN_FOLDER]]["emptyDir"]["medium"] == "Memory"
    assert mounts["/tmp"] in volumes
    assert mounts[pod_template.DATA_FOLDER] == "twins"
    assert f"--pod-token={pod_template.TOKEN_FOLDER}" in worker(fleet())["args"]


# ── what workers may do ──────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_may_hear_of_partitions_and_their_fleet_and_report_and_nothing_else() -> None:
    rules = built(fleet())["Role/trucks-worker"]["rules"]
    may = {
        (group, resource, verb, tuple(rule.get("resourceNames", ())))
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    group = "fleettwin.io"
    assert may == {
        *((group, "twinpartitions", verb, ()) for verb in ("get", "list", "watch")),
        (group, "twinpartitions/status", "patch", ()),
        *((group, "devicefleets", verb, ("trucks",)) for verb in ("get", "list", "watch")),
    }


def test_a_service_account_of_the_users_is_bound_and_not_made() -> None:
    made = built(fleet("full"))
    assert not any(key.startswith("ServiceAccount/") for key in made)
    assert made["RoleBinding/trucks-worker"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "trucks-irsa", "namespace": "depot"}
    ]
    assert pod(fleet("full"))["spec"]["serviceAccountName"] == "trucks-irsa"


def test_credentials_come_from_the_secret_or_not_at_all() -> None:
    def keys(of: spec.FleetSpec) -> list[tuple[str, str, bool]]:
        found = [each["valueFrom"].get("secretKeyRef") for each in worker(of)["env"] if "valueFrom" in each]
        return [(each["name"], each["key"], each.get("optional", False)) for each in found if each]

    assert keys(fleet()) == []
    assert keys(fleet("full")) == [
        ("kinesis-user", "AWS_ACCESS_KEY_ID", False),
        ("kinesis-user", "AWS_SECRET_ACCESS_KEY", False),
        ("kinesis-user", "AWS_SESSION_TOKEN", True),
    ]


# ── the StatefulSet ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_pods_are_made_side_by_side_and_never_replaced_by_the_stateful_set_itself() -> None:
    made = built(fleet())["StatefulSet/trucks"]["spec"]
    assert made["podManagementPolicy"] == "Parallel"
    assert made["updateStrategy"] == {"type": "OnDelete"}


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_volumes_go_with_the_fleet_if_that_is_wanted_and_never_by_scaling(policy: str) -> None:
    made = built(fleet(storage={"retentionPolicy": policy}))["StatefulSet/trucks"]["spec"]
    assert made["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": policy, "whenScaled": "Retain"}


def test_a_storage_class_of_no_name_is_not_the_clusters_default() -> None:
    def claim(**storage: str) -> dict[str, Any]:
        made = built(fleet(storage=storage))["StatefulSet/trucks"]["spec"]["volumeClaimTemplates"][0]
        found: dict[str, Any] = made["spec"]
        return found

    assert "storageClassName" not in claim()
    assert claim(storageClassName="")["storageClassName"] == ""
    assert claim(size="20Gi")["resources"] == {"requests": {"storage": "20Gi"}}


def test_a_worker_may_take_as_long_to_drain_as_the_fleet_allows() -> None:
    assert pod(fleet())["spec"]["terminationGracePeriodSeconds"] == 60 + pod_template.GRACE_MARGIN_S
    slow = fleet(rebalance={"drainTimeout": "1h"})
    assert pod(slow)["spec"]["terminationGracePeriodSeconds"] == 3_600 + pod_template.GRACE_MARGIN_S


def test_selectors_find_the_pods_and_no_other_fleets() -> None:
    made = built(fleet())
    labels = pod(fleet())["metadata"]["labels"]
    for key in ("StatefulSet/trucks", "PodDisruptionBudget/trucks"):
        assert made[key]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for key in ("Service/trucks-workers", "Service/trucks-api"):
        assert made[key]["spec"]["selector"].items() <= labels.items()
    assert naming.selector("other").items() - labels.items()


# ── what makes workers start again ───────────────────────────────────────────────────────────────────────────────────


def hash_of(of: spec.FleetSpec, defaults: pod_template.Defaults = DEFAULTS) -> str:
    return resources.template_hash(resources.children(of, OWNER, defaults, of.replicas))


@pytest.mark.parametrize(
    "change",
    [
        {"rules": {"temperature": {"threshold": 70.0}}},
        {"profiles": [{"name": "a", "match": {"firmware": "1"}, "rules": {}}]},
        {"replicas": 9},
        {"suspend": True},
        {"standbyReplicas": 2},
        {"rebalance": {"maxConcurrentMoves": 9}},
        {"storage": {"size": "20Gi", "retentionPolicy": "Delete"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_live_settings_restart_nobody(change: dict[str, Any]) -> None:
    assert hash_of(fleet(**change)) == hash_of(fleet())


@pytest.mark.parametrize(
    "change",
    [
        {"image": "registry.example/fleet-twin:2"},
        {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}},
        {"storage": {"sync": "Commit"}},
        {"checkpoint": {"bucket": "fleet-checkpoints", "interval": "30s"}},
        {"rebalance": {"drainTimeout": "90s"}},
        {"aws": {"region": "eu-west-1"}},
        {"serviceAccountName": "mine"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_a_worker_reads_at_its_start_make_it_start_again(change: dict[str, Any]) -> None:
    assert hash_of(fleet(**change)) != hash_of(fleet())


def test_another_default_image_restarts_only_fleets_without_one_of_their_own() -> None:
    newer = dataclasses.replace(DEFAULTS, image="registry.example/fleet-twin:2")
    assert hash_of(fleet(), newer) != hash_of(fleet())
    assert hash_of(fleet("full"), newer) == hash_of(fleet("full"))


def test_what_stands_there_as_wanted_is_not_written_again() -> None:
    (manifest, *_) = built(fleet()).values()
    assert naming.is_applied(manifest, manifest)
    assert not naming.is_applied(manifest, None)
    other = built(dataclasses.replace(fleet(), replicas=4))["StatefulSet/trucks"]
    assert not naming.is_applied(other, built(fleet())["StatefulSet/trucks"])


# ── the user's template ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_template_is_laid_over_field_by_field_and_lists_by_their_keys() -> None:
    laid = pod(fleet("full"))["spec"]
    assert laid["containers"][0]["resources"] == {
        "requests": {"cpu": "1", "memory": "512Mi"},
        "limits": {"memory": "8Gi"},
    }
    assert [each["name"] for each in laid["containers"]] == ["worker", "telemetry-agent"]
    assert [each["name"] for each in laid["volumes"]] == ["pod-token", "tmp", "ca"]
    assert laid["containers"][0]["env"][-1]["name"] == "SSL_CERT_FILE"
    assert [each["whenUnsatisfiable"] for each in laid["topologySpreadConstraints"]] == [
        "ScheduleAnyway",
        "DoNotSchedule",
    ]
    assert laid["tolerations"] == [{"key": "dedicated", "operator": "Equal", "value": "fleet", "effect": "NoSchedule"}]


@pytest.mark.parametrize(
    ("base", "over", "result"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": 1}, {"a": None, "b": None}, {"a": 1}),
        ({"tolerations": [1, 2]}, {"tolerations": [3]}, {"tolerations": [3]}),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"env": [{"name": "C", "value": "3"}, {"name": "A", "value": "4"}]},
            {"env": [{"name": "A", "value": "4"}, {"name": "B", "value": "2"}, {"name": "C", "value": "3"}]},
        ),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
    ],
)
def test_laying_over(base: dict[str, Any], over: dict[str, Any], result: dict[str, Any]) -> None:
    before = copy.deepcopy((base, over))
    assert overlay.laid_over(base, over) == result
    assert (base, over) == before


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ({"sepc": {}}, "spec.template.sepc"),
        ({"metadata": {"name": "x"}}, "spec.template.metadata.name"),
        ({"metadata": {"labels": {"fleettwin.io/fleet": "other"}}}, "spec.template.metadata.labels.fleettwin.io/fleet"),
        ({"metadata": {"labels": {"a": 1}}}, "spec.template.metadata.labels.a"),
        ({"spec": {"serviceAccountName": "x"}}, "spec.template.spec.serviceAccountName"),
        ({"spec": {"terminationGracePeriodSeconds": 1}}, "spec.template.spec.terminationGracePeriodSeconds"),
        ({"spec": {"restartPolicy": "Never"}}, "spec.template.spec.restartPolicy"),
        ({"spec": {"volumes": [{"name": "pod-token"}]}}, "spec.template.spec.volumes[pod-token]"),
        ({"spec": {"volumes": {"name": "x"}}}, "spec.template.spec.volumes"),
        ({"spec": {"volumes": [{"name": "a"}, {"name": "a"}]}}, "spec.template.spec.volumes[1]"),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.template.spec.containers[0]"),
        ({"spec": {"containers": [{"name": "worker", "args": []}]}}, "spec.template.spec.containers[worker].args"),
        (
            {"spec": {"containers": [{"name": "worker", "env": [{"name": "POD_NAME", "value": "x"}]}]}},
            "spec.template.spec.containers[worker].env[POD_NAME]",
        ),
        (
            {"spec": {"containers": [{"name": "worker", "volumeMounts": [{"name": "x", "mountPath": "/tmp"}]}]}},
            "spec.template.spec.containers[worker].volumeMounts[/tmp]",
        ),
    ],
)
def test_what_the_fleet_rests_on_cannot_be_laid_over(template: dict[str, Any], path: str) -> None:
    with pytest.raises(sections.InvalidFleetError) as caught:
        pod(fleet(template=template))
    assert path in [mistake.path for mistake in caught.value.mistakes]


def test_all_that_is_wrong_with_a_template_is_told_at_once() -> None:
    template = {"spec": {"hostname": "x", "nodeName": "y"}, "metadata": {"annotations": {"a": True}}}
    with pytest.raises(sections.InvalidFleetError) as caught:
        pod(fleet(template=template))
    assert len(caught.value.mistakes) == 3


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_name_of_the_longest_fleet_is_one_that_kubernetes_takes() -> None:
    longest = "a" * 52
    label = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
    named = fleet()
    made = resources.children(dataclasses.replace(named, name=longest), OWNER, DEFAULTS, 3)
    for manifest in made:
        assert label.fullmatch(manifest["metadata"]["name"]), manifest["metadata"]["name"]
        for value in manifest["metadata"]["labels"].values():
            assert len(value) <= 63
    assert len(f"{longest}-{'5' * 10}") <= 63  # the pods' label controller-revision-hash
    assert len(naming.worker(longest, 999)) <= 63
    assert naming.ordinal(longest, naming.worker(longest, 999)) == 999


def test_no_two_fleets_need_the_same_name() -> None:
    names = ["a", "a-workers", "a-api", "a-worker", "a-rules", "a-0"]
    used = [
        (manifest["kind"], manifest["metadata"]["name"])
        for name in names
        for manifest in resources.children(dataclasses.replace(fleet(), name=name), OWNER, DEFAULTS, 3)
    ]
    assert len(used) == len(set(used))


def test_a_pod_of_another_fleet_is_not_ours() -> None:
    assert naming.ordinal("a", "a-3") == 3
    for pod_name in ("a-b-3", "a-03", "a-", "b-3", "a-3-x", "a"):
        assert naming.ordinal("a", pod_name) is None


def test_an_object_of_somebody_else_is_recognised() -> None:
    ours = built(fleet())["StatefulSet/trucks"]
    assert not naming.is_anothers(ours, OWNER)
    assert naming.is_anothers(ours, dataclasses.replace(OWNER, uid="another"))
    assert naming.is_anothers({"metadata": {"name": "trucks"}}, OWNER)


def test_a_partition_is_created_with_its_owner_and_without_a_status() -> None:
    whole = hashing.HashKeyRange(0, hashing.HASH_KEY_MAX)
    entry = twin_partition.TwinPartition(
        "depot",
        twin_partition.object_name("trucks", "shardId-000000000000"),
        twin_partition.Spec("trucks", "device-telemetry", "shardId-000000000000", whole),
    )
    made = resources.twin_partition_object(entry, fleet(), OWNER)
    assert "status" not in made
    assert made["metadata"]["labels"]["fleettwin.io/shard"] == "shardId-000000000000"
    assert made["metadata"]["ownerReferences"][0]["uid"] == OWNER.uid
    assert made["spec"]["shardId"] == "shardId-000000000000"
