"""Twins that went through a checkpoint's file are the same, bit by bit, whatever is in them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_model import manifest
from fleet_proto import fleet_pb2
from fleet_worker.core import checkpoint_columns, checkpoint_format, commits, effects, records, twin_rows, twins
from fleet_worker.core import kept_telemetry as kept
from tests.property import test_lmdb_codec as codec
from tests.support import commits as build

CONTENTS = checkpoint_format.Contents(manifest.Kind.BASE, "default", "fleet", "telemetry", "shard-0", 0, 7)
ODD_FLOATS = (math.nan, -math.nan, 0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 3.4e38, 0.1, 20.5)
ODD_BITS = (0x7FC00001, 0xFFC00000, 0x7F800001, 0x80000000, 0x00000001, 0x41A40000)


@st.composite
def telemetry(draw: st.DrawFn, device_id: str, last: list[float]) -> bytes | None:
    """None, any bytes, or a message as devices send it: with the readings that the row has, or others, or none."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return None
    if kind == 1:
        return draw(codec.raw_telemetry(device_id))
    readings = last if kind > 2 else [draw(st.sampled_from(ODD_FLOATS)) for _ in last]
    message = fleet_pb2.Telemetry(
        device_id=device_id,
        timestamp=draw(st.sampled_from((0, 1, 2**35, 2**42 - 1, 2**42, 1_750_000_000_000, -1))),
        temperature_c=readings[0],
        battery_pct=readings[1],
        cpu_load=readings[2],
        location=draw(st.sampled_from(("", "52.5,13.4", "é", "x" * 127, "x" * 128))),
        firmware=draw(st.sampled_from(("", "1.4.2", "ü", "y" * 200))),
    )
    encoded = message.SerializeToString()
    if kind == 5:  # near misses: a field more, a byte less, a byte changed
        place = draw(st.integers(0, len(encoded) - 1))
        changed = bytearray(encoded)
        changed[place] ^= draw(st.integers(1, 255))
        return draw(st.sampled_from((encoded + b"\x70\x01", encoded[:-1], bytes(changed))))
    return encoded


@st.composite
def lots(draw: st.DrawFn) -> list[commits.TwinRows]:
    """Twins in key order, cut into lots."""
    some = draw(codec.some_twins())
    rows = some.rows
    for metric in range(3):
        if draw(st.booleans()):
            rows["last"][:, metric] = draw(st.sampled_from((20.5, 63.391, 0.0, 0.25)))
    bits = np.frombuffer(rows["mean"].tobytes(), dtype=np.uint32).reshape(-1, 3).copy()
    bits[draw(st.integers(0, len(bits) - 1)), draw(st.integers(0, 2))] = draw(st.sampled_from(ODD_BITS))
    rows["mean"] = bits.view(np.float32)
    said = [draw(telemetry(name, rows["last"][at].astype(float).tolist())) for at, name in enumerate(some.device_ids)]
    some = dataclasses.replace(some, telemetry=said)
    keys = twin_rows.keys(some)
    some = twin_rows.take(some, np.array(sorted(range(len(keys)), key=keys.__getitem__)))
    cut = draw(st.integers(0, len(keys)))
    return [twin_rows.cut(some, 0, cut), twin_rows.cut(some, cut, len(keys))]


def read(file: checkpoint_format.File) -> list[commits.TwinRows]:
    reader = checkpoint_format.TwinsReader(file.part, file.data[slice(*checkpoint_format.footer_range(file.part))])
    return [reader.group(at, file.data[group.start : group.stop]) for at, group in enumerate(file.part.groups)]


def bits(rows: commits.TwinRows) -> list[tuple[bytes, str, bytes, bytes | None, bytes | None]]:
    columns = zip(rows.digests.tolist(), rows.device_ids, rows.rows, rows.telemetry, strict=True)
    return [
        (digest, name, row.tobytes(), rows.extras.get(at), raw) for at, (digest, name, row, raw) in enumerate(columns)
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lots(), st.booleans())
def test_every_bit_comes_back(given_lots: list[commits.TwinRows], in_groups: bool) -> None:
    writer = checkpoint_format.TwinsWriter(CONTENTS)
    for rows in given_lots:
        if in_groups and writer.rows:
            writer._write_group()
        writer.add(rows)
    file = writer.finish("a.parquet")
    assert [row for rows in read(file) for row in bits(rows)] == [row for rows in given_lots for row in bits(rows)]
    assert sum(group.rows for group in file.part.groups) == file.part.rows


@pytest.mark.parametrize("field", list(twins.TWIN_DTYPE.names or ()))
def test_every_field_of_a_row_is_kept(field: str) -> None:
    """By itself, so that a field that is forgotten shows with its name."""
    rows = build.twin_rows(["a", "b", "c"])
    size = twins.TWIN_DTYPE[field].itemsize
    for at in range(3):
        raw = bytearray(rows.rows[at].tobytes())
        start = twins.TWIN_DTYPE.fields[field][1]  # type: ignore[index]
        raw[start : start + size] = bytes((17 * at + 31 * place + 1) % 128 for place in range(size))
        rows.rows[at] = np.frombuffer(raw, dtype=twins.TWIN_DTYPE)[0]
    rows.rows["flags"] &= ~np.uint16(twins.Flag.EXTRA)
    writer = checkpoint_format.TwinsWriter(CONTENTS)
    writer.add(rows)
    (found,) = read(writer.finish("a"))
    assert bits(found) == bits(rows)


@pytest.mark.parametrize("field", list(twins.EXTRA_DTYPE.names or ()))
def test_every_detail_is_kept(field: str) -> None:
    start, size = twins.EXTRA_DTYPE.fields[field][1], twins.EXTRA_DTYPE[field].itemsize  # type: ignore[index]
    detail = bytearray(twins.EXTRA_DTYPE.itemsize)
    detail[start : start + size] = bytes((31 * place + 1) % 256 for place in range(size))
    nan = np.zeros((), dtype=twins.EXTRA_DTYPE)
    nan["override"] = struct.unpack("<d", (0x7FF8000000000123).to_bytes(8, "little"))[0]
    rows = build.twin_rows(["a", "b", "c"], extras={"a": bytes(detail), "c": nan.tobytes()})
    writer = checkpoint_format.TwinsWriter(CONTENTS)
    writer.add(rows)
    (found,) = read(writer.finish("a"))
    assert bits(found) == bits(rows)


def test_usual_telemetry_is_in_columns_and_not_in_bytes() -> None:
    message = fleet_pb2.Telemetry(
        device_id="a", timestamp=1_750_000_000_000, temperature_c=20.25, battery_pct=63.391, cpu_load=0.5,
        location="52.5,13.4", firmware="1.4.2",
    )  # fmt: skip
    rows = build.twin_rows(["a"], telemetry={"a": message.SerializeToString()})
    rows.rows["last"] = (20.25, 63.391, 0.5)
    rows.rows["last_timestamp_ms"] = 1_750_000_000_000
    rows.rows["flags"] = twins.Flag.OPEN_OFFLINE
    maker = checkpoint_columns.TableMaker()
    maker.add(rows)
    (row,) = maker.table().to_pylist()
    assert (row["temperature_c"], row["battery_pct"], row["cpu_load"]) == (20.25, 63.391, 0.5)
    assert (row["location"], row["firmware"], row["device_id"]) == ("52.5,13.4", "1.4.2", "a")
    assert row["last_timestamp"].isoformat() == "2025-06-15T15:06:40+00:00"
    assert (row["offline"], row["forgotten"], row["telemetry"], row["telemetry_ms"], row["exact"]) == (
        True, False, None, None, None,
    )  # fmt: skip


EFFECTS = st.builds(
    effects.Effect,
    target=st.sampled_from(effects.Target),
    effect_id=codec.TEXT,
    trigger=codec.TEXT,
    partition_key=codec.TEXT,
    arrival_ms=codec.MS,
    data=st.binary(max_size=40),
)
LETTERS = st.builds(
    records.DeadLetter,
    reason=st.sampled_from(records.Reason),
    detail=codec.TEXT,
    device_id=codec.TEXT,
    sequence_number=codec.TEXT,
    subsequence_number=st.integers(0, 2**31),
    arrival_ms=codec.MS,
    data=st.binary(max_size=40),
    size_bytes=st.integers(0, 2**31),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EFFECTS, min_size=1, max_size=5), st.lists(LETTERS, min_size=1, max_size=5))
def test_effects_and_dead_letters_come_back(
    given_effects: list[effects.Effect], letters: list[records.DeadLetter]
) -> None:
    entries = [effects.OutboxEntry(2**40 + number, effect) for number, effect in enumerate(given_effects)]
    about = dataclasses.replace(CONTENTS, kind=manifest.Kind.OUTBOX)
    file = checkpoint_format.outbox_file(about, "outbox", entries)
    assert checkpoint_format.read_outbox(file.part, file.data) == entries
    assert checkpoint_format.outbox_file(about, "outbox", entries) == file
    file = checkpoint_format.dead_letters_file(CONTENTS, "letters", letters)
    assert checkpoint_format.read_dead_letters(file.part, file.data) == letters


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 9)), max_size=4))
def test_the_last_lot_wins(given_lots: list[dict[str, int]]) -> None:
    built = []
    wanted: dict[str, int] = {}
    for lot in given_lots:
        rows = build.twin_rows(list(lot))
        rows.rows["samples"] = [lot[name] for name in rows.device_ids]
        built.append(rows)
        wanted |= lot
    found = twin_rows.overlaid(built)
    assert dict(zip(found.device_ids, found.rows["samples"].tolist(), strict=True)) == wanted
    assert twin_rows.keys(found) == sorted(twin_rows.keys(found))
    assert list(found.telemetry) == [f"telemetry of {name}".encode() for name in found.device_ids]


def test_two_ids_with_one_digest_are_two_twins() -> None:
    """MD5 can be made to collide, by whoever names devices."""
    one, other = build.twin_rows(["b"]), build.twin_rows(["a", "b"])
    colliding = [
        dataclasses.replace(rows, digests=np.zeros(len(rows.device_ids), dtype="V16")) for rows in (one, other)
    ]
    assert len(set(colliding[1].device_ids)) == 2
    in_order = twin_rows.take(colliding[1], np.argsort(list(colliding[1].device_ids)))
    found = twin_rows.overlaid([colliding[0], in_order])
    assert list(found.device_ids) == ["a", "b"]


def test_kept_telemetry_is_a_sequence_of_messages() -> None:
    names = ["a", "b", "c"]
    said = [build.raw_telemetry("a"), None, b"other"]
    column = kept.KeptTelemetry.of(names, said)
    assert (list(column), list(column[0:2]), column[2], len(column)) == (said, said[:2], b"other", 3)
    assert column.forms.tolist() == [kept.WITHOUT_ID, kept.NONE, kept.WHOLE]


def test_odd_floats_are_kept_where_a_column_repeats_its_values() -> None:
    """Such a column is written as a dictionary, which takes every NaN for the same."""
    odd = np.array([0x7FC00001, 0x7FC00002, 0xFFC00000, 0x7F800001, 0x80000000, 0, 0x41A40000], dtype=np.uint32)
    rows = build.twin_rows([f"device-{number}" for number in range(700)])
    for field in ("last", "mean", "minimum", "battery_drop"):
        shape = rows.rows[field].shape
        rows.rows[field] = odd[np.arange(np.prod(shape)) % len(odd)].view(np.float32).reshape(shape)
    writer = checkpoint_format.TwinsWriter(CONTENTS)
    writer.add(rows)
    file = writer.finish("a")
    (found,) = read(file)
    assert bits(found) == bits(rows)


def test_what_is_no_text_is_not_shown_as_text() -> None:
    """Two halves of one character, in neighbouring messages: together they would be one."""
    halves = {"a": b"\xc3", "b": b"\xa9", "c": b"fine"}
    said: dict[str, bytes | None] = {}
    for name, place in halves.items():
        message = fleet_pb2.Telemetry(timestamp=1_750_000_000_000, temperature_c=1, battery_pct=1, cpu_load=1)
        said[name] = build.raw_telemetry(name, message.SerializeToString() + b"\x32" + bytes([len(place)]) + place)
    names = sorted(halves, key=lambda name: build.digests([name]).tobytes())
    for order in itertools.permutations(names):
        rows = build.twin_rows(names, telemetry=said)
        rows.rows["last"] = 1
        rows = twin_rows.take(rows, np.array([names.index(name) for name in order]))
        maker = checkpoint_columns.TableMaker()
        maker.add(rows)
        table = maker.table()
        table.validate(full=True)
        assert {row["device_id"]: row["location"] for row in table.to_pylist()} == {"a": None, "b": None, "c": "fine"}
        assert bits(checkpoint_columns.decode(table)) == bits(rows)
