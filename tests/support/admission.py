"""What the API server does with an object of ours, as far as Python can: null, defaults, shape, bounds, CEL rules.

Shape and bounds are judged by jsonschema, patterns by RE2 (the API server's engine), rules by cel-python with the functions that Kubernetes
adds. It isn't the API server: costs, types of rules and the order of checks are left to it. Unknown fields are refused, as `kubectl` asks
for by default. It says no more than whether and where an object is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import fractions
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import celpy
import jsonschema
import re2
import yaml
from celpy import adapter, celtypes, evaluation

from fleet_model import durations

CRDS = pathlib.Path(__file__).parents[2] / "crds"
_UNBOUNDED = ("apiVersion", "kind", "metadata")


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """path: of the field. message: a rule's own, or the schema's."""

    path: str
    message: str


@functools.cache
def schema_of(plural: str) -> dict[str, Any]:
    definition = yaml.safe_load((CRDS / f"fleettwin.io_{plural}.yaml").read_text())
    schema: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field with its path; "[]" stands for a list's entries."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def completed(value: Any, schema: Mapping[str, Any]) -> Any:
    """A copy without nulls and with defaults: null is dropped, or gives way to the default, where it isn't nullable."""
    if isinstance(value, list) and "items" in schema:
        return [completed(entry, schema["items"]) for entry in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return copy.deepcopy(value)
    made = {}
    for name, field in schema["properties"].items():
        inside = value.get(name)
        if inside is None and (name not in value or not field.get("nullable")):
            if "default" not in field:
                continue
            inside = field["default"]
        made[name] = completed(inside, field)
    return made | {name: copy.deepcopy(inside) for name, inside in value.items() if name not in schema["properties"]}


def refusals(plural: str, document: Any, old: Any = None) -> list[Refusal]:
    """Why the object is refused; [] = it is accepted. old: what it replaces, None when it is new."""
    schema = schema_of(plural)
    given = completed(document, schema)
    found = [Refusal(_path(error.absolute_path), error.message) for error in _validator(plural).iter_errors(given)]
    # A rule can't be asked about what isn't of its type: the API server leaves them out as well.
    return found or list(_broken_rules(given, None if old is None else completed(old, schema), schema, ""))


@functools.cache
def _validator(plural: str) -> Any:
    def pattern(_validator: Any, pattern: str, value: Any, _schema: Any) -> Iterator[jsonschema.ValidationError]:
        if isinstance(value, str) and re2.search(pattern, value) is None:
            yield jsonschema.ValidationError(f"{value!r} does not match")

    return jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern})(
        _plain(schema_of(plural), is_root=True)
    )


def _plain(schema: Mapping[str, Any], is_root: bool = False) -> dict[str, Any]:
    """The same as JSON Schema, closed against unknown fields. `description` and Kubernetes' extensions are left out."""
    kept = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("nullable", "format")
    }
    if schema.get("nullable"):
        kept["type"] = [schema["type"], "null"]
    if "items" in kept:
        kept["items"] = _plain(kept["items"])
    if "properties" in kept:
        kept["properties"] = {name: _plain(field) for name, field in kept["properties"].items()}
        kept["additionalProperties"] = False
    if is_root:
        # What Kubernetes judges by itself.
        kept["properties"]["metadata"] = {"type": "object", "required": ["name"]}
        kept["required"] = [*kept["required"], "metadata"]
    return kept


def _broken_rules(value: Any, old: Any, schema: Mapping[str, Any], path: str) -> Iterator[Refusal]:
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        if not _holds(rule["rule"], _cel(value, schema), None if old is None else _cel(old, schema)):
            yield Refusal(path + rule.get("fieldPath", ""), rule["message"])
    for name, field in schema.get("properties", {}).items():
        if name in value:
            yield from _broken_rules(value[name], (old or {}).get(name), field, f"{path}.{name}")
    if "items" in schema:
        for index, entry in enumerate(value):
            yield from _broken_rules(entry, None, schema["items"], f"{path}[{index}]")


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule), functions=_FUNCTIONS)


def _holds(rule: str, value: Any, old: Any) -> bool:
    """An evaluation that fails refuses, as it does in the API server."""
    variables = {"self": value} | ({} if old is None else {"oldSelf": old})
    try:
        return bool(_program(rule).evaluate(variables))
    except evaluation.CELEvalError:
        return False


def _cel(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value typed by its schema: a number is a double there even when it is written without a point."""
    kind = schema.get("type")
    if kind == "object" and isinstance(value, dict):
        fields = schema.get("properties", {})
        if schema is schema_of("devicefleets") or schema is schema_of("twinpartitions"):
            fields = fields | {"metadata": {"type": "object", "properties": {"name": {"type": "string"}}}}
        return celtypes.MapType(
            {celtypes.StringType(name): _cel(value[name], field) for name, field in fields.items() if name in value}
        )
    if kind == "array" and isinstance(value, list):
        return celtypes.ListType([_cel(entry, schema["items"]) for entry in value])
    if kind == "number":
        return celtypes.DoubleType(value)
    if kind == "integer":
        return celtypes.IntType(value)
    return adapter.json_to_cel(value)


def _duration(text: str) -> celtypes.DurationType:
    """Go's ParseDuration, which has milliseconds and a bare 0; cel-python's own hasn't."""
    return celtypes.DurationType(datetime.timedelta(milliseconds=durations.parse_ms(str(text))))


def _quantity(text: str) -> fractions.Fraction:
    """Exact, as Kubernetes' quantities are; the parser rounds up to whole bytes."""
    match = durations.QUANTITY_PATTERN.fullmatch(str(text))
    if match is None:
        raise ValueError("not a quantity")
    return fractions.Fraction(match[1]) * durations.parse_bytes(f"1{match[2] or ''}")


def _compare(left: Any, right: Any) -> celtypes.IntType:
    return celtypes.IntType((left > right) - (left < right))


def _upper_ascii(text: str) -> celtypes.StringType:
    return celtypes.StringType(text.upper())


_FUNCTIONS: dict[str, Any] = {
    "duration": _duration,
    "quantity": _quantity,
    "compareTo": _compare,
    "upperAscii": _upper_ascii,
}


def _path(parts: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
