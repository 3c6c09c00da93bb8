"""Whether an object still says what was applied: does the operator's field manager own every field that it applied?

Server-side apply writes down who set which field (`metadata.managedFields`). Whoever changes a field of ours by hand, or takes one away,
takes it from us, so a field that isn't ours any more has been changed; no knowledge of defaults or of how the API server writes a
quantity is needed for that. Pure; it changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_APPLY = "Apply"
_NOT_FIELDS = ("apiVersion", "kind")
_IDENTITY = ("name", "namespace", "uid", "resourceVersion")
"""Of metadata: nobody owns these."""


def owns_all(wanted: Mapping[str, Any], found: Mapping[str, Any], manager: str) -> bool:
    """True as well where the API server kept no record of owners."""
    entries = found.get("metadata", {}).get("managedFields")
    if not entries:
        return True
    owned = _owned(entries, manager)
    metadata = {key: value for key, value in wanted["metadata"].items() if key not in _IDENTITY}
    fields = {key: value for key, value in wanted.items() if key not in _NOT_FIELDS}
    return _has(owned, {**fields, "metadata": metadata}, found)


def _owned(entries: Sequence[Mapping[str, Any]], manager: str) -> Mapping[str, Any]:
    for entry in entries:
        is_ours = entry.get("manager") == manager and entry.get("operation") == _APPLY and not entry.get("subresource")
        if is_ours:
            fields: Mapping[str, Any] = entry.get("fieldsV1") or {}
            return fields
    return {}


def _has(owned: Mapping[str, Any], wanted: Any, found: Any) -> bool:
    """Every part of `wanted` is among the owned ones. An empty value is dropped when an object is stored, and then nobody owns it: it has
    changed when something stands there."""
    if isinstance(wanted, Mapping):
        return all(_has_field(owned, key, value, _at(found, key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return all(_has_entry(owned, entry, found) for entry in wanted)
    return True


def _has_field(owned: Mapping[str, Any], key: str, wanted: Any, found: Any) -> bool:
    if wanted is None:
        return True
    inside = owned.get(f"f:{key}")
    if inside is None:
        return not wanted and not found
    # Owned as a whole: a plain value, or a list or mapping that has no owners inside.
    return not inside or _has(inside, wanted, found)


def _has_entry(owned: Mapping[str, Any], wanted: Any, found: Any) -> bool:
    """An entry of a list that is owned entry by entry: known by its keys, or by its value."""
    if not isinstance(wanted, Mapping):
        return f"v:{json.dumps(wanted)}" in owned
    for key, inside in owned.items():
        if not key.startswith("k:"):
            continue
        keys = json.loads(key[2:])
        if all(wanted.get(name, value) == value for name, value in keys.items()):
            return not inside or _has(inside, wanted, _entry(found, keys))
    return False


def _entry(found: Any, keys: Mapping[str, Any]) -> Any:
    entries = found if isinstance(found, list) else ()
    return next((entry for entry in entries if all(entry.get(key) == value for key, value in keys.items())), None)


def _at(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, Mapping) else None
