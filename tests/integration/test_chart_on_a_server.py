"""The chart on a real API server: everything in it is taken, by a namespace that enforces `restricted` as well; its operator may do
what it has to and no more; upgrades bring new definitions under fleets that stay, and an uninstall leaves them.

Nothing runs in the pods here: what the operator does, other tests look at.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_model import parse
from fleet_operator import naming, pod_template, resources
from tests.support import api_server as api_servers
from tests.support import charts, go_toolchain, go_tools, kube_api, monitoring_crds

pytestmark = [pytest.mark.processes, pytest.mark.timeout(2_000)]

SYSTEM = "fleet-system"
RESTRICTED = "restricted"
KUBECTL_S_MAX = 120.0
STRICT = "fieldManager=tests&fieldValidation=Strict"
DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/devicefleets.fleettwin.io"
NEW_FIELD = "standbyReplicas"
"""Stands for a field that the previous version of the definitions didn't have."""
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{0}/serviceaccounts",
    "Service": "/api/v1/namespaces/{0}/services",
    "Role": kube_api.RBAC + "/namespaces/{0}/roles",
    "RoleBinding": kube_api.RBAC + "/namespaces/{0}/rolebindings",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{0}/poddisruptionbudgets",
    "StatefulSet": "/apis/apps/v1/namespaces/{0}/statefulsets",
}


@pytest.fixture(scope="module")
def server() -> Iterator[api_servers.ApiServer]:
    """One of its own: definitions come and go."""
    try:
        for version in charts.HELMS:
            go_tools.program(version)
        with api_servers.running(api_servers.Settings()) as running:
            for name in ("telemetry", "fleet-twin", SYSTEM, "fleets", "elsewhere"):
                running.make_namespace(name)
            running.make_namespace(RESTRICTED, {"pod-security.kubernetes.io/enforce": "restricted"})
            yield running
    except go_toolchain.NoGoError as missing:
        pytest.skip(f"Kubernetes' programs can't be built here: {missing}")


def helm(server: api_servers.ApiServer, version: str, *arguments: str, kubeconfig: Path | None = None) -> str:
    return charts.helm(version, *arguments, "--kubeconfig", str(kubeconfig or server.kubeconfig_path))


def kubectl(server: api_servers.ApiServer, *arguments: str, told: str = "") -> str:
    """Standard output; fails the test with standard error."""
    done = subprocess.run(
        [str(server.kubectl), "--kubeconfig", str(server.kubeconfig_path), *arguments],
        input=told,
        capture_output=True,
        text=True,
        timeout=KUBECTL_S_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_there(server: api_servers.ApiServer, path: str) -> bool:
    try:
        server.request("GET", path)
    except kube_api.RefusedError as refused:
        # 429: the storage of a definition that was just changed is made anew.
        if refused.status not in (404, 429):
            raise
        return False
    return True


def take_definitions_away(server: api_servers.ApiServer) -> None:
    """Idempotent, and with every object of them."""
    for plural in ("devicefleets", "twinpartitions"):
        take_definition_away(server, DEFINITION.replace("devicefleets", plural))


def take_definition_away(server: api_servers.ApiServer, path: str) -> None:
    if is_there(server, path):
        server.request("DELETE", path)
        server.wait(lambda: not is_there(server, path), f"{path} is gone")


@pytest.fixture
def bare(server: api_servers.ApiServer) -> Iterator[api_servers.ApiServer]:
    """Without definitions and releases, before and after."""
    take_definitions_away(server)
    yield server
    for version in charts.HELMS:
        for release in json.loads(helm(server, version, "list", "--all-namespaces", "--output", "json")):
            helm(server, version, "uninstall", release["name"], "--namespace", release["namespace"])
    take_definitions_away(server)


def fleets_path(namespace: str, name: str = "") -> str:
    return f"{kube_api.FLEETS}/namespaces/{namespace}/devicefleets" + (f"/{name}" if name else "")


def minimal(namespace: str) -> charts.Manifest:
    document = copy.deepcopy(charts.one(charts.example("minimal.yaml"), "DeviceFleet"))
    document["metadata"]["namespace"] = namespace
    return document


def previous_chart(folder: Path) -> Path:
    """The chart as it was before NEW_FIELD, a printer column and an alert came."""
    chart = folder / "previous"
    shutil.copytree(charts.CHART, chart)
    file = chart / "Chart.yaml"
    file.write_text(file.read_text().replace("version: 0.1.0", "version: 0.0.1"))
    crd = chart / "files" / "crds" / "fleettwin.io_devicefleets.yaml"
    definition = yaml.safe_load(crd.read_text())
    version = definition["spec"]["versions"][0]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][NEW_FIELD]
    version["additionalPrinterColumns"].pop()
    crd.write_text(yaml.safe_dump(definition))
    return chart


def knows_the_new_field(server: api_servers.ApiServer) -> bool:
    version = server.request("GET", DEFINITION)["spec"]["versions"][0]
    return NEW_FIELD in version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]


@pytest.mark.parametrize("version", charts.HELMS)
def test_upgrades_bring_definitions_and_an_uninstall_leaves_the_fleets(
    bare: api_servers.ApiServer, version: str, tmp_path: Path
) -> None:
    server = bare
    namespace = f"fleet-system-{version}"
    at = ("--namespace", namespace)
    helm(server, version, "install", "fleet-twin", str(previous_chart(tmp_path)), *at, "--create-namespace")
    assert not knows_the_new_field(server)
    server.wait(lambda: is_there(server, fleets_path("fleets")), "the definition is served")
    fleet = server.request("POST", f"{fleets_path('fleets')}?{STRICT}", minimal("fleets"))

    told = helm(server, version, "upgrade", "fleet-twin", str(charts.CHART), *at)
    assert "kubectl get devicefleets,twinpartitions" in told
    assert f"helm test fleet-twin -n {namespace}" in told
    assert knows_the_new_field(server)

    def takes_the_new_field() -> bool:
        edit = {"spec": {NEW_FIELD: 1}}
        path = f"{fleets_path('fleets', 'trucks')}?fieldValidation=Ignore"
        return bool(server.request("PATCH", path, edit, kube_api.MERGE_PATCH)["spec"].get(NEW_FIELD))

    server.wait(takes_the_new_field, "the new field is kept")

    told = helm(server, version, "uninstall", "fleet-twin", *at)
    assert "devicefleets.fleettwin.io" in told, "says what it leaves"
    assert not is_there(server, f"/apis/apps/v1/namespaces/{namespace}/deployments/fleet-twin-operator")
    assert not is_there(server, f"{kube_api.RBAC}/clusterroles/fleet-twin-operator")
    left = server.request("GET", fleets_path("fleets", "trucks"))
    assert left["metadata"]["uid"] == fleet["metadata"]["uid"]
    assert "deletionTimestamp" not in left["metadata"]

    helm(server, version, "install", "fleet-twin", str(charts.CHART), *at)
    again = server.request("GET", fleets_path("fleets", "trucks"))
    assert again["metadata"]["uid"] == fleet["metadata"]["uid"]
    assert again["spec"][NEW_FIELD] == 1


@pytest.mark.parametrize("version", charts.HELMS)
def test_definitions_of_kubectl_are_taken_over_when_asked_to(bare: api_servers.ApiServer, version: str) -> None:
    server = bare
    server.apply_crds()
    at = ("--namespace", SYSTEM)
    with pytest.raises(charts.HelmError, match=r"invalid ownership metadata"):
        helm(server, version, "install", "fleet-twin", str(charts.CHART), *at)
    helm(server, version, "install", "fleet-twin", str(charts.CHART), *at, "--take-ownership")
    helm(server, version, "uninstall", "fleet-twin", *at)
    assert is_there(server, DEFINITION)


# ── what the API server takes ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def definitions(server: api_servers.ApiServer) -> None:
    server.apply_crds()


@pytest.fixture
def definitions_of_monitoring(server: api_servers.ApiServer) -> Iterator[None]:
    """Those of the Prometheus operator: whoever asks for monitors has it. Gone afterwards: other clusters don't know it."""
    server.apply_crds(monitoring_crds.files())
    yield
    for plural in monitoring_crds.PLURALS:
        group = charts.MONITORING.partition("/")[0]
        take_definition_away(server, f"{DEFINITION.rpartition('/')[0]}/{plural}.{group}")
    server.wait(lambda: not is_there(server, f"/apis/{charts.MONITORING}"), "monitors are unknown again")


EVERYTHING = (
    *(
        "--set",
        "replicas=2",
        "--set",
        "networkPolicy.enabled=true",
        "--set",
        "networkPolicy.operator.restrictEgress=true",
    ),
    *("--set", "monitoring.dashboard.enabled=true", "--set", "monitoring.podMonitors.enabled=true"),
    *("--set", "monitoring.rules.enabled=true", "--set", "monitoring.rules.alertLabels.team=x"),
    *("--set-json", 'tolerations=[{"key":"a","operator":"Exists"}]', "--set", "nodeSelector.a=b"),
    *("--set-json", 'networkPolicy.metricsFrom=[{"namespaceSelector":{}}]'),
)
NAMESPACED = ("--set", "watch.allNamespaces=false", "--set", "watch.namespaces={fleets,elsewhere}")


@pytest.mark.usefixtures("definitions", "definitions_of_monitoring")
@pytest.mark.parametrize("values", [(), EVERYTHING, (*EVERYTHING, *NAMESPACED)], ids=["defaults", "all", "namespaced"])
def test_the_api_server_takes_every_object(server: api_servers.ApiServer, values: tuple[str, ...]) -> None:
    documents = charts.rendered(*values)
    server.service_account(SYSTEM, "fleet-twin-try")  # a pod isn't taken without its own
    told = kubectl(
        server,
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"),
        told=yaml.safe_dump_all(documents),
    )
    assert len(told.splitlines()) == len(documents)
    assert ("podmonitor" in told, "prometheusrule" in told) == (values != (), values != ())


@pytest.mark.usefixtures("definitions_of_monitoring")
def test_a_monitor_with_a_mistake_would_be_refused(server: api_servers.ApiServer) -> None:
    monitor = charts.one(charts.rendered(*EVERYTHING), "PodMonitor", "fleet-twin-workers")
    path = f"/apis/{charts.MONITORING}/namespaces/{SYSTEM}/podmonitors?dryRun=All&{STRICT}"
    server.request("POST", path, monitor)
    monitor["spec"]["podMetricsEndpoints"][0]["interval"] = "soon"
    with pytest.raises(kube_api.RefusedError, match=r"interval"):
        server.request("POST", path, monitor)


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize("name", ["minimal.yaml", "production-aws.yaml", "try-out.yaml"])
def test_the_api_server_takes_the_examples_as_they_are(server: api_servers.ApiServer, name: str) -> None:
    told = kubectl(
        server, "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", str(charts.EXAMPLES / name)
    )
    assert len(told.splitlines()) == len(charts.example(name))


@pytest.mark.usefixtures("definitions")
def test_a_namespace_that_enforces_restricted_admits_every_pod(server: api_servers.ApiServer) -> None:
    documents = charts.rendered(*EVERYTHING) + charts.example("try-out.yaml")
    pods = list(charts.pod_specs(documents))
    for name in ("minimal.yaml", "production-aws.yaml", "try-out.yaml"):
        fleet = parse.parse(charts.one(charts.example(name), "DeviceFleet"))
        defaults = pod_template.Defaults(image="fleet-twin:0.1.0")
        pods += charts.pod_specs([resources.stateful_set(fleet, naming.Owner(fleet.name, "uid"), defaults, 1)])
    assert len(pods) == 7
    for name, spec in pods:
        ask_for_pod(server, spec, name)
    with pytest.raises(kube_api.RefusedError, match=r"violates PodSecurity"):
        ask_for_pod(server, pods[0][1] | {"securityContext": {}}, "refused")


def ask_for_pod(server: api_servers.ApiServer, spec: dict[str, Any], name: str) -> None:
    """Would the namespace admit it? What else has to be there for a pod (its account, its priority) is left out."""
    named = name.lower().replace(" ", "-")
    asked = {key: value for key, value in spec.items() if key not in ("priorityClassName", "serviceAccountName")}
    mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
    claimed = mounted - {volume["name"] for volume in spec["volumes"]}  # a StatefulSet's own claims
    claims = [{"name": each, "persistentVolumeClaim": {"claimName": each}} for each in claimed]
    asked["volumes"] = [*spec["volumes"], *claims]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": named}, "spec": asked}
    server.service_account(RESTRICTED, "default")
    server.request("POST", f"/api/v1/namespaces/{RESTRICTED}/pods?dryRun=All&{STRICT}", body)


# ── what the operator may do ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["cluster", "namespaced"])
def operator(server: api_servers.ApiServer, definitions: None, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The installed operator's own user, and whether it is told of namespaces only."""
    values = ("--set", "crds.install=false", *(NAMESPACED if request.param == "namespaced" else ()))
    at = ("--namespace", SYSTEM)
    helm(server, "helm-3", "install", "fleet-twin", str(charts.CHART), *at, *values)
    yield server.as_user(server.service_account(SYSTEM, "fleet-twin-operator")), request.param
    helm(server, "helm-3", "uninstall", "fleet-twin", *at)


def test_the_operator_may_make_all_that_a_fleet_consists_of(server: api_servers.ApiServer, operator: Any) -> None:
    user, _ = operator
    made = server.request("POST", fleets_path("fleets"), minimal("fleets"))
    try:
        fleet = parse.parse(made)
        owner = naming.Owner(fleet.name, made["metadata"]["uid"])
        children = resources.children(fleet, owner, pod_template.Defaults(image="fleet-twin:0.1.0"), 1)
        paths = [f"{PATHS[each['kind']].format('fleets')}/{each['metadata']['name']}" for each in children]
        for path, manifest in zip(paths, children, strict=True):
            user.request(
                "PATCH", f"{path}?fieldManager=f&force=true&fieldValidation=Strict", manifest, kube_api.APPLY_PATCH
            )
        status = {"status": {"observedGeneration": 1}}
        user.request("PATCH", fleets_path("fleets", "trucks/status"), status, kube_api.MERGE_PATCH)
        finalizer = {"metadata": {"finalizers": [naming.FINALIZER]}}
        user.request("PATCH", fleets_path("fleets", "trucks"), finalizer, kube_api.MERGE_PATCH)
        none: dict[str, Any] = {"metadata": {"finalizers": []}}
        user.request("PATCH", fleets_path("fleets", "trucks"), none, kube_api.MERGE_PATCH)
        for path in reversed(paths):
            user.request("DELETE", path)
    finally:
        server.request("DELETE", fleets_path("fleets", "trucks"))


def test_the_operator_may_no_more_than_that(server: api_servers.ApiServer, operator: Any) -> None:
    user, scope = operator

    def may(verb: str, resource: str, namespace: str = "fleets", group: str = "", name: str = "") -> bool:
        asked = {"verb": verb, "resource": resource, "namespace": namespace, "group": group, "name": name}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = user.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    assert may("get", "secrets", name="fleet-twin-aws")
    assert not may("get", "secrets", name="another")
    assert not may("list", "secrets")
    for verb, resource in (("create", "pods"), ("create", "pods/exec"), ("delete", "persistentvolumeclaims")):
        assert not may(verb, resource)
    for verb, resource in (("create", "devicefleets"), ("delete", "devicefleets")):
        assert not may(verb, resource, group=naming.GROUP)
    for verb in ("create", "delete", "patch"):
        assert not may(verb, "customresourcedefinitions", group="apiextensions.k8s.io")
        assert not may(verb, "clusterroles", group="rbac.authorization.k8s.io")
        assert not may(verb, "namespaces")
    assert not may("bind", "roles", group="rbac.authorization.k8s.io")
    assert not may("escalate", "roles", group="rbac.authorization.k8s.io")
    assert may("list", "devicefleets", namespace="fleets", group=naming.GROUP)
    assert may("list", "devicefleets", namespace=RESTRICTED, group=naming.GROUP) == (scope == "cluster")
    assert may("list", "devicefleets", namespace="", group=naming.GROUP) == (scope == "cluster")
    assert may("patch", "leases", SYSTEM, "coordination.k8s.io", "fleet-twin-operator")
    assert not may("patch", "leases", "fleets", "coordination.k8s.io", "fleet-twin-operator")
    assert not may("patch", "leases", SYSTEM, "coordination.k8s.io", "another")
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "more"}}
    more = role | {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}]}
    with pytest.raises(kube_api.RefusedError, match=r"attempting to grant RBAC permissions not currently held"):
        user.request("POST", PATHS["Role"].format("fleets"), more)


def test_who_rules_one_namespace_can_install_for_it(
    server: api_servers.ApiServer, definitions: None, tmp_path: Path
) -> None:
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    user = server.as_user(server.service_account("elsewhere", "owner", everything))
    kubeconfig = user.write_kubeconfig(tmp_path / "kubeconfig", "elsewhere")
    at = ("--namespace", "elsewhere")
    values = ("--set", "watch.allNamespaces=false", "--set", "crds.install=false", *EVERYTHING)
    told = helm(server, "helm-3", "install", "own", str(charts.CHART), *at, *values, kubeconfig=kubeconfig)
    assert "takes care of fleets in elsewhere" in told
    assert "apply crds/ before each upgrade" in told
    assert "the cluster doesn't know monitoring.coreos.com/v1" in told
    assert is_there(server, "/apis/apps/v1/namespaces/elsewhere/deployments/own-fleet-twin-operator")
    helm(server, "helm-3", "uninstall", "own", *at, kubeconfig=kubeconfig)


@pytest.mark.usefixtures("definitions")
def test_who_may_view_or_edit_a_namespace_may_do_so_with_its_fleets(server: api_servers.ApiServer) -> None:
    """By aggregation, which takes Kubernetes' controllers; here the labels, and that the rules are taken."""
    for name, into in (("fleet-twin-view", ["view", "edit", "admin"]), ("fleet-twin-edit", ["edit", "admin"])):
        role = charts.one(charts.rendered(), "ClusterRole", name)
        assert [f"rbac.authorization.k8s.io/aggregate-to-{each}" in role["metadata"]["labels"] for each in into]
        assert not any("twinpartitions" in rule["resources"] and "patch" in rule["verbs"] for rule in role["rules"])
        path = f"{kube_api.RBAC}/clusterroles/{name}?dryRun=All&force=true&{STRICT}"
        server.request("PATCH", path, role, kube_api.APPLY_PATCH)
