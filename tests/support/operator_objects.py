"""A fleet as the golden files of the operator have it, its owner, and the defaults of pods."""

from __future__ import annotations

import pathlib
from typing import Any

import yaml

from fleet_model import parse, spec
from fleet_operator import naming, pod_template

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "operator"
OWNER = naming.Owner("trucks", "8d6c2a5e-0000-4000-8000-000000000001", 3)
DEFAULTS = pod_template.Defaults("registry.example/fleet-twin:1")


def fleet(name: str = "minimal", **changes: Any) -> spec.FleetSpec:
    document = yaml.safe_load((GOLDEN / f"{name}.fleet.yaml").read_text())
    document["spec"].update(changes)
    return parse.parse(document)
