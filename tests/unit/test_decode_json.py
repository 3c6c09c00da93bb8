"""JSON telemetry and control records. What is refused is in the poison corpus, which test_decode goes through."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from fleet_proto import fleet_pb2
from fleet_worker.core import decode_json, records, refusal

ALERT_ID = "00112233445566778899aabbccddeeff"


def message(**members: object) -> fleet_pb2.Telemetry:
    return decode_json.telemetry(json.dumps({"device_id": "device-7", **members}).encode())


def control(**members: object) -> fleet_pb2.Control:
    return message(control=members).control


def test_members_are_named_as_in_the_proto() -> None:
    values = {
        "device_id": "device-7",
        "timestamp": 1_700_000_000_123,
        "temperature_c": 75.5,
        "battery_pct": 80.0,
        "cpu_load": 0.25,
        "location": "59.9,10.7",
        "firmware": "2.4.1",
    }
    assert message(**values) == fleet_pb2.Telemetry(**values)  # type: ignore[arg-type]


def test_what_is_missing_is_as_in_protobuf() -> None:
    assert message() == fleet_pb2.Telemetry(device_id="device-7")
    assert message(timestamp=None, location=None, firmware=None, control=None) == message()


def test_whole_numbers_do_for_doubles_and_whole_doubles_for_times() -> None:
    assert message(temperature_c=75, timestamp=1.7e12) == message(temperature_c=75.0, timestamp=1_700_000_000_000)


def test_other_members_are_ignored() -> None:
    assert message(humidity="high", nested={"a": [1, {"b": None}]}, deviceId="other") == message()


def test_colons_inside_strings_are_no_members() -> None:
    assert message(location="a:b:c", firmware='"x":1').location == "a:b:c"


def test_ids_in_any_script() -> None:
    assert message(device_id="Gerät-7 🛰").device_id == "Gerät-7 🛰"
    assert decode_json.telemetry('{"device_id":"Gerät"}'.encode()).device_id == "Gerät"


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_up_to_the_limit(opening: str) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]

    def nested(depth: int) -> bytes:
        inner = opening * (depth - 1) + "1" + closing * (depth - 1)
        return ('{"device_id":"a","x":' + inner + "}").encode()

    assert decode_json.telemetry(nested(decode_json.DEPTH_MAX)).device_id == "a"
    with pytest.raises(refusal.Refused) as caught:
        decode_json.telemetry(nested(decode_json.DEPTH_MAX + 1))
    assert caught.value.reason is records.Reason.JSON_TOO_DEEP


@pytest.mark.parametrize("text", ["[" * 40, '\\"' + "[" * 40, "[" * 40 + "\\\\", '"}' * 40])
def test_brackets_in_strings_are_no_depth(text: str) -> None:
    assert message(location=text).location == text


def test_a_wide_document_is_not_deep() -> None:
    assert message(x=[[], {}] * 100).device_id == "device-7"


def test_an_unfinished_string_hides_what_follows_it() -> None:
    with pytest.raises(refusal.Refused) as caught:
        decode_json.telemetry(b'{"device_id":"' + b"[" * 40)
    assert caught.value.reason is records.Reason.UNDECODABLE


def test_a_detail_names_the_member() -> None:
    with pytest.raises(refusal.Refused, match="battery_pct"):
        message(battery_pct="full")


def test_update_threshold() -> None:
    sent = control(issued_ms=5, update_threshold={"rule": "offline", "threshold": 90})
    assert sent.issued_ms == 5
    assert (sent.update_threshold.rule, sent.update_threshold.threshold) == (fleet_pb2.OFFLINE, 90.0)


def test_a_rule_left_out_is_unspecified() -> None:
    assert control(update_threshold={"threshold": 65.0}).update_threshold.rule == fleet_pb2.RULE_UNSPECIFIED
    assert control(clear_override={}).WhichOneof("instruction") == "clear_override"
    assert control(clear_override={"rule": None}).clear_override.rule == fleet_pb2.RULE_UNSPECIFIED


def test_acknowledge_and_forget() -> None:
    assert control(acknowledge={"alert_id": ALERT_ID}).acknowledge.alert_id == ALERT_ID
    assert control(forget_device={}).WhichOneof("instruction") == "forget_device"
    assert control(forget_device={}, acknowledge=None).WhichOneof("instruction") == "forget_device"


@pytest.mark.parametrize(
    ("rule", "number"),
    [("temperature", fleet_pb2.TEMPERATURE), ("battery", fleet_pb2.BATTERY), ("offline", fleet_pb2.OFFLINE)],
)
def test_rules_go_by_name(rule: str, number: int) -> None:
    assert control(clear_override={"rule": rule}).clear_override.rule == number


def test_a_refused_control_record_is_not_a_word_from_the_device() -> None:
    with pytest.raises(refusal.Refused) as caught:
        control(update_threshold={})
    assert caught.value.device_id == "device-7"
    assert not caught.value.heard


MESSAGES_PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "messages.md"


def test_the_examples_of_the_messages_page_are_accepted() -> None:
    examples = re.findall(r"```json\n(.*?)```", MESSAGES_PAGE.read_text(), re.DOTALL)
    sent = [decode_json.telemetry(example.encode()) for example in examples]
    assert [example.WhichOneof("instruction") for example in (each.control for each in sent)] == [
        None,
        "update_threshold",
        "clear_override",
        "acknowledge",
        "forget_device",
    ]
    assert sent[0].temperature_c == 75.0
