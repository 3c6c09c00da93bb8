"""The chart as Helm renders it: whatever version of Helm, whatever values, as plain objects."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support import go_tools

PROJECT = Path(__file__).parents[2]
CHART = PROJECT / "charts" / "fleet-twin"
EXAMPLES = CHART / "examples"
HELMS = ("helm-3", "helm-4")
RENDER_S_MAX = 120.0
KUBE_VERSION = "1.36.3"
MONITORING = "monitoring.coreos.com/v1"

Manifest = dict[str, Any]


class HelmError(AssertionError):
    """Helm ended with anything but 0: its words."""


def helm(version: str, *arguments: str, seconds_max: float = RENDER_S_MAX) -> str:
    """Standard output. Raises HelmError with standard error."""
    done = subprocess.run(
        [str(go_tools.program(version)), *arguments],
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    if done.returncode != 0:
        raise HelmError(f"helm {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def rendered(
    *values: str,
    version: str = "helm-3",
    release: str = "fleet-twin",
    namespace: str = "fleet-system",
    has_monitoring: bool = True,
    chart: Path = CHART,
) -> list[Manifest]:
    """values: options as Helm has them: --set, --values."""
    apis = ("--api-versions", MONITORING) if has_monitoring else ()
    text = helm(
        version,
        *("template", release, str(chart), "--namespace", namespace, "--kube-version", KUBE_VERSION, *apis, *values),
    )
    return [document for document in yaml.safe_load_all(text) if document]


def one(documents: Sequence[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The only one of its kind, or of its kind and name."""
    found = [
        document
        for document in documents
        if document["kind"] == kind and (name is None or document["metadata"]["name"] == name)
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pod_specs(documents: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod, and every template of one, with the name of what has it."""
    for document in documents:
        spec = document.get("spec") or {}
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Pod":
            yield name, spec
        elif (
            isinstance(spec.get("template"), dict) and "spec" in spec["template"] and document["kind"] != "DeviceFleet"
        ):
            yield name, spec["template"]["spec"]


def example(name: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8")) if document]
