"""The workers' pod template: what a worker needs, and nothing that the `restricted` Pod Security standard would refuse.

A pure builder. The root is read-only; a worker writes to its volume, to /tmp, and the token of its pod to a folder in memory: the token
goes with the pod, not with the container, so a restarted container may trust what the one before it left on the disk, and
another pod on the same volume may not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fleet_model import generations, sections, spec
from fleet_operator import naming, overlay

Manifest = naming.Manifest

API_PORT = 8080
DATA_VOLUME, TOKEN_VOLUME, SCRATCH_VOLUME = "twins", "pod-token", "tmp"
DATA_FOLDER = "/var/lib/fleet-twin"
TOKEN_FOLDER = "/run/fleet-twin"
USER_ID = 65_532
"""Nobody's on any node; the volume's group as well."""

GRACE_MARGIN_S = 30
"""Besides the drain timeout: for the checkpoint that ends a drain, and for closing the environments."""

SETTINGS_LIVE = frozenset(
    {"namespace", "name", "rules", "profiles", "replicas", "image", "suspend", "standby_replicas", "template"}
    | {"service_account_name"}
)
"""Fields of the fleet that a running worker needn't be restarted for: they are live, the operator's, or in the template anyway."""
STORAGE_OF_THE_OPERATOR = {"size", "storageClassName", "retentionPolicy"}
REBALANCE_OF_THE_OPERATOR = {"maxConcurrentMoves"}

_CREDENTIALS = (("AWS_ACCESS_KEY_ID", False), ("AWS_SECRET_ACCESS_KEY", False), ("AWS_SESSION_TOKEN", True))
"""Keys of the Secret, which are the environment's names; whether it may be without it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Defaults:
    """What the installation says for every fleet. image: where the fleet names none."""

    image: str
    image_pull_policy: str = "IfNotPresent"
    priority_class: str = ""


def pod_template(fleet: spec.FleetSpec, defaults: Defaults) -> Manifest:
    """With the user's laid over, and labelled with its own hash. Raises InvalidFleetError when the user's can't be laid over."""
    base = _base(fleet, defaults)
    refused = overlay.refusals(fleet.template, base)
    if refused:
        raise sections.InvalidFleetError(refused)
    laid: Manifest = overlay.laid_over(base, dict(fleet.template))
    laid["metadata"] = {
        **laid["metadata"],
        "labels": {**laid["metadata"]["labels"], naming.TEMPLATE_HASH: naming.digest(laid)},
    }
    return laid


def grace_s(fleet: spec.FleetSpec) -> int:
    """How long a worker that was told to end may take to drain."""
    return -(-fleet.rebalance.drain_timeout_ms // 1000) + GRACE_MARGIN_S


def settings_hash(fleet: spec.FleetSpec) -> str:
    """Of what a worker reads when it starts: another one means that it has to start again."""
    kept = {
        generations.camel_case(field.name): _plain(getattr(fleet, field.name))
        for field in dataclasses.fields(fleet)
        if field.name not in SETTINGS_LIVE
    }
    for name, others in (("storage", STORAGE_OF_THE_OPERATOR), ("rebalance", REBALANCE_OF_THE_OPERATOR)):
        kept[name] = {key: value for key, value in kept[name].items() if key not in others}
    return naming.digest(kept)


def _plain(value: object) -> Manifest:
    assert dataclasses.is_dataclass(value)
    return {
        generations.camel_case(field.name): _plain(entry) if dataclasses.is_dataclass(entry) else entry
        for field in dataclasses.fields(value)
        for entry in (getattr(value, field.name),)
    }


def _base(fleet: spec.FleetSpec, defaults: Defaults) -> Manifest:
    pod: Manifest = {
        "serviceAccountName": fleet.service_account_name or naming.worker_account(fleet.name),
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_s(fleet),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            # A volume of a million twins isn't walked through at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {"podAntiAffinity": _apart_by_node(fleet)},
        "topologySpreadConstraints": [_spread(fleet)],
        "containers": [_container(fleet, defaults)],
        "volumes": [
            {"name": TOKEN_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": SCRATCH_VOLUME, "emptyDir": {"sizeLimit": "256Mi"}},
        ],
    }
    if defaults.priority_class:
        pod["priorityClassName"] = defaults.priority_class
    return {
        "metadata": {
            # The selector's own labels and no more: what the operator may rename later mustn't be in here.
            "labels": {**naming.selector(fleet.name), "app.kubernetes.io/instance": fleet.name},
            "annotations": {
                "kubectl.kubernetes.io/default-container": overlay.WORKER,
                naming.SETTINGS_HASH: settings_hash(fleet),
            },
        },
        "spec": pod,
    }


def _spread(fleet: spec.FleetSpec) -> Manifest:
    """Over zones, and rather unevenly than not at all: a worker that can't be placed serves nobody."""
    return {
        "topologyKey": "topology.kubernetes.io/zone",
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": naming.selector(fleet.name)},
    }


def _apart_by_node(fleet: spec.FleetSpec) -> Manifest:
    """Over nodes. Not by a second constraint: the scheduler scores nothing on nodes that lack the key of any of them, and many clusters
    have no zones (kubernetes, pkg/scheduler/framework/plugins/podtopologyspread/scoring.go)."""
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": naming.selector(fleet.name)},
    }
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _container(fleet: spec.FleetSpec, defaults: Defaults) -> Manifest:
    return {
        "name": overlay.WORKER,
        "image": fleet.image or defaults.image,
        "imagePullPolicy": defaults.image_pull_policy,
        "args": [
            "worker",
            "--kubernetes",
            f"--data={DATA_FOLDER}",
            f"--pod-token={TOKEN_FOLDER}",
            "--host=0.0.0.0",
            f"--port={API_PORT}",
        ],
        "env": [*_environment(fleet), *_credentials(fleet)],
        "ports": [{"name": "http", "containerPort": API_PORT, "protocol": "TCP"}],
        # No limit on CPU: a worker that is behind may use what is idle. Twins that must be bounded: spec.storage.twinsInMemoryMax.
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # It answers as soon as its modules are loaded, whatever it then waits for; a minute is for a very busy node.
        "startupProbe": _probe("/healthz", every_s=2, within_s=3, times=30),
        # A loop that stood still for 20 s doesn't come back; the disk stays, and so do the partitions.
        "livenessProbe": _probe("/healthz", every_s=5, within_s=5, times=4),
        "readinessProbe": _probe("/readyz", every_s=2, within_s=3, times=2),
        "volumeMounts": [
            {"name": DATA_VOLUME, "mountPath": DATA_FOLDER},
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER},
            {"name": SCRATCH_VOLUME, "mountPath": "/tmp"},
        ],
    }


def _probe(path: str, *, every_s: int, within_s: int, times: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": every_s,
        "timeoutSeconds": within_s,
        "failureThreshold": times,
    }


def _environment(fleet: spec.FleetSpec) -> list[Manifest]:
    named: Mapping[str, str] = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "POD_IP": "status.podIP",
        "NODE_NAME": "spec.nodeName",
    }
    told = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in named.items()]
    return [{"name": "FLEET_NAME", "value": fleet.name}, *told]


def _credentials(fleet: spec.FleetSpec) -> list[Manifest]:
    """Nothing without a Secret: IRSA and Pod Identity go by the service account."""
    if fleet.aws.credentials_secret is None:
        return []
    return [
        {
            "name": key,
            "valueFrom": {
                "secretKeyRef": {
                    "name": fleet.aws.credentials_secret,
                    "key": key,
                    **({"optional": True} if is_optional else {}),
                }
            },
        }
        for key, is_optional in _CREDENTIALS
    ]
