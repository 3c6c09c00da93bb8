"""One node: a namespace of the kernel for its processes, its mounts and its network, with containerd, kubelet and kube-proxy in it.

Killing its first process is its power cut: everything in it dies at once, memory and mounts are gone, the disk stays.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.e2e.cluster import errors, needs, network, node_files
from tests.support import api_server, kube_api, kubernetes_programs, server_process

START_S_MAX = 60.0
IMPORT_S_MAX = 300.0
COMMAND_S_MAX = 60.0
DEATH_S_MAX = 30.0
LOOK_AGAIN_S = 0.05
INIT = Path(__file__).with_name("node_init.py")
CGROUPS = Path("/sys/fs/cgroup")


class Node:
    """name: as Kubernetes knows it. disk: what a power cut leaves."""

    def __init__(self, cluster: str, number: int, folder: Path, server: api_server.ApiServer) -> None:
        self.name = f"node-{number}"
        self.number = number
        self.disk = folder / self.name
        self._cluster = cluster
        self._namespace = f"{cluster}-{number}"
        self._server = server
        self._processes: dict[str, server_process.ServerProcess] = {}
        self._containers: set[str] = set()
        self._write_files()
        network.make_node(cluster, self._namespace, number)

    def start(self) -> None:
        """From power off, or from a lost kubelet. Idempotent. Raises NodeFailedError."""
        network.plug(self._cluster, self.number, True)
        if "init" not in self._processes:
            self._start_init()
            self._start("containerd", "--config", str(self.disk / "containerd.toml"), within=True)
            self._until(self._containerd_answers, "containerd answers")
        if "kubelet" not in self._processes:
            self._start_kubernetes(
                "kubelet",
                f"--config={self.disk}/kubelet.json",
                f"--kubeconfig={self.disk}/kubelet.kubeconfig",
                f"--hostname-override={self.name}",
                f"--node-ip={network.node_address(self.number)}",
            )
        if "kube-proxy" not in self._processes:
            self._start_kubernetes("kube-proxy", f"--config={self.disk}/kube-proxy.json")

    def cut_power(self) -> None:
        """Without a word to anybody: the cable first, or the kernel would still close connections. Idempotent."""
        network.plug(self._cluster, self.number, False)
        self.end()
        network.forget_pods(self._namespace)

    def kill_kubelet(self) -> None:
        """Nobody watches the pods any more, and their processes don't notice. Idempotent."""
        self._kill("kubelet")

    def end(self) -> None:
        """Every process of the node. Idempotent."""
        with contextlib.suppress(errors.NodeFailedError):
            self._containers.update(self._ctr("containers", "list", "--quiet").split())
        inside = self._inside_pids()
        for name in ("init", "kubelet", "kube-proxy", "containerd"):
            self._kill(name)
        deadline = time.monotonic() + DEATH_S_MAX
        while any(map(psutil.pid_exists, inside)):
            if time.monotonic() > deadline:
                raise errors.NodeFailedError(f"{self.name}: processes outlive it: {inside}")
            time.sleep(LOOK_AGAIN_S)  # a poll with a deadline
        self._remove_cgroups()

    def remove(self) -> None:
        """After `end`."""
        network.remove(self._namespace)

    def load_image(self, archive: Path) -> None:
        self._ctr("images", "import", str(archive), seconds_max=IMPORT_S_MAX)

    def container_of(self, pod_uid: str, container: str) -> str | None:
        """Its id; None when there is none on this node. Of several it is the youngest."""
        wanted = f'labels."io.kubernetes.pod.uid"=={pod_uid},labels."io.kubernetes.container.name"=={container}'
        if "init" not in self._processes:
            return None
        for found in self._ctr("containers", "list", "--quiet", wanted).split():
            if pids_of(found):
                return found
        return None

    def output(self, name: str) -> str:
        """What one of its programs has said since its last start."""
        return self._processes[name].output() if name in self._processes else ""

    def outputs(self) -> Iterator[tuple[str, str]]:
        for name in list(self._processes):
            yield name, self.output(name)

    def _write_files(self) -> None:
        (self.disk / "cni").mkdir(parents=True)
        (self.disk / "cni" / "10-fleet.conflist").write_text(node_files.pod_network(self.number))
        (self.disk / "containerd.toml").write_text(node_files.containerd(self.disk))
        (self.disk / "kubelet.json").write_text(node_files.kubelet(self.number, self._server.ca_file))
        proxy = self.disk / "kube-proxy.kubeconfig"
        (self.disk / "kube-proxy.json").write_text(node_files.kube_proxy(self.name, proxy))
        self._write_kubeconfig(self.disk / "kubelet.kubeconfig", f"system:node:{self.name}", "system:nodes")
        self._write_kubeconfig(proxy, "system:kube-proxy", "system:node-proxier")

    def _write_kubeconfig(self, file: Path, user: str, group: str) -> None:
        certificate, key = self._server.authority.client(f"{self.name}-{file.stem}", user, group)
        credentials = {"client-certificate": str(certificate), "client-key": str(key)}
        kube_api.write_kubeconfig(file, self._server.url, self._server.ca_file, credentials)

    def _start_init(self) -> None:
        ready = self.disk / "ready"
        ready.unlink(missing_ok=True)
        with network.entered(self._namespace):
            self._start(
                *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"),
                *(sys.executable, "-I", "-S", str(INIT), str(self.disk), str(ready)),
                name="init",
            )
        self._until(ready.exists, "its folders are mounted")

    def _start_kubernetes(self, name: str, *flags: str) -> None:
        self._start(str(kubernetes_programs.program(name)), *flags, name=name, within=True)

    def _start(self, *command: str, name: str = "", within: bool = False) -> None:
        whole = [*(self._way_in() if within else ()), *command]
        self._processes[name or command[0]] = server_process.ServerProcess(whole, needs.environment())

    def _way_in(self) -> list[str]:
        return ["nsenter", f"--target={self._init_pid()}", "--mount", "--pid", "--net", "--"]

    def _init_pid(self) -> int:
        """Of the namespace's first process, as this machine counts."""
        for child in psutil.Process(self._processes["init"].pid).children():
            return int(child.pid)
        raise errors.NodeFailedError(f"{self.name}: its first process is gone:\n{self.output('init')[-2000:]}")

    def _ctr(self, *words: str, seconds_max: float = COMMAND_S_MAX) -> str:
        if "init" not in self._processes:
            return ""
        command = [*self._way_in(), "ctr", f"--address={node_files.SOCKET}", "--namespace=k8s.io", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds_max, check=False, env=needs.environment()
        )
        if done.returncode != 0:
            raise errors.NodeFailedError(f"{self.name}: ctr {' '.join(words)}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def _containerd_answers(self) -> bool:
        with contextlib.suppress(errors.NodeFailedError):
            return "Server" in self._ctr("version")
        return False

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not condition():
            for name, process in self._processes.items():
                try:
                    process.check_alive()
                except server_process.ServerFailedError as ended:
                    raise errors.NodeFailedError(f"{self.name}: {name} {ended}") from ended
            if time.monotonic() > deadline:
                said = "\n".join(text[-1000:] for _name, text in self.outputs())
                raise errors.NodeFailedError(f"{self.name}: not within {START_S_MAX} s: {what}\n{said}")
            time.sleep(LOOK_AGAIN_S)  # a poll with a deadline

    def _kill(self, name: str) -> None:
        """With its children: whoever entered a namespace of processes stays outside, and only its child is in."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                child.kill()
        process.kill()
        process.stop()

    def _inside_pids(self) -> list[int]:
        """Of everything in the node's namespace of processes."""
        if "init" not in self._processes:
            return []
        with contextlib.suppress(errors.NodeFailedError, OSError):
            space = Path(f"/proc/{self._init_pid()}/ns/pid").readlink()
            return [pid for pid in psutil.pids() if _is_in(pid, space)]
        return []

    def _remove_cgroups(self) -> None:
        """Empty folders are all that containers leave there; a power cut would have taken them along."""
        for container in self._containers:
            for folder in [*CGROUPS.glob(f"*/k8s.io/{container}"), *CGROUPS.glob(f"k8s.io/{container}")]:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        self._containers.clear()


def pids_of(container: str) -> list[int]:
    """Of its processes, as this machine counts, the oldest first."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if container in Path(f"/proc/{pid}/cgroup").read_text():
                found.append((psutil.Process(pid).create_time(), pid))
    return [pid for _began, pid in sorted(found)]


def _is_in(pid: int, space: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() == space
    except OSError:
        return False
