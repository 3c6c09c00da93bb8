"""The Lease that one operator holds at a time. Without it nothing is written.

Who holds it, renews it; who wants it, watches whether it changes, by its own clock and not by the times that stand in it, and takes it
when it stood still for its whole duration. A holder that couldn't renew stops earlier than that: the difference is more than a request can
take, so what was begun before the end is over before another begins. All writes are conditional. `step` is one look; nothing waits in here.
"""

from __future__ import annotations

import dataclasses
import datetime
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from fleet_operator import clock, errors, kinds

DURATION_S = 15.0
"""A Lease that stood still for so long is free."""
HELD_S = 9.0
"""A holder acts for so long after the beginning of its last renewal. DURATION_S less this is the margin: more than a request's timeout
(`kubernetes_api.TIMEOUT_S`)."""
RENEW_EVERY_S = 3.0
RETRY_EVERY_S = 1.0


class Api(Protocol):
    """Of `adapters.kubernetes_api.KubernetesApi`."""

    def get(self, kind: kinds.Kind, namespace: str, name: str) -> dict[str, Any]: ...

    def create(self, kind: kinds.Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]: ...

    def replace(self, kind: kinds.Kind, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """identity: of this very process: a restarted one under the same pod's name is another."""

    namespace: str
    name: str
    identity: str


class Lease:
    """step and release from one thread; is_held and check from any."""

    def __init__(self, api: Api, where: Where, now: clock.Clock) -> None:
        self._api, self._where, self._clock = api, where, now
        self._lock = threading.Lock()
        self._held_until_s = 0.0
        self._is_released = False
        self._seen: tuple[object, object, object] | None = None
        self._seen_s = 0.0
        self.trouble = ""
        """Why the last step didn't come to an end; "" when it did."""
        self.answered_s = 0.0
        """Monotonic time of the last answer."""
        self.version = 0
        """metadata.resourceVersion of the last answer."""

    @property
    def is_held(self) -> bool:
        with self._lock:
            return not self._is_released and self._clock.monotonic() < self._held_until_s

    def check(self) -> None:
        """Before each write. Raises NotLeadingError."""
        if not self.is_held:
            raise errors.NotLeadingError("the Lease isn't held any more; another operator may act")

    def step(self) -> float:
        """One look at the Lease; seconds until the next one."""
        began_s = self._clock.monotonic()
        try:
            self._step(began_s)
            self.trouble = ""
        except errors.OperatorError as error:
            self.trouble = str(error)
            return RETRY_EVERY_S
        return RENEW_EVERY_S if self.is_held else RETRY_EVERY_S

    def _step(self, began_s: float) -> None:
        try:
            found = self._api.get(kinds.LEASE, self._where.namespace, self._where.name)
        except errors.MissingError:
            made = {
                "apiVersion": kinds.LEASE.api_version,
                "kind": kinds.LEASE.name,
                "metadata": {"name": self._where.name, "namespace": self._where.namespace},
                "spec": self._spec({}),
            }
            self._hold(self._api.create(kinds.LEASE, self._where.namespace, made), began_s)
            return
        self._answered(found)
        spec = found.get("spec") or {}
        if spec.get("holderIdentity") == self._where.identity or self._is_free(spec, began_s):
            wanted = {**found, "spec": self._spec(spec)}
            self._hold(self._api.replace(kinds.LEASE, self._where.namespace, wanted), began_s)
        else:
            with self._lock:
                self._held_until_s = 0.0

    def _is_free(self, spec: Mapping[str, Any], now_s: float) -> bool:
        """Given back, or not renewed for its whole duration while we looked."""
        if not spec.get("holderIdentity"):
            return True
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_s = seen, now_s
        duration_s = max(DURATION_S, float(spec.get("leaseDurationSeconds") or 0))
        return now_s - self._seen_s >= duration_s

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        moment = datetime.datetime.fromtimestamp(self._clock.now_ms() / 1000, datetime.UTC)
        text = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
        is_ours = before.get("holderIdentity") == self._where.identity
        return {
            "holderIdentity": self._where.identity,
            "leaseDurationSeconds": int(DURATION_S),
            "acquireTime": before.get("acquireTime") if is_ours else text,
            "renewTime": text,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (not is_ours),
        }

    def _hold(self, answer: Mapping[str, Any], began_s: float) -> None:
        self._answered(answer)
        with self._lock:
            self._held_until_s = began_s + HELD_S

    def _answered(self, found: Mapping[str, Any]) -> None:
        self.answered_s = self._clock.monotonic()
        self.version = int(found["metadata"]["resourceVersion"])

    def release(self) -> None:
        """At a clean end, when nothing is being written any more: the next one needn't wait. Raises nothing: who can't give it back, lets
        it run out."""
        with self._lock:
            was_held = self._clock.monotonic() < self._held_until_s
            self._is_released = True
        if not was_held:
            return
        try:
            found = self._api.get(kinds.LEASE, self._where.namespace, self._where.name)
            spec = found.get("spec") or {}
            if spec.get("holderIdentity") == self._where.identity:
                free = {**spec, "holderIdentity": "", "leaseDurationSeconds": 1}
                self._api.replace(kinds.LEASE, self._where.namespace, {**found, "spec": free})
        except errors.OperatorError as error:
            self.trouble = str(error)
