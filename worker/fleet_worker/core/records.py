"""What flows between the steps of a record's way: the shard's answer, the decoded columns, dead letters.

    ShardBatch (source) → decode.decode → Columns → engine.apply → effects.Effect

Nothing here computes; each type says its shapes, dtypes and units.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from numpy.typing import NDArray

from fleet_model import partition
from fleet_worker.core import ids

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
UInt64s = NDArray[np.uint64]

SEQUENCE_LIMBS = 3
LIMB_DIGITS = 19
"""A Kinesis sequence number has up to 56 decimal digits: three limbs of 19 digits, most significant first."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShardBatch:
    """One GetRecords answer, records in stream order.

    sequence_numbers: decimal strings. arrival_ms: (n,) int64, Kinesis' approximate arrival timestamps, milliseconds
    since the epoch, not necessarily rising. data: the records' bytes, base64 already taken off, KPL aggregation not.
    millis_behind: MillisBehindLatest. poll_ms: the answer's Date header, milliseconds since the epoch (Kinesis' clock).
    shard_ended: the answer had no NextShardIterator; nothing comes after this batch. child_shards: as the answer names
    them then. size_bytes: of the answer's body.
    """

    sequence_numbers: list[str]
    arrival_ms: Int64s
    data: list[bytes]
    millis_behind: int
    poll_ms: int
    shard_ended: bool = False
    child_shards: tuple[partition.Shard, ...] = ()
    size_bytes: int = 0


class Kind(enum.IntEnum):
    """What a user record is to the rules. HEARD: refused (it is among the dead letters), but its device id is
    readable, so the device was heard. UNREADABLE: refused, and either without a usable id or a control record, which
    isn't from the device: the rules skip it."""

    TELEMETRY = 0
    HEARD = 1
    CONTROL = 2
    UNREADABLE = 3


class Reason(enum.StrEnum):
    """Why a record or an effect became a dead letter (the `reason` label of the metric)."""

    UNDECODABLE = "undecodable"
    KPL_CHECKSUM = "kpl_checksum"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"
    EMPTY_ID = "empty_id"
    ID_TOO_LONG = "id_too_long"
    STRING_TOO_LONG = "string_too_long"
    JSON_TOO_DEEP = "json_too_deep"
    TIMESTAMP_AHEAD = "timestamp_ahead"
    BAD_CONTROL = "bad_control"
    SECOND_HOP = "second_hop"
    REFUSED_BY_KINESIS = "refused_by_kinesis"


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record (or effect) that can't be processed. data: its first 64 KiB; size_bytes: of all of it."""

    reason: Reason
    detail: str
    device_id: str
    sequence_number: str
    subsequence_number: int
    arrival_ms: int
    data: bytes
    size_bytes: int


class Instruction(enum.StrEnum):
    UPDATE_THRESHOLD = "update_threshold"
    CLEAR_OVERRIDE = "clear_override"
    ACKNOWLEDGE = "acknowledge"
    FORGET_DEVICE = "forget_device"


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """A control record's instruction. issued_ms: milliseconds since the epoch, never 0 (the arrival time stands in).

    rule: rule number (model's TEMPERATURE, BATTERY, OFFLINE), or -1 for every rule. threshold: °C, %/h or, for
    OFFLINE, seconds. alert_id: 32 hex digits, for ACKNOWLEDGE.
    """

    instruction: Instruction
    issued_ms: int
    rule: int = 0
    threshold: float = 0.0
    alert_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Where a record that was put again first arrived."""

    shard_id: str
    sequence_number: str
    subsequence_number: int
    arrival_ms: int
    hop: int


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """A batch, decoded: n user records in stream order (a KPL record gives several).

    device_ids: n ids, "" where UNREADABLE. kind: (n,) uint8 of Kind. all_telemetry: kind is TELEMETRY throughout.
    timestamp_ms: (n,) int64, the device's time made usable: never 0, at most 5 min ahead of arrival; for HEARD and
    CONTROL the arrival time. temperature_c, battery_pct, cpu_load: (n,) float64, finite, |x| <= 1e9; 0.0 unless
    TELEMETRY. arrival_ms: (n,) int64, rising: the highest arrival seen so far in the shard. sequence: (n, 3) uint64
    limbs (see SEQUENCE_LIMBS). subsequence: (n,) uint32. payload: n raw Telemetry messages as protobuf (JSON ones
    serialised), b"" unless TELEMETRY. firmware: n strings, or None when decoding wasn't asked for them.
    controls, origins: by record index, where there is one. dead_letters: in stream order.
    skewed: how many TELEMETRY timestamps lay more than 5 min ahead and were replaced. position: of the last record,
    None when n = 0. high_arrival_ms: arrival_ms' last, or what went in when n = 0.
    """

    device_ids: ids.IdColumn
    kind: NDArray[np.uint8]
    all_telemetry: bool
    timestamp_ms: Int64s
    temperature_c: Float64s
    battery_pct: Float64s
    cpu_load: Float64s
    arrival_ms: Int64s
    sequence: UInt64s
    subsequence: NDArray[np.uint32]
    payload: list[bytes]
    firmware: list[str] | None
    controls: dict[int, Control]
    origins: dict[int, Origin]
    dead_letters: list[DeadLetter]
    skewed: int
    position: partition.Position | None
    high_arrival_ms: int

    def __len__(self) -> int:
        return len(self.device_ids)


def sequence_string(limbs: UInt64s) -> str:
    """The decimal sequence number of one row of limbs, (3,) uint64; "" when all are 0 (nothing heard yet)."""
    high, middle, low = (int(limb) for limb in limbs)
    number = (high * 10**LIMB_DIGITS + middle) * 10**LIMB_DIGITS + low
    return str(number) if number else ""


def sequence_limbs(sequence_numbers: list[str]) -> UInt64s:
    """(n, 3) uint64 limbs of n decimal strings of at most 57 digits.

    The digits are read as words of eight, and a word that is the same in every row is computed once: a shard's numbers
    share their first half.
    """
    count = len(sequence_numbers)
    if count < _LIMBS_COLUMNS_MIN:
        return _limbs_one_by_one(sequence_numbers)
    widths = set(map(len, sequence_numbers))
    if len(widths) > 1:
        widths = {_WORDS * 8}
        sequence_numbers = [number.zfill(_WORDS * 8) for number in sequence_numbers]
    words = _words("".join(sequence_numbers).encode("ascii"), count, widths.pop())
    limbs = np.empty((count, SEQUENCE_LIMBS), dtype=np.uint64)
    # 64 digits are 7 of nothing, then 19 + 19 + 19: the limbs' borders fall after digits 7, 26 and 45.
    ten = [np.uint64(10**power) for power in range(9)]
    limbs[:, 0] = ((words[0] % ten[1] * ten[8] + words[1]) * ten[8] + words[2]) * ten[2] + words[3] // ten[6]
    limbs[:, 1] = (words[3] % ten[6] * ten[8] + words[4]) * ten[5] + words[5] // ten[3]
    limbs[:, 2] = (words[5] % ten[3] * ten[8] + words[6]) * ten[8] + words[7]
    return limbs


_WORDS = 8
"""Eight words of eight digits hold the three limbs' 57."""
_LIMBS_COLUMNS_MIN = 64
"""Below this, counting number by number is quicker."""


def _limbs_one_by_one(sequence_numbers: list[str]) -> UInt64s:
    base = 10**LIMB_DIGITS
    limbs = np.empty((len(sequence_numbers), SEQUENCE_LIMBS), dtype=np.uint64)
    for row, sequence_number in enumerate(sequence_numbers):
        high, low = divmod(int(sequence_number or 0), base)
        limbs[row] = (high // base, high % base, low)
    return limbs


def _words(text: bytes, count: int, width: int) -> list[UInt64s | np.uint64]:
    """The values of eight digits each that `count` numbers of `width` digits are made of, most significant first."""
    text += bytes(8)
    whole, left = divmod(width, 8)
    values: list[UInt64s | np.uint64] = [np.uint64(0)] * (_WORDS - whole)
    if left:  # the first digits go to the word's end
        column = np.ndarray((count,), dtype="<u8", buffer=text, strides=(width,))
        values[-1] = _eight_digits(column << np.uint64(8 * (8 - left)))
    for word in range(whole):
        column = np.ndarray((count,), dtype="<u8", buffer=text, offset=left + 8 * word, strides=(width,))
        values.append(_eight_digits(column))
    return values


def _eight_digits(words: UInt64s) -> UInt64s | np.uint64:
    """The value of eight ASCII digits each, the first in the lowest byte; a single value when all words are the same.

    Neighbours are added up in pairs three times: digits to hundreds, to ten thousands, to the whole.
    """
    if bool((words == words[0]).all()):
        return np.uint64(int(words[:1].tobytes().replace(b"\0", b"0")))
    pairs = (words & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(10) + (
        (words >> np.uint64(8)) & np.uint64(0x0F0F0F0F0F0F0F)
    )
    pairs &= np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs * np.uint64(100) + (pairs >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    return (fours * np.uint64(10_000) + (fours >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
