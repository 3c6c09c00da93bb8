"""A pod's container as a process of this machine: `fleet-twin` with the container's own arguments and environment.

What differs from a real one is told in one place, here: folders stand for volumes, an address of 127.0.0.0/8 for the pod's, the
service account's token lies in a folder that a variable names. Nothing is isolated: the process is trusted. It is ended by its pid.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support import kube_api, orphans

Manifest = dict[str, Any]
ACCOUNT_VARIABLE = "FLEET_TWIN_SERVICE_ACCOUNT_DIR"
TOKEN_S = 3_600
SECRETS_PATH = "/api/v1/namespaces/{namespace}/secrets/{name}"


class NotYetError(Exception):
    """The container can't be made now: why, as a kubelet would say it."""


@dataclasses.dataclass(slots=True)
class Place:
    """Where a pod runs: its address, its folder (which goes with it), and its claims' folders by claim name (which stay)."""

    address: str
    folder: Path
    claims: Mapping[str, Path]


class PodProcess:
    """One container over its restarts. restarts, exit_code: as a kubelet tells them."""

    def __init__(self, api: kube_api.KubeApi, pod: Manifest, place: Place, log_path: Path) -> None:
        self._api, self._place = api, place
        self.pod = pod
        self.log_path = log_path
        self.address = place.address
        self.restarts = -1
        self.exit_code: int | None = None
        self.started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None: it doesn't run."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return None

    def has_ended(self) -> bool:
        """Since it was started last."""
        if self._process is None or self._process.poll() is None:
            return False
        self.exit_code = self._process.returncode
        return True

    def start(self) -> None:
        """Raises NotYetError, and what the API does."""
        container = self.pod["spec"]["containers"][0]
        environment = self._environment(container)
        self._place.folder.mkdir(parents=True, exist_ok=True)
        self._write_account()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fleet_cli", *self._arguments(container)],
                env=environment,
                cwd=self._place.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            orphans.prevent(self._process.pid)
        self.restarts += 1
        self.started_at = time.monotonic()

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens to one that has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.pid is not None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Gone on return."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def forget(self) -> None:
        """The pod's own folder goes."""
        shutil.rmtree(self._place.folder, ignore_errors=True)

    def _arguments(self, container: Manifest) -> list[str]:
        """With folders of this machine for those of the pod, and the pod's address for all addresses."""
        replaced = []
        for argument in container["args"]:
            name, _, value = argument.partition("=")
            if name == "--host":
                value = self.address
            elif value.startswith("/"):
                value = str(self._folder(container, value))
            replaced.append(f"{name}={value}" if value else name)
        return replaced

    def _folder(self, container: Manifest, path: str) -> Path:
        (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == path]
        (volume,) = [volume for volume in self.pod["spec"]["volumes"] if volume["name"] == mount["name"]]
        claim = volume.get("persistentVolumeClaim")
        folder = self._place.claims[claim["claimName"]] if claim else self._place.folder / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _environment(self, container: Manifest) -> dict[str, str]:
        host, _, port = self._api.url.removeprefix("https://").rpartition(":")
        scratch = self._place.folder / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
            ACCOUNT_VARIABLE: str(self._place.folder / "account"),
        }
        for entry in container.get("env") or ():
            value = entry["value"] if "value" in entry else self._value_from(entry.get("valueFrom") or {})
            if value is not None:
                environment[entry["name"]] = value
        return environment

    def _value_from(self, source: Manifest) -> str | None:
        if "fieldRef" in source:
            known = {
                "metadata.name": self.pod["metadata"]["name"],
                "metadata.namespace": self.pod["metadata"]["namespace"],
                "metadata.uid": self.pod["metadata"]["uid"],
                "status.podIP": self.address,
                "spec.nodeName": self.pod["spec"]["nodeName"],
            }
            return str(known[source["fieldRef"]["fieldPath"]])
        if "secretKeyRef" in source:
            return self._secret(source["secretKeyRef"])
        return ""

    def _secret(self, reference: Manifest) -> str | None:
        path = SECRETS_PATH.format(namespace=self.pod["metadata"]["namespace"], name=reference["name"])
        try:
            data = self._api.request("GET", path).get("data") or {}
        except kube_api.RefusedError as refused:
            if refused.status != 404:
                raise
            data = {}
        if reference["key"] in data:
            return base64.b64decode(data[reference["key"]]).decode()
        if reference.get("optional"):
            return None
        raise NotYetError(f"CreateContainerConfigError: no key {reference['key']} in secret {reference['name']}")

    def _write_account(self) -> None:
        """A token of the pod's account, bound to the pod: it ends with it."""
        metadata = self.pod["metadata"]
        account = self.pod["spec"]["serviceAccountName"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_S, "boundObjectRef": bound},
        }
        token = self._api.request("POST", path, asked)["status"]["token"]
        folder = self._place.folder / "account"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(token)
        (folder / "namespace").write_text(metadata["namespace"])
        shutil.copy(self._api.ca_file, folder / "ca.crt")


def claims_of(pod: Manifest) -> Sequence[str]:
    return [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"].get("volumes") or ()
        if "persistentVolumeClaim" in volume
    ]
