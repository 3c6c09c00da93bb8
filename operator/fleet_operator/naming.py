"""How a fleet's objects in Kubernetes are named, labelled and owned: one place, since names are kept for good.

The fleet's name has at most 52 characters: a StatefulSet's pods carry the label `<name>-<hash of ten>` and a label has 63. Every other
name is the fleet's with an ending of its own, so that no two fleets of a namespace ever need the same name for two objects of a kind.
It decides nothing about what the objects hold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from fleet_model import parse
from fleet_operator import drift

Manifest: TypeAlias = dict[str, Any]
"""An object of Kubernetes as plain data."""

FIELD_MANAGER = "fleet-twin-operator"
"""Under this name the operator applies; fields that others set stay theirs."""

GROUP = "fleettwin.io"
FINALIZER = f"{GROUP}/final-checkpoint"
FORCE_DELETION = f"{GROUP}/skip-final-checkpoint"
"""Annotation of a fleet, "true": its deletion doesn't wait for the final checkpoint."""

APPLIED_HASH = f"{GROUP}/applied-hash"
"""Annotation of every child: of what was applied. Equal: there is nothing to write."""
TEMPLATE_HASH = f"{GROUP}/template-hash"
"""Label of every pod: of the template that it was made from."""
SETTINGS_HASH = f"{GROUP}/settings-hash"
"""Annotation of every pod: of the fleet's settings that a worker reads at its start only."""

FLEET = f"{GROUP}/fleet"
SHARD = f"{GROUP}/shard"

HASH_DIGITS = 16

_LABEL_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """The DeviceFleet that everything belongs to: goes with it when it is deleted. generation: of its metadata."""

    name: str
    uid: str
    generation: int = 1


def workers_service(fleet: str) -> str:
    """Headless: gives every pod a name of its own, ready or not."""
    return f"{fleet}-workers"


def api_service(fleet: str) -> str:
    return f"{fleet}-api"


def worker_account(fleet: str) -> str:
    """Of the ServiceAccount, the Role and its binding."""
    return f"{fleet}-worker"


def worker(fleet: str, ordinal: int) -> str:
    """Of the pod, and so of the worker."""
    return f"{fleet}-{ordinal}"


def ordinal(fleet: str, pod: str) -> int | None:
    """None: it is no pod of this fleet's StatefulSet."""
    found = re.fullmatch(re.escape(fleet) + r"-(0|[1-9][0-9]{0,8})", pod)
    return int(found[1]) if found else None


def rules_revision(fleet: str, generation: int) -> str:
    """In order by name. Ten digits with zeros before: the StatefulSet's own revisions never have a zero in their hash."""
    return f"{fleet}-rules-{generation:010d}"


def selector(fleet: str) -> dict[str, str]:
    """Of the pods. A StatefulSet's selector can never be changed, nor may this."""
    return {
        "app.kubernetes.io/name": "fleet-twin",
        "app.kubernetes.io/component": "worker",
        FLEET: fleet,
    }


def labels(fleet: str, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "fleet-twin",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": fleet,
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
        FLEET: fleet,
    }


def label_value(text: str) -> str:
    """The text, or a hash of it when no label can hold it."""
    return text if _LABEL_VALUE.fullmatch(text) else digest(text)


def owner_reference(owner: Owner) -> Manifest:
    return {
        "apiVersion": parse.API_VERSION,
        "kind": parse.KIND,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_anothers(found: Mapping[str, Any], owner: Owner) -> bool:
    """An object of the wanted name that this fleet didn't make. It is never taken over: somebody needs it as it is."""
    references = found.get("metadata", {}).get("ownerReferences") or ()
    return not any(reference.get("uid") == owner.uid and reference.get("controller") for reference in references)


def digest(value: object) -> str:
    """The same for equal plain data, whatever the order of its fields."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def sealed(manifest: Manifest) -> Manifest:
    """With the hash of what it says, which `is_applied` compares."""
    metadata = dict(manifest["metadata"])
    metadata["annotations"] = {**metadata.get("annotations", {}), APPLIED_HASH: digest(manifest)}
    return {**manifest, "metadata": metadata}


def is_applied(wanted: Manifest, found: Mapping[str, Any] | None) -> bool:
    """It was applied as it is wanted, and nobody has changed a field of it since."""
    if found is None:
        return False
    annotations = found.get("metadata", {}).get("annotations") or {}
    is_same = annotations.get(APPLIED_HASH) == wanted["metadata"]["annotations"][APPLIED_HASH]
    return is_same and drift.owns_all(wanted, found, FIELD_MANAGER)
