"""The accept and reject cases of tests/e2e/crds/, one list for everything that judges them: the unit tests here, a real API server there."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pathlib
from typing import Any

import yaml

FOLDER = pathlib.Path(__file__).parents[1] / "e2e" / "crds"
PLURALS = ("devicefleets", "twinpartitions")


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """old: what is there already, None when the object is made anew. new: what is asked for. message: the rule's, or how it begins."""

    plural: str
    message: str
    is_accepted: bool
    number: int
    old: dict[str, Any] | None
    new: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.plural}: {self.message} ({'accept' if self.is_accepted else 'reject'} {self.number})"


def messages(plural: str) -> list[str]:
    return [str(rule["message"]) for rule in _read(plural)["rules"]]


def cases(plural: str) -> list[Case]:
    read = _read(plural)
    found = []
    for rule in read["rules"]:
        for kind in ("accept", "reject"):
            for number, case in enumerate(rule[kind], start=1):
                old = merged(read["base"], case["old"]) if "old" in case else None
                new = merged(read["base"], case["new"])
                found.append(Case(plural, rule["message"], kind == "accept", number, old, new))
    return found


@functools.cache
def _read(plural: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FOLDER / f"{plural}.yaml").read_text(encoding="utf-8"))
    return read


def merged(base: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396): mappings are merged, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    made = copy.deepcopy(base) if isinstance(base, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merged(made.get(name), value)
    return made
