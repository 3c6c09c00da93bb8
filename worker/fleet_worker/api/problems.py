"""Refusals as application/problem+json (RFC 9457): what is wrong, with which parameter, and what to do about it.

A refusal is raised where it is noticed and becomes a response in one middleware. It never carries a stack or a path.
"""

from __future__ import annotations

import http
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from fleet_worker import errors
from fleet_worker.api import directory

RETRY_AFTER_SECONDS = 5
"""For what needs a partition to start or to move."""
RETRY_SOON_SECONDS = 1
"""For what needs others' questions to be answered first."""

CONTENT_TYPE = "application/problem+json"


class ProblemError(Exception):
    """One refusal. kind: its name, stable for programs. members: what else the answer tells (RFC 9457, extension members)."""

    def __init__(
        self, status: int, kind: str, detail: str, *, retry_after_seconds: int | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}
        self.body = {
            "type": f"urn:fleet-twin:problem:{kind}",
            "title": http.HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            **members,
        }

    def response(self) -> web.Response:
        body = orjson.dumps(self.body)
        return web.Response(status=self.status, body=body, content_type=CONTENT_TYPE, headers=self.headers)


def bad_parameter(parameter: str, detail: str, remedy: str) -> ProblemError:
    return ProblemError(400, "bad-parameter", detail, parameter=parameter, remedy=remedy)


def unknown_device(device_id: str, partition: directory.PartitionView) -> ProblemError:
    """Only the running owner may say this."""
    return ProblemError(
        404,
        "unknown-device",
        f"no twin of device {device_id!r}: its partition is running here, and has had no record of it",
        parameter="device_id",
        remedy="check the id: it is the device_id of the telemetry, percent-encoded in the path",
        shard_id=partition.identity.shard_id,
        epoch=partition.epoch,
    )


def not_served(owner: directory.Owner, what: str) -> ProblemError:
    """The partition isn't running here, so nothing can be said, not even that there is nothing."""
    if owner.phase:
        who = f"partition {owner.shard_id} is {owner.phase} at worker {owner.worker or '(none)'}, epoch {owner.epoch}"
    else:
        who = "no partition of this range is known to this worker yet"
    because = f": {owner.message}" if owner.message else ""
    return ProblemError(
        503,
        "partition-not-running",
        f"{what} can't be answered here now; {who}{because}",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        remedy="ask the owner, or ask again after Retry-After",
        shard_id=owner.shard_id or None,
        owner=owner.worker or None,
        epoch=owner.epoch if owner.phase else None,
        phase=owner.phase or None,
    )


def starting(waits_for: str) -> ProblemError:
    """Nothing is known of any partition yet."""
    return ProblemError(
        503,
        "starting",
        f"this worker starts, and waits for {waits_for}",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        remedy="ask again after Retry-After; its log says since when it waits",
    )


def too_many_questions() -> ProblemError:
    return ProblemError(
        503,
        "too-many-questions",
        "too many lists are being made at once",
        retry_after_seconds=RETRY_SOON_SECONDS,
        remedy="ask again after Retry-After, one page at a time",
    )


def of_store(error: errors.FleetTwinError) -> ProblemError:
    return ProblemError(
        503,
        "store-unreadable",
        f"the partition's store could not be read: {error}",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        remedy="ask again after Retry-After; /v1/status tells the partition's state",
    )


def of_http(error: web.HTTPException) -> ProblemError:
    """aiohttp's own refusals (no such route, method not allowed) in the same form."""
    problem = ProblemError(
        error.status, "http", error.reason, remedy="GET / lists the routes; everything here answers to GET only"
    )
    if isinstance(error, web.HTTPMethodNotAllowed):
        problem.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return problem


@web.middleware
async def middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem.response()
    except errors.FleetTwinError as error:
        return of_store(error).response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return of_http(error).response()
