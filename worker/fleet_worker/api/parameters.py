"""Query parameters and cursors, read strictly: what isn't known or can't be read is refused by name, never ignored."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from fleet_model import rules
from fleet_worker.api import filters, problems, walk
from fleet_worker.core import records, twins

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
CURSOR_VERSION = b"\x01"
DEVICE_ID_BYTES_MAX = 256
TEXT_CHARACTERS_MAX = 256

Reader = Callable[[str, str], Any]
"""(parameter, text) → value; raises problems.ProblemError."""

ALERT_FLAGS = {
    **dict(zip(rules.TRIGGERS, (1 << rule for rule in range(len(rules.TRIGGERS))), strict=True)),
    "any": int(twins.Flag.ANY_OPEN),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Paging:
    """Where a page starts, how many devices it holds at most, and whether ranges that aren't served may be left out."""

    after: walk.Key = walk.BEFORE_ALL
    limit: int = LIMIT_DEFAULT
    partial: bool = False


def read(request: web.Request, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The parameters given, by name; each at most once, none unknown."""
    values: dict[str, Any] = {}
    for name, text in request.query.items():
        if name not in readers:
            known = ", ".join(readers) or "none"
            raise problems.bad_parameter(name, f"unknown parameter {name!r}", f"known here: {known}")
        if name in values:
            raise problems.bad_parameter(name, f"{name} is given twice", "give it once")
        values[name] = readers[name](name, text)
    return values


def device_id(request: web.Request, prefix: str) -> str:
    """The rest of the path after `prefix`, percent-decoded once: ids may hold slashes, and percent signs."""
    text = request.rel_url.raw_path[len(prefix) :]
    try:
        decoded = urllib.parse.unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise problems.bad_parameter("device_id", "not UTF-8 after percent-decoding", "percent-encode UTF-8") from None
    if not decoded or len(decoded.encode()) > DEVICE_ID_BYTES_MAX:
        raise problems.bad_parameter(
            "device_id",
            f"{len(decoded.encode())} bytes long",
            f"a device id has 1 to {DEVICE_ID_BYTES_MAX} UTF-8 bytes",
        )
    return decoded


def boolean(parameter: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise problems.bad_parameter(parameter, f"{text!r} is neither true nor false", "give true or false")
    return text == "true"


def limit(parameter: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= LIMIT_MAX and len(text) <= 4):
        raise problems.bad_parameter(
            parameter, f"{text[:20]!r} is not a number of items", f"give a whole number from 1 to {LIMIT_MAX}"
        )
    return int(text)


def score(parameter: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 100:
        raise problems.bad_parameter(parameter, f"{text[:20]!r} is not a score", "give a number above 0, at most 100")
    return value


def alert(parameter: str, text: str) -> int:
    """Flags of the open alerts meant."""
    if text not in ALERT_FLAGS:
        raise problems.bad_parameter(parameter, f"{text[:40]!r} is no trigger", f"give one of {', '.join(ALERT_FLAGS)}")
    return ALERT_FLAGS[text]


def some_text(parameter: str, text: str) -> str:
    if not 1 <= len(text) <= TEXT_CHARACTERS_MAX:
        raise problems.bad_parameter(
            parameter, f"{len(text)} characters long", f"give 1 to {TEXT_CHARACTERS_MAX} characters"
        )
    return text


def cursor(parameter: str, text: str) -> walk.Key:
    """The key after which the next page starts, as `next` of the page before gave it."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if raw[:1] != CURSOR_VERSION or not 17 <= len(raw) <= 17 + DEVICE_ID_BYTES_MAX:
            raise ValueError("not a cursor of this version")
        return int.from_bytes(raw[1:17], "big"), raw[17:].decode()
    except (binascii.Error, ValueError):
        raise problems.bad_parameter(
            parameter, "not a cursor of this API", "give the `next` of the page before, unchanged, or leave it out"
        ) from None


def cursor_text(key: walk.Key) -> str:
    raw = CURSOR_VERSION + key[0].to_bytes(16, "big") + key[1].encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def reason(parameter: str, text: str) -> str:
    """Of a dead letter."""
    known = [entry.value for entry in records.Reason]
    if text not in known:
        raise problems.bad_parameter(parameter, f"{text[:40]!r} is no reason", f"give one of {', '.join(known)}")
    return text


PAGING: dict[str, Reader] = {"limit": limit, "cursor": cursor, "partial": boolean}


def paging(values: Mapping[str, Any]) -> Paging:
    return Paging(
        after=values.get("cursor", walk.BEFORE_ALL),
        limit=values.get("limit", LIMIT_DEFAULT),
        partial=values.get("partial", False),
    )


TWINS: dict[str, Reader] = {
    "offline": boolean,
    "alert": alert,
    "health_below": score,
    "prefix": some_text,
    "firmware": some_text,
    "profile": some_text,
    **PAGING,
}


def wanted(values: Mapping[str, Any]) -> filters.Wanted:
    """The filters of /v1/twins; all of them must match."""
    any_of = [values["alert"]] if "alert" in values else []
    if values.get("offline") is True:
        any_of.append(int(twins.Flag.OPEN_OFFLINE))
    return filters.Wanted(
        any_of=tuple(any_of),
        none_of=int(twins.Flag.OPEN_OFFLINE) if values.get("offline") is False else 0,
        health_below=values.get("health_below"),
        prefix=values.get("prefix", ""),
        firmware=values.get("firmware"),
        profile=values.get("profile"),
    )
