"""A TwinPartition survives its document, JSON included; what a document lacks or has wrong is told by its field's path."""

from __future__ import annotations

import copy
import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_model import hashing, sections, twin_partition
from fleet_model import twin_partition_document as documents

names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
shard_ids = st.integers(0, 10**12 - 1).map(lambda number: f"shardId-{number:012d}")
numbers = st.integers(0, documents.NUMBER_MAX)
times = st.integers(0, documents.TIME_MS_MAX)
ranges = st.tuples(st.integers(0, hashing.HASH_KEY_MAX), st.integers(0, hashing.HASH_KEY_MAX)).map(
    lambda ends: hashing.HashKeyRange(min(ends), max(ends))
)
messages = st.text(st.characters(exclude_categories=["Cs"]), max_size=documents.MESSAGE_MAX)

specs = st.builds(
    twin_partition.Spec,
    fleet=names,
    stream=names,
    shard_id=shard_ids,
    hash_key_range=ranges,
    parents=st.lists(shard_ids, max_size=documents.PARENTS_MAX).map(tuple),
    worker=st.just("") | names,
    epoch=numbers,
    takeover=numbers,
    standby=st.lists(names, max_size=documents.STANDBY_MAX).map(tuple),
    assigned_ms=times,
    skip_to_ms=times,
    first_epoch=st.integers(1, documents.NUMBER_MAX),
    receiver=st.just("") | names,
    standby_ms=times,
)
checkpoints = st.builds(
    twin_partition.CheckpointStatus,
    key=st.just("") | names,
    epoch=numbers,
    time_ms=times,
    sequence_number=st.just("") | st.integers(0, 10**56 - 1).map(str),
)
standbys = st.builds(twin_partition.StandbyStatus, worker=names, checkpoint_number=numbers, warm=st.booleans())
statuses = st.builds(
    twin_partition.Status,
    phase=st.sampled_from(list(twin_partition.Phase)),
    worker=st.just("") | names,
    epoch=numbers,
    nonce=st.just("") | st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    twins=numbers,
    checkpoint=st.none() | checkpoints,
    checkpoint_stale=st.booleans(),
    manifest_epoch=numbers,
    standby=st.lists(standbys, max_size=documents.STANDBY_MAX).map(tuple),
    message=messages,
)
partitions = st.builds(
    twin_partition.TwinPartition,
    namespace=st.just("default") | st.from_regex(r"[a-z][a-z0-9]{0,20}", fullmatch=True),
    name=names,
    spec=specs,
    status=statuses,
    resource_version=st.just("") | st.integers(1, 10**18).map(str),
    uid=st.just("") | st.uuids().map(str),
)

EXAMPLE = twin_partition.TwinPartition(
    "default",
    "fleet-shardid-000000000000",
    twin_partition.Spec(
        fleet="fleet",
        stream="telemetry",
        shard_id="shardId-000000000002",
        hash_key_range=hashing.HashKeyRange(0, 2**127 - 1),
        parents=("shardId-000000000000",),
        worker="fleet-worker-1",
        epoch=3,
        takeover=3,
        standby=("fleet-worker-0",),
        assigned_ms=1_767_225_600_123,
    ),
    twin_partition.Status(
        phase=twin_partition.Phase.RUNNING,
        worker="fleet-worker-1",
        epoch=3,
        twins=1_000,
        checkpoint=twin_partition.CheckpointStatus("c-1", 3, 1_767_225_600_000, "49"),
        standby=(twin_partition.StandbyStatus("fleet-worker-0", 7, True),),
    ),
    "12",
)


@given(partitions)
def test_a_partition_survives_its_document(partition: twin_partition.TwinPartition) -> None:
    through_json = json.loads(json.dumps(documents.document(partition), allow_nan=False))
    assert documents.parse_document(through_json) == partition


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=5))
def test_whatever_stands_in_a_field_is_read_or_told(value: Any) -> None:
    for path in ("metadata", "spec", "status"):
        for field in [None, *_example()[path]]:
            changed = _example()
            if field is None:
                changed[path] = value
            else:
                changed[path][field] = value
            assert all(mistake.path.startswith(path) for mistake in _mistakes_of(changed))


def _mistakes_of(value: Any) -> tuple[sections.Mistake, ...]:
    try:
        documents.parse_document(value)
    except sections.InvalidFleetError as error:
        return error.mistakes
    return ()


def _example() -> Any:
    return copy.deepcopy(documents.document(EXAMPLE))


def test_the_document_is_what_kubernetes_shows() -> None:
    assert documents.document(EXAMPLE) == {
        "apiVersion": "fleettwin.io/v1alpha1",
        "kind": "TwinPartition",
        "metadata": {"name": "fleet-shardid-000000000000", "namespace": "default", "resourceVersion": "12"},
        "spec": {
            "fleet": "fleet",
            "stream": "telemetry",
            "shardId": "shardId-000000000002",
            "hashKeyRange": {"start": "0", "end": "170141183460469231731687303715884105727"},
            "parents": ["shardId-000000000000"],
            "worker": "fleet-worker-1",
            "epoch": 3,
            "takeover": 3,
            "standby": ["fleet-worker-0"],
            "assignedTime": "2026-01-01T00:00:00.123Z",
            "skipToTime": None,
            "firstEpoch": 1,
            "receiver": "",
            "standbyTime": None,
        },
        "status": {
            "phase": "Running",
            "worker": "fleet-worker-1",
            "epoch": 3,
            "nonce": "",
            "twins": 1000,
            "checkpoint": {"key": "c-1", "epoch": 3, "time": "2026-01-01T00:00:00.000Z", "sequenceNumber": "49"},
            "checkpointStale": False,
            "manifestEpoch": 0,
            "standby": [{"worker": "fleet-worker-0", "checkpointNumber": 7, "warm": True}],
            "message": "",
        },
    }


def test_what_is_absent_has_its_default() -> None:
    short = _example()
    del short["status"], short["metadata"]["resourceVersion"], short["metadata"]["namespace"]
    short["spec"] = {key: short["spec"][key] for key in ("fleet", "stream", "shardId", "hashKeyRange")}
    read = documents.parse_document(short)
    assert (read.status, read.resource_version, read.namespace) == (twin_partition.Status(), "", "default")
    assert (read.spec.worker, read.spec.epoch, read.spec.parents, read.spec.assigned_ms) == ("", 0, (), 0)


def test_a_field_of_a_newer_version_is_passed_over() -> None:
    newer = _example()
    newer["spec"]["colour"] = newer["status"]["colour"] = newer["metadata"]["colour"] = "red"
    assert documents.parse_document(newer) == EXAMPLE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "v1"),
        ("kind", "Pod"),
        ("metadata.name", None),
        ("metadata.resourceVersion", 12),
        ("spec", None),
        ("spec.fleet", None),
        ("spec.stream", ""),
        ("spec.shardId", "a b"),
        ("spec.hashKeyRange", None),
        ("spec.hashKeyRange.start", 0),
        ("spec.hashKeyRange.end", str(2**128)),
        ("spec.parents", "shardId-000000000000"),
        ("spec.parents[1]", 7),
        ("spec.epoch", -1),
        ("spec.takeover", "3"),
        ("spec.standby[0]", None),
        ("spec.assignedTime", "yesterday"),
        ("spec.skipToTime", "1969-12-31T23:59:59Z"),
        ("status.phase", "Walking"),
        ("status.twins", True),
        ("status.checkpoint.time", None),
        ("status.checkpoint.sequenceNumber", "0x1"),
        ("status.standby[0].warm", 1),
    ],
)
def test_a_mistake_names_its_field(path: str, value: Any) -> None:
    wrong = _example()
    wrong["spec"]["parents"].append("shardId-000000000001")
    place, last = wrong, path
    while "." in last or "[" in last:
        head, _, last = last.partition(".") if "." in last else (last, "", "")
        name, _, index = head.partition("[")
        if index and not last:
            place, last = place[name], index[:-1]
            break
        place = place[name][int(index[:-1])] if index else place[name]
    place[int(last) if last.isdigit() else last] = value
    with pytest.raises(sections.InvalidFleetError) as told:
        documents.parse_document(wrong)
    shown_path = "spec.hashKeyRange" if path == "spec.hashKeyRange.end" else path
    assert [mistake.path for mistake in told.value.mistakes] == [shown_path]


def test_an_overlong_message_is_cut_and_an_unwritable_one_is_made_writable() -> None:
    status = twin_partition.Status(message="\ud800" + "x" * documents.MESSAGE_MAX)
    message = documents.status_document(status)["message"]
    assert isinstance(message, str)
    assert len(message) == documents.MESSAGE_MAX
    assert message.startswith("�x")
    assert message.endswith("…")
    assert message.encode()


@pytest.mark.parametrize(("text", "time_ms"), [("2026-01-01T01:00:00.5+01:00", 1_767_225_600_500), (None, 0)])
def test_times_of_other_writers_are_read(text: str | None, time_ms: int) -> None:
    other = _example()
    other["spec"]["assignedTime"] = text
    assert documents.parse_document(other).spec.assigned_ms == time_ms


@given(times)
def test_a_time_is_a_date_time_of_fixed_length(time_ms: int) -> None:
    text = documents.spec_document(twin_partition.Spec("f", "s", "x", hashing.HashKeyRange(), assigned_ms=time_ms))[
        "assignedTime"
    ]
    if time_ms:
        assert isinstance(text, str)
        assert len(text) == len("2026-01-01T00:00:00.000Z")
        assert datetime.datetime.fromisoformat(text).tzinfo is not None


def test_names_of_objects_are_plain_and_differ() -> None:
    assert twin_partition.object_name("fleet", "shardId-000000000000") == "fleet-shardid-000000000000"
    others = {twin_partition.object_name("fleet", shard_id) for shard_id in ("a_b", "a.b", "A-b", "--", "_")}
    assert len(others) == 5
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and name[-1] != "-" for name in others)
