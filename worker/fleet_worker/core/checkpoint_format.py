"""A checkpoint's files: Parquet bytes from twins, effects and dead letters, and back.

    base, delta   twins in the order of their keys, in row groups that can each be read and verified alone
    outbox        effects that Kinesis hasn't acknowledged
    dead letters  the newest kept ones

pyarrow is loaded at the first use: it is large, and a worker without a bucket never needs it. Bytes in, bytes out; where they
come from is `checkpointing`'s and `restoring`'s. What it can't read it refuses with CheckpointBrokenError, and never guesses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fleet_model import manifest
from fleet_worker import errors
from fleet_worker.core import checkpoint_columns, commits, effects, records, twins

if TYPE_CHECKING:
    import pyarrow as pa

Row = TypeVar("Row")

FORMAT = 1
"""Of a file; a change that an older version would misread raises it."""
ROWS_VERSIONS = (1,)
"""Of the rows in it that this version can read; the newest is twins.ROW_VERSION."""
BASE_GROUP_ROWS = 50_000
DELTA_GROUP_ROWS = 20_000
"""Reading lays all deltas over the base at once: a group of each is in memory."""
DEAD_LETTERS_MAX = 1_000
DEAD_LETTER_BYTES_MAX = 4 * 2**20
ABOUT = "fleet-twin"
MARK = b"PAR1"
COMPRESSION_LEVEL = 1
FEW = 0.5
"""A column whose values repeat so often is written as a dictionary and numbers into it."""
SAMPLE_ROWS = 5_000
BYTES_APART = "BYTE_STREAM_SPLIT"
DIFFERENCES = "DELTA_BINARY_PACKED"


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """What a file says of itself, for whoever finds it alone. Read it in the manifest otherwise."""

    kind: manifest.Kind
    namespace: str
    fleet: str
    stream: str
    shard_id: str
    since: int
    through: int

    def encoded(self) -> bytes:
        document = {"format": FORMAT, "rows_version": twins.ROW_VERSION, **dataclasses.asdict(self)}
        return json.dumps(document).encode()


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A finished file, and what a manifest says of it."""

    data: bytes
    part: manifest.Part


def warm_up() -> None:
    """Loads what is loaded at the first use, which takes some tenths of a second."""
    import pyarrow
    import pyarrow.parquet

    assert pyarrow.parquet


# ── twins ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class TwinsWriter:
    """Writes one file of twins, a row group as soon as its rows are there. Rows come in the order of their keys."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._group_rows = BASE_GROUP_ROWS if contents.kind is manifest.Kind.BASE else DELTA_GROUP_ROWS
        self._waiting = checkpoint_columns.TableMaker()
        self._ends: list[bytes] = []  # the first and the last digest of those that wait
        self._sink = io.BytesIO()
        self._writer: Any = None
        self._groups: list[manifest.RowGroup] = []
        self.rows = 0

    @property
    def size(self) -> int:
        """Bytes so far, without the rows that wait for their group."""
        return self._sink.tell()

    def add(self, rows: commits.TwinRows) -> None:
        """Takes n rows, and writes a group when enough of them wait."""
        count = len(rows.device_ids)
        if not count:
            return
        self._waiting.add(rows)
        self._ends = [*self._ends[:1], *(rows.digests[at].tobytes() for at in (0, -1))]
        self.rows += count
        if self._waiting.rows >= self._group_rows:
            self._write_group()

    def finish(self, name: str) -> File:
        """The file of at least one row."""
        import pyarrow.parquet as pq

        assert self.rows, "a file without twins isn't written"
        if self._waiting.rows:
            self._write_group()
        self._writer.close()
        data = self._sink.getvalue()
        self._sink = io.BytesIO()
        metadata = pq.read_metadata(io.BytesIO(data))
        assert metadata.num_row_groups == len(self._groups)
        contents = self._contents
        part = manifest.Part(
            kind=contents.kind,
            name=name,
            rows=self.rows,
            size=len(data),
            sha256=sha256(data),
            since=contents.since,
            through=contents.through,
            groups=tuple(self._groups),
            footer_sha256=sha256(memoryview(data)[self._groups[-1].stop :]),
        )
        return File(data, part)

    def _write_group(self) -> None:
        table = self._waiting.table()
        first, last = self._ends[0], self._ends[-1]
        self._waiting, self._ends = checkpoint_columns.TableMaker(), []
        if self._writer is None:
            self._writer = _writer(self._sink, table, self._contents)
        start = max(self._sink.tell(), len(MARK))
        self._writer.write_table(table, row_group_size=len(table))
        stop = self._sink.tell()
        checksum = sha256(self._sink.getbuffer()[start:stop])
        self._groups.append(manifest.RowGroup(first.hex(), last.hex(), len(table), start, stop, checksum))


class TwinsReader:
    """Reads the row groups of one file of twins, given its footer and the bytes of each."""

    def __init__(self, part: manifest.Part, footer: bytes) -> None:
        """footer: what follows the last group. Raises CheckpointBrokenError."""
        import pyarrow.parquet as pq

        self._part = part
        check(footer, part.footer_sha256, part.size - _footer_start(part), f"the footer of {part.name}")
        with _telling(part.name):
            self._metadata = pq.read_metadata(io.BytesIO(MARK + footer))
        _check_contents(self._metadata.metadata, part.name)
        if self._metadata.num_row_groups != len(part.groups):
            raise errors.CheckpointBrokenError(
                f"{part.name}: has {self._metadata.num_row_groups} row groups, its manifest says {len(part.groups)}"
            )

    def group(self, number: int, data: bytes) -> commits.TwinRows:
        """The twins of one group. data: its bytes, start to stop. Raises CheckpointBrokenError."""
        import pyarrow.parquet as pq

        part, group = self._part, self._part.groups[number]
        what = f"{part.name}, bytes {group.start} to {group.stop}"
        check(data, group.sha256, group.stop - group.start, what)
        with _telling(what):
            piece = _Piece(part.size, group.start, data)
            table = pq.ParquetFile(piece, metadata=self._metadata).read_row_group(number, use_threads=False)
            rows = checkpoint_columns.decode(table)
        ends = [rows.digests[index].tobytes().hex() for index in (0, -1)] if len(rows.device_ids) else []
        if len(rows.device_ids) != group.rows or ends != [group.first, group.last]:
            raise errors.CheckpointBrokenError(f"{what}: other twins than its manifest says")
        return rows


def _footer_start(part: manifest.Part) -> int:
    return part.groups[-1].stop if part.groups else len(MARK)


def footer_range(part: manifest.Part) -> tuple[int, int]:
    """Where a file of twins has its footer: from, and up to (excluded)."""
    return _footer_start(part), part.size


def _writer(sink: io.BytesIO, table: pa.Table, contents: Contents) -> Any:
    """A Parquet writer for files of that kind, each column encoded by what the first rows hold."""
    import pyarrow.parquet as pq

    # Texts that are hardly ever the same twice; and details of rules: mostly nothing, and their numbers are kept bit by bit.
    plain = {"device_id", "location", "telemetry", "exact", *(name for name, _, _ in checkpoint_columns.EXTRA_COLUMNS)}
    repeating, encodings = [], {}
    sample = table.slice(0, SAMPLE_ROWS)
    for name in table.column_names:
        kind = str(table.schema.field(name).type)
        if kind == "bool" or name in plain:
            continue
        if len(sample[name].unique()) < FEW * len(sample):
            repeating.append(name)
        elif name in checkpoint_columns.SEQUENCE:
            encodings[name] = DIFFERENCES
        elif kind in ("float", "int64", "uint64", "uint32") or kind.startswith("timestamp"):
            encodings[name] = BYTES_APART
    writer = pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=repeating,
        column_encoding=encodings,
        write_statistics=["device_id", "last_arrival", "last_timestamp"],
        store_schema=False,
    )
    writer.add_key_value_metadata({ABOUT: contents.encoded()})
    return writer


class _Piece(io.RawIOBase):
    """A file of which only one piece is at hand; reading beside it is a mistake that is told."""

    def __init__(self, size: int, start: int, piece: bytes) -> None:
        super().__init__()
        self._size = size
        self._start = start
        self._piece = piece
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._at if size < 0 else size
        first = self._at - self._start
        if first < 0 or first + size > len(self._piece):
            raise OSError(f"bytes {self._at} to {self._at + size} are wanted and weren't fetched")
        self._at += size
        return self._piece[first : first + size]


# ── effects and dead letters ─────────────────────────────────────────────────────────────────────────────────────────

OUTBOX_COLUMNS = {
    "number": "uint64", "target": "string", "effect_id": "string", "trigger": "string", "partition_key": "string",
    "arrival_ms": "int64", "data": "binary",
}  # fmt: skip
DEAD_LETTER_COLUMNS = {
    "reason": "string", "detail": "string", "device_id": "string", "sequence_number": "string",
    "subsequence_number": "int64", "arrival_ms": "int64", "size_bytes": "int64", "data": "binary",
}  # fmt: skip


def outbox_file(contents: Contents, name: str, entries: Sequence[effects.OutboxEntry]) -> File:
    """The same bytes for the same entries of the same snapshot's number."""
    listed = [
        (
            entry.number, str(entry.effect.target), entry.effect.effect_id, entry.effect.trigger,
            entry.effect.partition_key, entry.effect.arrival_ms, entry.effect.data,
        )
        for entry in entries
    ]  # fmt: skip
    return _plain_file(contents, name, OUTBOX_COLUMNS, listed)


def read_outbox(part: manifest.Part, data: bytes) -> list[effects.OutboxEntry]:
    """Raises CheckpointBrokenError."""

    def entry(row: dict[str, Any]) -> effects.OutboxEntry:
        number = row.pop("number")
        return effects.OutboxEntry(number, effects.Effect(**row | {"target": effects.Target(row["target"])}))

    return _read_plain(part, data, OUTBOX_COLUMNS, entry)


def dead_letters_file(contents: Contents, name: str, letters: Sequence[records.DeadLetter]) -> File:
    """letters: newest first, as read_dead_letters gives them."""
    listed = [
        (
            str(letter.reason), letter.detail, letter.device_id, letter.sequence_number, letter.subsequence_number,
            letter.arrival_ms, letter.size_bytes, letter.data,
        )
        for letter in letters
    ]  # fmt: skip
    return _plain_file(contents, name, DEAD_LETTER_COLUMNS, listed)


def read_dead_letters(part: manifest.Part, data: bytes) -> list[records.DeadLetter]:
    """Newest first. Raises CheckpointBrokenError."""

    def letter(row: dict[str, Any]) -> records.DeadLetter:
        return records.DeadLetter(**row | {"reason": records.Reason(row["reason"])})

    return _read_plain(part, data, DEAD_LETTER_COLUMNS, letter)


def newest_that_fit(letters: Sequence[records.DeadLetter]) -> list[records.DeadLetter]:
    """letters: newest first."""
    kept: list[records.DeadLetter] = []
    size = 0
    for letter in letters[:DEAD_LETTERS_MAX]:
        size += len(letter.data)
        if size > DEAD_LETTER_BYTES_MAX:
            break
        kept.append(letter)
    return kept


def _plain_file(contents: Contents, name: str, columns: dict[str, str], rows: Sequence[tuple[Any, ...]]) -> File:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert rows, "a file without rows isn't written"
    fields = [(column, pa.type_for_alias(kind)) for column, kind in columns.items()]
    schema = pa.schema(fields)
    arrays = [pa.array(values, type=kind) for values, (_, kind) in zip(zip(*rows, strict=True), fields, strict=True)]
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd", store_schema=False) as writer:
        writer.add_key_value_metadata({ABOUT: contents.encoded()})
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    data = sink.getvalue()
    part = manifest.Part(contents.kind, name, len(rows), len(data), sha256(data), contents.since, contents.through)
    return File(data, part)


def _read_plain(
    part: manifest.Part, data: bytes, columns: dict[str, str], made: Callable[[dict[str, Any]], Row]
) -> list[Row]:
    import pyarrow.parquet as pq

    check(data, part.sha256, part.size, part.name)
    with _telling(part.name):
        file = pq.ParquetFile(io.BytesIO(data))
        _check_contents(file.metadata.metadata, part.name)
        found = [made(row) for row in file.read(columns=list(columns), use_threads=False).to_pylist()]
    if len(found) != part.rows:
        raise errors.CheckpointBrokenError(f"{part.name}: has {len(found)} rows, its manifest says {part.rows}")
    return found


# ── what can be wrong with bytes ─────────────────────────────────────────────────────────────────────────────────────


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def check(data: bytes, wanted_sha256: str, size: int, what: str) -> None:
    """Raises CheckpointBrokenError unless these are the bytes that were written."""
    if len(data) != size:
        raise errors.CheckpointBrokenError(f"{what}: has {len(data)} bytes, not {size}")
    if sha256(data) != wanted_sha256:
        raise errors.CheckpointBrokenError(f"{what}: its checksum is wrong; what was written isn't what is read")


class _telling:
    """Turns what pyarrow says of bytes that it can't read into ours."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (ValueError, TypeError, KeyError, OSError, NotImplementedError)):
            raise errors.CheckpointBrokenError(f"{self._what} can't be read: {error}") from error


def _check_contents(metadata: dict[bytes, bytes] | None, name: str) -> None:
    try:
        about = json.loads((metadata or {})[ABOUT.encode()])
        version, rows_version = about["format"], about["rows_version"]
    except (KeyError, ValueError, TypeError) as error:
        raise errors.CheckpointBrokenError(f"{name}: isn't a file of Fleet Twin's") from error
    if version != FORMAT or rows_version not in ROWS_VERSIONS:
        raise errors.CheckpointBrokenError(
            f"{name}: has format {version} with rows {rows_version}; this version reads format {FORMAT} with rows "
            f"{', '.join(map(str, ROWS_VERSIONS))}. Run the version that wrote it, or a newer one"
        )
