"""The chart as Helm 3 and Helm 4 render it: what they accept and refuse, what every pod may, what the operator may do."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_model import parse
from fleet_operator import naming, resources
from tests.support import charts, go_toolchain, go_tools, pod_security

pytestmark = [pytest.mark.processes, pytest.mark.timeout(2_000)]

EVERYTHING = (
    *(
        "--set",
        "replicas=2",
        "--set",
        "networkPolicy.enabled=true",
        "--set",
        "networkPolicy.operator.restrictEgress=true",
    ),
    *("--set", "monitoring.podMonitors.enabled=true", "--set", "monitoring.rules.enabled=true"),
    *("--set", "monitoring.dashboard.enabled=true", "--set", "workers.priorityClassName=high"),
    *("--set-json", 'tolerations=[{"key":"a","operator":"Exists"}]', "--set", "nodeSelector.a=b"),
    *("--set-json", 'networkPolicy.metricsFrom=[{"namespaceSelector":{}}]', "--set", "commonLabels.team=x"),
    *("--set-json", 'env=[{"name":"AWS_REGION","value":"eu-central-1"}]', "--set", "priorityClassName=p"),
    *("--set-json", 'envFrom=[{"secretRef":{"name":"s"}}]', "--set-json", 'imagePullSecrets=[{"name":"r"}]'),
    *("--set", "image.digest=sha256:" + "0" * 64),
)
NAMESPACED = ("--set", "watch.allNamespaces=false", "--set", "watch.namespaces={fleets,more}")
VALUES = {
    "defaults": (),
    "everything": EVERYTHING,
    "namespaced": NAMESPACED,
    "own namespace": ("--set", "watch.allNamespaces=false"),
    "production": ("--values", str(charts.EXAMPLES / "production-values.yaml")),
    "try-out": ("--values", str(charts.EXAMPLES / "try-out-values.yaml")),
    "nothing of its own": (
        *("--set", "crds.install=false", "--set", "rbac.create=false", "--set", "rbac.aggregateToUsers=false"),
        *("--set", "serviceAccount.create=false", "--set", "serviceAccount.name=mine", "--set", "test.enabled=false"),
        *("--set", "podDisruptionBudget.enabled=false"),
    ),
}
GOLDEN = Path(__file__).parents[1] / "golden" / "chart"
CLUSTER_WIDE = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "PriorityClass", "Namespace"}


@pytest.fixture(scope="module", autouse=True)
def _helm_is_there() -> None:
    try:
        for name in (*charts.HELMS, "promtool"):
            go_tools.program(name)
    except go_toolchain.NoGoError as missing:
        pytest.skip(f"Helm can't be built here: {missing}")


@pytest.mark.parametrize("version", charts.HELMS)
@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_to_complain_of(version: str, name: str) -> None:
    told = charts.helm(version, "lint", "--strict", str(charts.CHART), *VALUES[name])
    assert "1 chart(s) linted, 0 chart(s) failed" in told
    assert "[WARNING]" not in told


@pytest.mark.parametrize("name", VALUES)
def test_both_helms_render_the_same(name: str) -> None:
    three, four = (charts.rendered(*VALUES[name], version=version) for version in charts.HELMS)

    def sorted_by_name(documents: list[charts.Manifest]) -> list[charts.Manifest]:
        return sorted(documents, key=lambda each: (each["kind"], each["metadata"].get("namespace", ""), name_of(each)))

    assert sorted_by_name(three) == sorted_by_name(four)


def name_of(document: charts.Manifest) -> str:
    return str(document["metadata"]["name"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("--set", "imge.tag=1"), "additional properties 'imge' not allowed"),
        (("--set", "watch.allNamespace=true"), "at '/watch': additional properties 'allNamespace' not allowed"),
        (("--set", "monitoring.rules.labels.a.b=c"), "at '/monitoring/rules/labels/a': got object, want string"),
        (("--set", "replicas=two"), "at '/replicas': got string, want integer"),
        (("--set", "replicas=6"), "at '/replicas': maximum: got 6, want 5"),
        (("--set", "logLevel=loud"), "at '/logLevel': value must be one of"),
        (("--set", "image.digest=latest"), "at '/image/digest': 'latest' does not match pattern"),
        (("--set", "image.repository=a@b"), "at '/image/repository'"),
        (("--set", "watch.namespaces={Fleets}"), "at '/watch/namespaces/0'"),
        (("--set-json", 'tolerations=[{"kye":"a"}]'), "at '/tolerations/0': additional properties 'kye' not allowed"),
        (
            ("--set-json", 'affinity={"podAffinty":{}}'),
            "at '/affinity': additional properties 'podAffinty' not allowed",
        ),
        (("--set", "resources.limit.memory=1Gi"), "at '/resources': additional properties 'limit' not allowed"),
    ],
)
@pytest.mark.parametrize("version", charts.HELMS)
def test_unknown_and_wrong_values_are_refused_with_their_path(
    version: str, values: tuple[str, ...], words: str
) -> None:
    with pytest.raises(charts.HelmError) as refused:
        charts.rendered(*values, version=version)
    assert words in str(refused.value)


def test_a_service_account_that_is_not_made_needs_a_name() -> None:
    with pytest.raises(charts.HelmError, match=r"serviceAccount\.name is needed"):
        charts.rendered("--set", "serviceAccount.create=false")


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_keeps_to_the_restricted_standard(name: str) -> None:
    pods = dict(charts.pod_specs(charts.rendered(*VALUES[name])))
    assert pods
    for pod, spec in pods.items():
        assert pod_security.mistakes(spec) == [], pod
        for container in spec["containers"]:
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_the_operators_account_takes_the_aws_role_that_production_gives_it() -> None:
    accounts = {
        document["metadata"]["name"]: document["metadata"].get("annotations") or {}
        for document in charts.rendered(*VALUES["production"])
        if document["kind"] == "ServiceAccount"
    }
    (operator,) = [
        pod
        for _, pod in charts.pod_specs(charts.rendered(*VALUES["production"]))
        if pod["containers"][0]["name"] == "operator"
    ]
    assert accounts[operator["serviceAccountName"]]["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::")


def test_the_rendered_definitions_are_the_projects_bytes() -> None:
    text = charts.helm("helm-3", "template", "t", str(charts.CHART), "--kube-version", charts.KUBE_VERSION)
    for file in sorted((charts.PROJECT / "crds").glob("*.yaml")):
        assert f"\n{file.read_text(encoding='utf-8').rstrip()}\n" in text, file.name


@pytest.mark.parametrize("name", VALUES)
def test_every_object_says_whose_it_is(name: str) -> None:
    for document in charts.rendered(*VALUES[name]):
        if document["kind"] == "CustomResourceDefinition":
            continue
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "fleet-twin", name_of(document)
        assert labels["helm.sh/chart"].startswith("fleet-twin-")
        assert ("namespace" in document["metadata"]) == (document["kind"] not in CLUSTER_WIDE), name_of(document)
        if name == "everything":
            assert labels["team"] == "x"


# ── the operator ─────────────────────────────────────────────────────────────────────────────────────────────────


def operator_of(documents: list[charts.Manifest]) -> charts.Manifest:
    container: charts.Manifest = charts.one(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return container


def test_the_operator_is_told_what_the_values_say() -> None:
    container = operator_of(charts.rendered(*EVERYTHING, *NAMESPACED))
    image = "fleet-twin@sha256:" + "0" * 64
    assert container["image"] == image
    assert container["args"] == [
        "operator",
        *("--namespace=fleets", "--namespace=more"),
        *(f"--image={image}", "--image-pull-policy=IfNotPresent", "--priority-class=high", "--port=8081"),
        *("--lease-namespace=fleet-system", "--lease-name=fleet-twin-operator", "--log-level=info"),
    ]
    assert {"name": "AWS_REGION", "value": "eu-central-1"} in container["env"]
    defaults = operator_of(charts.rendered())
    assert "--all-namespaces" in defaults["args"]
    chart = yaml.safe_load((charts.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert defaults["image"] == f"fleet-twin:{chart['appVersion']}"


def test_the_operators_command_has_every_option_that_the_chart_gives() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "fleet_cli", "operator", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for documents in (charts.rendered(*EVERYTHING), charts.rendered(*EVERYTHING, *NAMESPACED)):
        for argument in operator_of(documents)["args"][1:]:
            assert argument.split("=")[0] in told


def test_the_try_is_a_command_with_these_options() -> None:
    pod = charts.one(charts.rendered("--set", "test.fleet=trucks"), "Pod")
    told = subprocess.run(
        [sys.executable, "-m", "fleet_cli", "try", "--help"], capture_output=True, text=True, check=True
    ).stdout
    arguments = pod["spec"]["containers"][0]["args"]
    assert arguments[0] == "try"
    for argument in arguments[1:]:
        assert argument.split("=")[0] in told


def test_two_operators_are_spread_and_replaced_one_by_one() -> None:
    single, several = (charts.one(charts.rendered(*values), "Deployment")["spec"] for values in ((), EVERYTHING))
    assert single["strategy"] == {"type": "Recreate"}
    assert not {"topologySpreadConstraints", "affinity"} & set(single["template"]["spec"])
    assert several["strategy"] == {"type": "RollingUpdate"}
    spec = several["template"]["spec"]
    keys = [entry["topologyKey"] for entry in spec["topologySpreadConstraints"]]
    assert keys == ["topology.kubernetes.io/zone"], "nodes that lack a key of any constraint are spread over by none"
    (apart,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert apart["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert several["template"]["spec"]["priorityClassName"] == "p"


def test_an_operator_leaves_a_lost_node_soon() -> None:
    pod = charts.one(charts.rendered(), "Deployment")["spec"]["template"]["spec"]
    waits = {each["key"]: each["tolerationSeconds"] for each in pod["tolerations"] if each["effect"] == "NoExecute"}
    assert waits == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}


def test_names_are_kept_for_good() -> None:
    assert [name_of(charts.one(charts.rendered(release=release), "Deployment")) for release in ("fleet-twin", "x")] == [
        "fleet-twin-operator",
        "x-fleet-twin-operator",
    ]
    labels = charts.one(charts.rendered(), "Deployment")["spec"]["selector"]["matchLabels"]
    assert labels == {
        "app.kubernetes.io/name": "fleet-twin",
        "app.kubernetes.io/instance": "fleet-twin",
        "app.kubernetes.io/component": "operator",
    }


# ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────────


def flat(rules: list[dict[str, Any]]) -> set[tuple[str, str, str, str]]:
    """(group, resource, name or *, verb)"""
    return {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or ["*"]
        for verb in rule["verbs"]
    }


def test_the_operators_rights_are_those_that_are_written_down() -> None:
    golden = yaml.safe_load((GOLDEN / "operator-rights.yaml").read_text(encoding="utf-8"))
    rules = charts.one(charts.rendered(), "ClusterRole", "fleet-twin-operator")["rules"]
    assert sorted(flat(rules)) == sorted(flat(golden["cluster"]))
    lease = charts.one(charts.rendered(), "Role", "fleet-twin-operator-lease")
    assert sorted(flat(lease["rules"])) == sorted(flat(golden["lease"]))
    assert lease["metadata"]["namespace"] == "fleet-system"


def test_the_operator_has_every_right_that_it_gives_to_workers() -> None:
    """Else the API server refuses its Role as an escalation."""
    fleet = parse.parse(charts.one(charts.example("minimal.yaml"), "DeviceFleet"))
    given = flat(resources.role(fleet, naming.Owner(fleet.name, "uid"))["rules"])
    own = flat(charts.one(charts.rendered(), "ClusterRole", "fleet-twin-operator")["rules"])
    missing = {
        (group, resource, name, verb)
        for group, resource, name, verb in given
        if not {(group, resource, name, verb), (group, resource, "*", verb)} & own
    }
    assert missing == set()


def test_namespaced_there_are_the_same_rights_by_roles_and_none_for_the_cluster() -> None:
    documents = charts.rendered(*NAMESPACED, "--set", "crds.install=false")
    assert {document["kind"] for document in documents} & CLUSTER_WIDE == set()
    roles = [each for each in documents if each["kind"] == "Role" and name_of(each) == "fleet-twin-operator"]
    assert [role["metadata"]["namespace"] for role in roles] == ["fleets", "more"]
    wide = charts.one(charts.rendered(), "ClusterRole", "fleet-twin-operator")["rules"]
    assert all(role["rules"] == wide for role in roles)


@pytest.mark.parametrize(
    ("names", "rules"),
    [
        ("{fleet-twin-aws}", [("", "secrets", "fleet-twin-aws", "get")]),
        ("{a,b}", [("", "secrets", "a", "get"), ("", "secrets", "b", "get")]),
        ("{*}", [("", "secrets", "*", "get")]),
        ("null", []),
    ],
)
def test_only_named_secrets_are_read(names: str, rules: list[tuple[str, str, str, str]]) -> None:
    values = (
        ("--set-json", "rbac.credentialsSecrets=[]")
        if names == "null"
        else ("--set", f"rbac.credentialsSecrets={names}")
    )
    own = flat(charts.one(charts.rendered(*values), "ClusterRole", "fleet-twin-operator")["rules"])
    assert sorted(right for right in own if right[1] == "secrets") == rules


# ── monitoring, network, what is said ────────────────────────────────────────────────────────────────────────────


def test_monitors_and_rules_are_left_out_where_the_cluster_does_not_know_them() -> None:
    kinds = {document["kind"] for document in charts.rendered(*EVERYTHING, has_monitoring=False)}
    assert kinds & {"PodMonitor", "PrometheusRule"} == set()
    assert {"PodMonitor", "PrometheusRule"} <= {document["kind"] for document in charts.rendered(*EVERYTHING)}
    assert {"PodMonitor", "PrometheusRule"} & {document["kind"] for document in charts.rendered()} == set()


def test_the_rule_is_the_alerts_file_with_what_the_values_say() -> None:
    plain = yaml.safe_load((charts.CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    assert charts.one(charts.rendered(*EVERYTHING), "PrometheusRule")["spec"]["groups"] == plain
    values = (
        *("--set", "monitoring.rules.disabled={FleetTwinStalled}", "--set", "monitoring.rules.alertLabels.team=t"),
        *("--set", "monitoring.rules.runbookUrlPrefix=https://example.org/"),
    )
    groups = charts.one(charts.rendered(*EVERYTHING, *values), "PrometheusRule")["spec"]["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    assert "FleetTwinStalled" not in rules
    assert rules["FleetTwinBehind"]["labels"] == {"severity": "warning", "team": "t"}
    assert rules["FleetTwinBehind"]["annotations"]["runbook_url"] == "https://example.org/lag.md"


def test_alerts_fire_when_they_should_and_not_when_nothing_is_wrong(tmp_path: Path) -> None:
    shutil.copy(charts.CHART / "files" / "alerts.yaml", tmp_path)
    shutil.copy(GOLDEN / "alerts-test.yaml", tmp_path)
    done = subprocess.run(
        [str(go_tools.program("promtool")), "test", "rules", "alerts-test.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    played = (GOLDEN / "alerts-test.yaml").read_text(encoding="utf-8")
    alerts = yaml.safe_load((charts.CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    assert [rule["alert"] for group in alerts for rule in group["rules"] if rule["alert"] not in played] == []


def test_the_dashboard_is_the_file() -> None:
    config = charts.one(charts.rendered(*EVERYTHING), "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    told = yaml.safe_load(config["data"]["fleet-twin.json"])
    assert told == yaml.safe_load((charts.CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))


def test_policies_name_workers_by_the_labels_that_the_operator_gives() -> None:
    policies = [each for each in charts.rendered(*EVERYTHING, *NAMESPACED) if each["kind"] == "NetworkPolicy"]
    workers = [policy for policy in policies if name_of(policy) == "fleet-twin-workers"]
    assert [policy["metadata"]["namespace"] for policy in workers] == ["fleets", "more"]
    for policy in workers:
        chosen = policy["spec"]["podSelector"]["matchLabels"]
        assert chosen.items() <= naming.selector("trucks").items()
        assert len(policy["spec"]["ingress"]) == 2
    monitor = charts.one(charts.rendered(*EVERYTHING), "PodMonitor", "fleet-twin-workers")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= naming.selector("trucks").items()
    closed = charts.rendered("--set", "networkPolicy.enabled=true")
    assert charts.one(closed, "NetworkPolicy", "fleet-twin-operator")["spec"]["ingress"] == []
    assert len(charts.one(closed, "NetworkPolicy", "fleet-twin-workers")["spec"]["ingress"]) == 1


@pytest.mark.parametrize("version", charts.HELMS)
def test_a_package_has_what_it_needs_and_no_more(version: str, tmp_path: Path) -> None:
    charts.helm(version, "package", str(charts.CHART), "--destination", str(tmp_path))
    package = next(tmp_path.glob("fleet-twin-*.tgz"))
    assert len(base64.b64encode(package.read_bytes())) < 200_000, "a release is kept in a Secret of 1 MiB"
    listed = subprocess.run(["tar", "tzf", str(package)], capture_output=True, text=True, check=True).stdout
    assert "fleet-twin/files/crds/fleettwin.io_devicefleets.yaml" in listed
    assert "fleet-twin/README.md" in listed
    assert "README.head.md" not in listed
    assert "examples" not in listed
    whole = charts.rendered(chart=package)
    assert whole == charts.rendered()
