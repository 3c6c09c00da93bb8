"""A list of the whole fleet, page by page in key order, from whichever worker has the next stretch of it.

A worker gives its pages up to a hash range that it doesn't serve; there it names the owner and the cursor to go on from. So the list comes
out as if one worker had it all, whatever moves meanwhile. What nobody answers for ends the command, unless the caller wants what there
is: then it is left out, and told by name. Nothing is ever left out in silence.
"""

from __future__ import annotations

import dataclasses

import click

from fleet_cli import api, console

PAGE_MAX = 1000
HOPS_MAX = 4
"""Workers that are asked for one page, one naming the next."""
NOT_RUNNING = "urn:fleet-twin:problem:partition-not-running"


@dataclasses.dataclass(frozen=True, slots=True)
class _Missing:
    """A stretch that nobody answers for. words: whose it is, as far as anybody knows. next: the cursor behind it; None: it was the
    last, or that isn't known."""

    words: str
    next: str | None


def pages(url: str, path: str, name: str, parameters: api.Json, limit: int, *, partial: bool) -> list[api.Json]:
    """Up to `limit` entries, beginning at the worker with this address. partial: stretches that nobody answers for are left out and
    told on standard error."""
    walk = _Walk(url, path, name)
    found: list[api.Json] = []
    missing: list[_Missing] = []
    cursor: str | None = None
    while len(found) < limit:
        answer = walk.page({**parameters, "limit": min(PAGE_MAX, limit - len(found)), "cursor": cursor})
        if isinstance(answer, _Missing):
            if not partial:
                console.fail(
                    f"The list can't be complete: {answer.words}.\nAsk again in a moment, or add --partial for what there is.",
                    console.EXIT_NOT_READY,
                )
            missing.append(answer)
            following = answer.next
        else:
            found += answer[name]
            following = answer.get("next")
        if following is None:
            break
        if following == cursor:
            console.fail(
                f"The worker at {walk.address} gives the same page again and again. Is it a Fleet Twin worker?"
            )
        cursor = following
    _tell(missing)
    return found[:limit]


def _tell(missing: list[_Missing]) -> None:
    if missing:
        click.echo(f"Not the whole fleet, {len(missing)} of its hash ranges left out:", err=True)
    for stretch in missing:
        click.echo(f"  {stretch.words}", err=True)


class _Walk:
    """name: of the list in an answer. address: who is asked first for the next page."""

    def __init__(self, url: str, path: str, name: str) -> None:
        self.address = url
        self._name = name
        self._url = url
        self._path = path

    def page(self, parameters: api.Json) -> api.Json | _Missing:
        """Ends the command when it isn't a matter of who has it, and when the very worker that the user named doesn't answer."""
        refused: api.RefusedError | None = None
        unreachable: api.UnreachableError | None = None
        address: str | None = self.address
        asked: set[str] = set()
        while address is not None and address not in asked and len(asked) < HOPS_MAX:
            asked.add(address)
            try:
                answer = api.get(address, self._path, parameters)
            except api.RefusedError as error:
                if error.problem.get("type") != NOT_RUNNING:
                    error.tell()
                further = error.problem.get("cursor")
                if further is not None and further != parameters["cursor"]:  # up to there it has nothing
                    self.address = error.owner or address
                    return {self._name: [], "next": further}
                refused, address = error, error.owner
            except api.UnreachableError as error:
                if address == self._url and refused is None:
                    error.tell()
                # Whoever had the stretch before is gone; the first one may know who has it now.
                unreachable, address = error, self._url if refused is None else None
            else:
                self.address = address
                return answer
        assert refused is not None, "an owner was asked without anybody naming it"
        return _missing(refused, unreachable)


def _missing(refused: api.RefusedError, unreachable: api.UnreachableError | None) -> _Missing:
    problem = refused.problem
    if problem.get("shard_id"):
        owner = problem.get("owner") or "no worker"
        words = f"partition {problem['shard_id']} is {problem.get('phase')} at {owner}, epoch {problem.get('epoch')}"
    else:
        key_range = problem.get("hash_key_range") or {}
        words = f"nobody knows of a partition with the hash keys {key_range.get('start')} to {key_range.get('end')}"
    if unreachable is not None and unreachable.url == refused.owner:
        words += f"; {unreachable}"
    elif problem.get("owner") and refused.owner is None:
        words += "; its address isn't known here: ask it with --url, or name the control folder in FLEET_TWIN_CONTROL"
    return _Missing(words, problem.get("next"))
