"""Whatever the document holds: settings, or InvalidFleetError. And a kept generation comes back exactly."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from fleet_model import durations, generations, parse, rules
from fleet_worker.adapters import fleet_file
from tests.support import fleets

FIELDS = [
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "spec",
    "status",
    "replicas",
    "image",
    "suspend",
    "serviceAccountName",
    "template",
    "aws",
    "region",
    "endpointURL",
    "credentialsSecretRef",
    "streams",
    "telemetry",
    "arn",
    "format",
    "startPosition",
    "startTime",
    "alerts",
    "commands",
    "control",
    "deadLetter",
    "rules",
    "temperature",
    "battery",
    "offline",
    "enabled",
    "threshold",
    "consecutiveSamples",
    "repeatInterval",
    "hysteresis",
    "severity",
    "command",
    "resolvedNotice",
    "maxDropPerHour",
    "idleBelowCpuLoad",
    "minObservation",
    "after",
    "profiles",
    "match",
    "deviceIdPrefix",
    "deviceIdRegex",
    "firmware",
    "storage",
    "size",
    "storageClassName",
    "retentionPolicy",
    "twinsInMemoryMax",
    "mapSize",
    "sync",
    "syncInterval",
    "checkpoint",
    "bucket",
    "prefix",
    "interval",
    "rebalance",
    "maxConcurrentMoves",
    "drainTimeout",
    "standbyReplicas",
]
VALUES = ["5m", "0", "10Gi", "Auto", "AtTimestamp", "2026-01-31T08:00:00Z", "(", "a", "", "critical", "DeviceFleet"]

names = st.one_of(st.sampled_from(FIELDS), st.text(max_size=8), st.integers(), st.booleans(), st.none())
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**300, max_value=10**5000),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.sampled_from(VALUES),
    st.binary(max_size=3),
    st.datetimes(timezones=st.one_of(st.none(), st.timezones())),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=6)),
    max_leaves=30,
)
PATHS = [
    "metadata", "spec", "spec.streams", "spec.streams.telemetry", "spec.streams.telemetry.startTime", "spec.streams.alerts",
    "spec.rules", "spec.rules.temperature", "spec.rules.battery", "spec.rules.offline", "spec.profiles", "spec.storage",
    "spec.storage.size", "spec.storage.mapSize", "spec.template", "spec.aws", "spec.checkpoint", "spec.rules.offline.after",
]  # fmt: skip


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(trees)
def test_no_document_raises_anything_but_invalid_fleet(tree: object) -> None:
    told = fleets.mistakes(tree)
    assert told, "nothing here is a whole fleet"


@hypothesis.settings(max_examples=250, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(st.sampled_from(PATHS), trees)
def test_no_part_of_a_fleet_raises_anything_but_invalid_fleet(path: str, tree: object) -> None:
    told = fleets.mistakes(fleets.with_field(path, tree))
    assert all(message and len(message) < 500 and message.encode() for message in told.values())
    if not told:
        parsed = parse.parse(fleets.with_field(path, tree))
        first = generations.first_generation(parsed)
        assert generations.parse_rules_document(json.loads(json.dumps(generations.rules_document(first)))) == first


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        st.lists(
            st.sampled_from(
                ["!!int", "!!bool", "!!float", "!!binary", "!!set", "!!timestamp", "&a", "*a", "<<", ":", " ", "\n", "-",
                 "{", "}", "[", "]", ",", "0x", "1_", "0b", ".nan", ".inf", "1:30", "~", "'", '"', "|", ">", "?", "spec", "2026-01-31"]
            ),
            max_size=12,
        ).map(lambda parts: "".join(parts).encode()),
    )
)  # fmt: skip
def test_no_file_raises_anything_but_invalid_fleet(text: bytes) -> None:
    with pytest.raises(parse.InvalidFleetError, match=r"."):
        fleet_file.parse_text(text, "fleet.yaml")


finite = st.floats(allow_nan=False, allow_infinity=False)
milliseconds = st.integers(min_value=0, max_value=2**53)
severities = st.sampled_from(rules.SEVERITIES)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
commands = st.one_of(st.none(), texts)
booleans = st.booleans()
temperatures = st.builds(
    rules.TemperatureRule, booleans, finite, st.integers(1, 255), milliseconds, finite, severities, commands, booleans
)
batteries = st.builds(
    rules.BatteryRule, booleans, finite, finite, milliseconds, milliseconds, finite, severities, commands, booleans
)
offlines = st.builds(rules.OfflineRule, booleans, milliseconds, milliseconds, severities, commands, booleans)
sets = st.builds(rules.Rules, temperatures, batteries, offlines)
optional = st.one_of(st.none(), texts)
matches = st.builds(rules.Match, optional, st.sampled_from([None, "a+", "(x|y)[0-9]*"]), optional)
profiles = st.lists(st.builds(rules.Profile, texts, matches, sets), max_size=3).map(tuple)
all_generations = st.builds(
    rules.RulesGeneration, st.integers(1, 2**53), st.integers(0, 2**63 - 1), default=sets, profiles=profiles
)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(all_generations)
def test_a_generation_comes_back_exactly(generation: rules.RulesGeneration) -> None:
    read = generations.parse_rules_document(json.loads(json.dumps(generations.rules_document(generation))))
    assert read == generation
    # repr tells -0.0 from 0.0 and 60 from 60.0, which == does not.
    assert repr(read) == repr(generation)


@hypothesis.given(st.integers(0, 10**15))
def test_a_duration_comes_back_exactly(duration_ms: int) -> None:
    assert durations.parse_ms(durations.text_of_ms(duration_ms)) == duration_ms


@hypothesis.given(st.integers(0, 2**80))
def test_a_size_comes_back_exactly(size_bytes: int) -> None:
    hypothesis.assume(len(durations.text_of_bytes(size_bytes).rstrip("EPTGMKi")) <= 15)
    assert durations.parse_bytes(durations.text_of_bytes(size_bytes)) == size_bytes
