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
PAGE_MAX = 1000
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
    "--partial", is_flag=True, help="Show what this worker has, even if parts of the fleet are not served here."
)


def twin_path(device_id: str) -> str:
    return "/v1/twins/" + urllib.parse.quote(device_id, safe="")


def ask(url: str, path: str, parameters: Json | None = None, is_sent_on: bool = False) -> Json:
    """GET as JSON. Ends the command when there is no good answer. A worker that says who else has it is asked in turn, if its address
    is known; is_sent_on: that was done."""
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
        owner = None if is_sent_on or error.code != 503 else _address_of(problem.get("owner"))
        if owner is not None:
            return ask(owner, path, parameters, is_sent_on=True)
        _refused(url, error, problem)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        console.fail(
            f"No worker answers at {url} ({reason}).\n"
            "Is it running? Start one with `fleet-twin demo` or `fleet-twin worker`, or give its address with --url or "
            "FLEET_TWIN_URL.",
            console.EXIT_NOT_READY,
        )
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


def _address_of(worker: object) -> str | None:
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


def _refused(url: str, error: urllib.error.HTTPError, problem: Json) -> NoReturn:
    """Says why, and picks the exit code."""
    if "detail" not in problem:
        console.fail(f"{url} answers {error.code} {error.reason}: is it a Fleet Twin worker? Check --url.")
    detail, remedy = str(problem["detail"]), str(problem.get("remedy") or "")
    message = detail + (f"\n{remedy}" if remedy else "")
    if error.code == 404:
        console.fail(message, console.EXIT_NOT_FOUND)
    if error.code == 503:
        console.fail(message, console.EXIT_NOT_READY)
    console.fail(message, console.EXIT_USAGE if error.code == 400 else console.EXIT_FAILED)


def pages(url: str, path: str, name: str, parameters: Json, limit: int) -> list[Json]:
    """Up to `limit` entries of a paged list, asking for as many pages as it takes."""
    found: list[Json] = []
    cursor: str | None = None
    while len(found) < limit:
        answer = ask(url, path, {**parameters, "limit": min(PAGE_MAX, limit - len(found)), "cursor": cursor})
        found += answer[name]
        if answer.get("missing") and cursor is None:
            click.echo(f"{len(answer['missing'])} ranges of the fleet are not served here and left out.", err=True)
        cursor = answer.get("next")
        if cursor is None:
            break
    return found[:limit]
