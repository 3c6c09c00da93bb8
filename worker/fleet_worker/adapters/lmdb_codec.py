"""Keys and values of a partition's LMDB databases: bytes from values, and back.

    twins          MD5(device id) + device id → common part of the row, marker, [rare part], [extra], [telemetry]
    outbox         number (u64) → effect
    dead_letters   number (u64) → dead letter
    offline_index  last_arrival_ms (u64) + twin key → nothing
    meta           name → JSON or a number

All integers in keys are big-endian, so LMDB's order is numeric order. The twins' part works on whole columns, because a
commit's time goes there. This module does no I/O, and what it can't read back it refuses with CodecError.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from fleet_model import hashing, partition
from fleet_worker.core import commits, effects, ids, kept_telemetry, records, twins

DIGEST_BYTES = 16
EXTRA_BYTES = twins.EXTRA_DTYPE.itemsize
DIGEST_VOID = np.dtype((np.void, DIGEST_BYTES))
NUMBER_BYTES = 8

ROW_BYTES = twins.TWIN_DTYPE.itemsize
RARE_FIELDS = ("late_last_ms", "late", "late_span_ms", "spare")
"""Fields that are zero in most rows; they are stored only where one of them isn't."""
NO_TELEMETRY, WHOLE, WITHOUT_ID = kept_telemetry.NONE, kept_telemetry.WHOLE, kept_telemetry.WITHOUT_ID
"""The marker's lower bits: the form in which the telemetry follows."""
HAS_RARE = 16
HAS_EXTRA = 32
MARKER_BITS = 63
ID_BYTES_MAX = kept_telemetry.ID_BYTES_MAX
"""It keeps keys below LMDB's 511 bytes."""
FIRST_FIELDS = kept_telemetry.FIRST_FIELDS
pack_telemetry = kept_telemetry.pack


class CodecError(ValueError):
    """Stored bytes that this version can't have written."""


def twin_key(device_id: str) -> bytes:
    return hashing.digest(device_id) + device_id.encode()


def twin_keys(digests: NDArray[np.void], device_ids: Sequence[str]) -> list[bytes]:
    """Keys of n twins. digests: (n,) V16."""
    return list(map(operator.add, digests.tolist(), ids.encoded(device_ids)))


def sorted_keys(device_ids: Iterable[str]) -> list[bytes]:
    """Keys of those ids that can be stored at all, ascending, each once."""
    keys = {twin_key(device_id) for device_id in device_ids}
    return sorted(key for key in keys if DIGEST_BYTES < len(key) <= DIGEST_BYTES + ID_BYTES_MAX)


def device_id_of(key: bytes) -> str:
    return key[DIGEST_BYTES:].decode()


def _byte_runs(names: Iterable[str]) -> list[slice]:
    """Where the fields lie in a row, neighbours as one slice."""
    runs: list[slice] = []
    for name in names:
        start = twins.TWIN_DTYPE.fields[name][1]  # type: ignore[index]
        stop = start + twins.TWIN_DTYPE[name].itemsize
        if runs and runs[-1].stop == start:
            start = runs.pop().start
        runs.append(slice(start, stop))
    return runs


def _places(runs: Iterable[slice]) -> list[tuple[slice, slice]]:
    """For each run in a row, where it goes when the runs are packed."""
    packed, places = 0, []
    for run in runs:
        places.append((run, slice(packed, packed + run.stop - run.start)))
        packed += run.stop - run.start
    return places


_names = twins.TWIN_DTYPE.names or ()
COMMON_PLACES = _places(_byte_runs([name for name in _names if name not in RARE_FIELDS]))
RARE_PLACES = _places(_byte_runs([name for name in _names if name in RARE_FIELDS]))
_commit_run = _byte_runs(["commit"])[0]
COMMIT_AT = next(
    slice(place.start + _commit_run.start - run.start, place.start + _commit_run.stop - run.start)
    for run, place in COMMON_PLACES
    if run.start <= _commit_run.start < run.stop
)
"""Where a value has its row's commit number."""
MARKER_AT = COMMON_PLACES[-1][1].stop
FIXED_BYTES = MARKER_AT + 1
FIXED_VOID = np.dtype((np.void, FIXED_BYTES))
RARE_BYTES = RARE_PLACES[-1][1].stop


def twin_values(
    rows: NDArray[np.void], extras: dict[int, bytes], markers: NDArray[np.uint8], rests: list[bytes]
) -> list[bytes]:
    """Values of n twins. extras: index → EXTRA_DTYPE bytes, for the rows with Flag.EXTRA."""
    row_bytes = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), ROW_BYTES)
    rare = np.empty((len(rows), RARE_BYTES), dtype=np.uint8)
    for run, place in RARE_PLACES:
        rare[:, place] = row_bytes[:, run]
    has_rare = rare.any(axis=1)
    has_extra = (rows["flags"] & twins.Flag.EXTRA) != 0
    fixed = np.empty((len(rows), FIXED_BYTES), dtype=np.uint8)
    for run, place in COMMON_PLACES:
        fixed[:, place] = row_bytes[:, run]
    fixed[:, MARKER_AT] = markers | has_rare * np.uint8(HAS_RARE) | has_extra * np.uint8(HAS_EXTRA)
    heads: list[Any] = fixed.view(FIXED_VOID).ravel().tolist()
    for index in np.flatnonzero(has_rare).tolist():
        heads[index] += rare[index].tobytes()
    for index in np.flatnonzero(has_extra).tolist():
        extra = extras[index]
        assert len(extra) == EXTRA_BYTES, f"{len(extra)} bytes of extra"
        heads[index] += extra
    return list(map(operator.add, heads, rests))


def split_values(values: Sequence[bytes]) -> tuple[NDArray[np.void], dict[int, bytes], NDArray[np.uint8]]:
    """Rows (writable), extras and markers of n stored values."""
    lengths = _lengths(values)
    if (lengths < FIXED_BYTES).any():
        raise CodecError(f"among {len(values)} twins one has less than {FIXED_BYTES} bytes")
    fixed = _beginnings(values, FIXED_BYTES)
    row_bytes = np.zeros((len(values), ROW_BYTES), dtype=np.uint8)
    for run, place in COMMON_PLACES:
        row_bytes[:, run] = fixed[:, place]
    markers = fixed[:, MARKER_AT]
    if (markers > MARKER_BITS).any():
        raise CodecError(f"among {len(values)} twins one has an unknown marker")
    starts = _telemetry_starts(markers)
    if (lengths < starts).any():
        raise CodecError(f"among {len(values)} twins one is cut off")
    for index in np.flatnonzero(markers & HAS_RARE).tolist():
        rare = np.frombuffer(values[index], dtype=np.uint8, count=RARE_BYTES, offset=FIXED_BYTES)
        for run, place in RARE_PLACES:
            row_bytes[index, run] = rare[place]
    with_extra = np.flatnonzero(markers & HAS_EXTRA)
    extras = {
        index: values[index][start - EXTRA_BYTES : start]
        for index, start in zip(with_extra.tolist(), starts[with_extra].tolist(), strict=True)
    }
    return row_bytes.view(twins.TWIN_DTYPE).ravel(), extras, markers


def split_telemetry(values: Sequence[bytes]) -> tuple[NDArray[np.uint8], list[bytes]]:
    """Telemetry markers and packed telemetry of n stored values."""
    _, _, markers = split_values(values)
    return _split_telemetry(values, markers)


def _split_telemetry(values: Sequence[bytes], markers: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[bytes]]:
    forms = markers & np.uint8(MARKER_BITS & ~(HAS_RARE | HAS_EXTRA))
    if (forms > WITHOUT_ID).any():
        raise CodecError(f"among {len(values)} twins one has telemetry of an unknown form")
    starts = _telemetry_starts(markers).tolist()
    return forms, [value[start:] for value, start in zip(values, starts, strict=True)]


def _telemetry_starts(markers: NDArray[np.uint8]) -> NDArray[np.int64]:
    starts = np.full(len(markers), FIXED_BYTES, dtype=np.int64)
    starts[(markers & HAS_RARE) != 0] += RARE_BYTES
    starts[(markers & HAS_EXTRA) != 0] += EXTRA_BYTES
    return starts


def twin_rows(
    pairs: Sequence[tuple[bytes, bytes]], *, with_telemetry: bool = False, changed_after: int | None = None
) -> commits.TwinRows:
    """Rows of stored (key, value) pairs. changed_after: of those only whose commit number is above it."""
    if changed_after is not None:
        pairs = _changed(pairs, changed_after)
    keys = [pair[0] for pair in pairs]
    values = [pair[1] for pair in pairs]
    rows, extras, markers = split_values(values)
    digests = _beginnings(keys, DIGEST_BYTES).view(DIGEST_VOID).ravel()
    names = [key[DIGEST_BYTES:] for key in keys]
    if not with_telemetry:
        return commits.TwinRows(digests, ids.IdColumn.of_encoded(names), rows, extras, [None] * len(keys))
    device_ids = ids.EncodedIds(names)
    telemetry = kept_telemetry.KeptTelemetry(device_ids, *_split_telemetry(values, markers))
    return commits.TwinRows(digests, device_ids, rows, extras, telemetry)


def _changed(pairs: Sequence[tuple[bytes, bytes]], changed_after: int) -> Sequence[tuple[bytes, bytes]]:
    joined = b"".join([value[COMMIT_AT] for _, value in pairs])
    if len(joined) != len(pairs) * (COMMIT_AT.stop - COMMIT_AT.start):
        raise CodecError(f"among {len(pairs)} twins one is cut off")
    numbers = np.frombuffer(joined, dtype=twins.TWIN_DTYPE["commit"])
    return [pairs[index] for index in np.flatnonzero(numbers > changed_after).tolist()]


def _beginnings(parts: Sequence[bytes], size: int) -> NDArray[np.uint8]:
    """(n, size) the first bytes of each; none is shorter."""
    return np.array(parts, dtype=f"S{size}").view(np.uint8).reshape(len(parts), size)


def _lengths(parts: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))


def number_key(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big")


def key_number(key: bytes) -> int:
    return int.from_bytes(key[:NUMBER_BYTES], "big")


def index_key(last_arrival_ms: int, device_id: str) -> bytes:
    return number_key(last_arrival_ms) + twin_key(device_id)


def index_entry(key: bytes) -> tuple[int, str]:
    return key_number(key), device_id_of(key[NUMBER_BYTES:])


def index_digest(key: bytes) -> bytes:
    return key[NUMBER_BYTES : NUMBER_BYTES + DIGEST_BYTES]


def encode_state(state: commits.PartitionState) -> bytes:
    fields = dataclasses.asdict(state)
    return orjson.dumps(fields)


def decode_state(value: bytes) -> commits.PartitionState:
    fields = _json(value, "the partition's state")
    try:
        fields["position"] = partition.Position(**fields["position"])
        return commits.PartitionState(**fields)
    except (KeyError, TypeError) as error:
        raise CodecError(f"the partition's state can't be read: {error}") from error


def encode_effect(effect: effects.Effect) -> bytes:
    head = [str(effect.target), effect.effect_id, effect.trigger, effect.partition_key, effect.arrival_ms]
    return _with_head(head, effect.data)


def decode_effect(value: bytes) -> effects.Effect:
    head, data = _split_head(value, "an outbox entry")
    try:
        target, effect_id, trigger, partition_key, arrival_ms = head
        return effects.Effect(effects.Target(target), effect_id, trigger, partition_key, arrival_ms, data)
    except ValueError as error:
        raise CodecError(f"an outbox entry can't be read: {error}") from error


def encode_dead_letter(letter: records.DeadLetter) -> bytes:
    head = [
        str(letter.reason),
        letter.detail,
        letter.device_id,
        letter.sequence_number,
        letter.subsequence_number,
        letter.arrival_ms,
        letter.size_bytes,
    ]
    return _with_head(head, letter.data)


def decode_dead_letter(value: bytes) -> records.DeadLetter:
    head, data = _split_head(value, "a dead letter")
    try:
        reason, detail, device_id, sequence_number, subsequence_number, arrival_ms, size_bytes = head
        known = records.Reason(reason)
    except ValueError as error:
        raise CodecError(f"a dead letter can't be read: {error}") from error
    return records.DeadLetter(
        known, detail, device_id, sequence_number, subsequence_number, arrival_ms, data, size_bytes
    )


def encode_identity(identity: partition.PartitionIdentity) -> bytes:
    key_range = identity.hash_key_range
    return orjson.dumps(
        {
            "namespace": identity.namespace,
            "fleet": identity.fleet,
            "stream": identity.stream,
            "shard_id": identity.shard_id,
            "hash_key_range": [str(key_range.start), str(key_range.end)],
        }
    )


def decode_identity(value: bytes) -> partition.PartitionIdentity:
    fields = _json(value, "the partition's identity")
    try:
        start, end = fields.pop("hash_key_range")
        return partition.PartitionIdentity(**fields, hash_key_range=hashing.HashKeyRange(int(start), int(end)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CodecError(f"the partition's identity can't be read: {error}") from error


def _with_head(head: list[object], data: bytes) -> bytes:
    encoded = orjson.dumps(head)
    return len(encoded).to_bytes(4, "big") + encoded + data


def _split_head(value: bytes, what: str) -> tuple[list[Any], bytes]:
    end = 4 + int.from_bytes(value[:4], "big")
    head = _json(value[4:end], what)
    if not isinstance(head, list):
        raise CodecError(f"{what} can't be read: its head is no list")
    return head, value[end:]


def _json(value: bytes, what: str) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise CodecError(f"{what} can't be read: {error}") from error
