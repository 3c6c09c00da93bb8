"""The kinds of objects that the operator deals with: where each is in the API, and which of its objects are a fleet's.

One table for watching, sweeping, reading and writing. It decides nothing and asks nobody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

from fleet_model import parse, twin_partition_document
from fleet_operator import naming

FleetKey: TypeAlias = tuple[str, str]
"""A fleet: its namespace and its name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """selector: of labels, by which the API server picks what is a fleet's; "" = all. is_watched: its events wake a fleet."""

    name: str
    api_version: str
    plural: str
    selector: str = naming.FLEET
    is_watched: bool = True

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """namespace None: of all namespaces."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        inside = f"/namespaces/{namespace}" if namespace is not None else ""
        return root + inside + "".join(f"/{part}" for part in (self.plural, name, subresource) if part)


FLEET = Kind(parse.KIND, parse.API_VERSION, "devicefleets", selector="")
PARTITION = Kind(twin_partition_document.KIND, twin_partition_document.API_VERSION, "twinpartitions", selector="")
POD = Kind("Pod", "v1", "pods")
CLAIM = Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims")
REVISION = Kind(
    "ControllerRevision", "apps/v1", "controllerrevisions", f"{naming.FLEET},app.kubernetes.io/component=rules"
)
STATEFUL_SET = Kind("StatefulSet", "apps/v1", "statefulsets")
SERVICE = Kind("Service", "v1", "services")
ACCOUNT = Kind("ServiceAccount", "v1", "serviceaccounts")
BUDGET = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
ROLE = Kind("Role", "rbac.authorization.k8s.io/v1", "roles")
BINDING = Kind("RoleBinding", "rbac.authorization.k8s.io/v1", "rolebindings")

CHILDREN = (ACCOUNT, ROLE, BINDING, SERVICE, BUDGET, STATEFUL_SET)
"""Of which `resources.children` are."""
WATCHED = (FLEET, PARTITION, POD, CLAIM, REVISION, *CHILDREN)

LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases", selector="", is_watched=False)
EVENT = Kind("Event", "v1", "events", selector="", is_watched=False)
SECRET = Kind("Secret", "v1", "secrets", selector="", is_watched=False)

BY_NAME: Mapping[str, Kind] = {kind.name: kind for kind in (*WATCHED, LEASE, EVENT, SECRET)}


def fleet_of(kind: Kind, found: Mapping[str, Any]) -> FleetKey | None:
    """None: it is nobody's."""
    metadata = found["metadata"]
    if kind is FLEET:
        name = metadata["name"]
    elif kind is PARTITION:
        name = (found.get("spec") or {}).get("fleet")
    else:
        name = (metadata.get("labels") or {}).get(naming.FLEET)
    return (metadata.get("namespace", ""), name) if name else None


def kept(kind: Kind, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is read of an object; all of it, where it is compared with what was applied. Thousands of pods stand in memory, and most of what they
    say is nobody's business here."""
    if kind is POD:
        return _pod(found)
    if kind is CLAIM:
        spec = {"resources": (found.get("spec") or {}).get("resources") or {}}
        return {**_some(found, _HEAD), "metadata": _metadata(found), "spec": spec}
    if kind in (FLEET, PARTITION, REVISION):
        # A status written without them leaves them as they are.
        metadata = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
        return {**found, "metadata": metadata}
    return found


_HEAD = ("apiVersion", "kind")
_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
_LABELS = (naming.FLEET, naming.TEMPLATE_HASH)
_CONTAINERS = ("initContainerStatuses", "containerStatuses")


def _pod(found: Mapping[str, Any]) -> dict[str, Any]:
    status = found.get("status") or {}
    return {
        **_some(found, _HEAD),
        "metadata": _metadata(found),
        "spec": _some(found.get("spec") or {}, ("nodeName",)),
        "status": {
            **_some(status, ("phase", "reason", "podIP")),
            "conditions": [
                _some(entry, ("type", "status", "lastTransitionTime"))
                for entry in status.get("conditions") or ()
                if entry["type"] == "Ready"
            ],
            **{name: [_container(entry) for entry in status[name]] for name in _CONTAINERS if status.get(name)},
        },
    }


def _container(found: Mapping[str, Any]) -> dict[str, Any]:
    state = {name: _some(value or {}, ("reason",)) for name, value in (found.get("state") or {}).items()}
    ended = (found.get("lastState") or {}).get("terminated") or {}
    last = {"terminated": _some(ended, ("exitCode", "startedAt", "finishedAt"))}
    return {**_some(found, ("name", "ready", "restartCount")), "state": state, **({"lastState": last} if ended else {})}


def _metadata(found: Mapping[str, Any]) -> dict[str, Any]:
    metadata = found["metadata"]
    return {**_some(metadata, _METADATA), "labels": _some(metadata.get("labels") or {}, _LABELS)}


def _some(found: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}
