"""Whether a change by hand is noticed: by who owns which field. What the API server really writes there, tests/integration looks at."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fleet_operator import drift, naming

WANTED: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "trucks-api",
        "namespace": "depot",
        "labels": {"a": "b"},
        "ownerReferences": [{"uid": "u-1", "kind": "DeviceFleet"}],
    },
    "spec": {
        "type": "ClusterIP",
        "publish": False,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "selector": {"app": "x"},
        "finalizers": ["one"],
    },
}
OWNED: dict[str, Any] = {
    "f:metadata": {
        "f:labels": {"f:a": {}},
        "f:ownerReferences": {'k:{"uid":"u-1"}': {}},
    },
    "f:spec": {
        "f:type": {},
        "f:ports": {'k:{"port":8080,"protocol":"TCP"}': {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}}},
        "f:selector": {},
        "f:finalizers": {'v:"one"': {}},
    },
}


def found(owned: dict[str, Any] | None = None, **entry: Any) -> dict[str, Any]:
    fields = {"manager": naming.FIELD_MANAGER, "operation": "Apply", "fieldsV1": OWNED if owned is None else owned}
    made = copy.deepcopy(WANTED)
    made["metadata"]["managedFields"] = [{**fields, **entry}]
    return made


def owns(this: dict[str, Any]) -> bool:
    return drift.owns_all(WANTED, this, naming.FIELD_MANAGER)


def test_all_of_it_is_ours() -> None:
    assert owns(found())


@pytest.mark.parametrize(
    "path",
    [
        ("f:spec", "f:type"),
        ("f:spec", "f:selector"),
        ("f:spec", "f:ports"),
        ("f:spec", "f:ports", 'k:{"port":8080,"protocol":"TCP"}'),
        ("f:spec", "f:ports", 'k:{"port":8080,"protocol":"TCP"}', "f:name"),
        ("f:spec", "f:finalizers", 'v:"one"'),
        ("f:metadata", "f:labels", "f:a"),
        ("f:metadata", "f:ownerReferences", 'k:{"uid":"u-1"}'),
        ("f:metadata",),
    ],
)
def test_a_field_that_isnt_ours_any_more(path: tuple[str, ...]) -> None:
    owned = copy.deepcopy(OWNED)
    inside = owned
    for name in path[:-1]:
        inside = inside[name]
    del inside[path[-1]]
    if not inside:
        # The API server writes {} for a field that is owned as a whole, and leaves out what has nothing inside.
        inside["."] = {}
    assert not owns(found(owned))


def test_an_empty_value_that_nobody_owns_is_as_it_was_unless_something_stands_there() -> None:
    this = found()
    assert "f:publish" not in OWNED["f:spec"]
    assert owns(this)
    this["spec"]["publish"] = True
    assert not owns(this)


def test_what_others_or_our_updates_own_isnt_applied() -> None:
    assert not owns(found(manager="kubectl-edit"))
    assert not owns(found(operation="Update"))
    assert not owns(found(subresource="status"))


def test_without_a_record_the_hash_has_to_do() -> None:
    this = found()
    del this["metadata"]["managedFields"]
    assert owns(this)
