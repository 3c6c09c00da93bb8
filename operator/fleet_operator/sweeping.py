"""Lists everything, each minute, whatever the watches say: what they missed is put right, and that they missed it is told.

Reads only. Blocking; for a thread of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fleet_operator import clock, kinds
from fleet_operator.adapters import kubernetes_api
from fleet_operator.cache import Cache
from fleet_operator.metrics import Metrics

log = logging.getLogger(__name__)

EVERY_S = 60.0


class Sweeping:
    """namespaces: none = all of the cluster."""

    def __init__(
        self,
        api: kubernetes_api.KubernetesApi,
        cache: Cache,
        namespaces: Sequence[str],
        metrics: Metrics,
        now: clock.Clock,
    ) -> None:
        self._api, self._cache, self._metrics, self._clock = api, cache, metrics, now
        self._scopes: list[str | None] = list(namespaces) or [None]
        self.swept_s: float | None = None
        """Monotonic time of the last whole sweep's beginning; None before the first."""
        self.late: dict[str, int] = {}
        """Objects by kind whose events didn't come from one sweep to the next."""

    def sweep(self) -> None:
        """Raises ApiUnavailableError; RefusedError where a right is missing; MissingError where a kind isn't installed."""
        began_s, late = self._clock.monotonic(), dict[str, int]()
        for kind in kinds.WATCHED:
            for namespace in self._scopes:
                listed = self._api.list(kind, namespace)
                # Lists leave these out of their items.
                named = [{**found, "apiVersion": kind.api_version, "kind": kind.name} for found in listed.objects]
                missed = self._cache.swept(kind, namespace, named, listed.version, began_s)
                if missed:
                    late[kind.name] = late.get(kind.name, 0) + len(missed)
                    self._metrics.events_missed.labels(kind.name).inc(len(missed))
                    log.warning("watching %s missed %s", kind.plural, ", ".join("/".join(name) for name in missed[:5]))
        self.swept_s, self.late = began_s, late
        self._metrics.fleets.set(len(self._cache.fleets()))
