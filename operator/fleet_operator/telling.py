"""Posts what a plan has to tell of a fleet as Events of Kubernetes, seen in `kubectl describe`. Only turns are told; it decides nothing.

An Event that can't be posted is logged and not tried again: the conditions say the same, and they last.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fleet_operator import actions, clock, errors, kinds, naming, status
from fleet_operator.adapters import kubernetes_api
from fleet_operator.kinds import FleetKey

log = logging.getLogger(__name__)

COMPONENT = "fleet-twin-operator"
PLAN_MAX = 16
"""Events of one plan that are posted."""
PLAN_S_MAX = 10.0
"""None is begun later than this after the first one: the fleet's next round waits for it."""


class Telling:
    """check: raises NotLeadingError. instance: of the operator's process."""

    def __init__(
        self, api: kubernetes_api.KubernetesApi, check: Callable[[], None], now: clock.Clock, instance: str
    ) -> None:
        self._api, self._check, self._clock, self._instance = api, check, now, instance

    def tell(self, fleet: FleetKey, document: Mapping[str, Any], made: actions.Plan) -> None:
        until_s = self._clock.monotonic() + PLAN_S_MAX
        for event in made.events[:PLAN_MAX]:
            if self._clock.monotonic() >= until_s:
                log.warning("fleet %s: not all events are told: the API server is slow", "/".join(fleet))
                return
            try:
                self._check()
                self._api.create(kinds.EVENT, fleet[0], self._manifest(document, event))
            except errors.ConflictError:
                continue  # it was told already
            except errors.OperatorError as error:
                log.warning("fleet %s: the event %s can't be told: %s", "/".join(fleet), event.reason, error)
                return

    def _manifest(self, document: Mapping[str, Any], event: status.Event) -> naming.Manifest:
        metadata = document["metadata"]
        now_ms = self._clock.now_ms()
        moment = status.time_text(now_ms)
        unique = naming.digest([metadata["uid"], metadata["resourceVersion"], event.type, event.reason, event.message])
        micro = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC).isoformat(timespec="microseconds")
        return {
            "apiVersion": kinds.EVENT.api_version,
            "kind": kinds.EVENT.name,
            "metadata": {"name": f"{metadata['name']}.{unique}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": kinds.FLEET.api_version,
                "kind": kinds.FLEET.name,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "action": "Reconcile",
            "count": 1,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "eventTime": micro.replace("+00:00", "Z"),
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance[:128],
            "source": {"component": COMPONENT},
        }
