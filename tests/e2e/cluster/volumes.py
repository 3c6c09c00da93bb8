"""Volumes made ahead: folders of each node's disk, offered as local PersistentVolumes, bound when a pod that wants one has a node.

A local volume belongs to its node for good, as a disk in a machine does; kubelet opens it to the pod's group. Nobody cleans one that was
given back: there are enough for a session.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

STORAGE_CLASS = "local"
PER_NODE = 24
SIZE = "20Gi"
"""As told; nothing limits a folder."""


def storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }


def make(node: str, disk: Path) -> list[dict[str, Any]]:
    """The node's folders, made, and their PersistentVolumes as documents."""
    documents = []
    for number in range(PER_NODE):
        folder = disk / "volumes" / f"{number:02}"
        folder.mkdir(parents=True, exist_ok=True)
        documents.append(_volume(f"{node}-{number:02}", node, folder))
    return documents


def _volume(name: str, node: str, folder: Path) -> dict[str, Any]:
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": SIZE},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
