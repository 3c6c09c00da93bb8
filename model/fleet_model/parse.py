"""The `DeviceFleet` document (YAML file or Kubernetes object, the same for both) to frozen settings.

One parser and one set of defaults, so a fleet means the same outside Kubernetes and in it. It refuses a document with
any mistake, telling all of them at once, each with its field's path; a field it doesn't know is a mistake, since a
misspelt threshold must not silently become the default. It looks nothing up: that a stream exists is for others to find.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping

from fleet_model import generations, parse_rules, rules, sections, spec

Mistake = sections.Mistake
InvalidFleetError = sections.InvalidFleetError
rules_document = generations.rules_document
parse_rules_document = generations.parse_rules_document
next_generation = generations.next_generation

API_VERSION = "fleettwin.io/v1alpha1"
KIND = "DeviceFleet"

REPLICAS_MAX = 1_000
STANDBY_REPLICAS_MAX = 5
TWINS_IN_MEMORY_MAX = 1_000_000_000
CONCURRENT_MOVES_MAX = 100
TEMPLATE_DEPTH_MAX = 32
TEMPLATE_VALUES_MAX = 10_000
STORAGE_MIN, STORAGE_MAX = 64 * 2**20, 64 * 2**40
MAP_SIZE_MIN, MAP_SIZE_MAX = 2**20, 4 * 2**40
SYNC_INTERVAL_MS = (100, 600_000)
CHECKPOINT_INTERVAL_MS = (1_000, 3_600_000)
DRAIN_TIMEOUT_MS = (1_000, 3_600_000)
"""The least and the most, as of every pair here."""
RETENTION_POLICIES = ("Retain", "Delete")
DATE_TIME_LENGTH_MAX = 40

_METADATA = [
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
]
"""Kubernetes' own, which a fleet read back from the API server carries."""

FLEET_NAME = sections.form(
    r"[a-z](?:[-a-z0-9]*[a-z0-9])?",
    "a DNS label of at most 52 lower-case letters, digits and hyphens that begins with a letter (pods, volumes and "
    "Services are named after it)",
    52,
)
_EXACT = sections.form(r".*", "", 253)
_SUBDOMAIN_PATTERN = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
OBJECT_NAME = sections.form(_SUBDOMAIN_PATTERN, "the name of a Kubernetes object, at most 253 characters", 253)
STORAGE_CLASS = sections.form(
    f"(?:{_SUBDOMAIN_PATTERN})?", 'the name of a storage class, or "" for volumes made by hand', 253
)
IMAGE = sections.form(r"[!-~]+", "an image reference without spaces, at most 512 characters", 512)
REGION = sections.form(r"[a-z0-9]+(?:-[a-z0-9]+)*", 'an AWS region such as "eu-central-1"', 64)
ENDPOINT_URL = sections.form(
    r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[!-~]*)?",
    'an http or https URL such as "http://127.0.0.1:4568", without user name and password',
    512,
)
STREAM_NAME = sections.form(
    r"[A-Za-z0-9_.-]+", "a Kinesis stream's name: at most 128 letters, digits, hyphens, underscores and dots", 128
)
STREAM_ARN = sections.form(
    r"arn:aws[a-z-]*:kinesis:[a-z0-9-]{1,64}:[0-9]{12}:stream/[A-Za-z0-9_.-]{1,128}",
    'a Kinesis stream\'s ARN such as "arn:aws:kinesis:eu-central-1:123456789012:stream/telemetry"',
    256,
)
BUCKET = sections.form(
    r"[a-z0-9][a-z0-9.-]+[a-z0-9]", "an S3 bucket's name: 3 to 63 lower-case letters, digits, hyphens and dots", 63
)
PREFIX = sections.form(
    r"[A-Za-z0-9!_.*'()-]+(?:/[A-Za-z0-9!_.*'()-]+)*",
    "the beginning of the checkpoints' S3 keys: at most 256 letters, digits and !_.*'()- in parts divided by single "
    "slashes, none first or last",
    256,
)
DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def parse(document: Mapping[str, object]) -> spec.FleetSpec:
    """The settings of a DeviceFleet document. Raises InvalidFleetError with every mistake, and nothing else."""
    mistakes = sections.Mistakes()
    top = sections.Section(document, "", mistakes)
    mistakes.raise_any()
    _read_exact(top, "apiVersion", API_VERSION)
    _read_exact(top, "kind", KIND)
    metadata = top.section("metadata")
    name = metadata.required_text("name", FLEET_NAME)
    namespace = metadata.text("namespace", parse_rules.DNS_LABEL) or "default"
    metadata.accept(*_METADATA)
    metadata.finish()
    top.accept("status")
    if top.value("spec") is None:
        top.mistake("spec", "is missing; it must hold at least streams")
        mistakes.raise_any()
    settings = _read_spec(top.section("spec"), namespace, name)
    top.finish()
    mistakes.raise_any()
    return settings


def _read_exact(section: sections.Section, name: str, expected: str) -> None:
    if section.value(name) is None:
        section.mistake(name, f"is missing; it must be {expected}")
    elif section.text(name, _EXACT) not in (expected, None):
        section.mistake(name, f"must be {expected}, not {sections.shown(section.value(name))}")


def _read_spec(section: sections.Section, namespace: str, name: str) -> spec.FleetSpec:
    fleet_rules = parse_rules.read_rules(section.section("rules"), rules.Rules())
    settings = spec.FleetSpec(
        namespace=namespace,
        name=name,
        streams=_read_streams(section.section("streams")),
        aws=_read_aws(section.section("aws")),
        rules=fleet_rules,
        profiles=parse_rules.read_profiles(section, fleet_rules),
        replicas=section.integer("replicas", 3, 1, REPLICAS_MAX),
        image=section.text("image", IMAGE),
        suspend=section.boolean("suspend", False),
        storage=_read_storage(section.section("storage")),
        checkpoint=_read_checkpoint(section.section("checkpoint")),
        rebalance=_read_rebalance(section.section("rebalance")),
        standby_replicas=section.integer("standbyReplicas", 0, 0, STANDBY_REPLICAS_MAX),
        service_account_name=section.text("serviceAccountName", OBJECT_NAME),
        template=_read_template(section),
    )
    section.finish()
    return settings


def _read_aws(section: sections.Section) -> spec.Aws:
    region = section.text("region", REGION)
    endpoint_url = section.text("endpointURL", ENDPOINT_URL)
    secret = None
    if section.value("credentialsSecretRef") is not None:
        reference = section.section("credentialsSecretRef")
        secret = reference.required_text("name", OBJECT_NAME)
        reference.finish()
    section.finish()
    return spec.Aws(region, endpoint_url, secret)


def _read_streams(section: sections.Section) -> spec.Streams:
    telemetry = _read_telemetry(section.section("telemetry"))
    streams = spec.Streams(
        telemetry=telemetry,
        alerts=_read_effect_stream(section.section("alerts")),
        commands=_read_effect_stream(section.section("commands")),
        control=_read_optional_stream(section, "control"),
        dead_letter=_read_optional_stream(section, "deadLetter"),
    )
    section.finish()
    named = {
        "telemetry": telemetry.stream_name if telemetry.name or telemetry.arn else None,
        "alerts": streams.alerts.name,
        "commands": streams.commands.name,
        "control": streams.control,
        "deadLetter": streams.dead_letter,
    }
    first_use: dict[str, str] = {}
    for use, stream in named.items():
        if stream and first_use.setdefault(stream, use) != use:
            already = section.at(first_use[stream])
            section.mistake(
                f"{use}.name", f"{sections.shown(stream)} is {already} already; give it a stream of its own"
            )
    return streams


def _read_telemetry(section: sections.Section) -> spec.TelemetryStream:
    given = [name for name in ("name", "arn") if section.value(name) is not None]
    if len(given) != 1 and section.is_readable:
        wrong = "gives both name and arn; remove one" if given else "gives no stream; set name or arn"
        section.mistakes.add(section.path, wrong)
    start_position = section.choice("startPosition", spec.StartPosition.LATEST, spec.StartPosition)
    start_time_ms = _read_start_time(section, start_position)
    stream = spec.TelemetryStream(
        name=section.text("name", STREAM_NAME),
        arn=section.text("arn", STREAM_ARN),
        format=section.choice("format", spec.Format.AUTO, spec.Format),
        start_position=start_position,
        start_time_ms=start_time_ms,
    )
    section.finish()
    return stream


def _read_start_time(section: sections.Section, start_position: spec.StartPosition) -> int | None:
    value = section.value("startTime")
    is_needed = start_position is spec.StartPosition.AT_TIMESTAMP
    if value is None:
        if is_needed:
            section.mistake("startTime", "is missing; startPosition AtTimestamp needs it")
        return None
    if not is_needed:
        section.mistake("startTime", "has no meaning here; remove it or set startPosition to AtTimestamp")
    moment = value
    if isinstance(value, str) and len(value) <= DATE_TIME_LENGTH_MAX and DATE_TIME.fullmatch(value):
        try:
            moment = datetime.datetime.fromisoformat(value.upper())
        except ValueError:
            moment = None
    if not isinstance(moment, datetime.datetime) or moment.tzinfo is None or moment < _EPOCH:
        example = "2026-01-31T08:00:00Z"
        section.mistake("startTime", f'must be a time since 1970 such as "{example}", not {sections.shown(value)}')
        return None
    return (moment - _EPOCH) // datetime.timedelta(milliseconds=1)


def _read_effect_stream(section: sections.Section) -> spec.EffectStream:
    name = section.required_text("name", STREAM_NAME)
    encoding = section.choice("format", spec.Format.PROTOBUF, (spec.Format.PROTOBUF, spec.Format.JSON))
    section.finish()
    return spec.EffectStream(name, encoding)


def _read_optional_stream(section: sections.Section, use: str) -> str | None:
    if section.value(use) is None:
        return None
    stream = section.section(use)
    name = stream.required_text("name", STREAM_NAME)
    stream.finish()
    return name


def _read_storage(section: sections.Section) -> spec.Storage:
    default = spec.Storage()
    section.size_bytes("size", 0, STORAGE_MIN, STORAGE_MAX)
    size = section.value("size")
    storage = spec.Storage(
        size=size if isinstance(size, str) else default.size,
        storage_class_name=section.text("storageClassName", STORAGE_CLASS),
        retention_policy=section.choice("retentionPolicy", default.retention_policy, RETENTION_POLICIES),
        twins_in_memory_max=section.integer("twinsInMemoryMax", default.twins_in_memory_max, 0, TWINS_IN_MEMORY_MAX),
        map_size_bytes=section.size_bytes("mapSize", default.map_size_bytes, MAP_SIZE_MIN, MAP_SIZE_MAX),
        sync=section.choice("sync", default.sync, spec.Sync),
        sync_interval_ms=section.duration_ms("syncInterval", default.sync_interval_ms, *SYNC_INTERVAL_MS),
    )
    section.finish()
    return storage


def _read_checkpoint(section: sections.Section) -> spec.Checkpoint:
    default = spec.Checkpoint()
    checkpoint = spec.Checkpoint(
        bucket=section.text("bucket", BUCKET),
        prefix=section.text("prefix", PREFIX) or default.prefix,
        interval_ms=section.duration_ms("interval", default.interval_ms, *CHECKPOINT_INTERVAL_MS),
    )
    section.finish()
    return checkpoint


def _read_rebalance(section: sections.Section) -> spec.Rebalance:
    default = spec.Rebalance()
    rebalance = spec.Rebalance(
        max_concurrent_moves=section.integer(
            "maxConcurrentMoves", default.max_concurrent_moves, 1, CONCURRENT_MOVES_MAX
        ),
        drain_timeout_ms=section.duration_ms("drainTimeout", default.drain_timeout_ms, *DRAIN_TIMEOUT_MS),
    )
    section.finish()
    return rebalance


def _read_template(section: sections.Section) -> Mapping[str, object]:
    """The pod template as plain data of its own; its fields are Kubernetes', which judges them."""
    value = section.value("template")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        section.mistake("template", f"must be a mapping of fields, not {sections.shown(value)}")
        return {}
    try:
        copy = _PlainCopy().of(value, TEMPLATE_DEPTH_MAX)
    except ValueError as error:
        section.mistake("template", str(error))
        return {}
    assert isinstance(copy, dict)
    return copy


class _PlainCopy:
    """Copies what JSON can hold, bounded in depth and in values: YAML's references can make a small file endless."""

    def __init__(self) -> None:
        self._values = 0

    def of(self, value: object, depth: int) -> object:
        self._values += 1
        if self._values > TEMPLATE_VALUES_MAX:
            raise ValueError(f"has more than {TEMPLATE_VALUES_MAX} values; a pod template needs far fewer")
        if depth == 0:
            raise ValueError(f"is nested deeper than {TEMPLATE_DEPTH_MAX}; a pod template never is")
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, float) and value - value == 0.0:
            return value
        if isinstance(value, str) and sections.is_unicode(value):
            return value
        if isinstance(value, (list, tuple)):
            return [self.of(entry, depth - 1) for entry in value]
        if isinstance(value, Mapping):
            return {self._name(name): self.of(entry, depth - 1) for name, entry in value.items()}
        raise ValueError(f"holds {sections.shown(value)}, which no Kubernetes object can; write it as text in quotes")

    @staticmethod
    def _name(name: object) -> str:
        if isinstance(name, str) and sections.is_unicode(name):
            return name
        raise ValueError(f"has a field named {sections.shown(name)}; put the name in quotes")
