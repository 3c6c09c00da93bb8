"""Reads a fleet file for the commands. What it means is `fleet_model.parse`'s to say; this adds the file's name."""

from __future__ import annotations

import pathlib

import yaml

from fleet_model import parse, spec
from fleet_worker import errors

SIZE_BYTES_MAX = 4 * 2**20


class FleetFileError(errors.FleetTwinError):
    """The file can't be read, or has mistakes."""


def load(path: pathlib.Path) -> spec.FleetSpec:
    """The fleet in the file. Raises FleetFileError with all mistakes, one a line."""
    try:
        with path.open("rb") as file:
            text = file.read(SIZE_BYTES_MAX + 1)
    except OSError as error:
        raise FleetFileError(f"Can't read the fleet file {path}: {error.strerror}") from error
    if len(text) > SIZE_BYTES_MAX:
        raise FleetFileError(f"The fleet file {path} has more than {SIZE_BYTES_MAX} bytes: is it the right one?")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FleetFileError(f"The fleet file {path} is no valid YAML: {error}") from error
    try:
        return parse.parse(document)
    except parse.InvalidFleetError as error:
        raise FleetFileError(f"The fleet file {path} is not valid:\n{error}") from error
