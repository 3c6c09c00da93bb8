"""Lays a user's pod template over the operator's: strategic, as `kubectl` would, by rules that fit on this page.

- A mapping is laid over field by field; null leaves a field as it is.
- A list whose entries have a key (below) is laid over entry by entry, new ones at the end; any other list, and any plain value,
  replaces what was there.
- Fields on which the fleet's correctness rests can't be laid over: they are refused, all of them told at once, each with its path.

Everything else is the user's to decide, and the namespace's Pod Security to judge: a template may loosen the security context where the
namespace allows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleet_model import sections
from fleet_operator import naming

WORKER = "worker"
"""The worker's container; others beside it are the user's."""

LIST_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "imagePullSecrets": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
"""As Kubernetes' strategic merge patch has them."""

_POD_REFUSED: Mapping[str, str] = {
    "serviceAccountName": "set spec.serviceAccountName",
    "serviceAccount": "set spec.serviceAccountName",
    "automountServiceAccountToken": "workers need it to hear of their partitions",
    "restartPolicy": "workers are always started again",
    "terminationGracePeriodSeconds": "it follows from spec.rebalance.drainTimeout",
    "hostname": "pods are named by their StatefulSet",
    "subdomain": "pods are named by their StatefulSet",
    "nodeName": "use nodeSelector or affinity",
}
_CONTAINER_REFUSED: Mapping[str, str] = {
    "image": "set spec.image",
    "command": "it is the operator's",
    "args": "they are the operator's",
    "ports": "they are the operator's",
    "lifecycle": "a worker drains when it is told to end",
    "stdin": "a worker reads none",
    "tty": "a worker has none",
}
_KINDS = {"metadata": Mapping, "spec": Mapping}
_METADATA = ("labels", "annotations")


def refusals(template: Mapping[str, object], base: naming.Manifest) -> tuple[sections.Mistake, ...]:
    """What of spec.template can't be laid over `base`, the operator's own."""
    mistakes = sections.Mistakes()
    top = sections.Section(template, "spec.template", mistakes)
    metadata, pod = top.section("metadata"), top.section("spec")
    top.finish()
    for name in _METADATA:
        own = base["metadata"].get(name, {})
        told = metadata.section(name)
        value = metadata.value(name)
        for key, text in value.items() if isinstance(value, Mapping) else ():
            if key in own:
                told.mistake(str(key), "is the operator's own; choose another name")
            elif not isinstance(text, str):
                told.mistake(str(key), f"must be text, not {sections.shown(text)}")
    metadata.finish()
    _refuse(pod, _POD_REFUSED)
    for volume in _entries(pod, "volumes", "name"):
        if volume in _names(base["spec"], "volumes", "name"):
            pod.mistake(f"volumes[{volume}]", "is the operator's own; choose another name")
    for name, section in _entries(pod, "containers", "name").items():
        if name == WORKER:
            _refuse_worker(section, base["spec"]["containers"][0])
    for list_name in LIST_KEYS:
        _refuse_keyless(pod, list_name)
    return _told(mistakes)


def _refuse_worker(section: sections.Section, own: naming.Manifest) -> None:
    _refuse(section, _CONTAINER_REFUSED)
    for kind, key in (("env", "name"), ("volumeMounts", "mountPath")):
        for name in _entries(section, kind, key):
            if name in _names(own, kind, key):
                section.mistake(f"{kind}[{name}]", "is the operator's own")
    for list_name in LIST_KEYS:
        _refuse_keyless(section, list_name)


def _refuse(section: sections.Section, refused: Mapping[str, str]) -> None:
    for name, why in refused.items():
        if section.value(name) is not None:
            section.mistake(name, f"can't be set here: {why}")


def _refuse_keyless(section: sections.Section, list_name: str) -> None:
    """What is to be laid over entry by entry must say which entry is meant, once."""
    value = section.value(list_name)
    if value is None:
        return
    if not isinstance(value, list):
        section.mistake(list_name, f"must be a list, not {sections.shown(value)}")
        return
    seen = set[tuple[str, ...]]()
    for index, entry in enumerate(value):
        keys = LIST_KEYS[list_name]
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in keys):
            section.mistake(f"{list_name}[{index}]", f"must be a mapping with {' and '.join(keys)}")
        elif (key := tuple(str(entry[key]) for key in keys)) in seen:
            section.mistake(f"{list_name}[{index}]", f"{sections.shown(' '.join(key))} is there already")
        else:
            seen.add(key)


def _entries(section: sections.Section, list_name: str, key: str) -> dict[str, sections.Section]:
    value = section.value(list_name)
    return {
        str(entry[key]): sections.Section(entry, f"{section.at(list_name)}[{entry[key]}]", section.mistakes)
        for entry in (value if isinstance(value, list) else ())
        if isinstance(entry, Mapping) and key in entry
    }


def _names(manifest: naming.Manifest, list_name: str, key: str) -> set[str]:
    return {entry[key] for entry in manifest.get(list_name, ())}


def _told(mistakes: sections.Mistakes) -> tuple[sections.Mistake, ...]:
    try:
        mistakes.raise_any()
    except sections.InvalidFleetError as error:
        return error.mistakes
    return ()


def laid_over(base: Any, over: Any, name: str = "") -> Any:
    """`over` laid over `base`, neither of them changed. name: of the field that holds them."""
    if over is None:
        return base
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        kept = {key: laid_over(value, over.get(key), key) for key, value in base.items()}
        new = {key: value for key, value in over.items() if key not in base and value is not None}
        return {**kept, **new}
    if isinstance(base, list) and isinstance(over, list) and name in LIST_KEYS:
        return _entry_by_entry(base, over, LIST_KEYS[name])
    return over


def _entry_by_entry(base: list[Any], over: list[Any], keys: tuple[str, ...]) -> list[Any]:
    def key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(entry.get(name) for name in keys)

    wanted = {key(entry): entry for entry in over}
    kept = [laid_over(entry, wanted.get(key(entry))) for entry in base]
    known = {key(entry) for entry in base}
    return kept + [entry for entry in over if key(entry) not in known]
