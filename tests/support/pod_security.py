"""The `restricted` Pod Security standard, written out: for pods that no API server has seen yet. Those that one has are judged by its own
admission (`tests/integration/test_chart_on_a_server.py`).

Source: Kubernetes, Pod Security Standards, policies Baseline and Restricted. It is stricter where Fleet Twin is: a root that can't be written, no
capability at all, no options of SELinux, AppArmor, Windows or sysctls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]

HOST = ("hostNetwork", "hostPID", "hostIPC", "hostUsers")
OPTIONS = ("sysctls", "seLinuxOptions", "windowsOptions", "appArmorProfile")
VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir"),
    *("ephemeral", "persistentVolumeClaim", "projected", "secret"),
}
SECCOMP = ("RuntimeDefault", "Localhost")


def mistakes(pod: Manifest) -> list[str]:
    """pod: the spec of one. What is refused, in words; a container's with its name before."""
    context = pod.get("securityContext") or {}
    found = [f"{field} is set" for field in HOST if pod.get(field)]
    found += [f"{field} is set" for field in OPTIONS if context.get(field)]
    found += list(_user_mistakes(context))
    for volume in pod.get("volumes") or ():
        if refused := volume.keys() - {"name"} - VOLUMES:
            found.append(f"volume {volume['name']} is a {', '.join(sorted(refused))}")
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(field) or ():
            found += [f"{container['name']}: {words}" for words in _container_mistakes(container, context)]
    return found


def _container_mistakes(container: Manifest, of_pod: Manifest) -> Iterator[str]:
    """of_pod: its security context, which holds where the container's own says nothing."""
    own = container.get("securityContext") or {}
    if own.get("privileged") or own.get("procMount") not in (None, "Default"):
        yield "it is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation isn't false"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield "capabilities aren't dropped"
    yield from (f"{field} is set" for field in OPTIONS if own.get(field))
    yield from _user_mistakes(own)
    holds = of_pod | {field: value for field, value in own.items() if value is not None}
    if holds.get("runAsNonRoot") is not True:
        yield "runAsNonRoot isn't true"
    if (holds.get("seccompProfile") or {}).get("type") not in SECCOMP:
        yield "no seccompProfile"
    if any(port.get("hostPort") for port in container.get("ports") or ()):
        yield "it has a port of the host"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "its root can be written"


def _user_mistakes(context: Manifest) -> Iterator[str]:
    """What is refused wherever it stands, even where nobody inherits it."""
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot is false"
    if (context.get("seccompProfile") or {}).get("type", SECCOMP[0]) not in SECCOMP:
        yield "seccompProfile is unconfined"
