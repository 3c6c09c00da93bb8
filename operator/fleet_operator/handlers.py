"""Watching, by kopf: every event goes into the cache, which wakes the fleet it belongs to. Nothing is decided by what kind of event it was.

kopf runs in a thread with an event loop of its own, since it ends whatever else runs on its loop when it ends. What it is used for, and what is
kept away from:

- Only `on.event` handlers. kopf writes progress, a last-seen state and finalizers for its other kinds of handlers; for these it writes
  nothing, on no object.
- Silent watches: a stream with no event and no bookmark for `inactivity_timeout` is begun anew; so is one that is older than
  `server_timeout`, whoever kept it open. Sweeps (`sweeping`) find what came through none of it.
- Server-side selectors: other people's pods never come here.
- No scanning for namespaces and resource kinds: a Role is enough. The kinds must be there when it begins.
- No peering: the Lease says who acts.
- When it fails, as it does when the API server says no in a way that it doesn't expect, it is begun anew, after a wait that grows up to
  a maximum.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from fleet_operator import clock, kinds
from fleet_operator.cache import Cache

log = logging.getLogger(__name__)

# The signals are the main thread's, as they should be.
logging.getLogger("kopf._core.reactor.running").addFilter(
    lambda told: "OS signals are ignored" not in told.getMessage()
)

INACTIVE_S = 70.0
"""Bookmarks come each minute."""
STREAM_S = 300
AGAIN_FIRST_S = 1.0
AGAIN_MAX_S = 30.0
STOP_S = 20.0
_IDENTITY: Any = "fleet-twin-operator"
"""Among peers, of which there are none. Without one kopf asks for this user's name, and a user of a pod needs no name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """namespaces: watched ones; none = all of the cluster. lease: its namespace and name."""

    namespaces: tuple[str, ...]
    lease: tuple[str, str]


class Watches:
    """beat: called for each event of the Lease; again: when watching ended and is begun anew. From a thread of its own."""

    def __init__(
        self, scope: Scope, cache: Cache, now: clock.Clock, beat: Callable[[], None], again: Callable[[], None]
    ) -> None:
        self._scope, self._cache, self._clock = scope, cache, now
        self._beat, self._again = beat, again
        self._thread = threading.Thread(target=self._work, name="watches", daemon=True)
        self._stop = threading.Event()
        self._loop_stop: Callable[[], None] = lambda: None
        self._random = random.Random()
        self.down_since_s: float | None = now.monotonic()
        """Since when nothing is watched; None while something is."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Blocking, for STOP_S at most."""
        self._stop.set()
        self._loop_stop()
        if self._thread.is_alive():  # whoever ends before it began has nothing to wait for
            self._thread.join(STOP_S)

    def _work(self) -> None:
        wait_s = AGAIN_FIRST_S
        while not self._stop.is_set():
            began_s, self.down_since_s = self._clock.monotonic(), None
            try:
                asyncio.run(self._watch())
            except Exception:
                log.exception("watching ended; it is begun anew")
            self.down_since_s = self._clock.monotonic()
            if self._stop.is_set():
                return
            self._again()
            wait_s = AGAIN_FIRST_S if self._clock.monotonic() - began_s > 60 else min(AGAIN_MAX_S, wait_s * 2)
            self._stop.wait(wait_s * self._random.uniform(0.5, 1.0))

    async def _watch(self) -> None:
        """Until told to stop, or until kopf gives up."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop_it() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(stop.set)

        self._loop_stop = stop_it
        namespaces = list(self._scope.namespaces)
        everything = asyncio.create_task(
            kopf.operator(
                registry=self._registry(),
                settings=_settings(),
                namespaces=namespaces,
                clusterwide=not namespaces,
                standalone=True,
                identity=_IDENTITY,
                stop_flag=stop,
            )
        )
        heartbeat = asyncio.create_task(
            kopf.operator(
                registry=self._heartbeat_registry(),
                settings=_settings(self._scope.lease[1]),
                namespaces=[self._scope.lease[0]],
                standalone=True,
                identity=_IDENTITY,
                stop_flag=stop,
            )
        )
        if self._stop.is_set():
            stop.set()
        done, pending = await asyncio.wait((everything, heartbeat), return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=STOP_S) if pending else None
        for task in done:
            task.result()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        _logs_in(registry)
        for kind in kinds.WATCHED:
            self._watch_kind(registry, kind)
        return registry

    def _watch_kind(self, registry: kopf.OperatorRegistry, kind: kinds.Kind) -> None:
        async def seen(event: Mapping[str, Any], **_: object) -> None:
            self._cache.event(kind, event["type"], dict(event["object"]))

        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)(seen)

    def _heartbeat_registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        _logs_in(registry)

        async def seen(**_: object) -> None:
            self._beat()

        kind = kinds.LEASE
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)(seen)
        return registry


def _logs_in(registry: kopf.OperatorRegistry) -> None:
    async def log_in(**given: Any) -> kopf.ConnectionInfo | None:
        """Called again when the API server says 401: a service account's token is another one each hour."""
        return kopf.login_with_service_account(**given) or kopf.login_via_client(**given)

    kopf.on.login(registry=registry)(log_in)


def _settings(only_name: str = "") -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = (1, 2, 4, 8)
    settings.watching.inactivity_timeout = INACTIVE_S
    settings.watching.server_timeout = STREAM_S
    settings.watching.client_timeout = STREAM_S + INACTIVE_S
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 0.5
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = 1.0
    settings.process.ultimate_exiting_timeout = None
    if only_name:
        settings.watching.field_selectors[kinds.LEASE.group, kinds.LEASE.version, kinds.LEASE.plural] = (
            f"metadata.name={only_name}"
        )
    for kind in kinds.WATCHED:
        if kind.selector:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    return settings
