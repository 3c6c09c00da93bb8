"""Objects of one kind as the API server has them, kept up to date: listed once, then watched, and listed anew when too much was missed.

A watch that breaks goes on after the last version that it told of; nothing is lost in between, and most breaks cost no list. An API server
that was put back to a backup hasn't reached that version yet: its watches open and say nothing, or are refused as if it were a passing
trouble. So silence, and refusals in a row, lead to a new list too. It
doesn't look into the objects, and it keeps what it has while the API server is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fleet_worker import errors, ports
from fleet_worker.adapters import kubernetes_api

log = logging.getLogger(__name__)

WAIT_S_MIN, WAIT_S_MAX = 0.1, 8.0
"""Before the next try, drawn from 0 to a bound that doubles with each failure."""
NOT_THE_VERSION = (401, 403, 429)
"""Refusals that have nothing to do with from where on is watched."""
STEADY_AFTER_S = 5.0
"""A watch that lasted so long was a good one."""

UNHEARD_MAX = 3
"""Watches in a row that were refused, or ended, without a word of any object."""

Objects = Mapping[str, kubernetes_api.Json]
"""By metadata.name."""


class Backoff:
    """Jittered, bounded."""

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        bound = min(WAIT_S_MAX, WAIT_S_MIN * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return max(at_least_s, random.uniform(0.2, 1.0) * bound)


class Followed:
    """trouble: why nothing new comes just now; "" when all is well."""

    def __init__(
        self, api: kubernetes_api.KubernetesApi, path: str, query: Mapping[str, str], clock: ports.Clock
    ) -> None:
        self.trouble = ""
        self._api = api
        self._path = path
        self._query = query
        self._clock = clock
        self._objects: dict[str, kubernetes_api.Json] | None = None
        self._version = ""
        self._unheard = 0
        self._changed = asyncio.Event()

    async def states(self) -> AsyncGenerator[Objects, None]:
        """All objects: as soon as they are known, then whenever they are others; a slow reader gets the newest only. For one reader at a
        time; never ends."""
        self._changed.set()
        following = asyncio.create_task(self._follow())
        try:
            while True:
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait((changed, following), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if following.done():
                    following.result()
                    raise AssertionError("following never ends")
                self._changed.clear()
                if self._objects is not None:
                    yield dict(self._objects)
        finally:
            following.cancel()
            await asyncio.wait((following,))

    async def _follow(self) -> None:
        backoff = Backoff()
        while True:
            began = self._clock.monotonic()
            wait_s = 0.0
            try:
                if not self._version:
                    await self._list()
                    began = self._clock.monotonic()
                await self._watch()
                self._unheard += 1
            except kubernetes_api.ExpiredError as error:
                log.info("%s: listing anew", error)
                self._version = ""
            except kubernetes_api.SilentError as error:
                self._tell(str(error))
                self._version = ""
            except errors.ControlPlaneUnavailableError as error:
                self._tell(str(error))
                if isinstance(error, kubernetes_api.RefusedError):
                    wait_s = error.retry_after_s
                    self._unheard += error.status not in NOT_THE_VERSION
                    if error.status not in NOT_THE_VERSION and error.status < 500:
                        self._version = ""  # whatever it minds, a new list is the way out of it
            if self._unheard >= UNHEARD_MAX:
                self._version, self._unheard = "", 0
            if self._clock.monotonic() - began >= STEADY_AFTER_S:
                backoff.reset()
                if not self.trouble and not wait_s:
                    continue
            await self._clock.sleep(backoff.next_s(wait_s))

    async def _list(self) -> None:
        answer = await self._api.get(self._path, self._query)
        items, version = answer.get("items"), (answer.get("metadata") or {}).get("resourceVersion")
        if not isinstance(items, list) or not isinstance(version, str) or not version:
            raise errors.ControlPlaneUnavailableError(f"GET {self._path}: what came is no list")
        found = {name: item for item in items if (name := _name(item))}
        if found != self._objects:
            self._objects = found
            self._changed.set()
        self._version = version
        self._over()

    async def _watch(self) -> None:
        """Until it ends or breaks."""
        watching = self._api.watch(self._path, self._query, self._version)
        async with contextlib.aclosing(watching) as events:
            async for event in events:
                self._take(event["type"], event["object"])
                self._unheard = 0
                self._over()

    def _take(self, kind: str, found: dict[str, Any]) -> None:
        assert self._objects is not None
        version, name = (found.get("metadata") or {}).get("resourceVersion"), _name(found)
        if not isinstance(version, str) or not version:
            raise errors.ControlPlaneUnavailableError(f"watching {self._path}: an event without a resourceVersion came")
        self._version = version
        if kind == "BOOKMARK" or not name:
            return
        if kind == "DELETED":
            self._objects.pop(name, None)
        elif kind in ("ADDED", "MODIFIED"):
            self._objects[name] = found
        self._changed.set()

    def _tell(self, trouble: str) -> None:
        if not self.trouble:
            log.warning("the API server is out of reach, going on with what is known: %s", trouble)
        self.trouble = trouble

    def _over(self) -> None:
        if self.trouble:
            log.info("the API server answers again (%s)", self._path)
        self.trouble = ""


def _name(found: object) -> str:
    metadata = found.get("metadata") if isinstance(found, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""
