"""An export from end to end: what is asked for, to where, and what is said of it at the end.

Everything that can be refused is refused before the first twin is read: a place that is taken, a terminal that can't show Parquet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence

import click

from fleet_cli import console, show
from fleet_cli.checkpoints import bucket, columns, exporting, listing, progress, writers
from fleet_worker.core import commits

MISSING_SHOWN = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """out: None = standard output. is_folder: a file for each partition."""

    form: str
    out: pathlib.Path | None
    is_folder: bool
    force: bool
    names: tuple[str, ...]
    shards: tuple[str, ...]
    wanted: exporting.Filter


def check(order: Order) -> None:
    """Ends the command when the export has nowhere to go."""
    out = order.out
    if out is None:
        if order.form == "parquet" and sys.stdout.isatty():
            raise click.UsageError("Parquet is not for a terminal: give a file with --out, or another --format.")
        return
    if not out.parent.is_dir():
        console.fail(f"There is no folder {out.parent} to write {out.name} into.", console.EXIT_USAGE)
    if order.is_folder:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            console.fail(f"{out} is there already, and isn't an empty folder. Give another one.", console.EXIT_USAGE)
    elif out.exists() and not order.force:
        console.fail(f"{out} is there already. Give another name, or --force to replace it.", console.EXIT_USAGE)


async def export(opened: bucket.Opened, order: Order) -> int:
    """Writes it; the exit code. Raises CheckpointBrokenError, ObjectStoreUnavailableError, ObjectStoreRefusedError, FleetTwinError:
    a file or folder isn't there then."""
    found = await bucket.partitions(opened, order.shards)
    _refuse_unreadable(found)
    if not order.shards:
        listing.tell_holes(found)
    read = exporting.pieces(found, order.wanted)
    with progress.bar("exporting", sum(piece.rows for piece in read)) as advance:
        delivery = _Delivery(opened, order, read, advance)
        if order.out is None:
            with writers.standard_output() as sink:
                await delivery.into(sink, read)
        elif order.is_folder:
            with writers.new_folder(order.out) as folder:
                await delivery.into_folder(folder)
        else:
            with writers.new_file(order.out) as sink:
                await delivery.into(sink, read)
    return _told(order, delivery)


def _refuse_unreadable(found: Sequence[bucket.Partition]) -> None:
    troubled = [entry.trouble for entry in found if entry.trouble]
    if troubled:
        console.fail(
            "\n".join(troubled)
            + "\nNothing was exported: its twins would be missing. --shard takes only the partitions that you name."
        )


def _told(order: Order, delivery: _Delivery) -> int:
    missing = sorted(order.wanted.devices - delivery.seen)
    where = "" if order.out is None else f" to {order.out}"
    click.echo(f"{delivery.twins:,} twins{where}{delivery.sizes()}", err=True)
    if missing:
        shown = ", ".join(name.decode() for name in missing[:MISSING_SHOWN]) + (
            " …" if len(missing) > MISSING_SHOWN else ""
        )
        click.echo(
            f"{len(missing):,} of the {len(order.wanted.devices):,} devices have no such twin: {shown}", err=True
        )
        return console.EXIT_NOT_FOUND
    return console.EXIT_OK


class _Delivery:
    """twins: written so far. seen: of the devices that were asked for by name."""

    def __init__(
        self, opened: bucket.Opened, order: Order, read: Sequence[exporting.Piece], advance: progress.Advance
    ) -> None:
        self.twins = 0
        self.seen: set[bytes] = set()
        self._opened = opened
        self._order = order
        self._read = read
        self._advance = advance
        # What was asked for by name is told apart by name, whatever columns are wanted.
        self._names = order.names
        if order.wanted.devices and "device_id" not in order.names:
            self._names = ("device_id", *order.names)
        self._schema = columns.table(columns.Batch("", commits.no_rows()), order.names).schema
        self._files: list[pathlib.Path] = []
        self._bytes = 0

    def sizes(self) -> str:
        if self._order.out is None:
            return ""
        files = f" in {len(self._files):,} files" if self._order.is_folder else ""
        return f"{files}, {show.size(self._bytes)}"

    async def into(self, sink: writers.Sink, pieces: Sequence[exporting.Piece]) -> None:
        """One file of all pieces."""
        work = self._opened.clock.in_thread
        writer = await work(functools.partial(writers.writer, self._order.form, sink, self._schema))
        try:
            await self._fill(writer, pieces)
        except BaseException:
            writer.abandon()
            raise
        await work(writer.finish)
        if self._order.out is not None:
            self._bytes += sink.tell()

    async def _fill(self, writer: writers.Writer, pieces: Sequence[exporting.Piece]) -> None:
        work = self._opened.clock.in_thread
        found = exporting.tables(self._opened, pieces, self._order.wanted, self._names, self._advance)
        async with contextlib.aclosing(found):  # type: ignore[type-var]
            async for _, table in found:
                self.twins += len(table)
                if self._order.wanted.devices:
                    self.seen.update(name.encode() for name in table["device_id"].to_pylist())
                await work(functools.partial(writer.write, table.select(self._order.names)))

    async def into_folder(self, folder: pathlib.Path) -> None:
        """A file for each partition that has twins."""
        for piece in self._read:
            path = self._unused(folder, piece.entry.shard_id)
            before = self.twins, self._bytes
            with writers.new_file(path) as sink:
                await self.into(sink, [piece])
            if self.twins == before[0]:
                path.unlink()
                self._bytes = before[1]
            else:
                self._files.append(path)

    def _unused(self, folder: pathlib.Path, shard_id: str) -> pathlib.Path:
        """A closed partition may still speak for several ranges."""
        names = (f"{shard_id}{number}.{self._order.form}" for number in ("", *(f"-{at}" for at in range(2, 100))))
        return next(path for name in names if not (path := folder / name).exists())
