"""A fleet's start and its rules generations as documents: one form for the data folder, the control folder and the bucket.

It reads exactly what it wrote and refuses all else: guessing either would judge records by other rules than before, or begin
elsewhere in the stream. It knows of files only their path, for its messages, and how to read one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from fleet_model import generations, partition, rules, sections
from fleet_worker import errors

FORMAT = 1
"""Of both. A newer one is refused rather than half understood."""

FILE_SIZE_BYTES_MAX = 256 * 2**20

WAY_OUT = "Bring the file back from a copy, or use the version that wrote it; to start the fleet anew, its twins lost, move {folder} away"


def encoded(document: object) -> bytes:
    return json.dumps(document, allow_nan=False, indent=1).encode() + b"\n"


def start_document(start: partition.Start) -> dict[str, object]:
    return {"format": FORMAT, "stream": start.stream, "timeMs": start.time_ms}


def parse_start(document: Mapping[str, object]) -> partition.Start:
    """Raises ValueError."""
    stream, time_ms = document.get("stream"), document.get("timeMs")
    if not isinstance(stream, str) or isinstance(time_ms, bool) or not isinstance(time_ms, (int, type(None))):
        raise ValueError("stream or timeMs is missing or of another type")
    return partition.Start(stream, time_ms)


def generations_document(kept: tuple[rules.RulesGeneration, ...]) -> dict[str, object]:
    return {"format": FORMAT, "generations": [generations.rules_document(entry) for entry in kept]}


def parse_generations(document: Mapping[str, object]) -> tuple[rules.RulesGeneration, ...]:
    """At least one, each followed by the next. Raises ValueError."""
    entries = document.get("generations")
    if not isinstance(entries, list) or not entries:
        raise ValueError("it holds no generation")
    try:
        read = tuple(generations.parse_rules_document(entry) for entry in entries)
    except sections.InvalidFleetError as error:
        raise ValueError(str(error.mistakes[0])) from error
    for earlier, later in itertools.pairwise(read):
        if later.generation != earlier.generation + 1 or later.effective_ms <= earlier.effective_ms:
            raise ValueError(f"generation {earlier.generation} isn't followed by the next")
    return read


def follows(kept: tuple[rules.RulesGeneration, ...], generation: rules.RulesGeneration) -> bool:
    """Whether the generation may be kept next."""
    if not kept:
        return generation.effective_ms == 0
    last = kept[-1]
    return generation.generation == last.generation + 1 and generation.effective_ms > last.effective_ms


def with_next(
    kept: tuple[rules.RulesGeneration, ...],
    generation: rules.RulesGeneration,
    oldest_arrival_ms: int,
    kept_max: int,
    where: object,
) -> tuple[rules.RulesGeneration, ...]:
    """What is to be kept from now on: the generation that `follows`, and those before it that a replay may still need.

    Raises TooManyGenerationsError.
    """
    assert follows(kept, generation), f"generation {generation.generation} doesn't follow what is kept"
    needed = generations.still_needed((*kept, generation), oldest_arrival_ms)
    if len(needed) > kept_max:
        raise errors.TooManyGenerationsError(
            f"{where}: {kept_max} edits of the rules are kept already, and the stream "
            "still retains records of each; edit the rules less often"
        )
    return needed


def checked(data: bytes) -> Mapping[str, object]:
    """The document in the bytes. Raises ValueError."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it isn't a JSON object")
    if document.get("format") != FORMAT:
        raise ValueError(f"its format is {sections.shown(document.get('format'))}, this version knows {FORMAT}")
    return document


def read_file(path: Path) -> Mapping[str, object] | None:
    """The file's document, None when there is no file. Raises DataFolderError."""
    try:
        if path.stat().st_size > FILE_SIZE_BYTES_MAX:
            raise unreadable(path, f"it is larger than {FILE_SIZE_BYTES_MAX} bytes")
        return checked(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, str(error)) from error


def read_start(path: Path) -> partition.Start | None:
    """None when there is no file. Raises DataFolderError."""
    document = read_file(path)
    try:
        return parse_start(document) if document is not None else None
    except ValueError as error:
        raise unreadable(path, str(error)) from error


def read_generations(path: Path) -> tuple[rules.RulesGeneration, ...]:
    """None of them when there is no file. Raises DataFolderError."""
    document = read_file(path)
    try:
        return parse_generations(document) if document is not None else ()
    except ValueError as error:
        raise unreadable(path, str(error)) from error


def unreadable(path: Path, why: str) -> errors.DataFolderError:
    return errors.DataFolderError(f"{path}: can't be read: {why}. {WAY_OUT.format(folder=path.parent)}")
