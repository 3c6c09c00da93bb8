"""The cluster does what the scenarios lean on: real pods on real volumes, nodes that are lost and come back, an end that leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e import images
from tests.e2e.cluster import errors, local_cluster, network, node

pytestmark = [pytest.mark.cluster, pytest.mark.e2e_only, pytest.mark.timeout(900)]

NAMESPACE = "probe"
SERVE = (
    "import http.server, os, pathlib, socket; os.chdir('/data'); pathlib.Path('name').write_text(socket.gethostname());"
    " http.server.HTTPServer(('', 8080), http.server.SimpleHTTPRequestHandler).serve_forever()"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[local_cluster.LocalCluster]:
    try:
        made = images.build_all()
        with local_cluster.running(2, [made.pause.archive, made.project.archive]) as up:
            with up.entered():
                make_pods(up, made.project.name)
            yield up
    except errors.NotHereError as missing:
        pytest.skip(str(missing))


def make_pods(cluster: local_cluster.LocalCluster, image: str) -> None:
    """Two of a StatefulSet, one a node, as restricted as ours."""
    server = cluster.server
    server.make_namespace(NAMESPACE, {"pod-security.kubernetes.io/enforce": "restricted"})
    labels = {"app": "web"}
    service = {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}
    server.request("POST", f"/api/v1/namespaces/{NAMESPACE}/services", document("v1", "Service", service))
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }
    container = {
        "name": "web",
        "image": image,
        "command": ["python", "-c", SERVE],
        "readinessProbe": {"httpGet": {"path": "/name", "port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    who = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    pods = {"containers": [container], "securityContext": who, "topologySpreadConstraints": [spread]}
    sets = {
        "replicas": 2,
        "podManagementPolicy": "Parallel",
        "serviceName": "web",
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pods},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
    }
    server.request(
        "POST", f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets", document("apps/v1", "StatefulSet", sets)
    )
    cluster.until(lambda: len(ready(cluster)) == 2, "two pods ready", 120)


def document(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "web"}, "spec": spec}


def pods(cluster: local_cluster.LocalCluster) -> list[dict[str, Any]]:
    with cluster.entered():
        items: list[dict[str, Any]] = cluster.server.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    return items


def ready(cluster: local_cluster.LocalCluster) -> dict[str, dict[str, Any]]:
    """Node → its ready pod."""
    return {
        pod["spec"]["nodeName"]: pod
        for pod in pods(cluster)
        if {"type": "Ready", "status": "True"}.items()
        <= next((c for c in pod["status"].get("conditions", []) if c["type"] == "Ready"), {}).items()
    }


def kubectl(cluster: local_cluster.LocalCluster, *words: str) -> str:
    command = [
        str(cluster.server.kubectl),
        f"--kubeconfig={cluster.server.kubeconfig_path}",
        f"--namespace={NAMESPACE}",
        *words,
    ]
    with cluster.entered():
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fetched(cluster: local_cluster.LocalCluster, address: str) -> str:
    with cluster.entered(), urllib.request.urlopen(f"http://{address}/name", timeout=5) as answered:
        text: str = answered.read().decode()
    return text


def answers(cluster: local_cluster.LocalCluster, address: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(fetched(cluster, address))
    return False


def test_a_pod_writes_its_volume_and_is_reached(cluster: local_cluster.LocalCluster) -> None:
    assert set(ready(cluster)) == {"node-1", "node-2"}
    for pod in ready(cluster).values():
        assert fetched(cluster, f"{pod['status']['podIP']}:8080") == pod["metadata"]["name"]
    with cluster.entered():
        service = cluster.server.request("GET", f"/api/v1/namespaces/{NAMESPACE}/services/web")
    assert fetched(cluster, service["spec"]["clusterIP"]).startswith("web-")
    reach = "import os, urllib.request as r; print(r.urlopen(f'http://{os.environ[\"WEB_SERVICE_HOST\"]}/name').status)"
    for name in ("web-0", "web-1"):
        assert kubectl(cluster, "exec", name, "--", "python", "-c", reach).strip() == "200"
        assert "GET /name" in kubectl(cluster, "logs", name)


def test_services_have_names(cluster: local_cluster.LocalCluster) -> None:
    for name in ("web", f"web.{NAMESPACE}.svc", "web-0.web", "kubernetes.default.svc.cluster.local"):
        ask = f"import socket; print(socket.gethostbyname({name!r}))"
        assert kubectl(cluster, "exec", "web-1", "--", "python", "-c", ask).startswith("10."), name


def test_a_killed_process_is_restarted(cluster: local_cluster.LocalCluster) -> None:
    pod = ready(cluster)["node-1"]
    (pid,) = cluster.processes(pod["metadata"]["uid"], "web")
    assert "http.server" in " ".join(psutil.Process(pid).cmdline())
    os.kill(pid, signal.SIGKILL)
    cluster.until(lambda: cluster.processes(pod["metadata"]["uid"], "web") not in ([], [pid]), "a new process", 60)
    assert cluster.processes("no-such-pod", "web") == []


def test_a_lost_kubelet_leaves_its_pods_running(cluster: local_cluster.LocalCluster) -> None:
    cluster.until(lambda: len(ready(cluster)) == 2, "two pods ready", 60)
    pod = ready(cluster)["node-2"]
    (pid,) = cluster.processes(pod["metadata"]["uid"], "web")
    cluster.lose_node("node-2", processes_live_on=True)
    cluster.until(lambda: not cluster.all_ready(), "node-2 not ready", 120)
    assert answers(cluster, f"{pod['status']['podIP']}:8080")
    cluster.bring_back_node("node-2")
    assert cluster.processes(pod["metadata"]["uid"], "web") == [pid]


def test_a_lost_node_takes_everything_but_its_disk(cluster: local_cluster.LocalCluster) -> None:
    cluster.until(lambda: len(ready(cluster)) == 2, "two pods ready", 60)
    pod = ready(cluster)["node-1"]
    uid = pod["metadata"]["uid"]
    (pid,) = cluster.processes(uid, "web")
    cluster.lose_node("node-1")
    assert not psutil.pid_exists(pid)
    assert not answers(cluster, f"{pod['status']['podIP']}:8080")
    of_node = f"{cluster.namespace}-{cluster.nodes['node-1'].number}"
    left = network.run("ip", "-n", of_node, "link", "show", "master", network.PODS_BRIDGE)
    assert left == "", "links of dead pods: those to come get their addresses"
    with cluster.entered():
        service = cluster.server.request("GET", f"/api/v1/namespaces/{NAMESPACE}/services/web")
    cluster.until(lambda: not cluster.all_ready(), "node-1 not ready", 120)
    cluster.until(lambda: answers(cluster, service["spec"]["clusterIP"]), "the other pod behind the Service", 60)
    cluster.bring_back_node("node-1")
    cluster.until(lambda: len(ready(cluster)) == 2, "two pods ready", 120)
    again = ready(cluster)["node-1"]
    written = node.pids_of(cluster.nodes["node-1"].container_of(again["metadata"]["uid"], "web") or "none")
    assert written
    assert pid not in written


def test_the_api_server_goes_and_comes_back(cluster: local_cluster.LocalCluster) -> None:
    pod = ready(cluster)["node-2"]
    cluster.stop_api_server()
    with cluster.entered():
        assert not cluster.server.is_ready()
    assert answers(cluster, f"{pod['status']['podIP']}:8080")
    cluster.start_api_server()
    assert pod["metadata"]["uid"] in {each["metadata"]["uid"] for each in pods(cluster)}


def test_its_end_leaves_nothing(cluster: local_cluster.LocalCluster, tmp_path: Path) -> None:
    """The last test of the file: there is no cluster after it."""
    spaces = [network.path_of(cluster.namespace), *(network.path_of(f"{cluster.namespace}-{n}") for n in (1, 2))]
    assert all(space.exists() for space in spaces)
    cluster.gather(tmp_path / "logs")
    assert {"kube-apiserver.log", "etcd.log", "node-1-kubelet.log"} <= {
        path.name for path in (tmp_path / "logs").iterdir()
    }
    cluster.end()
    assert not [space for space in spaces if space.exists()]
    assert not cluster.folder.exists()
    left = [process.pid for process in psutil.process_iter() if str(cluster.folder) in " ".join(_command(process))]
    assert left == []
    mounts = subprocess.run(["findmnt", "--json", "--list"], capture_output=True, text=True, check=True, timeout=30)
    assert str(cluster.folder) not in json.dumps(json.loads(mounts.stdout))


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
