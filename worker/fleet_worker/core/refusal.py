"""Why a record is refused, and the limits that every form of telemetry is held to.

`Refused` is how the readers of single records tell `decode` that one becomes a dead letter. It never leaves `decode`:
a batch with poison in it decodes like any other.
"""

from __future__ import annotations

from fleet_worker.core import records

DEVICE_ID_BYTES_MAX = 256
"""LMDB keys end at 511 bytes, Kinesis partition keys at 256 characters."""
STRING_BYTES_MAX = 1024
NUMBER_MAX = 1e9
SKEW_MS_MAX = 300_000
"""A clock further ahead of arrival than this isn't believed; the arrival time is used."""
AHEAD_MS_MAX = 86_400_000
"""A time further ahead of arrival than this refuses the record."""


class Refused(Exception):
    """One record is a dead letter. device_id: "" when it isn't usable. heard: whether the device itself spoke (not so
    for a control record, which somebody else sends)."""

    def __init__(self, reason: records.Reason, detail: str, device_id: str = "", heard: bool = True) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.device_id = device_id
        self.heard = heard and device_id != ""


def check_device_id(device_id: str) -> None:
    """Raises Refused unless a twin can be kept under this id."""
    if not device_id:
        raise Refused(records.Reason.EMPTY_ID, "device_id is empty or missing")
    size_bytes = len(device_id.encode())
    if size_bytes > DEVICE_ID_BYTES_MAX:
        raise Refused(
            records.Reason.ID_TOO_LONG, f"device_id has {size_bytes} bytes of UTF-8, more than {DEVICE_ID_BYTES_MAX}"
        )
