"""The tests' own checker of the `restricted` standard sees what it is for."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.support import pod_security

Manifest = dict[str, Any]
CONTAINER = "a container's"
GOOD: Manifest = {
    "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "data", "emptyDir": {}}],
    "initContainers": [],
    "containers": [
        {
            "name": "x",
            "ports": [{"containerPort": 8080}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
        }
    ],
}


def pod(where: str, **changes: Any) -> Manifest:
    """where: "pod", or whose security context the changes are for. None takes a field away."""
    made = copy.deepcopy(GOOD)
    container = made["containers"][0]
    place = {
        "pod": made,
        "pod's": made["securityContext"],
        "container": container,
        CONTAINER: container["securityContext"],
    }
    for field, value in changes.items():
        place[where].pop(field, None)
        if value is not None:
            place[where][field] = value
    return made


def test_a_good_pod_has_none() -> None:
    assert pod_security.mistakes(GOOD) == []


@pytest.mark.parametrize(
    ("where", "changes", "words"),
    [
        ("pod", {"hostNetwork": True}, ["hostNetwork is set"]),
        ("pod", {"hostUsers": True}, ["hostUsers is set"]),
        ("pod", {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, ["volume host is a hostPath"]),
        ("pod", {"securityContext": None}, ["x: runAsNonRoot isn't true", "x: no seccompProfile"]),
        ("pod's", {"runAsUser": 0}, ["runAsUser is 0"]),
        ("pod's", {"runAsNonRoot": False}, ["runAsNonRoot is false", "x: runAsNonRoot isn't true"]),
        ("pod's", {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}, ["sysctls is set"]),
        (
            "pod's",
            {"seccompProfile": {"type": "Unconfined"}},
            ["seccompProfile is unconfined", "x: no seccompProfile"],
        ),
        (CONTAINER, {"runAsUser": 0}, ["x: runAsUser is 0"]),
        (CONTAINER, {"runAsNonRoot": False}, ["x: runAsNonRoot is false", "x: runAsNonRoot isn't true"]),
        (
            CONTAINER,
            {"seccompProfile": {"type": "Unconfined"}},
            ["x: seccompProfile is unconfined", "x: no seccompProfile"],
        ),
        (CONTAINER, {"seLinuxOptions": {"type": "spc_t"}}, ["x: seLinuxOptions is set"]),
        (CONTAINER, {"privileged": True}, ["x: it is privileged"]),
        (CONTAINER, {"procMount": "Unmasked"}, ["x: it is privileged"]),
        (CONTAINER, {"allowPrivilegeEscalation": None}, ["x: allowPrivilegeEscalation isn't false"]),
        (CONTAINER, {"capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}}, ["x: capabilities aren't dropped"]),
        (CONTAINER, {"capabilities": {"drop": []}}, ["x: capabilities aren't dropped"]),
        (CONTAINER, {"readOnlyRootFilesystem": None}, ["x: its root can be written"]),
        ("container", {"ports": [{"containerPort": 1, "hostPort": 1}]}, ["x: it has a port of the host"]),
    ],
)
def test_it_finds(where: str, changes: Manifest, words: list[str]) -> None:
    assert pod_security.mistakes(pod(where, **changes)) == words


def test_what_a_container_says_itself_need_not_be_said_for_the_pod() -> None:
    own = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod_security.mistakes(pod(CONTAINER, **own) | {"securityContext": {}}) == []


@pytest.mark.parametrize("field", ["initContainers", "ephemeralContainers"])
def test_every_kind_of_container_is_looked_at(field: str) -> None:
    assert "y: capabilities aren't dropped" in pod_security.mistakes(GOOD | {field: [{"name": "y"}]})
