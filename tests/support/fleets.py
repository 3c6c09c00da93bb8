"""The smallest fleet there can be, as plain data, and ways to change one field of it."""

from __future__ import annotations

from typing import Any

from fleet_model import parse


def smallest() -> dict[str, Any]:
    return {
        "apiVersion": "fleettwin.io/v1alpha1",
        "kind": "DeviceFleet",
        "metadata": {"name": "trucks"},
        "spec": {
            "streams": {
                "telemetry": {"name": "telemetry"},
                "alerts": {"name": "alerts"},
                "commands": {"name": "commands"},
            }
        },
    }


def with_field(path: str, value: object) -> dict[str, Any]:
    """The smallest fleet with one field set; mappings on the way are made."""
    fleet = smallest()
    section = fleet
    *ways, last = path.split(".")
    for way in ways:
        section = section.setdefault(way, {})
    section[last] = value
    return fleet


def mistakes(fleet: object) -> dict[str, str]:
    """Every mistake that parse tells of the fleet, message by path."""
    try:
        parse.parse(fleet)  # type: ignore[arg-type]
    except parse.InvalidFleetError as error:
        return {mistake.path: mistake.message for mistake in error.mistakes}
    return {}
