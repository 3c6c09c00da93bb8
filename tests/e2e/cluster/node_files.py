"""What a node's programs are told: configuration as text, of its number and its folder alone.

Each setting that isn't Kubernetes' default is there because one machine plays several nodes, or because root in a container may do less
than root elsewhere; the comment beside it says which.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.cluster import network

SOCKET = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "localhost/pause:dev"
PODS_MAX = 60
BINARIES = "/usr/lib/cni"


def containerd(disk: Path) -> str:
    return f"""version = 2
root = "{disk}/containerd"
state = "/run/containerd/state"
oom_score = 0
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE nobody may lower a score below its own.
  restrict_oom_score_adj = true
  # The machine's own folder of namespaces stays clean.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{BINARIES}"
    conf_dir = "{disk}/cni"
"""


def pod_network(number: int) -> str:
    bridge = {
        "type": "bridge",
        "bridge": network.PODS_BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/var/lib/cni/addresses",
            "ranges": [[{"subnet": network.pod_subnet(number)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return json.dumps({"cniVersion": "0.4.0", "name": "fleet", "plugins": [bridge]}, indent=2)


def kubelet(number: int, ca_file: Path) -> str:
    settings: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node_address(number),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca_file)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDNS": [network.CONTROL],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "maxPods": PODS_MAX,
        # The nodes share this machine's cgroups, disk and memory, whatever hierarchy of cgroups it has.
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        # No image can be fetched again.
        "imageGCHighThresholdPercent": 100,
        "readOnlyPort": 0,
        # A test session kills more often than chance does: nobody is to wait minutes for that.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "10s"},
    }
    return json.dumps(settings, indent=2)


def kube_proxy(name: str, kubeconfig: Path) -> str:
    settings: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "mode": "iptables",
        "clusterCIDR": network.PODS,
        "detectLocalMode": "ClusterCIDR",
        "oomScoreAdj": 0,
        # The machine's limits are not a container's to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    return json.dumps(settings, indent=2)
