"""A fleet's document from the cluster at hand: in a pod its own, elsewhere the kubeconfig's. Reads, and never writes."""

from __future__ import annotations

import pathlib
from typing import Any

import kubernetes
import urllib3

from fleet_model import parse, spec
from fleet_worker import errors

GROUP, VERSION = parse.API_VERSION.split("/")
PLURAL = "devicefleets"
TIMEOUT_S = 15
NAMES_MAX = 20
_OWN_NAMESPACE = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def load(name: str | None, namespace: str | None) -> spec.FleetSpec:
    """name: None: the only one of the namespace. Raises FleetTwinError, and InvalidFleetError when it has mistakes."""
    current = _connect()
    return parse.parse(_document(name, namespace or current))


def _connect() -> str:
    """The current namespace."""
    try:
        kubernetes.config.load_incluster_config()  # type: ignore[no-untyped-call]
        return _OWN_NAMESPACE.read_text().strip()
    except kubernetes.config.ConfigException:
        pass  # not in a pod
    try:
        kubernetes.config.load_kube_config()  # type: ignore[no-untyped-call]
        _, current = kubernetes.config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    except kubernetes.config.ConfigException as error:
        raise errors.FleetTwinError(f"No cluster is at hand: {error}. Is KUBECONFIG right?") from error
    return str((current or {}).get("context", {}).get("namespace") or "default")


def _document(name: str | None, namespace: str) -> dict[str, Any]:
    objects: Any = kubernetes.client.CustomObjectsApi()
    try:
        if name is not None:
            found: dict[str, Any] = objects.get_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name, _request_timeout=TIMEOUT_S
            )
            return found
        listed = objects.list_namespaced_custom_object(
            GROUP, VERSION, namespace, PLURAL, limit=NAMES_MAX, _request_timeout=TIMEOUT_S
        )["items"]
    except kubernetes.client.ApiException as error:
        raise errors.FleetTwinError(
            f"The fleet can't be read in namespace {namespace}: {error.status} {error.reason}. Are its name, the namespace and your rights right?"
        ) from error
    except urllib3.exceptions.HTTPError as error:
        raise errors.FleetTwinError(f"The API server doesn't answer: {error}") from error
    if len(listed) != 1:
        names = ", ".join(entry["metadata"]["name"] for entry in listed)
        raise errors.FleetTwinError(
            f"Namespace {namespace} has several fleets; say which one with --name: {names}"
            if listed
            else f"Namespace {namespace} has no fleet yet; apply one first"
        )
    return dict(listed[0])
