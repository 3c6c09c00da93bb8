"""The pieces of a structural schema: one function for each kind of field, as one of `sections` reads each.

Structural means what Kubernetes demands of a custom resource: one type a field, no branches in the shape, nothing left open. Every
piece takes a description and bounds; CEL rules are priced by the worst case, so an unbounded text would make them too dear.
It knows no field of any object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from fleet_model import durations, sections

Schema = dict[str, Any]

QUANTITY_LENGTH_MAX = 21
"""Of what durations.QUANTITY_PATTERN takes: fifteen digits, a point, three decimals, two letters."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule. field_path: the field that a refusal names, relative to the rule's place; "": that place itself."""

    rule: str
    message: str
    field_path: str = ""
    reason: str = "FieldValueInvalid"

    def document(self) -> Schema:
        told = {"rule": self.rule, "message": self.message, "reason": self.reason}
        return told | ({"fieldPath": self.field_path} if self.field_path else {})


def text(description: str, form: sections.Form, default: str | None = None) -> Schema:
    schema: Schema = {"description": description, "type": "string", "maxLength": form.longest}
    return schema | _pattern(form.pattern.pattern) | _default(default)


def _pattern(pattern: str) -> Schema:
    """RE2 searches, the parser matches the whole. Any text at all is said without a pattern, since a point means less there."""
    if pattern in (".*", ".+"):
        return {"minLength": 1} if pattern == ".+" else {}
    return {"pattern": f"^(?:{pattern})$"}


def nullable(schema: Schema) -> Schema:
    """null is kept and means something."""
    return schema | {"nullable": True}


def choice(description: str, choices: Iterable[str], default: str | None = None) -> Schema:
    names = [str(name) for name in choices]
    return {"description": description, "type": "string", "enum": names} | _default(default and str(default))


def boolean(description: str, default: bool | None = None) -> Schema:
    return {"description": description, "type": "boolean"} | _default(default)


def integer(description: str, lowest: int, highest: int, default: int | None = None) -> Schema:
    width = "int32" if highest < 2**31 else "int64"
    bounds = {"minimum": lowest, "maximum": highest}
    return {"description": description, "type": "integer", "format": width} | bounds | _default(default)


def number(description: str, lowest: float, highest: float, default: float | None = None) -> Schema:
    bounds = {"minimum": lowest, "maximum": highest}
    return {"description": description, "type": "number"} | bounds | _default(default)


def duration(description: str, bounds_ms: tuple[int, int], default_ms: int | None = None, zero: bool = False) -> Schema:
    """zero: 0 is allowed besides the bounds."""
    lowest, highest = (durations.text_of_ms(bound_ms) for bound_ms in bounds_ms)
    within = f"duration(self) >= duration('{lowest}') && duration(self) <= duration('{highest}')"
    rule = Rule(
        f"duration(self) == duration('0s') || ({within})" if zero else within,
        f"must be a duration from {lowest} to {highest}" + (", or 0s" if zero else ""),
    )
    schema: Schema = {"description": description, "type": "string", "maxLength": durations.DURATION_LENGTH_MAX}
    schema |= _pattern(durations.DURATION_PATTERN.pattern)
    return ruled(schema | _default(None if default_ms is None else durations.text_of_ms(default_ms)), rule)


def size(description: str, bounds_bytes: tuple[int, int], default: str) -> Schema:
    lowest, highest = (durations.text_of_bytes(bound_bytes) for bound_bytes in bounds_bytes)
    rule = Rule(
        f"quantity(self).compareTo(quantity('{lowest}')) >= 0 && quantity(self).compareTo(quantity('{highest}')) <= 0",
        f"must be a size from {lowest} to {highest}",
    )
    schema: Schema = {"description": description, "type": "string", "maxLength": QUANTITY_LENGTH_MAX}
    return ruled(schema | _pattern(durations.QUANTITY_PATTERN.pattern) | _default(default), rule)


def time(description: str, pattern: str, longest: int) -> Schema:
    """No `format: date-time`: it would forbid the small t and z that RFC 3339 and the parser allow."""
    rule = Rule("timestamp(self.upperAscii()) >= timestamp('1970-01-01T00:00:00Z')", "must be a time since 1970")
    schema: Schema = {"description": description, "type": "string", "maxLength": longest}
    return ruled(schema | _pattern(pattern.replace(r"\d", "[0-9]")), rule)


def mapping(
    description: str, properties: Mapping[str, Schema], required: Iterable[str] = (), is_filled: bool = False
) -> Schema:
    """is_filled: it is there even if nobody wrote it, so that its fields' defaults are, too."""
    schema: Schema = {"description": description, "type": "object", "properties": dict(properties)}
    needed = list(required)
    return (filled(schema) if is_filled else schema) | ({"required": needed} if needed else {})


def filled(schema: Schema) -> Schema:
    """A mapping with its fields' defaults as its own. Written out: the API server judges a default by the rules as it stands, without the
    defaults of its fields."""
    return schema | {
        "default": {name: field["default"] for name, field in schema["properties"].items() if "default" in field}
    }


def array(description: str, items: Schema, items_max: int, default: list[Any] | None = None) -> Schema:
    """Atomic: its order means something, so two writers' entries must not be merged."""
    shape = {"type": "array", "maxItems": items_max, "x-kubernetes-list-type": "atomic", "items": items}
    return {"description": description} | shape | _default(default)


def ruled(schema: Schema, *rules: Rule) -> Schema:
    """The schema with further CEL rules."""
    earlier = schema.get("x-kubernetes-validations", [])
    return schema | {"x-kubernetes-validations": [*earlier, *(rule.document() for rule in rules)]}


def without_defaults(schema: Schema) -> Schema:
    """The same shape for a place where what is left out is inherited."""
    kept = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in kept:
        kept["properties"] = {name: without_defaults(field) for name, field in kept["properties"].items()}
    return kept


def definition(names: Mapping[str, Any], version: Schema) -> Schema:
    """The whole CustomResourceDefinition of a namespaced kind of ours. names: as Kubernetes has them; version: of v1alpha1."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # An uninstalled chart leaves the definitions, and with them every fleet.
        "metadata": {
            "name": f"{names['plural']}.fleettwin.io",
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": "fleettwin.io",
            "scope": "Namespaced",
            "names": dict(names) | {"categories": ["fleettwin"]},
            "versions": [{"name": "v1alpha1", "served": True, "storage": True} | version],
        },
    }


def root(description: str, spec: Schema, status: Schema) -> Schema:
    """The whole object. metadata has not even a description: the API server takes no word of anybody else about it."""
    properties: dict[str, Schema] = {
        "apiVersion": {"description": "The version of this form of the object.", "type": "string", "maxLength": 253},
        "kind": {"description": "The kind of object.", "type": "string", "maxLength": 253},
        "metadata": {"type": "object"},
        "spec": spec,
        "status": status,
    }
    return mapping(description, properties, ["spec"])


def column(name: str, kind: str, path: str, description: str, is_wide: bool = False) -> Schema:
    """A column of `kubectl get`. is_wide: with `-o wide` only."""
    shown = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return shown | ({"priority": 1} if is_wide else {})


def _default(value: object) -> Schema:
    return {} if value is None else {"default": value}
