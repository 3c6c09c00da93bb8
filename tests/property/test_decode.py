"""Decoding, whatever comes: both forms of a telemetry alike, cuts without a trace, and nothing lost or raised."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies

from fleet_model import spec
from fleet_proto import fleet_pb2
from fleet_worker.core import deaggregate, decode, ids, records
from tests.support import poison

ARRIVAL_MS = 1_700_000_000_000

Fields = dict[str, object]

names = strategies.text(max_size=40)
numbers = strategies.one_of(
    strategies.just(0.0),
    strategies.integers(-100, 100).map(float),
    strategies.floats(-1e9, 1e9),
    strategies.floats(allow_nan=False, allow_infinity=False),
)
times = strategies.one_of(
    strategies.just(0),
    strategies.integers(ARRIVAL_MS - 10**6, ARRIVAL_MS + 10**6),
    strategies.integers(ARRIVAL_MS - 10**9, ARRIVAL_MS + 10**9),
    strategies.integers(-(2**63), 2**63 - 1),
)
telemetries = strategies.fixed_dictionaries(
    {
        "device_id": names,
        "timestamp": times,
        "temperature_c": numbers,
        "battery_pct": numbers,
        "cpu_load": numbers,
        "location": names,
        "firmware": names,
    }
)


def in_protobuf(fields: Fields) -> bytes:
    return fleet_pb2.Telemetry(**fields).SerializeToString()  # type: ignore[arg-type]


def in_json(fields: Fields) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def in_base64(fields: Fields) -> bytes:
    return base64.b64encode(in_json(fields))


controls = strategies.builds(
    lambda issued_ms, threshold, rule: fleet_pb2.Telemetry(
        device_id="controlled",
        control=fleet_pb2.Control(
            issued_ms=issued_ms, update_threshold=fleet_pb2.UpdateThreshold(rule=rule, threshold=threshold)
        ),
    ).SerializeToString(),
    times,
    strategies.floats(),
    strategies.sampled_from([0, 1, 2, 3]),
)
again = strategies.builds(
    lambda fields, arrival_ms, hop: fleet_pb2.Telemetry(
        **fields,
        origin=fleet_pb2.Origin(shard_id="shardId-1", sequence_number="7", arrival_ms=arrival_ms, hop=hop),
    ).SerializeToString(),
    telemetries,
    times,
    strategies.integers(0, 2),
)
mutilated = strategies.builds(
    lambda data, at, byte: data[: at % len(data)] + bytes([byte]) + data[at % len(data) + 1 :],
    strategies.one_of(telemetries.map(in_protobuf), again, controls, telemetries.map(in_json)).filter(bool),
    strategies.integers(0, 1000),
    strategies.integers(0, 255),
)
plain = strategies.one_of(
    telemetries.map(in_protobuf),
    telemetries.map(in_json),
    telemetries.map(in_base64),
    controls,
    again,
    mutilated,
    strategies.binary(max_size=60),
    strategies.binary(max_size=20).map(lambda data: b"{" + data),
    strategies.binary(max_size=20).map(lambda data: b"\n" + data),
    strategies.binary(max_size=20).map(base64.b64encode),
    strategies.sampled_from([case.data for case in poison.CORPUS.values() if len(case.data) < 10_000]),
)
aggregates = strategies.lists(plain, min_size=1, max_size=4).map(
    lambda members: deaggregate.aggregate([("key", member) for member in members])
)
arrivals = strategies.integers(ARRIVAL_MS - 1000, ARRIVAL_MS + 1000)
streams = strategies.lists(strategies.tuples(strategies.one_of(plain, plain, aggregates), arrivals), max_size=12)
formats = strategies.sampled_from(list(spec.Format))


def user_records(data: list[bytes]) -> deaggregate.UserRecords:
    return deaggregate.user_records(data, np.array([record[0] if record else 0 for record in data], dtype=np.uint8))


def shard_batch(stream: list[tuple[bytes, int]], first: int = 1) -> records.ShardBatch:
    return records.ShardBatch(
        sequence_numbers=[str(first + index) for index in range(len(stream))],
        arrival_ms=np.array([arrival_ms for _, arrival_ms in stream], dtype=np.int64),
        data=[data for data, _ in stream],
        millis_behind=0,
        poll_ms=ARRIVAL_MS,
    )


def plainly(columns: records.Columns) -> dict[str, object]:
    """Columns as comparable values, numbers bit by bit."""
    return {
        field.name: value.tobytes() if isinstance(value := getattr(columns, field.name), np.ndarray) else value
        for field in dataclasses.fields(columns)
    }


@hypothesis.given(strategies.lists(telemetries, max_size=8))
def test_both_forms_of_a_telemetry_are_the_same(fields: list[Fields]) -> None:
    options = decode.Options(with_firmware=True)
    stream = [(ARRIVAL_MS + index) for index in range(len(fields))]
    decoded = [
        decode.decode(shard_batch([(form(each), at) for each, at in zip(fields, stream, strict=True)]), options)
        for form in (in_protobuf, in_json, in_base64)
    ]
    for columns in decoded[1:]:
        left, right = plainly(decoded[0]), plainly(columns)
        for one, other in zip(decoded[0].dead_letters, columns.dead_letters, strict=True):
            assert dataclasses.replace(one, data=b"", size_bytes=0) == dataclasses.replace(
                other, data=b"", size_bytes=0
            )
        del left["dead_letters"], right["dead_letters"]
        assert left == right


@hypothesis.given(streams, strategies.data(), formats)
def test_a_cut_leaves_no_trace(
    stream: list[tuple[bytes, int]], data: strategies.DataObject, telemetry_format: spec.Format
) -> None:
    whole = decode.decode(shard_batch(stream), decode.Options(format=telemetry_format, with_firmware=True))
    cut = data.draw(strategies.integers(0, len(stream)))
    first = decode.decode(shard_batch(stream[:cut]), decode.Options(format=telemetry_format, with_firmware=True))
    options = decode.Options(format=telemetry_format, with_firmware=True, high_arrival_ms=first.high_arrival_ms)
    second = decode.decode(shard_batch(stream[cut:], 1 + cut), options)
    assert plainly(joined(first, second)) == plainly(whole)


def joined(first: records.Columns, second: records.Columns) -> records.Columns:
    shift = len(first)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(records.Columns):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, np.ndarray):
            values[field.name] = np.concatenate([one, other])
        elif isinstance(one, dict):
            values[field.name] = {**one, **{row + shift: value for row, value in other.items()}}
        elif isinstance(one, ids.IdColumn):
            values[field.name] = ids.IdColumn.of([*one, *other])
        elif isinstance(one, list):
            values[field.name] = one + other
    return dataclasses.replace(
        second,
        **values,
        all_telemetry=first.all_telemetry and second.all_telemetry,
        skewed=first.skewed + second.skewed,
        position=second.position or first.position,
    )


@hypothesis.given(streams, formats, strategies.booleans())
def test_each_user_record_is_one_row_and_the_refused_ones_dead_letters(
    stream: list[tuple[bytes, int]], telemetry_format: spec.Format, with_firmware: bool
) -> None:
    options = decode.Options(format=telemetry_format, with_firmware=with_firmware)
    columns = decode.decode(shard_batch(stream), options)
    users = user_records([data for data, _ in stream])
    assert len(columns) == len(users.data) >= len(stream)
    refused = np.isin(columns.kind, (records.Kind.HEARD, records.Kind.UNREADABLE))
    assert len(columns.dead_letters) == np.count_nonzero(refused)
    assert sorted(columns.controls) == np.flatnonzero(columns.kind == records.Kind.CONTROL).tolist()
    assert columns.all_telemetry == bool((columns.kind == records.Kind.TELEMETRY).all())
    for row, (device_id, kind) in enumerate(zip(columns.device_ids, columns.kind.tolist(), strict=True)):
        assert (device_id == "") == (kind == records.Kind.UNREADABLE)
        assert len(device_id.encode()) <= 256
        assert bool(columns.payload[row]) == (kind == records.Kind.TELEMETRY)
        assert len(columns.payload[row]) <= decode.PAYLOAD_BYTES_MAX
        if kind == records.Kind.TELEMETRY:
            stored = fleet_pb2.Telemetry.FromString(columns.payload[row])
            assert stored.device_id == device_id
            assert stored.temperature_c == columns.temperature_c[row]
            assert not stored.HasField("origin")
    for values in (columns.temperature_c, columns.battery_pct, columns.cpu_load):
        assert len(values) == len(columns)
        assert all(math.isfinite(value) and abs(value) <= 1e9 for value in values.tolist())
    assert (columns.timestamp_ms > 0).all()
    assert (columns.timestamp_ms <= columns.arrival_ms + 300_000).all()
    assert (np.diff(columns.arrival_ms) >= 0).all()
    assert columns.sequence.shape == (len(columns), 3)
    assert columns.subsequence.shape == columns.kind.shape
    assert (columns.firmware is None) == (not with_firmware)


usual_bytes = strategies.one_of(
    plain,
    telemetries.map(in_protobuf),
    strategies.builds(
        lambda number, cpu_load: in_protobuf(
            {"device_id": f"device-{number}", "timestamp": ARRIVAL_MS + number, "cpu_load": cpu_load, "location": "1,2"}
        ),
        strategies.integers(0, 10**6),
        numbers,
    ),
)


@hypothesis.given(strategies.lists(usual_bytes, min_size=1, max_size=8), strategies.booleans())
def test_reading_columns_of_bytes_equals_protobufs_own_parser(data: list[bytes], with_firmware: bool) -> None:
    """The stream is repeated until it is long enough for the reader of the usual layout."""
    repeated = data * (decode.USUAL_RECORDS_MIN // len(data) + 1)
    batch = shard_batch([(record, ARRIVAL_MS) for record in repeated])
    fast, slow = (
        decode.decode(batch, decode.Options(with_firmware=with_firmware, usual_layout=usual_layout))
        for usual_layout in (True, False)
    )
    assert plainly(fast) == plainly(slow)


@hypothesis.given(streams, strategies.integers(1, 8))
def test_chunks_are_the_batch_in_bounded_parts(stream: list[tuple[bytes, int]], records_max: int) -> None:
    batch = shard_batch(stream)
    parts = list(deaggregate.chunks(batch, records_max))
    assert [record for part in parts for record in part.data] == batch.data
    assert [number for part in parts for number in part.sequence_numbers] == batch.sequence_numbers
    for part in parts:
        users = user_records(part.data)
        assert len(users.data) <= records_max or len(part.data) == 1
