"""What a cluster with the Prometheus operator knows of its objects: that operator's own definitions, from its Go module, kept in the user's
cache folder by version; go checks the sum."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.support import go_toolchain, node

MODULE = "github.com/prometheus-operator/prometheus-operator"
VERSION = "0.85.0"
FOLDER = "example/prometheus-operator-crd"
PLURALS = ("podmonitors", "prometheusrules")
"""Of the kinds that the chart has."""
FETCH_S_MAX = 600


def files() -> list[Path]:
    """One for each. Raises go_toolchain.NoGoError where a test has to be skipped."""
    folder = node.once(node.cache_folder() / f"monitoring-crds-{VERSION}", _fetch)
    return [folder / f"{plural}.yaml" for plural in PLURALS]


def _fetch(folder: Path) -> None:
    done = subprocess.run(
        [str(go_toolchain.find()), "mod", "download", "-json", f"{MODULE}@v{VERSION}"],
        cwd=folder,
        env=os.environ | {"GOFLAGS": "", "GOWORK": "off"},
        capture_output=True,
        text=True,
        timeout=FETCH_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"go mod download failed with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}"
        )
    source = Path(json.loads(done.stdout)["Dir"]) / FOLDER
    for plural in PLURALS:
        shutil.copyfile(source / f"monitoring.coreos.com_{plural}.yaml", folder / f"{plural}.yaml")
