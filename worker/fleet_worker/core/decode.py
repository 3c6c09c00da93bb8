"""Decoding: a shard's answer becomes columns, and what can't become one a dead letter.

This is the hottest code of a worker, so a record is looked at by itself only when it has to be: messages of the usual
layout are read as columns (`wire`), other protobuf by its own parser, and ranges are judged for a whole batch at once.
How a batch is cut never changes what a record becomes. Nothing is dropped: each user record is one entry of the
columns, and each refused one a dead letter besides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from google.protobuf import message
from numpy.typing import NDArray

from fleet_model import partition, spec
from fleet_proto import fleet_pb2
from fleet_worker.core import deaggregate, decode_control, decode_json, ids, records, refusal, wire

DEAD_LETTER_BYTES_MAX = 65_536
PAYLOAD_BYTES_MAX = 4096
"""A Telemetry whose strings are within their limits never needs more. A longer payload is stuffed with unknown fields,
which are then left out, since a twin keeps its last Telemetry in memory."""
USUAL_RECORDS_MIN = 256
"""Below this, reading columns of bytes costs more than it spares."""
SPECIAL_TAGS = (b"\xa2\x06", b"\xaa\x06")
"""How the fields `origin` (100) and `control` (101) begin. A record without these bytes has neither."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """format: of the telemetry stream. high_arrival_ms: the shard's highest arrival so far. with_firmware: whether the
    columns need it. usual_layout: False leaves all protobuf to its own parser (what the benchmarks compare with)."""

    format: spec.Format = spec.Format.AUTO
    high_arrival_ms: int = 0
    with_firmware: bool = False
    usual_layout: bool = True


def decode(batch: records.ShardBatch, options: Options) -> records.Columns:
    """The columns of a batch. Raises nothing, whatever the records hold."""
    stretch = _Stretch.of(batch.data)
    users = deaggregate.user_records(batch.data, stretch.first_bytes)
    if users.owner is not None:
        stretch = _Stretch.of(users.data)
    draft = _Draft(batch, users, stretch, options)
    for row, refused in users.broken.items():
        draft.refuse(row, refused)
    rest = draft.read_usual()
    draft.read_messages(rest)
    draft.judge_strings()
    draft.judge_numbers()
    draft.judge_times()
    return draft.columns()


@dataclasses.dataclass(frozen=True, slots=True)
class _Stretch:
    """Records laid end to end, padded. start, end, length: (n,) int64."""

    joined: bytes
    start: records.Int64s
    end: records.Int64s
    length: records.Int64s

    @classmethod
    def of(cls, data: list[bytes]) -> _Stretch:
        length = np.fromiter(map(len, data), dtype=np.int64, count=len(data))
        end = np.cumsum(length)
        return cls(b"".join([*data, wire.PADDING]), end - length, end, length)

    @property
    def first_bytes(self) -> NDArray[np.uint8]:
        """(n,) of each record; of an empty one, that of what follows it."""
        return np.frombuffer(self.joined, dtype=np.uint8)[self.start]


class _Draft:
    """The columns while they are being filled, row by row number. Of several reasons to refuse a row the first counts:
    what can't be read, its id, its origin and instruction, its strings, its numbers, its time."""

    def __init__(
        self, batch: records.ShardBatch, users: deaggregate.UserRecords, stretch: _Stretch, options: Options
    ) -> None:
        count = len(users.data)
        self.batch = batch
        self.users = users
        self.stretch = stretch
        self.options = options
        self.device_ids = ids.IdColumn.empty(count)
        self.firmware = [""] * count if options.with_firmware else None
        self.numbers = np.zeros((len(decode_json.NUMBERS), count))
        self.timestamp_ms = np.zeros(count, dtype=np.int64)
        self.payload = users.data
        self.controls: dict[int, records.Control] = {}
        self.origins: dict[int, records.Origin] = {}
        self.refused: dict[int, refusal.Refused] = {}
        arrival = np.maximum.accumulate(np.maximum(batch.arrival_ms, options.high_arrival_ms))
        self.arrival_ms = arrival if users.owner is None else arrival[users.owner]

    def refuse(self, row: int, refused: refusal.Refused) -> None:
        self.refused.setdefault(row, refused)

    # --- reading -----------------------------------------------------------------------------------------------

    def read_usual(self) -> Sequence[int]:
        """Fills the rows of the usual layout; the numbers of the other rows, refused ones left out."""
        count = len(self.users.data)
        if count < USUAL_RECORDS_MIN or not self.options.usual_layout or self.options.format is spec.Format.JSON:
            return [row for row in range(count) if row not in self.refused] if self.refused else range(count)
        usual = wire.read(self.stretch.joined, self.stretch.start, self.stretch.end, self.options.with_firmware)
        self.device_ids = usual.device_ids
        self.firmware = usual.firmware
        if usual.fits.all():
            self.timestamp_ms = usual.timestamp_ms
            self.numbers = usual.numbers
            return ()
        self.timestamp_ms[usual.fits] = usual.timestamp_ms[usual.fits]
        self.numbers[:, usual.fits] = usual.numbers[:, usual.fits]
        return [row for row in np.flatnonzero(~usual.fits).tolist() if row not in self.refused]

    def read_messages(self, rows: Sequence[int]) -> None:
        """Fills rows one message at a time, JSON or protobuf."""
        if not rows:
            return
        special = self._special_rows()
        texts = self._json_texts(rows, special)
        messages = self._parse(rows, texts)
        if self.refused:
            rows = [row for row, telemetry in zip(rows, messages, strict=True) if telemetry is not None]
        read = [telemetry for telemetry in messages if telemetry is not None]
        self._fill(rows, read)
        if not special and not texts:
            return
        self.payload = list(self.payload)
        for row, telemetry in zip(rows, read, strict=True):
            if row in texts:
                self.payload[row] = telemetry.SerializeToString()
            if row in special or (row in texts and telemetry.HasField("control")):
                self._read_special(row, telemetry)

    def _special_rows(self) -> set[int]:
        """Rows whose bytes hold a tag of `origin` or `control`; now and then another field's bytes look like one."""
        byte = np.frombuffer(self.stretch.joined, dtype=np.uint8)
        at = np.flatnonzero(byte[1:] == SPECIAL_TAGS[0][1])
        at = at[(byte[at] == SPECIAL_TAGS[0][0]) | (byte[at] == SPECIAL_TAGS[1][0])]
        row = np.searchsorted(self.stretch.end, at, side="right")
        inside = at + 1 < self.stretch.end[row]
        return set(row[inside].tolist())

    def _json_texts(self, rows: Sequence[int], special: set[int]) -> dict[int, bytes]:
        """JSON text by row, for the rows that are JSON."""
        data = self.users.data
        if self.options.format is spec.Format.PROTOBUF:
            return {}
        if self.options.format is spec.Format.JSON:
            # Workers put records again as protobuf, whatever the stream's own format is.
            texts = {row: decode_json.text_of(data[row]) for row in rows}
            return {
                row: data[row] if text is None else text for row, text in texts.items() if text or row not in special
            }
        may_be = decode_json.may_be_text(self.stretch.joined, self.stretch.start, self.stretch.length)
        candidates = np.flatnonzero(may_be).tolist()
        if len(rows) < len(data):
            candidates = sorted(set(candidates).intersection(rows))
        found = ((row, decode_json.text_of(data[row])) for row in candidates)
        return {row: text for row, text in found if text is not None}

    def _parse(self, rows: Sequence[int], texts: dict[int, bytes]) -> list[fleet_pb2.Telemetry | None]:
        """The rows' messages, None where refused."""
        if texts:
            return [self._parse_one(row, texts.get(row)) for row in rows]
        data = self.users.data
        messages: list[fleet_pb2.Telemetry | None] = []
        left = map(fleet_pb2.Telemetry.FromString, data if len(rows) == len(data) else [data[row] for row in rows])
        while len(messages) < len(rows):
            try:
                messages.extend(left)
            except message.DecodeError as error:
                # What came before it is in the list, and `left` goes on after it.
                self.refuse(rows[len(messages)], _undecodable(error))
                messages.append(None)
        return messages

    def _parse_one(self, row: int, text: bytes | None) -> fleet_pb2.Telemetry | None:
        try:
            if text is not None:
                return decode_json.telemetry(text)
            telemetry = fleet_pb2.Telemetry.FromString(self.users.data[row])
        except refusal.Refused as refused:
            self.refuse(row, refused)
            return None
        except message.DecodeError as error:
            self.refuse(row, _undecodable(error))
            return None
        if self.options.format is spec.Format.JSON and not (
            telemetry.HasField("origin") or telemetry.HasField("control")
        ):
            self.refuse(row, refusal.Refused(records.Reason.UNDECODABLE, "not JSON"))
            return None
        return telemetry

    def _fill(self, rows: Sequence[int], read: list[fleet_pb2.Telemetry]) -> None:
        columns = [
            [telemetry.temperature_c for telemetry in read],
            [telemetry.battery_pct for telemetry in read],
            [telemetry.cpu_load for telemetry in read],
        ]
        device_ids = [telemetry.device_id for telemetry in read]
        timestamp_ms = [telemetry.timestamp for telemetry in read]
        if len(read) == len(self.device_ids):
            self.device_ids = ids.IdColumn.of(device_ids)
            self.timestamp_ms = np.array(timestamp_ms, dtype=np.int64)
            for index, column in enumerate(columns):
                self.numbers[index] = column
            if self.firmware is not None:
                self.firmware = [telemetry.firmware for telemetry in read]
            return
        self.timestamp_ms[rows] = timestamp_ms
        self.numbers[:, rows] = columns
        self.device_ids.fill(rows, device_ids)
        if self.firmware is not None:
            for row, telemetry in zip(rows, read, strict=True):
                self.firmware[row] = telemetry.firmware

    def _read_special(self, row: int, telemetry: fleet_pb2.Telemetry) -> None:
        """Origin and control, where there are any."""
        arrival_ms = int(self.arrival_ms[row])
        try:
            if telemetry.HasField("origin"):
                refusal.check_device_id(telemetry.device_id)
                origin = decode_control.origin(telemetry, arrival_ms)
                self.origins[row] = origin
                arrival_ms = origin.arrival_ms
            if telemetry.HasField("control"):
                refusal.check_device_id(telemetry.device_id)
                self.controls[row] = decode_control.instruction(telemetry, arrival_ms)
        except refusal.Refused as refused:
            self.refuse(row, refused)
            return
        if row in self.origins:
            telemetry.ClearField("origin")  # a twin's last Telemetry is what its device sent
            self.payload[row] = telemetry.SerializeToString()

    # --- judging -----------------------------------------------------------------------------------------------

    def judge_strings(self) -> None:
        """Refuses unusable ids and long strings. No string is longer than its record, so few rows are looked at."""
        is_empty = self.device_ids.length == 0
        if is_empty.any():
            for row in self._standing(np.flatnonzero(is_empty).tolist()):
                self._judge_device_id(row)
        for row in self._standing(np.flatnonzero(self.stretch.length > refusal.DEVICE_ID_BYTES_MAX).tolist()):
            self._judge_device_id(row)
        for row in self._standing(np.flatnonzero(self.stretch.length > refusal.STRING_BYTES_MAX).tolist()):
            if row not in self.controls:
                self._judge_payload(row)

    def _judge_device_id(self, row: int) -> None:
        try:
            refusal.check_device_id(self.device_ids[row])
        except refusal.Refused as refused:
            self.refuse(row, refused)

    def _judge_payload(self, row: int) -> None:
        telemetry = fleet_pb2.Telemetry.FromString(self.payload[row])
        for name in decode_json.STRINGS:
            size_bytes = len(getattr(telemetry, name).encode())
            if size_bytes > refusal.STRING_BYTES_MAX:
                detail = f"{name} has {size_bytes} bytes, more than {refusal.STRING_BYTES_MAX}"
                self.refuse(row, refusal.Refused(records.Reason.STRING_TOO_LONG, detail, telemetry.device_id))
                return
        if len(self.payload[row]) > PAYLOAD_BYTES_MAX:
            telemetry.DiscardUnknownFields()
            self.payload = list(self.payload)
            self.payload[row] = telemetry.SerializeToString()

    def judge_numbers(self) -> None:
        """Refuses NaN, infinities and numbers that no sensor sends."""
        if not len(self.device_ids):
            return
        suspect = ~(np.abs(self.numbers).max(axis=0) <= refusal.NUMBER_MAX)  # NaN is neither below nor above
        if not suspect.any():
            return
        for row in self._standing(np.flatnonzero(suspect).tolist()):
            if row in self.controls:
                continue
            values = self.numbers[:, row].tolist()
            reason = records.Reason.OUT_OF_RANGE if np.isfinite(values).all() else records.Reason.NOT_FINITE
            wrong = [
                f"{name} is {value!r}"
                for name, value in zip(decode_json.NUMBERS, values, strict=True)
                if not abs(value) <= refusal.NUMBER_MAX
            ]
            self.refuse(row, refusal.Refused(reason, ", ".join(wrong), self.device_ids[row]))

    def judge_times(self) -> None:
        """Replaces missing and skewed times by the record's (first) arrival, and refuses those far ahead."""
        arrival_ms = self.arrival_ms
        if self.origins:
            arrival_ms = arrival_ms.copy()
            for row, origin in self.origins.items():
                arrival_ms[row] = origin.arrival_ms
        ahead = self.timestamp_ms > arrival_ms + refusal.SKEW_MS_MAX
        unusable = ahead | (self.timestamp_ms <= 0)
        self.ahead = ahead
        if not unusable.any():
            return
        for row in self._standing(np.flatnonzero(self.timestamp_ms > arrival_ms + refusal.AHEAD_MS_MAX).tolist()):
            if row not in self.controls:
                detail = f"timestamp {self.timestamp_ms[row]} is more than 24 h ahead of arrival {arrival_ms[row]}"
                self.refuse(row, refusal.Refused(records.Reason.TIMESTAMP_AHEAD, detail, self.device_ids[row]))
        self.timestamp_ms = np.where(unusable, arrival_ms, self.timestamp_ms)

    def _standing(self, rows: list[int]) -> list[int]:
        """Those of the rows that nothing has refused so far."""
        return [row for row in rows if row not in self.refused] if self.refused else rows

    # --- the result --------------------------------------------------------------------------------------------

    def columns(self) -> records.Columns:
        count = len(self.device_ids)
        batch, subsequence = self.batch, self.users.subsequence
        kind = np.zeros(count, dtype=np.uint8)
        if self.refused or self.controls:
            self._blank(kind)
        sequence = records.sequence_limbs(batch.sequence_numbers)
        return records.Columns(
            device_ids=self.device_ids,
            kind=kind,
            all_telemetry=not (self.refused or self.controls),
            timestamp_ms=self.timestamp_ms,
            temperature_c=self.numbers[0],
            battery_pct=self.numbers[1],
            cpu_load=self.numbers[2],
            arrival_ms=self.arrival_ms,
            sequence=sequence if self.users.owner is None else sequence[self.users.owner],
            subsequence=subsequence,
            payload=self.payload,
            firmware=self.firmware,
            controls=self.controls,
            origins=self.origins,
            dead_letters=[self._dead_letter(row, self.refused[row]) for row in sorted(self.refused)],
            skewed=int(np.count_nonzero(self.ahead & (kind == records.Kind.TELEMETRY))),
            position=partition.Position(batch.sequence_numbers[-1], int(subsequence[-1])) if count else None,
            high_arrival_ms=int(self.arrival_ms[-1]) if count else self.options.high_arrival_ms,
        )

    def _blank(self, kind: NDArray[np.uint8]) -> None:
        """Rows that aren't telemetry tell their kind, their arrival and, if the rules may use it, their id; no more."""
        self.payload = list(self.payload)
        for row in self.controls:
            kind[row] = records.Kind.CONTROL
        for row, refused in self.refused.items():
            kind[row] = records.Kind.HEARD if refused.heard else records.Kind.UNREADABLE
            self.device_ids[row] = refused.device_id if refused.heard else ""
        for row in (*self.controls, *self.refused):
            self.payload[row] = b""
            if self.firmware is not None:
                self.firmware[row] = ""
        blank = kind != records.Kind.TELEMETRY
        self.numbers[:, blank] = 0.0
        self.timestamp_ms = np.where(blank, self.arrival_ms, self.timestamp_ms)

    def _dead_letter(self, row: int, refused: refusal.Refused) -> records.DeadLetter:
        data = self.users.data[row]
        return records.DeadLetter(
            reason=refused.reason,
            detail=refused.detail,
            device_id=refused.device_id,
            sequence_number=self.batch.sequence_numbers[row if self.users.owner is None else self.users.owner[row]],
            subsequence_number=int(self.users.subsequence[row]),
            arrival_ms=int(self.arrival_ms[row]),
            data=data[:DEAD_LETTER_BYTES_MAX],
            size_bytes=len(data),
        )


def _undecodable(error: message.DecodeError) -> refusal.Refused:
    return refusal.Refused(records.Reason.UNDECODABLE, f"not protobuf: {error}")
