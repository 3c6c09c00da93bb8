"""The API server, by the `kubernetes` client: reads and writes of plain data, with our own errors. Blocking; for threads.

Plain data, not the client's typed models: what is applied must be exactly what the builders built, and a field that this
version of the models doesn't know would be lost. Nothing is tried again here, so that no write happens later than its caller knows of.
"""

from __future__ import annotations

import dataclasses
import json
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import urllib3.exceptions
from kubernetes import client, config

from fleet_operator import errors, kinds, naming
from fleet_operator.kinds import Kind

TIMEOUT_S = 5.0
"""Of a request, connecting included. The Lease's margins rest on it (`lease`)."""
SERVER_MARGIN_S = 0.5
"""The API server gives up so much earlier, so that nothing is done after we stopped waiting for it; what reaches it late has that much."""
LIST_TIMEOUT_S = 20.0
LIST_PAGE = 500

_AGAIN_LATER = frozenset({408, 429, 500, 502, 503, 504})

_UNTYPED = "typed patch object"
"""So an apply of a field that isn't declared, or of one entry twice, is told of: as 500, though asking again helps nobody."""

Count = Callable[[str, str, str], None]
"""(kind, verb, outcome): told of each request."""


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """version: the resourceVersion of the list."""

    objects: list[Mapping[str, Any]]
    version: int


def connect(connections: int) -> client.ApiClient:
    """By the service account of this pod, or by $KUBECONFIG. Raises SettingsError. connections: kept open."""
    settings = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise errors.SettingsError(
            f"no API server is configured: run in a pod with a service account, or set KUBECONFIG ({error})"
        ) from error
    settings.retries = False  # by default urllib3 repeats a request up to three times, later than anybody expects
    settings.connection_pool_maxsize = connections
    return client.ApiClient(settings)


class KubernetesApi:
    def __init__(self, connection: client.ApiClient, count: Count = lambda kind, verb, outcome: None) -> None:
        self._client = connection
        self._count = count

    # ── reads ────────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        """Raises MissingError."""
        return self._call("GET", kind, kind.path(namespace, name))

    def list(self, kind: Kind, namespace: str | None) -> Listed:
        """All objects of the kind's selector, page by page, as far as they are read (`kinds.kept`); namespace None: of all."""
        query = {"limit": str(LIST_PAGE)}
        if kind.selector:
            query["labelSelector"] = kind.selector
        objects: list[Mapping[str, Any]] = []
        while True:
            page = self._call("GET", kind, kind.path(namespace), query=query, timeout_s=LIST_TIMEOUT_S, verb="list")
            objects += (kinds.kept(kind, found) for found in page.get("items") or ())
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                version = str(metadata.get("resourceVersion") or "0")
                return Listed(objects, int(version) if version.isdigit() else 0)
            query["continue"] = metadata["continue"]

    # ── writes: each returns the object as it is then ────────────────────────────────────────────────────────────

    def create(self, kind: Kind, namespace: str, manifest: naming.Manifest) -> dict[str, Any]:
        """Raises ConflictError when it exists."""
        query = {"fieldManager": naming.FIELD_MANAGER}
        return self._call("POST", kind, kind.path(namespace), manifest, query)

    def apply(self, kind: Kind, namespace: str, manifest: naming.Manifest) -> dict[str, Any]:
        """With force. A uid in its metadata: only this object."""
        query = {"fieldManager": naming.FIELD_MANAGER, "force": "true"}
        path = kind.path(namespace, manifest["metadata"]["name"])
        return self._call("PATCH", kind, path, manifest, query, media="application/apply-patch+yaml", verb="apply")

    def merge(
        self, kind: Kind, namespace: str, name: str, change: Mapping[str, Any], subresource: str = ""
    ) -> dict[str, Any]:
        """A merge patch. A resourceVersion in its metadata: only over that one."""
        query = {"fieldManager": naming.FIELD_MANAGER}
        path = kind.path(namespace, name, subresource)
        return self._call("PATCH", kind, path, change, query, media="application/merge-patch+json")

    def replace(
        self, kind: Kind, namespace: str, manifest: naming.Manifest, subresource: str = "", within_s: float = TIMEOUT_S
    ) -> dict[str, Any]:
        """Over the resourceVersion in its metadata. within_s: the API server gives up after so long, so that it isn't done later."""
        query = {"fieldManager": naming.FIELD_MANAGER}
        path = kind.path(namespace, manifest["metadata"]["name"], subresource)
        return self._call("PUT", kind, path, manifest, query, timeout_s=min(TIMEOUT_S, within_s + SERVER_MARGIN_S))

    def delete(self, kind: Kind, namespace: str, name: str, options: Mapping[str, Any]) -> None:
        """options: DeleteOptions. Raises MissingError; ConflictError when a precondition doesn't hold."""
        self._call("DELETE", kind, kind.path(namespace, name), options)

    # ── the wire ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _call(
        self,
        method: str,
        kind: Kind,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        *,
        media: str = "application/json",
        timeout_s: float = TIMEOUT_S,
        verb: str = "",
    ) -> dict[str, Any]:
        verb = verb or {"POST": "create", "PUT": "update"}.get(method, method.lower())
        server_ms = max(1, round((timeout_s - SERVER_MARGIN_S) * 1000))
        url = f"{path}?{urllib.parse.urlencode({**(query or {}), 'timeout': f'{server_ms}ms'})}"
        headers = {"Accept": "application/json", "Content-Type": media}
        where = f"{verb} {kind.name} {path.rpartition('/')[2]}"
        try:
            request = self._client.param_serialize(method, url, header_params=headers, auth_settings=["BearerToken"])
            answer = self._client.call_api(
                *request[:3],
                body=body,  # the client writes it as JSON, which apply's YAML is, too
                _request_timeout=timeout_s,
            )
            text: bytes = answer.read()  # type: ignore[no-untyped-call]
        except (client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            self._count(kind.name, verb, "unanswered")
            raise errors.ApiUnavailableError(f"{where}: the API server didn't answer: {error}") from error
        self._count(kind.name, verb, str(answer.status))
        if answer.status >= 300:
            raise _error(where, verb, answer.status, text)
        try:
            found = json.loads(text)
        except ValueError as error:
            raise errors.ApiUnavailableError(f"{where}: the answer can't be read; is that an API server?") from error
        assert isinstance(found, dict)
        return found


def _error(where: str, verb: str, status: int, text: bytes) -> errors.OperatorError:
    try:
        told = json.loads(text)
        message, reason = str(told.get("message") or ""), str(told.get("reason") or "")
    except (ValueError, AttributeError):
        message, reason = text.decode(errors="replace")[:200], ""
    said = f"{where}: {message or reason or f'HTTP {status}'}"
    if status == 404:
        return errors.MissingError(said)
    if status == 409:
        return errors.ConflictError(said)
    if verb == "apply" and status == 500 and _UNTYPED in message:
        return errors.RefusedError(said)
    if status in _AGAIN_LATER:
        return errors.ApiUnavailableError(said)
    if status == 401:
        return errors.ApiUnavailableError(f"{said}; the operator's credentials aren't taken")
    return errors.RefusedError(said)
