"""What is stored comes back as it was, for any ids, rows and telemetry; what is cut off is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_model import hashing, partition
from fleet_proto import fleet_pb2
from fleet_worker.adapters import lmdb_codec
from fleet_worker.core import commits, effects, records, twins
from tests.support import commits as build

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DEVICE_IDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
    st.integers(100, 256).map(lambda length: "x" * length),
).filter(lambda name: len(name.encode()) <= 256)
MS = st.integers(0, 2**62)


@st.composite
def raw_telemetry(draw: st.DrawFn, device_id: str) -> bytes:
    """Canonical, canonical for another id, or any bytes."""
    encoded = device_id.encode()
    prefix = draw(
        st.sampled_from(
            [
                lmdb_codec.FIRST_FIELDS[len(encoded)] + encoded,
                lmdb_codec.FIRST_FIELDS[len(encoded)] + encoded[:-1],
                lmdb_codec.FIRST_FIELDS[len(encoded)],
                b"",
            ]
        )
    )
    return prefix + draw(st.binary(max_size=40))


@st.composite
def some_twins(draw: st.DrawFn) -> commits.TwinRows:
    """Rows of random bytes, most with zero where rows mostly are."""
    device_ids = draw(st.lists(DEVICE_IDS, min_size=1, max_size=8, unique=True))
    count = len(device_ids)
    raw = draw(st.binary(min_size=count * lmdb_codec.ROW_BYTES, max_size=count * lmdb_codec.ROW_BYTES))
    rows = np.frombuffer(bytearray(raw), dtype=twins.TWIN_DTYPE)
    for name in lmdb_codec.RARE_FIELDS:
        if draw(st.booleans()):
            rows[name] = 0
    has_extra = (rows["flags"] & twins.Flag.EXTRA) != 0
    extras = {
        index: draw(st.binary(min_size=lmdb_codec.EXTRA_BYTES, max_size=lmdb_codec.EXTRA_BYTES))
        for index in np.flatnonzero(has_extra).tolist()
    }
    telemetry = [draw(st.none() | raw_telemetry(device_id)) for device_id in device_ids]
    return commits.TwinRows(build.digests(device_ids), device_ids, rows, extras, telemetry)


def stored(given_rows: commits.TwinRows) -> list[tuple[bytes, bytes]]:
    raw = [telemetry or b"" for telemetry in given_rows.telemetry]
    markers, rests = lmdb_codec.pack_telemetry(given_rows.device_ids, raw)
    for index, telemetry in enumerate(given_rows.telemetry):
        if telemetry is None:
            markers[index], rests[index] = lmdb_codec.NO_TELEMETRY, b""
    keys = lmdb_codec.twin_keys(given_rows.digests, given_rows.device_ids)
    return list(zip(keys, lmdb_codec.twin_values(given_rows.rows, given_rows.extras, markers, rests), strict=True))


@given(some_twins())
@settings(max_examples=150, deadline=None)
def test_twins_come_back(given_rows: commits.TwinRows) -> None:
    pairs = stored(given_rows)
    found = lmdb_codec.twin_rows(pairs, with_telemetry=True)
    assert found.device_ids == given_rows.device_ids
    assert found.digests.tolist() == [hashing.digest(name) for name in given_rows.device_ids]
    assert found.rows.tobytes() == given_rows.rows.tobytes()
    assert found.extras == given_rows.extras
    assert found.telemetry == given_rows.telemetry
    assert lmdb_codec.twin_rows(pairs).telemetry == [None] * len(pairs)


@given(some_twins(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_value_that_is_cut_off_is_refused(given_rows: commits.TwinRows, data: st.DataObject) -> None:
    """Unless only telemetry is missing, which has no length of its own."""
    pairs = stored(given_rows)
    index = data.draw(st.integers(0, len(pairs) - 1))
    key, value = pairs[index]
    marker, needed = value[lmdb_codec.MARKER_AT], lmdb_codec.FIXED_BYTES
    needed += lmdb_codec.RARE_BYTES if marker & lmdb_codec.HAS_RARE else 0
    needed += lmdb_codec.EXTRA_BYTES if marker & lmdb_codec.HAS_EXTRA else 0
    pairs[index] = (key, value[: data.draw(st.integers(0, needed - 1))])
    with pytest.raises(lmdb_codec.CodecError):
        lmdb_codec.twin_rows(pairs)


def test_the_first_fields_are_what_protobuf_writes() -> None:
    for length in range(1, lmdb_codec.ID_BYTES_MAX + 1):
        encoded = fleet_pb2.Telemetry(device_id="i" * length).SerializeToString()
        assert encoded == lmdb_codec.FIRST_FIELDS[length] + b"i" * length


def test_a_canonical_telemetry_is_stored_without_its_id() -> None:
    for device_id in ("device-7", "x" * 127, "x" * 128, "x" * 256):
        raw = lmdb_codec.FIRST_FIELDS[len(device_id)] + device_id.encode() + b"rest"
        markers, rests = lmdb_codec.pack_telemetry([device_id], [raw])
        assert (markers.tolist(), rests) == ([lmdb_codec.WITHOUT_ID], [b"rest"])


@given(st.lists(DEVICE_IDS, min_size=1, max_size=20, unique=True))
def test_key_order_is_hash_key_order(device_ids: list[str]) -> None:
    keys = lmdb_codec.sorted_keys(device_ids)
    assert [lmdb_codec.device_id_of(key) for key in keys] == sorted(device_ids, key=hashing.hash_key)


@given(MS, DEVICE_IDS)
def test_index_entries_come_back(last_arrival_ms: int, device_id: str) -> None:
    key = lmdb_codec.index_key(last_arrival_ms, device_id)
    assert lmdb_codec.index_entry(key) == (last_arrival_ms, device_id)
    assert lmdb_codec.index_digest(key) == hashing.digest(device_id)
    assert len(key) <= 511


STATES = st.builds(
    commits.PartitionState,
    position=st.builds(partition.Position, st.text("0123456789", max_size=56), st.integers(0, 2**32 - 1)),
    clock_ms=MS,
    high_arrival_ms=MS,
    commit_number=MS,
    outbox_next=MS,
    ended=st.booleans(),
    epoch=MS,
    nonce=TEXT,
)
EFFECTS = st.builds(
    effects.Effect, st.sampled_from(effects.Target), TEXT, TEXT, DEVICE_IDS, MS, st.binary(max_size=2_000)
)
LETTERS = st.builds(
    records.DeadLetter,
    st.sampled_from(records.Reason),
    TEXT,
    TEXT,
    TEXT,
    st.integers(0, 2**32 - 1),
    MS,
    st.binary(max_size=2_000),
    MS,
)


@given(STATES, EFFECTS, LETTERS)
def test_state_effects_and_dead_letters_come_back(
    state: commits.PartitionState, effect: effects.Effect, letter: records.DeadLetter
) -> None:
    assert lmdb_codec.decode_state(lmdb_codec.encode_state(state)) == state
    assert lmdb_codec.decode_effect(lmdb_codec.encode_effect(effect)) == effect
    assert lmdb_codec.decode_dead_letter(lmdb_codec.encode_dead_letter(letter)) == letter


@given(st.binary(max_size=60))
def test_any_other_bytes_are_refused_with_our_error(value: bytes) -> None:
    for decode in (lmdb_codec.decode_state, lmdb_codec.decode_effect, lmdb_codec.decode_dead_letter):
        with pytest.raises(lmdb_codec.CodecError):
            decode(value)
