"""A namespace of its own with a fleet and a stream, for tests of the operator as a process."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

from tests.support import operator_process, played_workers
from tests.support.api_server import ApiServer
from tests.support.operator_process import Fleet

WAIT_S = 60.0
_numbers = itertools.count(1)


class Scene:
    """server, endpoint: of the API server and of Kinesis. kubeconfig: of an operator that has the rights of a namespaced install."""

    def __init__(self, server: ApiServer, endpoint: str, folder: Path) -> None:
        self.server, self.endpoint = server, endpoint
        self.namespace = f"operator-{next(_numbers)}"
        self.stream = f"telemetry-{self.namespace}"
        server.make_namespace(self.namespace, {"pod-security.kubernetes.io/enforce": "restricted"})
        self.kubeconfig = operator_process.kubeconfig(server, self.namespace, folder)
        self.fleet = Fleet(server, self.namespace, "trucks")

    def apply(self, **spec: object) -> None:
        manifest = operator_process.document(self.namespace, "trucks", self.endpoint, **spec)
        manifest["spec"]["streams"]["telemetry"]["name"] = self.stream
        self.fleet.create(manifest)

    def until(self, condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
        try:
            self.server.wait(condition, what, seconds)
        except AssertionError as error:
            said = json.dumps(self.fleet.status(), indent=1) if self.fleet.exists() else "the fleet is gone"
            entries = "\n".join(map(repr, self.fleet.partitions()))
            raise AssertionError(f"{error}\n{said}\n{entries}") from error

    def play_until(
        self, played: played_workers.Played, condition: Callable[[], object], what: str, seconds: float = WAIT_S
    ) -> None:
        """The workers do what they should meanwhile."""

        def holds() -> object:
            played.play()
            return condition()

        self.until(holds, what, seconds)
