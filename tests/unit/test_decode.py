"""Decoding batches: what becomes of each kind of record, protobuf first of all."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from fleet_model import rules, spec
from fleet_proto import fleet_pb2
from fleet_worker.core import deaggregate, decode, records, refusal
from tests.support import poison

ARRIVAL_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


def shard_batch(*data: bytes, arrival_ms: list[int] | None = None) -> records.ShardBatch:
    first = 49545115243490985018280067714973144582180062593244200961
    return records.ShardBatch(
        sequence_numbers=[str(first + index) for index in range(len(data))],
        arrival_ms=np.array(arrival_ms or [ARRIVAL_MS + index for index in range(len(data))], dtype=np.int64),
        data=list(data),
        millis_behind=0,
        poll_ms=ARRIVAL_MS,
    )


def columns_of(*data: bytes, **options: object) -> records.Columns:
    return decode.decode(shard_batch(*data), decode.Options(**options))  # type: ignore[arg-type]


def sample(number: int = 7, **fields: object) -> fleet_pb2.Telemetry:
    usual: dict[str, object] = {
        "device_id": f"device-{number}",
        "timestamp": ARRIVAL_MS - 1000 + number,
        "temperature_c": 20.5 + number,
        "battery_pct": 80.25,
        "cpu_load": 0.5,
        "location": "59.9,10.7",
        "firmware": "2.4.1",
    }
    return fleet_pb2.Telemetry(**{**usual, **fields})  # type: ignore[arg-type]


def control(**fields: object) -> bytes:
    return sample(control=fleet_pb2.Control(**fields)).SerializeToString()  # type: ignore[arg-type]


def origin(**fields: object) -> fleet_pb2.Origin:
    usual: dict[str, object] = {
        "shard_id": "shardId-000000000001",
        "sequence_number": "42",
        "subsequence_number": 3,
        "arrival_ms": ARRIVAL_MS - HOUR_MS,
        "hop": 1,
    }
    return fleet_pb2.Origin(**{**usual, **fields})  # type: ignore[arg-type]


def test_a_plain_record_becomes_a_row() -> None:
    data = sample().SerializeToString()
    columns = columns_of(data, with_firmware=True)
    assert columns.device_ids == ["device-7"]
    assert columns.kind.tolist() == [records.Kind.TELEMETRY]
    assert columns.all_telemetry
    assert columns.timestamp_ms.tolist() == [ARRIVAL_MS - 993]
    numbers = (columns.temperature_c[0], columns.battery_pct[0], columns.cpu_load[0])
    assert numbers == (27.5, 80.25, 0.5)
    assert columns.payload == [data]
    assert columns.firmware == ["2.4.1"]
    assert columns.dead_letters == []
    assert columns.position is not None
    assert columns.position.sequence_number == records.sequence_string(columns.sequence[0])
    assert columns.high_arrival_ms == ARRIVAL_MS


def test_firmware_is_left_out_unless_asked_for() -> None:
    assert columns_of(sample().SerializeToString()).firmware is None


def test_an_empty_batch_keeps_the_high_arrival() -> None:
    columns = columns_of(high_arrival_ms=77)
    assert len(columns) == 0
    assert columns.position is None
    assert columns.high_arrival_ms == 77
    assert columns.sequence.shape == (0, 3)


def test_arrival_never_falls() -> None:
    data = [sample().SerializeToString()] * 3
    batch = shard_batch(*data, arrival_ms=[ARRIVAL_MS, ARRIVAL_MS + 9, ARRIVAL_MS + 5])
    columns = decode.decode(batch, decode.Options(high_arrival_ms=ARRIVAL_MS + 3))
    assert columns.arrival_ms.tolist() == [ARRIVAL_MS + 3, ARRIVAL_MS + 9, ARRIVAL_MS + 9]
    assert columns.high_arrival_ms == ARRIVAL_MS + 9


@pytest.mark.parametrize("timestamp", [0, -1, -(2**63)])
def test_a_missing_time_is_the_arrival(timestamp: int) -> None:
    columns = columns_of(sample(timestamp=timestamp).SerializeToString())
    assert columns.timestamp_ms.tolist() == [ARRIVAL_MS]
    assert columns.skewed == 0


@pytest.mark.parametrize(
    ("ahead_ms", "used_ms", "skewed"),
    [
        (refusal.SKEW_MS_MAX, refusal.SKEW_MS_MAX, 0),
        (refusal.SKEW_MS_MAX + 1, 0, 1),
        (refusal.AHEAD_MS_MAX, 0, 1),
    ],
)
def test_a_clock_far_ahead_is_not_believed(ahead_ms: int, used_ms: int, skewed: int) -> None:
    columns = columns_of(sample(timestamp=ARRIVAL_MS + ahead_ms).SerializeToString())
    assert columns.timestamp_ms.tolist() == [ARRIVAL_MS + used_ms]
    assert columns.skewed == skewed
    assert columns.dead_letters == []


def test_a_time_more_than_a_day_ahead_is_refused_and_not_counted_as_skewed() -> None:
    columns = columns_of(sample(timestamp=ARRIVAL_MS + refusal.AHEAD_MS_MAX + 1).SerializeToString())
    assert [letter.reason for letter in columns.dead_letters] == [records.Reason.TIMESTAMP_AHEAD]
    assert columns.skewed == 0
    assert columns.timestamp_ms.tolist() == [ARRIVAL_MS]


def test_limits_are_inclusive() -> None:
    telemetry = sample(
        device_id="x" * 256, location="x" * 1024, firmware="é" * 512, temperature_c=1e9, battery_pct=-1e9
    )
    columns = columns_of(telemetry.SerializeToString())
    assert columns.all_telemetry
    assert columns.payload == [telemetry.SerializeToString()]


@pytest.mark.parametrize("usual_layout", [True, False])
@pytest.mark.parametrize("name", poison.CORPUS)
def test_poison_is_refused_and_its_neighbours_are_not(name: str, usual_layout: bool) -> None:
    case = poison.CORPUS[name]
    good = sample().SerializeToString()
    columns = columns_of(
        *[good] * decode.USUAL_RECORDS_MIN, case.data, good, with_firmware=True, usual_layout=usual_layout
    )
    row = decode.USUAL_RECORDS_MIN
    assert len(columns) == row + 2
    assert [(letter.reason, letter.device_id) for letter in columns.dead_letters] == [(case.reason, case.device_id)]
    assert columns.kind.tolist() == [*[records.Kind.TELEMETRY] * row, case.kind, records.Kind.TELEMETRY]
    assert not columns.all_telemetry
    assert columns.device_ids[row] == (case.device_id if case.kind is records.Kind.HEARD else "")
    assert columns.payload[row] == b""
    assert columns.firmware is not None
    assert columns.firmware[row] == ""
    assert columns.timestamp_ms[row] == columns.arrival_ms[row]
    assert (columns.temperature_c[row], columns.battery_pct[row], columns.cpu_load[row]) == (0.0, 0.0, 0.0)
    assert row not in columns.controls
    assert set(columns.device_ids) - {columns.device_ids[row]} == {"device-7"}
    assert columns.payload[row + 1] == good


def test_the_whole_corpus_at_once_keeps_its_order() -> None:
    columns = columns_of(*[case.data for case in poison.CORPUS.values()])
    assert [(letter.reason, letter.device_id) for letter in columns.dead_letters] == [
        (case.reason, case.device_id) for case in poison.CORPUS.values()
    ]
    assert columns.kind.tolist() == [case.kind for case in poison.CORPUS.values()]


def test_a_dead_letter_says_where_it_came_from_and_is_cut() -> None:
    data = poison.CORPUS["1 MiB location"].data
    columns = columns_of(sample().SerializeToString(), data)
    (letter,) = columns.dead_letters
    assert letter.sequence_number == records.sequence_string(columns.sequence[1])
    assert letter.arrival_ms == ARRIVAL_MS + 1
    assert letter.data == data[:65_536]
    assert letter.size_bytes == len(data)
    assert "location" in letter.detail


def test_unknown_fields_stay_unless_they_are_huge() -> None:
    small = sample().SerializeToString() + b"\x92\x03\x03abc"
    huge = sample().SerializeToString() + b"\x92\x03\x88\x27" + b"x" * 5000
    columns = columns_of(small, huge)
    assert columns.all_telemetry
    assert columns.payload == [small, sample().SerializeToString()]


# --- formats -------------------------------------------------------------------------------------------------------


TEXT = b'{"device_id":"device-7","temperature_c":75.0}'


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        TEXT + b"\n",
        b" \t\r\n" + TEXT,
        b"\n" + TEXT,
        b"\n\r\n  " + TEXT,
        base64.b64encode(TEXT + b"\n"),
        base64.b64encode(TEXT) + b"\n",
        base64.encodebytes(TEXT + b" " * 60),
        base64.b64encode(b"{ " + TEXT[1:]),
        base64.b64encode(b"{\n" + TEXT[1:]),
    ],
)
@pytest.mark.parametrize("telemetry_format", [spec.Format.AUTO, spec.Format.JSON])
def test_json_is_told_by_its_first_bytes(data: bytes, telemetry_format: spec.Format) -> None:
    columns = columns_of(data, format=telemetry_format)
    assert columns.dead_letters == []
    assert columns.device_ids == ["device-7"]
    assert columns.temperature_c.tolist() == [75.0]


def test_a_json_text_that_parses_as_protobuf_too_is_json() -> None:
    """A line feed and a brace are also the start of a device id of 123 bytes."""
    data = b'\n{"device_id":"' + b"x" * 108 + b'"}'
    assert fleet_pb2.Telemetry.FromString(data).device_id.startswith('"device_id"')
    assert columns_of(data).device_ids == ["x" * 108]


@pytest.mark.parametrize("length", [9, 10, 13, 32, 123])
def test_an_id_whose_length_is_a_blank_or_a_brace_is_protobuf(length: int) -> None:
    for first in ("d", " ", "{"):
        data = sample(device_id=first.ljust(length, "x")).SerializeToString()
        assert columns_of(data).payload == [data]


def test_protobuf_that_begins_like_base64_is_protobuf() -> None:
    data = b"\x65abcd" + sample().SerializeToString()  # field 12, fixed 32 bits
    columns = columns_of(data)
    assert columns.device_ids == ["device-7"]
    assert columns.payload == [data]


def test_a_protobuf_stream_takes_no_json() -> None:
    columns = columns_of(TEXT, format=spec.Format.PROTOBUF)
    assert [letter.reason for letter in columns.dead_letters] == [records.Reason.UNDECODABLE]


@pytest.mark.parametrize("count", [1, decode.USUAL_RECORDS_MIN])
def test_a_json_stream_takes_protobuf_from_workers_only(count: int) -> None:
    plain = sample().SerializeToString()
    again = sample(origin=origin()).SerializeToString()
    columns = columns_of(
        *[plain] * count, again, control(forget_device=fleet_pb2.ForgetDevice()), format=spec.Format.JSON
    )
    assert [letter.reason for letter in columns.dead_letters] == [records.Reason.UNDECODABLE] * count
    assert columns.kind.tolist()[count:] == [records.Kind.TELEMETRY, records.Kind.CONTROL]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[1]", records.Reason.WRONG_TYPE),
        (b"7", records.Reason.WRONG_TYPE),
        (b"", records.Reason.UNDECODABLE),
        (b"hello", records.Reason.UNDECODABLE),
        (b"\n" + base64.b64encode(TEXT), records.Reason.UNDECODABLE),
    ],
)
def test_a_json_stream_takes_objects_only(data: bytes, reason: records.Reason) -> None:
    columns = columns_of(data, format=spec.Format.JSON)
    assert [letter.reason for letter in columns.dead_letters] == [reason]


# --- control records and origins -----------------------------------------------------------------------------------


def test_update_threshold() -> None:
    data = control(
        issued_ms=ARRIVAL_MS - 5, update_threshold=fleet_pb2.UpdateThreshold(rule=fleet_pb2.OFFLINE, threshold=90.5)
    )
    columns = columns_of(sample().SerializeToString(), data, with_firmware=True)
    assert columns.controls == {
        1: records.Control(records.Instruction.UPDATE_THRESHOLD, ARRIVAL_MS - 5, rule=rules.OFFLINE, threshold=90.5)
    }
    assert columns.kind.tolist() == [records.Kind.TELEMETRY, records.Kind.CONTROL]
    assert not columns.all_telemetry
    assert columns.device_ids == ["device-7", "device-7"]
    assert columns.timestamp_ms[1] == columns.arrival_ms[1]
    assert columns.temperature_c[1] == 0.0
    assert columns.payload[1] == b""
    assert columns.firmware == ["2.4.1", ""]


def test_the_unspecified_rule() -> None:
    columns = columns_of(
        control(update_threshold=fleet_pb2.UpdateThreshold(threshold=-20.0)),
        control(clear_override=fleet_pb2.ClearOverride()),
        control(clear_override=fleet_pb2.ClearOverride(rule=fleet_pb2.BATTERY)),
    )
    assert [columns.controls[row].rule for row in range(3)] == [rules.TEMPERATURE, -1, rules.BATTERY]


def test_acknowledge_takes_an_id_in_either_case() -> None:
    columns = columns_of(control(acknowledge=fleet_pb2.Acknowledge(alert_id="0123456789ABCDEF" * 2)))
    assert columns.controls[0].alert_id == "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("issued_ms", "used_ms"),
    [
        (0, ARRIVAL_MS),
        (-5, ARRIVAL_MS),
        (5, 5),
        (ARRIVAL_MS + refusal.SKEW_MS_MAX, ARRIVAL_MS + refusal.SKEW_MS_MAX),
        (ARRIVAL_MS + refusal.SKEW_MS_MAX + 1, ARRIVAL_MS),
        (ARRIVAL_MS + refusal.AHEAD_MS_MAX, ARRIVAL_MS),
    ],
)
def test_the_issue_time_of_a_control_record(issued_ms: int, used_ms: int) -> None:
    columns = columns_of(control(issued_ms=issued_ms, forget_device=fleet_pb2.ForgetDevice()))
    assert columns.controls[0].issued_ms == used_ms


def test_the_sample_fields_of_a_control_record_are_ignored() -> None:
    telemetry = sample(temperature_c=float("nan"), timestamp=2**62, location="x" * 2000)
    telemetry.control.forget_device.SetInParent()
    columns = columns_of(telemetry.SerializeToString())
    assert columns.dead_letters == []
    assert columns.kind.tolist() == [records.Kind.CONTROL]
    assert columns.skewed == 0


def test_a_record_put_again_keeps_its_first_arrival() -> None:
    first_ms = ARRIVAL_MS - HOUR_MS
    columns = columns_of(
        sample(timestamp=0, origin=origin()).SerializeToString(),
        sample(timestamp=first_ms + refusal.SKEW_MS_MAX + 1, origin=origin()).SerializeToString(),
        control(forget_device=fleet_pb2.ForgetDevice()),
        sample(origin=origin(), control=fleet_pb2.Control(forget_device=fleet_pb2.ForgetDevice())).SerializeToString(),
        sample(timestamp=0, origin=origin(arrival_ms=0)).SerializeToString(),
        sample(timestamp=0, origin=origin(arrival_ms=ARRIVAL_MS + HOUR_MS)).SerializeToString(),
    )
    assert columns.dead_letters == []
    assert columns.timestamp_ms.tolist()[:2] == [first_ms, first_ms]
    assert columns.skewed == 1
    assert columns.arrival_ms.tolist() == [ARRIVAL_MS + row for row in range(6)]
    assert columns.controls[2].issued_ms == ARRIVAL_MS + 2
    assert columns.controls[3].issued_ms == first_ms
    assert columns.timestamp_ms.tolist()[4:] == [ARRIVAL_MS + 4, ARRIVAL_MS + 5]
    assert columns.origins[0] == records.Origin("shardId-000000000001", "42", 3, first_ms, 1)
    assert sorted(columns.origins) == [0, 1, 3, 4, 5]
    assert columns.payload[0] == sample(timestamp=0).SerializeToString()


def test_bytes_that_look_like_a_special_tag_are_no_special_field() -> None:
    tricky = float(np.frombuffer(b"\xaa\x06\xa2\x06\xaa\x06\x40\x40", dtype=np.float64)[0])
    data = sample(temperature_c=tricky).SerializeToString()
    for usual_layout in (True, False):
        columns = columns_of(*[data] * decode.USUAL_RECORDS_MIN, usual_layout=usual_layout)
        assert columns.all_telemetry
        assert columns.temperature_c[0] == tricky
        assert columns.payload[0] == data


def test_a_tag_across_two_records_is_no_special_field() -> None:
    columns = columns_of(sample().SerializeToString() + b"\xaa", b"\x06")
    assert [letter.reason for letter in columns.dead_letters] == [records.Reason.UNDECODABLE] * 2


def test_a_neighbours_first_byte_makes_no_special_field() -> None:
    """No encoder writes a tag in more bytes than it needs; such a field is unknown, whatever stands next to it."""
    overlong = sample().SerializeToString() + b"\xaa\x86\x00\x02\x2a\x00" + b"\x92\x03\x01\xaa"
    assert fleet_pb2.Telemetry.FromString(overlong).HasField("control")
    for neighbour in (b"\x06", b"\x07"):
        assert columns_of(overlong, neighbour).kind.tolist() == [records.Kind.TELEMETRY, records.Kind.UNREADABLE]


# --- layouts -------------------------------------------------------------------------------------------------------


def test_unusual_layouts_decode_as_protobuf_says() -> None:
    usual = sample().SerializeToString()
    unusual = [
        sample(device_id="gerät-7").SerializeToString(),
        sample(location="Tromsø").SerializeToString(),
        sample(device_id="x" * 200).SerializeToString(),
        sample(firmware="f" * 128).SerializeToString(),
        sample(timestamp=5).SerializeToString(),
        sample(timestamp=0).SerializeToString(),
        sample(temperature_c=0.0, battery_pct=0.0, cpu_load=0.0, location="", firmware="").SerializeToString(),
        sample(temperature_c=-0.0).SerializeToString(),
        sample(firmware="Tromsø").SerializeToString(),
        usual + fleet_pb2.Telemetry(temperature_c=2.0).SerializeToString(),  # the last of two values counts
        fleet_pb2.Telemetry(firmware="1").SerializeToString() + usual,
        usual + b"\x32\x00",
        usual + b"\xca\x3e\x01x",
    ]
    data = [usual] * decode.USUAL_RECORDS_MIN + unusual + [usual]
    columns = columns_of(*data, with_firmware=True)
    messages = [fleet_pb2.Telemetry.FromString(record) for record in data]
    assert columns.all_telemetry
    assert columns.device_ids == [message.device_id for message in messages]
    assert columns.firmware == [message.firmware for message in messages]
    assert columns.temperature_c.tobytes() == np.array([message.temperature_c for message in messages]).tobytes()
    assert columns.battery_pct.tolist() == [message.battery_pct for message in messages]
    assert columns.cpu_load.tolist() == [message.cpu_load for message in messages]
    assert columns.timestamp_ms.tolist() == [
        message.timestamp or arrival for message, arrival in zip(messages, columns.arrival_ms.tolist(), strict=True)
    ]
    assert columns.payload == data


# --- KPL -----------------------------------------------------------------------------------------------------------


def test_user_records_of_an_aggregate_are_rows_of_their_own() -> None:
    members = [sample(number).SerializeToString() for number in range(3)]
    aggregate = deaggregate.aggregate([("key", member) for member in [*members, b"\xff"]])
    columns = columns_of(sample(9).SerializeToString(), aggregate, sample(8).SerializeToString(), aggregate)
    assert columns.device_ids == [
        "device-9", "device-0", "device-1", "device-2", "", "device-8", "device-0", "device-1", "device-2", "",
    ]  # fmt: skip
    assert columns.subsequence.tolist() == [0, 0, 1, 2, 3, 0, 0, 1, 2, 3]
    assert columns.subsequence.dtype == np.uint32
    assert columns.arrival_ms.tolist() == [ARRIVAL_MS + row for row in (0, 1, 1, 1, 1, 2, 3, 3, 3, 3)]
    sequence_numbers = [records.sequence_string(limbs) for limbs in columns.sequence]
    assert sequence_numbers[1] == sequence_numbers[4] != sequence_numbers[5]
    assert [(letter.sequence_number, letter.subsequence_number) for letter in columns.dead_letters] == [
        (sequence_numbers[1], 3),
        (sequence_numbers[6], 3),
    ]
    assert columns.position is not None
    assert (columns.position.sequence_number, columns.position.subsequence_number) == (sequence_numbers[-1], 3)


def test_json_inside_an_aggregate() -> None:
    columns = columns_of(deaggregate.aggregate([("a", json.dumps({"device_id": "a"}).encode()), ("b", TEXT)]))
    assert columns.device_ids == ["a", "device-7"]
