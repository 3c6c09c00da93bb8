"""The definitions on a real API server: it takes them as they are, and judges every case as the rules' authors and the parser do.

tests/unit/test_crds.py asks the same of Python's imitation, which is quick enough for property tests; here is the proof that it imitates.
"""

from __future__ import annotations

import copy
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.property import test_crds as compared
from tests.support import admission, api_server, crd_cases, fleets, kube_api

pytestmark = pytest.mark.processes

DRY = "dryRun=All&fieldValidation=Strict"
CASES = [case for plural in crd_cases.PLURALS for case in crd_cases.cases(plural)]


@pytest.fixture(scope="module")
def namespace(api_server: api_server.ApiServer) -> str:
    name = f"crds-{uuid.uuid4().hex[:8]}"
    api_server.make_namespace(name)
    return name


@pytest.fixture
def room(api_server: api_server.ApiServer, namespace: str) -> Iterator[str]:
    """The namespace, empty of our objects."""
    yield namespace
    for plural in crd_cases.PLURALS:
        api_server.request("DELETE", f"{kube_api.FLEETS}/namespaces/{namespace}/{plural}")


def path_of(namespace: str, plural: str, document: Any = None, part: str = "") -> str:
    name = "" if document is None else f"/{document['metadata']['name']}"
    return f"{kube_api.FLEETS}/namespaces/{namespace}/{plural}{name}{part}"


def put_status(server: api_server.ApiServer, namespace: str, case: crd_cases.Case, document: Any, dry: str) -> Any:
    """The status goes a way of its own: the spec's leaves it out."""
    made = server.request("GET", path_of(namespace, case.plural, document))
    asked = made | {"status": document["status"]}
    return server.request("PUT", path_of(namespace, case.plural, document, f"/status?{dry}"), asked)


def ask(server: api_server.ApiServer, namespace: str, case: crd_cases.Case) -> Any:
    """What the server makes of the case. Raises RefusedError."""
    if case.old is None and "status" not in case.new:
        return server.request("POST", path_of(namespace, case.plural) + f"?{DRY}", case.new)
    first = case.new if case.old is None else case.old
    old = server.request("POST", path_of(namespace, case.plural), {k: v for k, v in first.items() if k != "status"})
    if case.old is not None and "status" in case.old:
        put_status(server, namespace, case, case.old, "")
    if "status" in case.new:
        return put_status(server, namespace, case, case.new, DRY)
    new = copy.deepcopy(case.new)
    new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
    return server.request("PUT", path_of(namespace, case.plural, new, f"?{DRY}"), new)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_case_is_judged_by_its_rule_alone(api_server: api_server.ApiServer, room: str, case: crd_cases.Case) -> None:
    if case.is_accepted:
        told = ask(api_server, room, case)
        ours = admission.completed(case.new, admission.schema_of(case.plural))
        assert told["spec"] == ours["spec"], "defaults and nulls as the imitation has them"
        return
    with pytest.raises(kube_api.RefusedError) as refused:
        ask(api_server, room, case)
    assert refused.value.status == 422
    causes = refused.value.answer["details"]["causes"]
    assert causes
    for cause in causes:
        assert case.message in cause["message"], causes


@pytest.mark.parametrize("plural", crd_cases.PLURALS)
def test_a_definition_is_taken_without_a_warning(api_server: api_server.ApiServer, plural: str) -> None:
    told = api_server.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.fleettwin.io")
    conditions = {condition["type"]: condition["status"] for condition in told["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}, "and no NonStructuralSchema"
    wanted = yaml.safe_load((kube_api.CRDS / f"fleettwin.io_{plural}.yaml").read_text(encoding="utf-8"))
    assert told["spec"]["versions"] == wanted["spec"]["versions"]


def test_wrong_values_are_refused_and_bounds_accepted(api_server: api_server.ApiServer, namespace: str) -> None:
    """Every value that the parser's own tests name."""
    different = []
    for path, value in [*compared.WRONG, *compared.RIGHT, *compared.TELEMETRY, *compared.PROFILES]:
        fleet = fleets.with_field(path, value)
        if not compared.is_json(fleet):
            continue
        try:
            api_server.request("POST", path_of(namespace, "devicefleets") + f"?{DRY}", fleet)
            is_accepted = True
        except kube_api.RefusedError as refused:
            if refused.status not in (400, 422):
                raise
            is_accepted = False
        if is_accepted != compared.is_accepted_by_the_definition(fleet):
            different.append((path, value, is_accepted))
    assert different == []


def test_scale_is_a_subresource(api_server: api_server.ApiServer, room: str) -> None:
    fleet = fleets.smallest()
    api_server.request("POST", path_of(room, "devicefleets"), fleet)
    api_server.request(
        "PATCH", path_of(room, "devicefleets", fleet, "/scale"), {"spec": {"replicas": 7}}, kube_api.MERGE_PATCH
    )
    assert api_server.request("GET", path_of(room, "devicefleets", fleet))["spec"]["replicas"] == 7
    with pytest.raises(kube_api.RefusedError, match=r"spec\.replicas"):
        api_server.request(
            "PATCH",
            path_of(room, "devicefleets", fleet, "/scale"),
            {"spec": {"replicas": 100_000}},
            kube_api.MERGE_PATCH,
        )


def test_kubectl_shows_a_fleet_and_explains_its_fields(api_server: api_server.ApiServer, room: str) -> None:
    api_server.request("POST", path_of(room, "devicefleets"), fleets.smallest())

    def kubectl(*words: str) -> str:
        command = [str(api_server.kubectl), f"--kubeconfig={api_server.kubeconfig_path}", f"--namespace={room}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    heads = kubectl("get", "dfleet").splitlines()[0].split()
    assert heads[0] == "NAME"
    assert {"READY", "TWINS", "AGE"} <= set(heads)
    assert "trucks" in kubectl("get", "fleettwin")
    assert "FIELD: threshold <number>" in kubectl("explain", "devicefleet.spec.rules.temperature.threshold")
