"""The fleet's document, field by field: defaults, bounds, every mistake at once with its path."""

import dataclasses
import datetime
import re
from pathlib import Path
from typing import Any

import pytest

from fleet_model import parse, rules, spec
from fleet_worker.adapters import fleet_file
from tests.support import fleets

PROJECT = Path(__file__).parents[2]


def test_the_smallest_fleet_has_every_default_of_the_spec() -> None:
    streams = spec.Streams(
        spec.TelemetryStream(name="telemetry"), spec.EffectStream("alerts"), spec.EffectStream("commands")
    )
    assert parse.parse(fleets.smallest()) == spec.FleetSpec("default", "trucks", streams)


def test_null_means_absent() -> None:
    fleet = fleets.smallest()
    fleet["spec"] |= {"aws": None, "rules": {"temperature": None, "offline": {"after": None}}, "profiles": None}
    assert parse.parse(fleet) == parse.parse(fleets.smallest())


def test_an_object_of_the_api_server_is_accepted() -> None:
    fleet = fleets.smallest()
    fleet["metadata"] |= {"uid": "1", "resourceVersion": "2", "labels": {}, "managedFields": [], "generation": 3}
    fleet["status"] = {"replicas": 3}
    assert parse.parse(fleet) == parse.parse(fleets.smallest())


def test_every_field_is_read() -> None:
    fleet = fleets.smallest()
    fleet["metadata"]["namespace"] = "logistics"
    fleet["spec"] = {
        "replicas": 5,
        "image": "example.org/fleet-twin@sha256:abc",
        "suspend": True,
        "serviceAccountName": "twin",
        "template": {"metadata": {"annotations": {"a/b": "c"}}, "spec": {"tolerations": [{"key": "x", "n": 1.5}]}},
        "aws": {
            "region": "eu-central-1",
            "endpointURL": "http://[::1]:4568/kinesis",
            "credentialsSecretRef": {"name": "aws"},
        },
        "streams": {
            "telemetry": {
                "arn": "arn:aws-cn:kinesis:cn-north-1:123456789012:stream/in",
                "format": "JSON",
                "startPosition": "AtTimestamp",
                "startTime": "2026-01-31T08:00:00.250+01:00",
            },
            "alerts": {"name": "a", "format": "JSON"},
            "commands": {"name": "c", "format": "Protobuf"},
            "control": {"name": "control"},
            "deadLetter": {"name": "dead"},
        },
        "rules": {
            "temperature": {
                "enabled": False,
                "threshold": 70,
                "consecutiveSamples": 5.0,
                "repeatInterval": "10m",
                "hysteresis": 0,
                "severity": "info",
                "command": "",
                "resolvedNotice": True,
            },
            "battery": {
                "enabled": False,
                "maxDropPerHour": 20.5,
                "idleBelowCpuLoad": 1,
                "minObservation": "1h",
                "repeatInterval": "0s",
                "hysteresis": 20.5,
                "severity": "critical",
                "command": None,
                "resolvedNotice": True,
            },
            "offline": {
                "enabled": False,
                "after": "720h",
                "repeatInterval": "1s",
                "severity": "info",
                "command": "wake up",
                "resolvedNotice": False,
            },
        },
        "profiles": [{"name": "all", "match": {"deviceIdPrefix": "a", "deviceIdRegex": "a.*", "firmware": "1"}}],
        "storage": {
            "size": "1.5Ti",
            "storageClassName": "",
            "retentionPolicy": "Delete",
            "twinsInMemoryMax": 1000,
            "mapSize": "1Gi",
            "sync": "Commit",
            "syncInterval": "1s",
        },
        "checkpoint": {"bucket": "my.bucket-1", "prefix": "a/b", "interval": "30s"},
        "rebalance": {"maxConcurrentMoves": 7, "drainTimeout": "2m"},
        "standbyReplicas": 1,
    }
    fleet_rules = rules.Rules(
        rules.TemperatureRule(False, 70.0, 5, 600_000, 0.0, "info", None, True),
        rules.BatteryRule(False, 20.5, 1.0, 3_600_000, 0, 20.5, "critical", None, True),
        rules.OfflineRule(False, 2_592_000_000, 1_000, "info", "wake up", False),
    )
    telemetry = spec.TelemetryStream(
        None,
        "arn:aws-cn:kinesis:cn-north-1:123456789012:stream/in",
        spec.Format.JSON,
        spec.StartPosition.AT_TIMESTAMP,
        1_769_842_800_250,
    )
    expected = spec.FleetSpec(
        namespace="logistics",
        name="trucks",
        streams=spec.Streams(
            telemetry, spec.EffectStream("a", spec.Format.JSON), spec.EffectStream("c"), "control", "dead"
        ),
        aws=spec.Aws("eu-central-1", "http://[::1]:4568/kinesis", "aws"),
        rules=fleet_rules,
        profiles=(rules.Profile("all", rules.Match("a", "a.*", "1"), fleet_rules),),
        replicas=5,
        image="example.org/fleet-twin@sha256:abc",
        suspend=True,
        storage=spec.Storage("1.5Ti", "", "Delete", 1000, 2**30, spec.Sync.COMMIT, 1_000),
        checkpoint=spec.Checkpoint("my.bucket-1", "a/b", 30_000),
        rebalance=spec.Rebalance(7, 120_000),
        standby_replicas=1,
        service_account_name="twin",
        template={"metadata": {"annotations": {"a/b": "c"}}, "spec": {"tolerations": [{"key": "x", "n": 1.5}]}},
    )
    parsed = parse.parse(fleet)
    assert parsed == expected
    # Nothing in the document above equals a default, so a field that was not read would show.
    defaults = parse.parse(fleets.smallest())
    assert [
        f.name for f in dataclasses.fields(spec.FleetSpec) if getattr(parsed, f.name) == getattr(defaults, f.name)
    ] == ["name"]
    assert type(parsed.rules.temperature.threshold) is float
    assert type(parsed.rules.temperature.consecutive_samples) is int


def test_a_profile_is_laid_field_by_field_over_the_fleets_default() -> None:
    fleet = fleets.with_field(
        "spec.rules", {"temperature": {"threshold": 50, "severity": "warning"}, "offline": {"after": "1m"}}
    )
    fleet["spec"]["profiles"] = [
        {
            "name": "cold",
            "match": {"deviceIdPrefix": "f"},
            "rules": {"temperature": {"threshold": -15, "command": None}},
        }
    ]
    parsed = parse.parse(fleet)
    assert parsed.profiles[0].rules == rules.Rules(
        dataclasses.replace(parsed.rules.temperature, threshold=-15.0, command=None),
        parsed.rules.battery,
        parsed.rules.offline,
    )
    assert parsed.profiles[0].rules.temperature.severity == "warning"
    assert parsed.rules.temperature.command == "cool_down"


def test_all_mistakes_are_told_at_once_each_with_its_path() -> None:
    fleet = fleets.smallest()
    fleet["kind"] = "Fleet"
    fleet["metadata"]["name"] = "Trucks"
    fleet["spec"]["streams"]["alerts"] = {"format": "Auto"}
    fleet["spec"]["rules"] = {"temperature": {"treshold": 1, "consecutive_samples": 3}}
    fleet["spec"]["profiles"] = [
        {"name": "a", "match": {"firmware": "1"}},
        {"name": "a", "match": {"deviceIdRegex": "("}, "rules": {"offline": {"after": "1s"}}},
    ]
    with pytest.raises(parse.InvalidFleetError) as caught:
        parse.parse(fleet)
    assert {mistake.path for mistake in caught.value.mistakes} == {
        "kind",
        "metadata.name",
        "spec.streams.alerts.name",
        "spec.streams.alerts.format",
        "spec.rules.temperature.treshold",
        "spec.rules.temperature.consecutive_samples",
        "spec.profiles[1].name",
        "spec.profiles[1].match.deviceIdRegex",
        "spec.profiles[1].rules.offline.after",
    }
    assert "spec.profiles[1].match.deviceIdRegex: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 9


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "fleettwin.io/v1"),
        ("apiVersion", None),
        ("kind", 3),
        ("metadata.name", None),
        ("metadata.name", "a" * 53),
        ("metadata.name", "-a"),
        ("metadata.name", "a\n"),
        ("metadata.name", True),
        ("metadata.namespace", "a.b"),
        ("metadata.nam", "a"),
        ("spec", []),
        ("spec", None),
        ("spec.replicas", 0),
        ("spec.replicas", 1001),
        ("spec.replicas", True),
        ("spec.replicas", 1.5),
        ("spec.replicas", "3"),
        ("spec.standbyReplicas", -1),
        ("spec.suspend", "yes"),
        ("spec.suspend", 1),
        ("spec.image", "a b"),
        ("spec.serviceAccountName", "A"),
        ("spec.template", []),
        ("spec.template", {"a": datetime.datetime(2026, 1, 1)}),
        ("spec.template", {1: "a"}),
        ("spec.template", {"a": float("nan")}),
        ("spec.aws.region", "EU"),
        ("spec.aws.endpointURL", "ftp://localhost"),
        ("spec.aws.endpointURL", "http://user:word@localhost"),
        ("spec.aws.endpointURL", "localhost:4568"),
        ("spec.aws.credentialsSecretRef.nam", "x"),
        ("spec.streams.telemetry.name", "a b"),
        ("spec.streams.telemetry.name", "a" * 129),
        ("spec.streams.telemetry.format", "Json"),
        ("spec.streams.telemetry.startPosition", "Earliest"),
        ("spec.streams.telemetry.startTime", "2026-01-31T08:00:00Z"),
        ("spec.streams.alerts.name", ""),
        ("spec.streams.alerts.format", "Auto"),
        ("spec.streams.commands.name", "alerts"),
        ("spec.streams.control.name", "telemetry"),
        ("spec.streams.deadLetter.name", "commands"),
        ("spec.rules.temperature.enabled", 1),
        ("spec.rules.temperature.threshold", True),
        ("spec.rules.temperature.threshold", "60"),
        ("spec.rules.temperature.threshold", float("nan")),
        ("spec.rules.temperature.threshold", float("inf")),
        ("spec.rules.temperature.threshold", 10**400),
        ("spec.rules.temperature.threshold", -1_000_000_001),
        ("spec.rules.temperature.consecutiveSamples", 0),
        ("spec.rules.temperature.consecutiveSamples", 256),
        ("spec.rules.temperature.repeatInterval", "500ms"),
        ("spec.rules.temperature.repeatInterval", "721h"),
        ("spec.rules.temperature.repeatInterval", 60),
        ("spec.rules.temperature.hysteresis", -0.1),
        ("spec.rules.temperature.severity", "Critical"),
        ("spec.rules.temperature.command", " a"),
        ("spec.rules.temperature.command", "a" * 129),
        ("spec.rules.temperature.command", "ä"),
        ("spec.rules.temperature.command", 1),
        ("spec.rules.temperature.resolvedNotice", "true"),
        ("spec.rules.battery.maxDropPerHour", -1),
        ("spec.rules.battery.maxDropPerHour", 10_001),
        ("spec.rules.battery.idleBelowCpuLoad", 1.1),
        ("spec.rules.battery.minObservation", "9s"),
        ("spec.rules.battery.minObservation", "1h1ms"),
        ("spec.rules.battery.hysteresis", 10.5),
        ("spec.rules.offline.after", "9999ms"),
        ("spec.rules.offline.after", "720h1ms"),
        ("spec.rules.offline.after", "0s"),
        ("spec.rules.offline.threshold", 1),
        ("spec.profiles", {}),
        ("spec.storage.size", "10GB"),
        ("spec.storage.size", 10),
        ("spec.storage.size", "63Mi"),
        ("spec.storage.storageClassName", "A"),
        ("spec.storage.retentionPolicy", "Keep"),
        ("spec.storage.twinsInMemoryMax", -1),
        ("spec.storage.mapSize", "1"),
        ("spec.storage.mapSize", "5Ti"),
        ("spec.storage.sync", "Always"),
        ("spec.storage.syncInterval", "1ms"),
        ("spec.checkpoint.bucket", "My"),
        ("spec.checkpoint.prefix", "/a"),
        ("spec.checkpoint.prefix", "a//b"),
        ("spec.checkpoint.interval", "61m"),
        ("spec.rebalance.maxConcurrentMoves", 0),
        ("spec.rebalance.drainTimeout", "0s"),
        ("metadata", "a"),
        ("spec.streams", "a"),
        ("spec.streams.telemetry", []),
        ("spec.streams.control", "a"),
        ("spec.aws.credentialsSecretRef", "a"),
        ("spec.rules", 1),
        ("spec.rules.battery", False),
    ],
)
def test_a_wrong_value_is_the_one_mistake_and_has_its_path(path: str, value: object) -> None:
    told = fleets.mistakes(fleets.with_field(path, value))
    # A reference without its name lacks the name, too.
    assert set(told) - {"spec.aws.credentialsSecretRef.name"} == {path}
    assert len(told[path]) > 10


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "a" * 52),
        ("spec.replicas", 1000),
        ("spec.rules.temperature.threshold", -1_000_000_000),
        ("spec.rules.temperature.consecutiveSamples", 255),
        ("spec.rules.temperature.repeatInterval", "1s"),
        ("spec.rules.battery.minObservation", "10s"),
        ("spec.rules.battery.minObservation", "1h"),
        ("spec.rules.battery.hysteresis", 10.0),
        ("spec.rules.offline.after", "10s"),
        ("spec.rules.offline.after", "720h"),
        ("spec.storage.size", "64Ti"),
        ("spec.storage.mapSize", "4Ti"),
        ("spec.streams.telemetry.name", "a" * 128),
        ("spec.checkpoint.interval", "1h"),
    ],
)
def test_the_bounds_themselves_are_accepted(path: str, value: object) -> None:
    assert fleets.mistakes(fleets.with_field(path, value)) == {}


@pytest.mark.parametrize(
    ("telemetry", "path"),
    [
        ({}, "spec.streams.telemetry"),
        ({"name": "t", "arn": "arn:aws:kinesis:eu-west-1:123456789012:stream/t"}, "spec.streams.telemetry"),
        ({"arn": "arn:aws:kinesis:eu-west-1:1234:stream/t"}, "spec.streams.telemetry.arn"),
        ({"arn": "arn:aws:kinesis:eu-west-1:123456789012:stream/alerts"}, "spec.streams.alerts.name"),
        ({"name": "t", "startPosition": "AtTimestamp"}, "spec.streams.telemetry.startTime"),
    ]
    + [
        ({"name": "t", "startPosition": "AtTimestamp", "startTime": time}, "spec.streams.telemetry.startTime")
        for time in ("now", "2026-01-31", "2026-01-31T08:00:00", "2026-02-31T08:00:00Z", "1969-12-31T23:59:59Z", 5)
    ]
    + [
        ({"name": "t", "startPosition": "AtTimestamp", "startTime": time}, "spec.streams.telemetry.startTime")
        for time in (datetime.datetime(2026, 1, 31), datetime.date(2026, 1, 31))
    ],
)
def test_a_telemetry_stream_that_is_not_told_apart_is_refused(telemetry: dict[str, Any], path: str) -> None:
    assert set(fleets.mistakes(fleets.with_field("spec.streams.telemetry", telemetry))) == {path}


@pytest.mark.parametrize(
    "time",
    ["1970-01-01T00:00:01Z", "1970-01-01t01:00:01.000999999+01:00", datetime.datetime.fromtimestamp(1, datetime.UTC)],
)
def test_a_start_time_is_kept_in_milliseconds(time: object) -> None:
    telemetry = {"name": "t", "startPosition": "AtTimestamp", "startTime": time}
    assert parse.parse(fleets.with_field("spec.streams.telemetry", telemetry)).streams.telemetry.start_time_ms == 1000


@pytest.mark.parametrize(
    ("profile", "path"),
    [
        ({"match": {"firmware": "1"}}, ".name"),
        ({"name": "A", "match": {"firmware": "1"}}, ".name"),
        ({"name": "a"}, ".match"),
        ({"name": "a", "match": {"firmware": None}}, ".match"),
        ({"name": "a", "match": {"deviceIdPrefix": ""}}, ".match.deviceIdPrefix"),
        ({"name": "a", "match": {"deviceIdPrefix": "\ud800"}}, ".match.deviceIdPrefix"),
        ({"name": "a", "match": {"deviceIdRegex": "a" * 513}}, ".match.deviceIdRegex"),
        ({"name": "a", "match": {"deviceIdRegex": "[a"}}, ".match.deviceIdRegex"),
        ({"name": "a", "match": {"deviceIdRegex": "(?=a)a"}}, ".match.deviceIdRegex"),
        ({"name": "a", "match": {"prefix": "1", "firmware": "1"}}, ".match.prefix"),
        (
            {"name": "a", "match": {"firmware": "1"}, "rules": {"battery": {"maxDropPerHour": 0.5}}},
            ".rules.battery.hysteresis",
        ),
        (None, ""),
        ("a", ""),
    ],
)
def test_a_wrong_profile_is_refused(profile: object, path: str) -> None:
    good = {"name": "good", "match": {"firmware": "2"}}
    told = set(fleets.mistakes(fleets.with_field("spec.profiles", [good, profile])))
    assert told == {f"spec.profiles[1]{path}"}


def test_a_hundred_profiles_are_accepted_and_one_more_is_not() -> None:
    profiles = [{"name": f"p{number}", "match": {"deviceIdRegex": "a" * 512}} for number in range(101)]
    assert len(parse.parse(fleets.with_field("spec.profiles", profiles[:100])).profiles) == 100
    assert set(fleets.mistakes(fleets.with_field("spec.profiles", profiles))) == {"spec.profiles"}


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("treshold", "threshold"),
        ("Threshold", "threshold"),
        ("consecutive_samples", "consecutiveSamples"),
        ("repeat-interval", "repeatInterval"),
    ],
)
def test_an_unknown_field_is_told_with_what_was_probably_meant(wrong: str, meant: str) -> None:
    path = f"spec.rules.temperature.{wrong}"
    assert fleets.mistakes(fleets.with_field(path, 1)) == {path: f"unknown field; did you mean {meant}?"}


def test_a_document_of_nonsense_is_cheap_and_its_mistakes_bounded() -> None:
    fleet = fleets.smallest()
    fleet["spec"] |= {f"field{number}": number for number in range(100_000)}
    with pytest.raises(parse.InvalidFleetError) as caught:
        parse.parse(fleet)
    assert len(caught.value.mistakes) == 101
    assert "99900 more" in caught.value.mistakes[-1].message


def test_a_template_that_refers_to_itself_is_refused() -> None:
    endless: dict[str, object] = {}
    endless["again"] = endless
    wide: list[object] = []
    for _ in range(30):
        wide = [wide, wide]
    assert set(fleets.mistakes(fleets.with_field("spec.template", endless))) == {"spec.template"}
    assert set(fleets.mistakes(fleets.with_field("spec.template", {"a": wide}))) == {"spec.template"}


def test_the_template_is_a_copy() -> None:
    template = {"spec": {"a": [1]}}
    parsed = parse.parse(fleets.with_field("spec.template", template))
    template["spec"]["a"].append(2)
    assert parsed.template == {"spec": {"a": [1]}}


def test_settings_can_be_hashed_with_a_template() -> None:
    assert hash(parse.parse(fleets.with_field("spec.template", {"a": []}))) == hash(parse.parse(fleets.smallest()))


def test_the_example_is_valid_and_what_it_comments_out_is_so_too() -> None:
    text = (PROJECT / "examples" / "fleet.yaml").read_text()
    fleet = fleet_file.parse_text(text.encode(), "fleet.yaml")
    assert [profile.name for profile in fleet.profiles] == ["freezers", "depot-sensors"]
    assert fleet.profiles[0].rules.temperature.threshold == -15.0
    assert fleet.profiles[1].rules.offline.command is None
    assert fleet.rules == rules.Rules()
    assert fleet.aws.endpoint_url is None
    uncommented = fleet_file.parse_text(
        re.sub(r"^( +)# (?=( +)?[A-Za-z]+:( |$))", r"\1", text, flags=re.M).encode(), "x"
    )
    assert uncommented.aws.endpoint_url == "http://127.0.0.1:4568"
    assert uncommented.streams.dead_letter == "device-dead-letters"
    assert uncommented.checkpoint.bucket == "my-fleet-checkpoints"


def test_the_reference_names_every_field() -> None:
    """An unknown field's message lists the fields of its section, so this follows the parser by itself."""
    fleet = fleets.smallest()
    fleet["spec"]["profiles"] = [{"name": "a", "match": {"firmware": "1"}, "rules": {}}]
    paths = [
        "", ".aws", ".aws.credentialsSecretRef", ".streams", ".streams.telemetry", ".streams.alerts", ".streams.control",
        ".rules", ".rules.temperature", ".rules.battery", ".rules.offline", ".storage", ".checkpoint", ".rebalance",
    ]  # fmt: skip
    reference = (PROJECT / "docs" / "reference" / "fleet.md").read_text()
    named = 0
    for path in paths:
        told = fleets.mistakes(fleets.with_field(f"spec{path}.zzzzzzzz", 1))[f"spec{path}.zzzzzzzz"]
        for field in told.partition("fields here are ")[2].split(", "):
            assert f"`{field}`" in reference, f"spec{path}.{field} is not in docs/reference/fleet.md"
            named += 1
    assert named > 60


def test_a_nested_repeat_takes_no_longer_than_any_other() -> None:
    """Python's re would need years for this id."""
    match = rules.Match(device_id_regex="(a+)+b")
    assert not match.matches("a" * 250, "")
    assert match.matches("a" * 250 + "b", "")
