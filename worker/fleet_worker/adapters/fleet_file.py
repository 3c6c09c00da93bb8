"""A fleet's YAML file: loads it, and watches it for edits while the worker runs.

YAML is read as Kubernetes reads it: times stay text, a field given twice is a mistake. The reader is PyYAML's own, not
libyaml's, which ends the whole process on deep nesting; files are small. It decides nothing about an edit: it gives the
new settings or the mistakes, and the caller keeps the last good ones.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import yaml

from fleet_model import parse, sections, spec
from fleet_worker import ports

POLL_SECONDS = 0.25
SETTLE_SECONDS = 0.1
"""An edit counts once the file read the same twice, this far apart: an editor may be in the middle of writing, and half
a file can be a valid fleet without its last profiles."""

FILE_SIZE_BYTES_MAX = 512 * 2**10
BRACKETS_MAX = 64
"""Open at once. PyYAML's scanner takes seconds for a thousand of them, as a slip of the keyboard may leave."""


def load(path: Path) -> spec.FleetSpec:
    """The fleet that the file describes. Raises InvalidFleetError, also for a file that can't be read. Blocks."""
    return _look(path).settings(path)


def parse_text(text: bytes, source: str) -> spec.FleetSpec:
    """The fleet that a YAML text describes. source: named in mistakes of the YAML itself. Raises InvalidFleetError."""
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise _refused(f"{source}: no valid YAML{where}: {error.problem}") from error
    except RecursionError as error:
        raise _refused(f"{source}: no valid YAML: nested too deeply; a fleet never is") from error
    except (yaml.YAMLError, ValueError, LookupError) as error:
        # PyYAML lets Python's own errors through for what only looks like a number or a boolean.
        raise _refused(f"{source}: no valid YAML: {error}") from error
    if document is None:
        raise _refused(f"{source}: is empty; it must hold a {parse.KIND}")
    return parse.parse(document)


class FleetFile:
    """One fleet's file. `load` it first; then `edits` tells every later change."""

    def __init__(self, path: Path, clock: ports.Clock) -> None:
        self._path = path
        self._clock = clock
        self._told: _Look | None = None

    def load(self) -> spec.FleetSpec:
        """As the function; what it saw counts as told. Blocks."""
        self._told = _look(self._path)
        return self._told.settings(self._path)

    async def edits(self) -> AsyncGenerator[spec.FleetSpec | parse.InvalidFleetError, None]:
        """Each time the file's contents change: the new settings, or why they aren't valid. Never ends; close it.

        An edit is told within POLL_SECONDS + SETTLE_SECONDS; of edits in quick succession only the last. Settings may
        equal those before (a changed comment, or a mistake taken back): they tell that the file is good again.
        """
        unsettled: _Look | None = None
        while True:
            await self._clock.sleep(POLL_SECONDS if unsettled is None else SETTLE_SECONDS)
            # The contents, not the file's times: two edits within one tick of the file system's clock have the same
            # times, and a file this small costs no more to read than to ask about.
            seen = await self._clock.in_thread(lambda: _look(self._path))
            if seen == self._told:
                unsettled = None
            elif seen != unsettled:
                unsettled = seen
            else:
                self._told, unsettled = seen, None
                yield await self._clock.in_thread(self._outcome)

    def _outcome(self) -> spec.FleetSpec | parse.InvalidFleetError:
        assert self._told is not None
        try:
            return self._told.settings(self._path)
        except parse.InvalidFleetError as error:
            return error


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """What the file held at one moment. trouble: why there are no contents, "" when there are."""

    contents: bytes
    trouble: str = ""

    def settings(self, path: Path) -> spec.FleetSpec:
        if self.trouble:
            raise _refused(f"{path}: {self.trouble}")
        return parse_text(self.contents, str(path))


def _look(path: Path) -> _Look:
    try:
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            return _Look(b"", "is no regular file; give the path of a YAML file")
        with path.open("rb") as file:
            contents = file.read(FILE_SIZE_BYTES_MAX + 1)
    except OSError as error:
        return _Look(b"", f"can't be read ({error.strerror}); check the path and the file's owner")
    if len(contents) > FILE_SIZE_BYTES_MAX:
        return _Look(b"", f"is larger than {FILE_SIZE_BYTES_MAX // 1024} KiB; a fleet never is")
    return _Look(contents)


def _refused(message: str) -> parse.InvalidFleetError:
    return parse.InvalidFleetError((sections.Mistake("", message),))


class _Loader(yaml.SafeLoader):
    """Plain values only: null, true and false, numbers, text, lists, mappings."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= BRACKETS_MAX:
            raise yaml.scanner.ScannerError(None, None, "nested too deeply; a fleet never is", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        # Here, before merge keys (<<) are laid in: what these bring may be given again.
        first_use: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                first = first_use.setdefault((key.tag, key.value), key)
                if first is not key:
                    problem = f"{sections.shown(key.value)} is given in line {first.start_mark.line + 1} already"
                    raise yaml.composer.ComposerError(None, None, f"{problem}; remove one", key.start_mark)
        return node


_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag != _TIMESTAMP
}
