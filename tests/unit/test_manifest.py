"""The manifest's JSON: what is written is read back, and what isn't a manifest is told with its field."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_model import hashing, manifest, partition

number = st.integers(0, 2**63 - 1)
text = st.text(max_size=20)
hash_range = st.tuples(st.integers(0, hashing.HASH_KEY_MAX), st.integers(0, hashing.HASH_KEY_MAX)).map(
    lambda bounds: hashing.HashKeyRange(min(bounds), max(bounds))
)
row_group = st.builds(manifest.RowGroup, first=text, last=text, rows=number, start=number, stop=number, sha256=text)
part = st.builds(
    manifest.Part,
    kind=st.sampled_from(manifest.Kind),
    name=text,
    rows=number,
    size=number,
    sha256=text,
    since=number,
    through=number,
    groups=st.lists(row_group, max_size=2).map(tuple),
    footer_sha256=text,
)
position = st.builds(partition.Position, st.integers(0, 10**56).map(str) | st.just(""), number)
checkpoint = st.builds(
    manifest.Checkpoint,
    number=number,
    time_ms=number,
    twins=number,
    position=position,
    clock_ms=number,
    high_arrival_ms=number,
    commit_number=number,
    outbox_next=number,
    parts=st.lists(part, max_size=3).map(tuple),
)
whole = st.builds(
    manifest.Manifest,
    identity=st.builds(partition.PartitionIdentity, text, text, text, text, hash_range),
    parents=st.lists(text, max_size=2).map(tuple),
    epoch=number,
    nonce=text,
    worker=text,
    final=st.booleans(),
    ended=st.booleans(),
    checkpoint=st.none() | checkpoint,
    kept=st.lists(st.lists(text, max_size=3).map(tuple), max_size=3).map(tuple),
    revision=number,
)

IDENTITY = partition.PartitionIdentity("default", "cars", "telemetry", "shardId-000000000001")
SOME = manifest.Manifest(
    IDENTITY,
    ("shardId-000000000000",),
    3,
    "00" * 8,
    "worker-0",
    checkpoint=manifest.Checkpoint(
        7,
        1,
        2,
        partition.Position("4" * 56, 1),
        3,
        4,
        5,
        6,
        (manifest.Part(manifest.Kind.BASE, "a.parquet", 2, 10, "ff", 0, 5),),
    ),
    kept=(("b.parquet",),),
    revision=9,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(whole)
def test_what_is_encoded_is_parsed_again(given_manifest: manifest.Manifest) -> None:
    encoded = manifest.encode(given_manifest)
    assert manifest.parse(encoded) == given_manifest
    assert manifest.encode(manifest.parse(encoded)) == encoded


def test_large_numbers_are_text() -> None:
    """A reader in another language takes JSON's numbers as doubles."""
    document = json.loads(manifest.encode(SOME))
    assert document["hashKeyRange"] == {"start": "0", "end": str(2**128 - 1)}
    assert document["checkpoint"]["position"]["sequenceNumber"] == "4" * 56


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("format", 2, "format 2; this version reads 1"),
        ("epoch", "3", "epoch is not a number"),
        ("epoch", True, "epoch is not a number"),
        ("epoch", -1, "epoch is not a number"),
        ("nonce", None, "nonce is not text"),
        ("final", 1, "final is neither"),
        ("parents", "x", "parents: not a list of text"),
        ("hashKeyRange", {"start": "1"}, "hashKeyRange: end is missing"),
        ("hashKeyRange", {"start": "1", "end": "0"}, "hash key range 1..0"),
        ("hashKeyRange", {"start": "x", "end": "0"}, "'x'"),
        ("checkpoint", 3, "checkpoint: not an object"),
        ("kept", [1], "kept[0]: not a list of text"),
    ],
)
def test_what_is_no_manifest_is_told_with_its_field(member: str, value: object, words: str) -> None:
    document = json.loads(manifest.encode(SOME)) | {member: value}
    with pytest.raises(manifest.InvalidManifestError) as told:
        manifest.parse(json.dumps(document).encode())
    assert words in str(told.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b'{"format": 1}'])
def test_what_is_not_even_an_object_is_refused(data: bytes) -> None:
    with pytest.raises(manifest.InvalidManifestError):
        manifest.parse(data)


def test_a_part_of_an_unknown_kind_is_refused() -> None:
    document = json.loads(manifest.encode(SOME))
    document["checkpoint"]["parts"][0]["kind"] = "sidecar"
    with pytest.raises(manifest.InvalidManifestError, match="sidecar"):
        manifest.parse(json.dumps(document).encode())


def test_members_of_a_later_version_are_passed_over() -> None:
    document = json.loads(manifest.encode(SOME)) | {"colour": "red"}
    assert manifest.parse(json.dumps(document).encode()) == SOME
