"""Tables into files: Parquet, JSON lines, CSV. A file or folder has its name only once it is complete and on disk.

Until then it is `.<name>.<random>.partial` beside it; a failure removes that, and only a killed process leaves it. Standard output can't be taken
back: whoever reads it learns from the exit code whether it is all.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol

from fleet_worker import errors
from fleet_worker.adapters import durable

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("parquet", "jsonl", "csv")
GROUP_ROWS = 100_000
"""Of a Parquet file's row group."""
LINES_AT_ONCE = 5_000
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
"""With milliseconds: Arrow's seconds have them."""


Sink = IO[bytes]


class Writer(Protocol):
    """Blocks; call it in a thread."""

    def write(self, table: pa.Table) -> None: ...

    def finish(self) -> None:
        """All is written. The sink stays open."""

    def abandon(self) -> None:
        """Not all will be written: nothing that would make it look whole goes to the sink."""


def writer(form: str, sink: IO[bytes], schema: pa.Schema) -> Writer:
    match form:
        case "parquet":
            return ParquetWriter(sink, schema)
        case "jsonl":
            return JsonLinesWriter(sink)
        case _:
            return CsvWriter(sink, schema)


class ParquetWriter:
    def __init__(self, sink: IO[bytes], schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self._valve = _Valve(sink)
        self._writer = pq.ParquetWriter(self._valve, schema, compression="zstd")
        self._waiting: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= GROUP_ROWS:
            self._write_group()

    def finish(self) -> None:
        if self._waiting:
            self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        """Arrow writes the footer whenever it lets go of a file; this one is to have none."""
        self._valve.is_shut = True
        self._writer.close()

    def _write_group(self) -> None:
        import pyarrow as pa

        group = pa.concat_tables(self._waiting)
        self._waiting = []
        self._writer.write_table(group, row_group_size=len(group))


class _Valve(io.RawIOBase):
    """A sink that can be shut: what is written then goes nowhere."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.is_shut = False
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data) if self.is_shut else self._sink.write(data)


class CsvWriter:
    """RFC 4180 with a line of names; nothing where there is nothing."""

    def __init__(self, sink: IO[bytes], schema: pa.Schema) -> None:
        from pyarrow import csv

        self._writer = csv.CSVWriter(
            sink, _shown_schema(schema), write_options=csv.WriteOptions(quoting_style="needed")
        )

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(_shown(table))

    def finish(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        """Lines are all there is."""


class JsonLinesWriter:
    """An object a line, every column in each; null where there is nothing."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink

    def write(self, table: pa.Table) -> None:
        import orjson

        names = table.column_names
        for first in range(0, len(table), LINES_AT_ONCE):
            some = _shown(table.slice(first, LINES_AT_ONCE))
            values = zip(*(_values(column) for column in some.columns), strict=True)
            lines = [
                orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE) for row in values
            ]
            self._sink.write(b"".join(lines))

    def finish(self) -> None:
        """Every line is whole already."""

    def abandon(self) -> None:
        """Lines are all there is."""


def _values(column: pa.ChunkedArray) -> list[Any]:
    """As JSON has them: 32-bit numbers in their fewest digits. By way of NumPy where nothing is missing: that is several times as fast."""
    import orjson

    kind = str(column.type)
    values: list[Any]
    if column.null_count == len(column):
        return [None] * len(column)
    if kind == "float":
        numbers = column.fill_null(0).to_numpy() if column.null_count else column.to_numpy()
        values = orjson.loads(orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY))
        if column.null_count:
            missing = column.is_null().to_pylist()
            return [None if here else value for here, value in zip(missing, values, strict=True)]
        return values
    as_numbers = kind in ("double", "int64") and not column.null_count
    values = column.to_numpy().tolist() if as_numbers else column.to_pylist()
    return values


def _shown(table: pa.Table) -> pa.Table:
    """Times as ISO 8601."""
    from pyarrow import compute

    for at, field in enumerate(table.schema):
        if str(field.type).startswith("timestamp"):
            table = table.set_column(at, field.name, compute.strftime(table[field.name], format=TIME_FORMAT))
    return table


def _shown_schema(schema: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [(field.name, pa.string() if str(field.type).startswith("timestamp") else field.type) for field in schema]
    )


# ── files that are whole ─────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def standard_output() -> Iterator[IO[bytes]]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Its name is given when the block ends well; what had the name before is replaced in one step. Raises FleetTwinError."""
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".partial", delete=False
        ) as file:
            partial = pathlib.Path(file.name)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(partial, 0o666 & ~_umask())
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        durable.sync_folder(path.parent)
    except OSError as error:
        raise _unwritten(path, error) from error


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder for new_file; it has its name when the block ends well. path: nothing, or an empty folder. Raises FleetTwinError."""
    try:
        partial = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
        try:
            yield partial
            os.chmod(partial, 0o777 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        durable.sync_folder(path.parent)
    except OSError as error:
        raise _unwritten(path, error) from error


def _umask() -> int:
    """The process' own, which can only be read by setting it; there is one thread that writes files."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def _unwritten(path: pathlib.Path, error: OSError) -> errors.FleetTwinError:
    return errors.FleetTwinError(f"{path} can't be written: {error.strerror or error}; nothing of it is left behind")
