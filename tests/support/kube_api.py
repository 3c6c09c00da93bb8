"""A Kubernetes API server as a test talks to it: plain requests, our CRDs, accounts that may do just so much.

It knows nothing about where the server comes from, and hides nothing: a refusal is raised as the server told it.
"""

from __future__ import annotations

import base64
import functools
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parents[2] / "crds"
REQUEST_S_MAX = 30.0
ESTABLISHED_S_MAX = 30.0
LOOK_AGAIN_S = 0.05
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
FLEETS = "/apis/fleettwin.io/v1alpha1"
"""Path of our API group: f"{FLEETS}/namespaces/{namespace}/devicefleets"."""
RBAC = "/apis/rbac.authorization.k8s.io/v1"


class RefusedError(Exception):
    """status: HTTP's. answer: the server's Status object."""

    def __init__(self, method: str, path: str, status: int, answer: dict[str, Any]) -> None:
        super().__init__(f"{method} {path}: {status} {answer.get('message', answer)}")
        self.status = status
        self.answer = answer


class KubeApi:
    """One server, one user. Thread-safe: a connection each request."""

    def __init__(self, url: str, ca_file: Path, token: str) -> None:
        self.url = url
        self.ca_file = ca_file
        self.token = token
        self._trust = ssl.create_default_context(cafile=str(ca_file))

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """The answer. Raises RefusedError for a status of 400 and above, OSError when nobody answers."""
        text = self.text(method, path, body, content_type)
        answer: dict[str, Any] = json.loads(text)
        return answer

    def text(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> str:
        """As `request`, for what isn't JSON: logs, metrics, health."""
        asked = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
        )
        try:
            with urllib.request.urlopen(asked, timeout=REQUEST_S_MAX, context=self._trust) as answered:
                told: str = answered.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                raise RefusedError(method, path, refused.code, _status(refused.read())) from refused
        return told

    def as_user(self, token: str) -> KubeApi:
        return KubeApi(self.url, self.ca_file, token)

    def is_ready(self) -> bool:
        try:
            return self.text("GET", "/readyz") == "ok"
        except (RefusedError, OSError):
            return False

    def make_namespace(self, name: str, labels: dict[str, str] | None = None) -> None:
        """Idempotent."""
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}
        self._made("/api/v1/namespaces", document)

    def apply_crds(self, files: Sequence[Path] = ()) -> None:
        """Those of crds/ where none are named, made or replaced; returns when objects of them can be made."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        served = []
        for file in files or sorted(CRDS.glob("*.yaml")):
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
            name, spec = document["metadata"]["name"], document["spec"]
            self.request("PATCH", f"{path}/{name}?fieldManager=tests&force=true", document, APPLY_PATCH)
            served.append(f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}?limit=1")
        for items in served:
            self.wait(functools.partial(self._is_served, items), f"{items} served")

    def service_account(
        self, namespace: str, name: str, rules: Sequence[dict[str, Any]] = (), cluster_wide: bool = False
    ) -> str:
        """A token of the account, made with a Role (a ClusterRole if cluster_wide) of these rules. Idempotent but for the rules."""
        meta = {"name": name, "namespace": namespace}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self._made(path, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        if rules:
            self._grant(namespace, name, list(rules), cluster_wide)
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token: str = self.request("POST", f"{path}/{name}/token", asked)["status"]["token"]
        return token

    def _grant(self, namespace: str, name: str, rules: list[dict[str, Any]], cluster_wide: bool) -> None:
        kind = "ClusterRole" if cluster_wide else "Role"
        place = RBAC if cluster_wide else f"{RBAC}/namespaces/{namespace}"
        # A cluster's roles know no namespace: the name says whose it is.
        meta = {"name": f"{namespace}-{name}" if cluster_wide else name}
        head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": meta}
        self._made(f"{place}/{kind.lower()}s", head | {"kind": kind, "rules": rules})
        self._made(
            f"{place}/{kind.lower()}bindings",
            head
            | {
                "kind": f"{kind}Binding",
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": meta["name"]},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            },
        )

    def wait(self, condition: Callable[[], object], what: str, seconds_max: float = ESTABLISHED_S_MAX) -> None:
        """Returns when the condition holds; fails the test with `what` when it doesn't in time."""
        deadline = time.monotonic() + seconds_max
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds_max} s"
            time.sleep(LOOK_AGAIN_S)  # a poll with a deadline

    def write_kubeconfig(self, file: Path, namespace: str = "default") -> Path:
        """For this server and user; the CA is inside, so the file is enough."""
        write_kubeconfig(file, self.url, self.ca_file, {"token": self.token}, namespace)
        return file

    def _is_served(self, path: str) -> bool:
        """A definition is established a little before its storage is there."""
        try:
            return "items" in self.request("GET", path)
        except RefusedError as refused:
            if refused.status not in (404, 429, 503):
                raise
            return False

    def _made(self, path: str, document: dict[str, Any]) -> None:
        """Idempotent: what is there already stays as it is."""
        try:
            self.request("POST", path, document)
        except RefusedError as refused:
            if refused.status != 409:
                raise


def write_kubeconfig(file: Path, url: str, ca_file: Path, user: dict[str, str], namespace: str = "default") -> None:
    """user: the credentials as kubeconfig spells them."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority-data": _base64(ca_file)}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    file.chmod(0o600)


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _status(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {"message": body.decode(errors="replace")}
    return answer if isinstance(answer, dict) else {"message": str(answer)}
