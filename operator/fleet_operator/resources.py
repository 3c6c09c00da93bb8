"""A fleet's objects in Kubernetes, from its spec: what is to be applied, as plain data.

Pure builders: the same fleet gives the same bytes. Nothing is looked up, and no object of these is read; what is there already, and what
may be done to it, is `plan`'s business.

The StatefulSet never replaces a pod by itself (OnDelete): which one goes next, and whether any may go now, is decided in `rolling`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet_model import spec, twin_partition, twin_partition_document
from fleet_operator import naming, pod_template

Manifest = naming.Manifest


def children(
    fleet: spec.FleetSpec, owner: naming.Owner, defaults: pod_template.Defaults, workers: int
) -> tuple[Manifest, ...]:
    """Everything but partitions and rules, in the order in which it is to be applied: who needs something comes after it. workers: pods
    that the StatefulSet is to have. Raises InvalidFleetError when the fleet's template can't be laid over."""
    account = () if fleet.service_account_name else (service_account(fleet, owner),)
    built = (
        *account,
        role(fleet, owner),
        role_binding(fleet, owner),
        workers_service(fleet, owner),
        api_service(fleet, owner),
        disruption_budget(fleet, owner),
        stateful_set(fleet, owner, defaults, workers),
    )
    return tuple(naming.sealed(manifest) for manifest in built)


def _metadata(fleet: spec.FleetSpec, owner: naming.Owner, name: str, component: str = "worker") -> Manifest:
    return {
        "name": name,
        "namespace": fleet.namespace,
        "labels": naming.labels(fleet.name, component),
        "ownerReferences": [naming.owner_reference(owner)],
    }


# ── who workers are, and what they may do ────────────────────────────────────────────────────────────────────────────


def service_account(fleet: spec.FleetSpec, owner: naming.Owner) -> Manifest:
    """The fleet's own. A fleet with an AWS role by IRSA names an account of its user's instead."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(fleet, owner, naming.worker_account(fleet.name)),
        "automountServiceAccountToken": False,
    }


def role(fleet: spec.FleetSpec, owner: naming.Owner) -> Manifest:
    """To hear of partitions and of the own fleet, and to say how partitions are: nothing else. RBAC can't tell one fleet's
    partitions from another's in the same namespace; who mustn't see them belongs into another."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": _metadata(fleet, owner, naming.worker_account(fleet.name)),
        "rules": [
            {"apiGroups": [naming.GROUP], "resources": ["twinpartitions"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [naming.GROUP], "resources": ["twinpartitions/status"], "verbs": ["patch"]},
            {
                "apiGroups": [naming.GROUP],
                "resources": ["devicefleets"],
                "resourceNames": [fleet.name],
                "verbs": ["get", "list", "watch"],
            },
        ],
    }


def role_binding(fleet: spec.FleetSpec, owner: naming.Owner) -> Manifest:
    name = naming.worker_account(fleet.name)
    account = fleet.service_account_name or name
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": _metadata(fleet, owner, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": fleet.namespace}],
    }


# ── how workers are reached ──────────────────────────────────────────────────────────────────────────────────────────


def workers_service(fleet: spec.FleetSpec, owner: naming.Owner) -> Manifest:
    """A name for each worker, ready or not: whoever asks a worker for a twin that it is bringing back should hear so from itself."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(fleet, owner, naming.workers_service(fleet.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": naming.selector(fleet.name),
            "ports": [_port()],
        },
    }


def api_service(fleet: spec.FleetSpec, owner: naming.Owner) -> Manifest:
    """Any worker of which every partition runs."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(fleet, owner, naming.api_service(fleet.name), "api"),
        "spec": {"type": "ClusterIP", "selector": naming.selector(fleet.name), "ports": [_port()]},
    }


def _port() -> Manifest:
    return {"name": "http", "port": pod_template.API_PORT, "targetPort": "http", "protocol": "TCP"}


def disruption_budget(fleet: spec.FleetSpec, owner: naming.Owner) -> Manifest:
    """One worker at a time, also while nodes are emptied; one that isn't healthy may always go, or a broken fleet would hold its nodes."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(fleet, owner, fleet.name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": naming.selector(fleet.name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def stateful_set(fleet: spec.FleetSpec, owner: naming.Owner, defaults: pod_template.Defaults, workers: int) -> Manifest:
    """Volumes of workers that were scaled away stay, whatever the policy: `suspend` is a scaling to nothing, too."""
    claim: Manifest = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": fleet.storage.size}},
    }
    if fleet.storage.storage_class_name is not None:
        claim["storageClassName"] = fleet.storage.storage_class_name
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": _metadata(fleet, owner, fleet.name),
        "spec": {
            "replicas": workers,
            "serviceName": naming.workers_service(fleet.name),
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": naming.selector(fleet.name)},
            "persistentVolumeClaimRetentionPolicy": {
                "whenDeleted": fleet.storage.retention_policy,
                "whenScaled": "Retain",
            },
            "template": pod_template.pod_template(fleet, defaults),
            "volumeClaimTemplates": [
                {
                    # The API server fills these in; left out, every apply would look like a change of what can't be changed.
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {"name": pod_template.DATA_VOLUME, "labels": naming.selector(fleet.name)},
                    "spec": {**claim, "volumeMode": "Filesystem"},
                }
            ],
        },
    }


def template_hash(manifests: Sequence[Manifest]) -> str:
    """Of the StatefulSet's pods among a fleet's objects."""
    found = next(manifest for manifest in manifests if manifest["kind"] == "StatefulSet")
    return str(found["spec"]["template"]["metadata"]["labels"][naming.TEMPLATE_HASH])


# ── partitions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def twin_partition_object(entry: twin_partition.TwinPartition, fleet: spec.FleetSpec, owner: naming.Owner) -> Manifest:
    """To be created: its status is its owner's, so it has none."""
    document = twin_partition_document.document(entry)
    metadata = _metadata(fleet, owner, entry.name, "partition")
    metadata["labels"][naming.SHARD] = naming.label_value(entry.spec.shard_id)
    return {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "metadata": metadata,
        "spec": document["spec"],
    }
