"""Keys and values of a partition's LMDB databases: bytes from values, and back.

    twins          MD5(device id) + device id → row, [extra], [marker + telemetry]
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
from fleet_worker.core import commits, effects, records, twins

DIGEST_BYTES = 16
ROW_BYTES = twins.TWIN_DTYPE.itemsize
EXTRA_BYTES = twins.EXTRA_DTYPE.itemsize
ROW_VOID = np.dtype((np.void, ROW_BYTES))
DIGEST_VOID = np.dtype((np.void, DIGEST_BYTES))
NUMBER_BYTES = 8

WHOLE = b"\x00"
"""Marker: the telemetry follows as it came."""
WITHOUT_ID = b"\x01"
"""Marker: the telemetry follows without its first field, tag + length + the key's device id."""
FIRST_FIELDS = [b"\x0a" + bytes([length]) for length in range(128)]
"""Tag and length of Telemetry.device_id by the id's byte length; longer ids are left where they are."""
ID_BYTES_MAX = 256
"""As decoding allows; it keeps keys below LMDB's 511 bytes."""


class CodecError(ValueError):
    """Stored bytes that this version can't have written."""


def twin_key(device_id: str) -> bytes:
    return hashing.digest(device_id) + device_id.encode()


def twin_keys(digests: NDArray[np.void], device_ids: Sequence[str]) -> list[bytes]:
    """Keys of n twins. digests: (n,) V16."""
    return list(map(operator.add, digests.tolist(), map(str.encode, device_ids)))


def sorted_keys(device_ids: Iterable[str]) -> list[bytes]:
    """Keys of those ids that can be stored at all, ascending, each once."""
    keys = {twin_key(device_id) for device_id in device_ids}
    return sorted(key for key in keys if DIGEST_BYTES < len(key) <= DIGEST_BYTES + ID_BYTES_MAX)


def device_id_of(key: bytes) -> str:
    return key[DIGEST_BYTES:].decode()


def telemetry_tail(key: bytes, telemetry: bytes) -> bytes:
    """The stored form of a raw Telemetry."""
    device_id = key[DIGEST_BYTES:]
    if len(device_id) < 128 and telemetry.startswith(FIRST_FIELDS[len(device_id)] + device_id):
        return WITHOUT_ID + telemetry[2 + len(device_id) :]
    return WHOLE + telemetry


def tail_telemetry(key: bytes, tail: bytes) -> bytes | None:
    """The raw Telemetry of a stored tail; None when there is none."""
    if not tail:
        return None
    if tail[:1] == WITHOUT_ID:
        device_id = key[DIGEST_BYTES:]
        return FIRST_FIELDS[len(device_id)] + device_id + tail[1:]
    if tail[:1] == WHOLE:
        return tail[1:]
    raise CodecError(f"telemetry of {device_id_of(key)!r} has the unknown marker {tail[0]}")


def tail_of(key: bytes, value: bytes) -> bytes:
    """What follows the row (and its extra) in a stored value."""
    if len(value) < ROW_BYTES:
        raise CodecError(f"twin {device_id_of(key)!r} has {len(value)} bytes, less than a row's {ROW_BYTES}")
    flags_at = FLAGS_OFFSET
    flags = int.from_bytes(value[flags_at : flags_at + 2], "little")
    start = ROW_BYTES + EXTRA_BYTES if flags & twins.Flag.EXTRA else ROW_BYTES
    if len(value) < start:
        raise CodecError(f"twin {device_id_of(key)!r} has {len(value)} bytes, its extra is cut off")
    return value[start:]


def _flags_offset() -> int:
    fields = twins.TWIN_DTYPE.fields
    assert fields is not None
    dtype, offset = fields["flags"][:2]
    assert dtype == np.dtype("<u2"), "tail_of reads the flags as two little-endian bytes"
    return int(offset)


FLAGS_OFFSET = _flags_offset()


def twin_values(keys: list[bytes], rows: NDArray[np.void], extras: dict[int, bytes], tails: list[bytes]) -> list[bytes]:
    """Values of n twins; tails as telemetry_tail makes them, b"" for none."""
    heads: list[bytes] = np.ascontiguousarray(rows).view(ROW_VOID).tolist()
    for index in np.flatnonzero(rows["flags"] & twins.Flag.EXTRA).tolist():
        extra = extras[index]
        assert len(extra) == EXTRA_BYTES, f"{device_id_of(keys[index])}: {len(extra)} bytes of extra"
        heads[index] += extra
    return list(map(operator.add, heads, tails))


def twin_rows(pairs: Sequence[tuple[bytes, bytes]]) -> commits.TwinRows:
    """Rows of stored pairs, telemetry left out."""
    keys = [pair[0] for pair in pairs]
    joined = bytearray().join([pair[1][:ROW_BYTES] for pair in pairs])
    if len(joined) != len(pairs) * ROW_BYTES:
        raise CodecError(f"among {len(pairs)} twins one has less than a row's {ROW_BYTES} bytes")
    rows = np.frombuffer(joined, dtype=twins.TWIN_DTYPE)
    extras = {}
    for index in np.flatnonzero(rows["flags"] & twins.Flag.EXTRA).tolist():
        extra = pairs[index][1][ROW_BYTES : ROW_BYTES + EXTRA_BYTES]
        if len(extra) != EXTRA_BYTES:
            raise CodecError(f"twin {device_id_of(keys[index])!r}: its extra is cut off")
        extras[index] = extra
    digests = np.frombuffer(bytearray().join([key[:DIGEST_BYTES] for key in keys]), dtype=DIGEST_VOID)
    device_ids = [str(key[DIGEST_BYTES:], "utf-8") for key in keys]
    return commits.TwinRows(digests, device_ids, rows, extras, [None] * len(pairs))


def number_key(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big")


def key_number(key: bytes) -> int:
    return int.from_bytes(key[:NUMBER_BYTES], "big")


def index_key(last_arrival_ms: int, device_id: str) -> bytes:
    return number_key(last_arrival_ms) + twin_key(device_id)


def index_entry(key: bytes) -> tuple[int, str]:
    return key_number(key), device_id_of(key[NUMBER_BYTES:])


def encode_state(state: commits.PartitionState) -> bytes:
    fields = dataclasses.asdict(state)
    return orjson.dumps(fields)


def decode_state(value: bytes) -> commits.PartitionState:
    fields = _json(value, "the partition's state")
    try:
        position = partition.Position(**fields.pop("position"))
        return commits.PartitionState(position=position, **fields)
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
