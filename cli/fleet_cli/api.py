"""Asks a worker's HTTP API, for the commands that show things. Standard library only: these commands start quickly.

Every way an answer can fail ends the command with what happened and what to do.
"""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NoReturn

import click

from fleet_cli import console

TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 64 * 2**20
STARTING = "urn:fleet-twin:problem:starting"
URL_DEFAULT = "http://127.0.0.1:8080"

Json = dict[str, Any]

url_option = click.option(
    "--url",
    envvar="FLEET_TWIN_URL",
    default=URL_DEFAULT,
    show_default=True,
    show_envvar=True,
    metavar="URL",
    help="A worker's HTTP API.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
partial_option = click.option(
    "--partial", is_flag=True, help="Show what there is, even if parts of the fleet can't be asked; they are named."
)


def twin_path(device_id: str) -> str:
    return "/v1/twins/" + urllib.parse.quote(device_id, safe="")


class RefusedError(Exception):
    """A worker answered, and not with what was asked for. problem: its own words (RFC 9457), {} when it has none."""

    def __init__(self, url: str, status: int, reason: str, problem: Json) -> None:
        super().__init__(str(problem.get("detail") or reason))
        self.url = url
        self.status = status
        self.reason = reason
        self.problem = problem

    @property
    def owner(self) -> str | None:
        """Where the worker that has it is, if it is elsewhere and that can be known here."""
        return address_of(self.problem.get("owner")) if self.status == 503 else None

    def tell(self) -> NoReturn:
        """Ends the command with what was said, and the exit code that goes with it."""
        if "detail" not in self.problem:
            console.fail(f"{self.url} answers {self.status} {self.reason}: is it a Fleet Twin worker? Check --url.")
        detail, remedy = str(self.problem["detail"]), str(self.problem.get("remedy") or "")
        codes = {400: console.EXIT_USAGE, 404: console.EXIT_NOT_FOUND, 503: console.EXIT_NOT_READY}
        console.fail(detail + (f"\n{remedy}" if remedy else ""), codes.get(self.status, console.EXIT_FAILED))


class UnreachableError(Exception):
    """Nobody answers there."""

    def __init__(self, url: str, reason: object) -> None:
        super().__init__(f"no worker answers at {url} ({reason})")
        self.url = url
        self.reason = reason

    def tell(self) -> NoReturn:
        console.fail(
            f"No worker answers at {self.url} ({self.reason}).\n"
            "Is it running? Start one with `fleet-twin demo` or `fleet-twin worker`, or give its address with --url or "
            "FLEET_TWIN_URL.",
            console.EXIT_NOT_READY,
        )


class StartingError(UnreachableError):
    """A worker is there, and not so far yet that it knows anything. problem: its own words."""

    def __init__(self, url: str, problem: Json) -> None:
        super().__init__(url, str(problem.get("detail") or "it starts"))
        self.problem = problem

    def tell(self) -> NoReturn:
        console.fail(
            f"{self.url}: {self.reason}.\nAsk again in a moment; {self.url.rstrip('/')}/readyz tells what it waits for.",
            console.EXIT_NOT_READY,
        )


def ask(url: str, path: str, parameters: Json | None = None) -> Json:
    """GET as JSON. Ends the command when there is no good answer. A worker that says who else has it is believed once, if that one's
    address is known."""
    try:
        try:
            return get(url, path, parameters)
        except RefusedError as refused:
            if refused.owner is None:
                raise
            return get(refused.owner, path, parameters)
    except (RefusedError, UnreachableError) as error:
        error.tell()


def get(url: str, path: str, parameters: Json | None = None) -> Json:
    """GET as JSON from this worker and no other. Raises RefusedError, UnreachableError; ends the command when it is no worker at all."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise click.BadParameter(f"{url!r} is no http:// or https:// address", param_hint="--url")
    query = urllib.parse.urlencode(
        {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in (parameters or {}).items()
            if value is not None
        }
    )
    address = url.rstrip("/") + path + (f"?{query}" if query else "")
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            body = answer.read(ANSWER_BYTES_MAX)
    except urllib.error.HTTPError as error:
        problem = _problem(error)
        if problem.get("type") == STARTING:
            raise StartingError(url, problem) from error
        raise RefusedError(url, error.code, error.reason, problem) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise UnreachableError(url, getattr(error, "reason", error)) from error
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        console.fail(f"What answers at {url} is no Fleet Twin worker. Check --url.")
    return told


def _problem(error: urllib.error.HTTPError) -> Json:
    """The API's own words (application/problem+json); {} when it has none."""
    try:
        problem = json.loads(error.read(ANSWER_BYTES_MAX))
    except (ValueError, http.client.HTTPException, OSError):
        return {}
    return problem if isinstance(problem, dict) else {}


def address_of(worker: object) -> str | None:
    """Where the worker's API is, by the control folder of FLEET_TWIN_CONTROL or of the running demo; None when that isn't known."""
    if not isinstance(worker, str):
        return None
    from fleet_cli import running
    from fleet_worker import errors
    from fleet_worker.adapters import control_files

    try:
        folder = os.environ.get("FLEET_TWIN_CONTROL")
        control = pathlib.Path(folder) if folder else running.find().control
        beat = control_files.ControlFiles(control).heartbeats().get(worker)
    except errors.FleetTwinError:
        return None
    return beat.address if beat is not None else None
