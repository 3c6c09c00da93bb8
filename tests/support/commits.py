"""Builders of twin rows and commits, so that a test says only what it is about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleet_model import hashing, partition
from fleet_worker.core import commits, effects, records, twins

FIRST_ARRIVAL_MS = 1_700_000_000_000


def twin_rows(
    device_ids: Sequence[str],
    *,
    last_arrival_ms: int = FIRST_ARRIVAL_MS,
    commit_number: int = 1,
    telemetry: dict[str, bytes | None] | None = None,
    extras: dict[str, bytes] | None = None,
) -> commits.TwinRows:
    """Rows of the ids in key order, each made different by `samples`, its place among the given ids + 1.

    telemetry: by id; an id that isn't named gets b"telemetry of <id>". extras: by id, sets Flag.EXTRA.
    """
    places = {device_id: place for place, device_id in enumerate(device_ids)}
    ordered = sorted(places, key=lambda device_id: (hashing.digest(device_id), device_id.encode()))
    rows = np.zeros(len(ordered), dtype=twins.TWIN_DTYPE)
    rows["last_arrival_ms"] = last_arrival_ms
    rows["commit"] = commit_number
    rows["samples"] = [places[device_id] + 1 for device_id in ordered]
    given_extras = extras or {}
    kept_extras = {index: given_extras[name] for index, name in enumerate(ordered) if name in given_extras}
    rows["flags"][list(kept_extras)] = twins.Flag.EXTRA
    given_telemetry = telemetry or {}
    raw = [given_telemetry.get(name, f"telemetry of {name}".encode()) for name in ordered]
    return commits.TwinRows(digests(ordered), ordered, rows, kept_extras, raw)


def digests(device_ids: Sequence[str]) -> np.ndarray:
    """(n,) V16 of MD5."""
    return np.frombuffer(b"".join(hashing.digest(device_id) for device_id in device_ids), dtype=np.dtype("V16"))


def extra(number: float = 0.0) -> bytes:
    """The bytes of one EXTRA_DTYPE, every override set to `number`."""
    value = np.zeros((), dtype=twins.EXTRA_DTYPE)
    value["override"] = number
    return value.tobytes()


def raw_telemetry(device_id: str, rest: bytes = b"\x10\x01") -> bytes:
    """A canonical Telemetry: field 1 first. rest: the other fields, encoded."""
    encoded = device_id.encode()
    assert len(encoded) < 128
    return b"\x0a" + bytes([len(encoded)]) + encoded + rest


def state(number: int = 1, **changed: object) -> commits.PartitionState:
    """A state whose every field depends on the commit number."""
    fields: dict[str, object] = {
        "position": partition.Position(str(49_590_338_271_490_256_608_559_692_538 + number), number),
        "clock_ms": FIRST_ARRIVAL_MS + number,
        "high_arrival_ms": FIRST_ARRIVAL_MS + 2 * number,
        "commit_number": number,
        "outbox_next": number + 1,
    }
    return commits.PartitionState(**(fields | changed))  # type: ignore[arg-type]


def commit(
    device_ids: Sequence[str] | commits.TwinRows = (),
    *,
    number: int = 1,
    deleted: Sequence[str] = (),
    outbox: tuple[Sequence[effects.OutboxEntry], Sequence[int]] = ((), ()),
    dead_letters: Sequence[records.DeadLetter] = (),
    index: tuple[Sequence[tuple[int, str]], Sequence[tuple[int, str]]] = ((), ()),
) -> commits.Commit:
    """A commit of twins by id (or ready rows). outbox, index: (added, removed)."""
    rows = device_ids if isinstance(device_ids, commits.TwinRows) else twin_rows(device_ids, commit_number=number)
    return commits.Commit(
        state=state(number),
        twins=rows,
        deleted=list(deleted),
        outbox_added=list(outbox[0]),
        outbox_removed=list(outbox[1]),
        dead_letters=list(dead_letters),
        index_added=list(index[0]),
        index_removed=list(index[1]),
    )


def outbox_entry(number: int, device_id: str = "device-7", data: bytes = b"\x00alert") -> effects.OutboxEntry:
    effect = effects.Effect(
        effects.Target.ALERTS, f"{number:032x}", "temp_spike", device_id, FIRST_ARRIVAL_MS + number, data
    )
    return effects.OutboxEntry(number, effect)


def dead_letter(number: int, data: bytes = b"\xff\x00") -> records.DeadLetter:
    return records.DeadLetter(
        records.Reason.UNDECODABLE, f"letter {number}", "device-7", str(number), 0, FIRST_ARRIVAL_MS, data, len(data)
    )
