"""Names of Services and pods, for pods: CoreDNS beside the control plane, where every node's kubelet sends pods to.

It knows the cluster's own names alone; there is no world outside to ask about.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from tests.e2e.cluster import network
from tests.support import kubernetes_programs, server_process

READY_PORT = 8181
ASK_S_MAX = 2.0
TTL_S = 5
"""So long a pod that is gone may still be found by its name."""


class Names:
    """kubeconfig: the administrator's: what is asked of the API server are Services, endpoints and namespaces."""

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self._file = folder / "Corefile"
        self._file.write_text(
            f""".:53 {{
    bind {network.CONTROL}
    ready 127.0.0.1:{READY_PORT}
    errors
    cache {TTL_S}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl {TTL_S}
    }}
}}
"""
        )
        self._process: server_process.ServerProcess | None = None

    def start(self) -> None:
        """In the cluster's network, where the caller is. `is_ready` tells when it knows the names."""
        command = [str(kubernetes_programs.coredns()), "-conf", str(self._file)]
        self._process = server_process.ServerProcess(command, os.environ)

    def is_ready(self) -> bool:
        """Raises ServerFailedError when it has ended."""
        if self._process is not None:
            self._process.check_alive()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{READY_PORT}/ready", timeout=ASK_S_MAX) as answered:
                return bool(answered.status == 200)
        except (urllib.error.HTTPError, OSError):
            return False

    def output(self) -> str:
        return "" if self._process is None else self._process.output()

    def end(self) -> None:
        """Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()
