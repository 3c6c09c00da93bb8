"""A partition's manifest: who owns it, and which files are its checkpoint. One JSON object per partition, the truth.

`<prefix>/<namespace>/<fleet>/<shardId>/manifest.json`, changed by conditional writes only. It speaks of files by their key below
the partition's folder; files are immutable and carry epoch and nonce in their names.
"""

from __future__ import annotations

import dataclasses
import enum
import json

from fleet_model import hashing, partition

FORMAT = 1


class Kind(enum.StrEnum):
    BASE = "base"  # every twin
    DELTA = "delta"  # twins whose commit number is above `since`
    OUTBOX = "outbox"  # effects not yet acknowledged; each checkpoint has its own
    DEAD_LETTERS = "deadLetters"  # the newest kept dead letters; each checkpoint has its own


@dataclasses.dataclass(frozen=True, slots=True)
class RowGroup:
    """Some rows of a file: bytes start to stop (excluded) of it, which can be fetched and verified alone. first, last: hash keys of the
    first and the last of them, 32 hex digits. sha256: hex, of these bytes."""

    first: str
    last: str
    rows: int
    start: int
    stop: int
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One file. name: below the partition's folder. size: bytes. sha256: hex, of the whole file. since: deltas hold the rows above
    this commit number, else 0. through: the commit number of the snapshot it was made from. groups: its rows, in the order of their
    keys; what follows the last group is the file's footer. footer_sha256: hex, of that. Outbox and dead letters are read whole, without."""

    kind: Kind
    name: str
    rows: int
    size: int
    sha256: str
    since: int
    through: int
    groups: tuple[RowGroup, ...] = ()
    footer_sha256: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """One snapshot. number: rising over the partition's life. time_ms: when the snapshot was taken. The rest is the partition's state
    in it (PartitionState of the worker). parts: the base, its deltas, the oldest first, and this checkpoint's outbox and dead letters if
    any. A large base or delta is several files with the same `through`, one after another in the order of their keys."""

    number: int
    time_ms: int
    twins: int
    position: partition.Position
    clock_ms: int
    high_arrival_ms: int
    commit_number: int
    outbox_next: int
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """epoch, nonce, worker: of the last claim. final: drained, nothing is to come from this owner; the next claim is free. ended: the
    shard was read to its end. parents: shard ids whose twins are in this partition. kept: names of the files of the last few checkpoints
    before this one, newest first, which garbage collection leaves alone. revision: +1 at every write, so that no two writes are the
    same bytes, and thereby no two etags the same."""

    identity: partition.PartitionIdentity
    parents: tuple[str, ...]
    epoch: int
    nonce: str
    worker: str
    final: bool = False
    ended: bool = False
    checkpoint: Checkpoint | None = None
    kept: tuple[tuple[str, ...], ...] = ()
    revision: int = 0


class InvalidManifestError(ValueError):
    """It isn't a manifest, or one of a later version."""


def encode(manifest: Manifest) -> bytes:
    """As JSON, the same bytes for the same manifest. Numbers of more than 53 bits are decimal text."""
    document = {
        "format": FORMAT,
        "namespace": manifest.identity.namespace,
        "fleet": manifest.identity.fleet,
        "stream": manifest.identity.stream,
        "shardId": manifest.identity.shard_id,
        "hashKeyRange": {
            "start": str(manifest.identity.hash_key_range.start),
            "end": str(manifest.identity.hash_key_range.end),
        },
        "parents": list(manifest.parents),
        "epoch": manifest.epoch,
        "nonce": manifest.nonce,
        "worker": manifest.worker,
        "revision": manifest.revision,
        "final": manifest.final,
        "ended": manifest.ended,
        "checkpoint": None if manifest.checkpoint is None else _checkpoint_document(manifest.checkpoint),
        "kept": [list(names) for names in manifest.kept],
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _checkpoint_document(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "number": checkpoint.number,
        "timeMs": checkpoint.time_ms,
        "twins": checkpoint.twins,
        "position": {
            "sequenceNumber": checkpoint.position.sequence_number,
            "subsequenceNumber": checkpoint.position.subsequence_number,
        },
        "clockMs": checkpoint.clock_ms,
        "highArrivalMs": checkpoint.high_arrival_ms,
        "commitNumber": checkpoint.commit_number,
        "outboxNext": checkpoint.outbox_next,
        "parts": [
            {
                "kind": part.kind.value,
                "name": part.name,
                "rows": part.rows,
                "size": part.size,
                "sha256": part.sha256,
                "since": part.since,
                "through": part.through,
                "groups": [dataclasses.asdict(group) for group in part.groups],
                "footerSha256": part.footer_sha256,
            }
            for part in checkpoint.parts
        ],
    }


def parse(data: bytes) -> Manifest:
    """Raises InvalidManifestError. Unknown fields are passed over; a later format isn't half understood."""
    try:
        document = _Fields(json.loads(data), "")
        if document.number("format") != FORMAT:
            raise InvalidManifestError(f"format {document.number('format')}; this version reads {FORMAT}")
        return _manifest(document)
    except InvalidManifestError:
        raise
    except ValueError as error:  # not JSON, not UTF-8, a range or a kind that there isn't
        raise InvalidManifestError(str(error)) from error


def _manifest(document: _Fields) -> Manifest:
    bounds = document.section("hashKeyRange")
    return Manifest(
        identity=partition.PartitionIdentity(
            document.text("namespace"),
            document.text("fleet"),
            document.text("stream"),
            document.text("shardId"),
            hashing.HashKeyRange(int(bounds.text("start")), int(bounds.text("end"))),
        ),
        parents=document.texts("parents"),
        epoch=document.number("epoch"),
        nonce=document.text("nonce"),
        worker=document.text("worker"),
        revision=document.number("revision"),
        final=document.truth("final"),
        ended=document.truth("ended"),
        checkpoint=None if document.is_null("checkpoint") else _checkpoint(document.section("checkpoint")),
        kept=tuple(names.as_texts() for names in document.items("kept")),
    )


def _checkpoint(document: _Fields) -> Checkpoint:
    position = document.section("position")
    return Checkpoint(
        number=document.number("number"),
        time_ms=document.number("timeMs"),
        twins=document.number("twins"),
        position=partition.Position(position.text("sequenceNumber"), position.number("subsequenceNumber")),
        clock_ms=document.number("clockMs"),
        high_arrival_ms=document.number("highArrivalMs"),
        commit_number=document.number("commitNumber"),
        outbox_next=document.number("outboxNext"),
        parts=tuple(
            Part(
                kind=Kind(part.text("kind")),
                name=part.text("name"),
                rows=part.number("rows"),
                size=part.number("size"),
                sha256=part.text("sha256"),
                since=part.number("since"),
                through=part.number("through"),
                groups=tuple(_row_group(group) for group in part.items("groups")),
                footer_sha256=part.text("footerSha256"),
            )
            for part in document.items("parts")
        ),
    )


def _row_group(document: _Fields) -> RowGroup:
    return RowGroup(
        first=document.text("first"),
        last=document.text("last"),
        rows=document.number("rows"),
        start=document.number("start"),
        stop=document.number("stop"),
        sha256=document.text("sha256"),
    )


class _Fields:
    """A JSON value whose members are of the kind that is asked for, or InvalidManifestError with their path."""

    def __init__(self, value: object, path: str) -> None:
        self._value = value
        self._path = path

    def _member(self, name: str) -> object:
        if not isinstance(self._value, dict):
            raise self._mistake("not an object")
        if name not in self._value:
            raise self._mistake(f"{name} is missing")
        member: object = self._value[name]
        return member

    def _mistake(self, words: str) -> InvalidManifestError:
        return InvalidManifestError(f"{self._path or 'the manifest'}: {words}")

    def number(self, name: str) -> int:
        value = self._member(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._mistake(f"{name} is not a number from 0 on")
        return value

    def text(self, name: str) -> str:
        value = self._member(name)
        if not isinstance(value, str):
            raise self._mistake(f"{name} is not text")
        return value

    def truth(self, name: str) -> bool:
        value = self._member(name)
        if not isinstance(value, bool):
            raise self._mistake(f"{name} is neither true nor false")
        return value

    def is_null(self, name: str) -> bool:
        return self._member(name) is None

    def section(self, name: str) -> _Fields:
        return _Fields(self._member(name), f"{self._path}.{name}" if self._path else name)

    def items(self, name: str) -> list[_Fields]:
        return self.section(name)._as_items()

    def texts(self, name: str) -> tuple[str, ...]:
        return self.section(name).as_texts()

    def _as_items(self) -> list[_Fields]:
        if not isinstance(self._value, list):
            raise self._mistake("not a list")
        return [_Fields(item, f"{self._path}[{index}]") for index, item in enumerate(self._value)]

    def as_texts(self) -> tuple[str, ...]:
        if not isinstance(self._value, list) or not all(isinstance(item, str) for item in self._value):
            raise self._mistake("not a list of text")
        return tuple(self._value)
