"""A real Kubernetes API server for tests: etcd and kube-apiserver on 127.0.0.1, without root, nodes or a network of their own.

With controllers, objects have their consequences, too (a StatefulSet makes pods, an owner's end takes its children along), and with
a scheduler pods get nodes, if a test registers some; what runs in a pod a test must fake. Everything ends with the test, by its pid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support import certificates, kube_api, kubernetes_programs, server_process

READY_S_MAX = 120.0
STARTS_MAX = 3
ADMIN = "test-admin-token"
LOOK_AGAIN_S = 0.05
FEATURES = ("kube-controller-manager", "kube-scheduler")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the control plane stands in its surroundings; the defaults are for 127.0.0.1.

    address: where it listens. programs: of FEATURES, beside etcd and kube-apiserver. controllers_off: of the controller manager's.
    """

    address: str = "127.0.0.1"
    programs: tuple[str, ...] = ()
    controllers_off: tuple[str, ...] = ()


class ApiServer(kube_api.KubeApi):
    """What `running` gives, as its administrator.

    kubeconfig_path: the administrator's. kubectl: the program. authority: signs what the cluster trusts. folder: gone with the server.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.authority = certificates.Authority(folder / "certificates")
        self.kubectl = kubernetes_programs.program("kubectl")
        self._settings = settings
        self._processes: dict[str, server_process.ServerProcess] = {}
        self._port = server_process.free_port()
        super().__init__(f"https://{settings.address}:{self._port}", self.authority.ca_file, ADMIN)
        self.admin_token = ADMIN
        self.kubeconfig_path = self.write_kubeconfig(folder / "kubeconfig")
        self._signing_key = certificates.signing_key(folder / "certificates")
        self._server_certificate = self.authority.server(
            "kube-apiserver", [settings.address, "127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc"]
        )
        self._kubelet_client = self.authority.client("kubelet-client", "kube-apiserver", "system:masters")
        (folder / "tokens.csv").write_text(f'{ADMIN},admin,admin,"system:masters"\n')

    def start_all(self) -> None:
        """Returns when the server is ready. Raises ServerFailedError with the end of the output of what ended."""
        client, peer = server_process.free_port(), server_process.free_port()
        at = self._settings.address
        self._etcd = f"http://{at}:{client}"
        self._start(
            "etcd",
            [
                *("--name=test", f"--data-dir={self.folder}/etcd", "--unsafe-no-fsync", "--log-level=warn"),
                *(f"--listen-client-urls={self._etcd}", f"--advertise-client-urls={self._etcd}"),
                *(f"--listen-peer-urls=http://{at}:{peer}", f"--initial-advertise-peer-urls=http://{at}:{peer}"),
                f"--initial-cluster=test=http://{at}:{peer}",
            ],
        )
        self.start()
        config = f"--kubeconfig={self.kubeconfig_path}"
        alone = ("--leader-elect=false", "--secure-port=0", "--profiling=false")
        if "kube-controller-manager" in self._settings.programs:
            controllers = ",".join(["*", *(f"-{name}" for name in self._settings.controllers_off)])
            self._start(
                "kube-controller-manager",
                [
                    *(config, *alone, "--use-service-account-credentials=true", f"--controllers={controllers}"),
                    *(f"--root-ca-file={self.ca_file}", f"--service-account-private-key-file={self._signing_key}"),
                ],
            )
        if "kube-scheduler" in self._settings.programs:
            self._start("kube-scheduler", [config, *alone])
        if "kube-controller-manager" in self._settings.programs:
            self._until(self._has_controllers, "kube-controller-manager")

    def start(self) -> None:
        """The API server alone, on its port, with what etcd holds; returns when it is ready. Idempotent."""
        if "kube-apiserver" not in self._processes:
            certificate, key = self._server_certificate
            client, client_key = self._kubelet_client
            self._start(
                "kube-apiserver",
                [
                    *(f"--etcd-servers={self._etcd}", f"--bind-address={self._settings.address}"),
                    *(f"--secure-port={self._port}", f"--advertise-address={self._settings.address}"),
                    *(f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}"),
                    *(f"--client-ca-file={self.ca_file}", f"--token-auth-file={self.folder}/tokens.csv"),
                    f"--kubelet-client-certificate={client}",
                    *(f"--kubelet-client-key={client_key}", "--kubelet-preferred-address-types=InternalIP"),
                    *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
                    "--service-cluster-ip-range=10.96.0.0/16",
                    "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                    f"--service-account-key-file={self._signing_key}",
                    f"--service-account-signing-key-file={self._signing_key}",
                    *("--allow-privileged=true", "--profiling=false", f"--cert-dir={self.folder}/certificates"),
                    # A Service of the server itself must not name a loopback address: Kubernetes refuses it.
                    *(("--endpoint-reconciler-type=none",) if self._settings.address.startswith("127.") else ()),
                ],
            )
        self._until_ready()

    def stop(self) -> None:
        """The API server alone is gone, at once, as by kill -9: connections break, new ones are refused. Idempotent."""
        self._kill("kube-apiserver")

    def freeze(self) -> None:
        """The API server alone answers no more, and closes nothing: what clients' timeouts are for."""
        os.kill(self._processes["kube-apiserver"].pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._processes["kube-apiserver"].pid, signal.SIGCONT)
        self._until_ready()

    def output(self, name: str) -> str:
        """What one of the programs has said so far; "" for one that doesn't run."""
        return self._processes[name].output() if name in self._processes else ""

    def outputs(self) -> Iterator[tuple[str, str]]:
        """Of each program that runs: its name and what it has said so far."""
        for name in list(self._processes):
            yield name, self.output(name)

    def end(self) -> None:
        """All of it, etcd last. Idempotent."""
        for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            self._kill(name)

    def _start(self, name: str, flags: Sequence[str]) -> None:
        command = [str(kubernetes_programs.program(name)), *flags]
        self._processes[name] = server_process.ServerProcess(command, os.environ)

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.stop()

    def _until_ready(self) -> None:
        self._until(self.is_ready, "kube-apiserver")

    def _has_controllers(self) -> bool:
        """They run: a server that goes away while they are being made would end them for good."""
        return bool(self.request("GET", "/api/v1/namespaces/default/serviceaccounts")["items"])

    def _until(self, holds: Callable[[], bool], program: str) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while not holds():
            for process in self._processes.values():
                process.check_alive()
            if time.monotonic() > deadline:
                said = self.output(program)[-2000:]
                raise server_process.ServerFailedError(f"{program} not ready within {READY_S_MAX} s:\n{said}")
            time.sleep(LOOK_AGAIN_S)  # a poll with a deadline


@contextlib.contextmanager
def running(settings: Settings | None = None) -> Iterator[ApiServer]:
    """An empty, ready API server with our CRDs not yet applied. Raises go_toolchain.NoGoError where a test has to be skipped."""
    for attempt in range(1, STARTS_MAX + 1):
        with tempfile.TemporaryDirectory(prefix="fleet-twin-api-server-") as name:
            server = ApiServer(Path(name), settings or Settings())
            try:
                try:
                    server.start_all()
                except server_process.ServerFailedError:
                    # Free ports are chosen here, not by the programs: someone else may have been quicker.
                    if attempt == STARTS_MAX:
                        raise
                    continue
                yield server
                return
            finally:
                server.end()
