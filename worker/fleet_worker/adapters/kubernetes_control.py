"""The control plane in Kubernetes, as a worker in its pod sees it: its fleet, the fleet's TwinPartitions, its own word about them.

It asks for nothing but what the fleet's Role allows: to get, list and watch TwinPartitions and the own fleet, and to patch TwinPartitions'
status. At rest it writes nothing. There are no heartbeats (the operator asks workers over HTTP), and the fleet's start is kept in the bucket.
What it can't read of one partition is told, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from fleet_model import parse, rules, sections, spec, twin_partition, twin_partition_document
from fleet_worker import control_plane, errors, ports, waits
from fleet_worker.adapters import kubernetes_api, kubernetes_rules, kubernetes_watch

log = logging.getLogger(__name__)

API = f"/apis/{parse.API_VERSION}/namespaces"
FLEET_LABEL = "fleettwin.io/fleet"
_DEFINITIONS = (
    "are the cluster's definitions of this version? `kubectl apply --server-side -f crds/`, or upgrade the chart"
)
LASTING = {
    400: _DEFINITIONS,
    403: "whether they do: `kubectl auth can-i patch twinpartitions/status --as=system:serviceaccount:NAMESPACE:ACCOUNT`; or an admission "
    "policy is in the way",
    415: _DEFINITIONS,
    422: _DEFINITIONS,
}
"""Refusals that trying again doesn't mend, and what does."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fleet:
    """Whose worker this is."""

    namespace: str
    name: str


class KubernetesControl:
    """What a pod needs of control_plane.ForWorkers, for the one worker in it. waits: where it says what it waits for."""

    def __init__(
        self, api: kubernetes_api.KubernetesApi, fleet: Fleet, clock: ports.Clock, startup: waits.Waits | None = None
    ) -> None:
        self.fleet = fleet
        self.waits = startup or waits.Waits(clock)
        self._api = api
        self._clock = clock
        self._folder = f"{API}/{fleet.namespace}"
        self.rules = kubernetes_rules.FleetRules(api, f"{self._folder}/devicefleets", fleet.name, clock)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, access: kubernetes_api.Access, fleet: Fleet, clock: ports.Clock, startup: waits.Waits | None = None
    ) -> AsyncIterator[KubernetesControl]:
        async with kubernetes_api.KubernetesApi.open(access, clock) as api:
            control = cls(api, fleet, clock, startup)
            try:
                yield control
            finally:
                await control.rules.close()

    async def spec(self) -> spec.FleetSpec:
        """The fleet's, with the default rules: a worker judges by generations only. Waits for a fleet that can be read, and says what it
        waits for."""
        backoff = kubernetes_watch.Backoff()
        path = f"{self._folder}/devicefleets/{self.fleet.name}"
        while True:
            try:
                return readable(await self._api.get(path))
            except kubernetes_api.NotFoundError as error:
                self.waits.tell(f"the fleet {self.fleet.namespace}/{self.fleet.name}, which isn't there: {error}")
            except errors.ControlPlaneUnavailableError as error:
                self.waits.tell(f"the API server: {error}")
            except sections.InvalidFleetError as error:
                self.waits.tell(f"a fleet that can be read: {error}")
            await self._clock.sleep(backoff.next_s())

    def ownership(self, worker: str) -> KubernetesOwnership:
        return KubernetesOwnership(self, worker)

    def follow_generations(self, worker: str) -> AsyncIterator[tuple[rules.RulesGeneration, ...]]:
        return self.rules.follow()

    def rules_known_until_ms(self, worker: str) -> int:
        return self.rules.known_until_ms

    def silent_s(self) -> float:
        """For how long the API server hasn't said anything; while it can't be asked for rules, for how long that lasts."""
        since_s = self._api.heard_at if self.rules.unanswered_since is None else self.rules.unanswered_since
        return self._clock.monotonic() - since_s

    # ── partitions ───────────────────────────────────────────────────────────────────────────────────────────────

    def followed(self) -> kubernetes_watch.Followed:
        query = {"labelSelector": f"{FLEET_LABEL}={self.fleet.name}"}
        return kubernetes_watch.Followed(self._api, f"{self._folder}/twinpartitions", query, self._clock)

    async def read(self, shard_id: str) -> twin_partition.TwinPartition:
        """control_plane.Statuses."""
        with _understood(shard_id):
            return _stored(shard_id, await self._api.get(self._path(shard_id)))

    async def write_status(
        self, shard_id: str, status: twin_partition.Status, resource_version: str
    ) -> twin_partition.TwinPartition:
        """control_plane.Statuses."""
        document = {
            "metadata": {"resourceVersion": resource_version},
            "status": twin_partition_document.status_document(status),
        }
        with _understood(shard_id):
            return _stored(shard_id, await self._api.patch(f"{self._path(shard_id)}/status", document))

    def _path(self, shard_id: str) -> str:
        return f"{self._folder}/twinpartitions/{twin_partition.object_name(self.fleet.name, shard_id)}"


class KubernetesOwnership:
    """ports.Ownership of one worker."""

    def __init__(self, control: KubernetesControl, worker: str) -> None:
        self._control = control
        self._worker = worker
        self._followed = control.followed()
        self._partitions = Partitions()

    @property
    def trouble(self) -> str:
        return self._followed.trouble or self._control.rules.trouble or self._partitions.trouble

    async def assignments(self) -> AsyncIterator[Mapping[str, twin_partition.TwinPartition]]:
        self._followed, self._partitions = self._control.followed(), Partitions()
        partitions = self._partitions
        told: Mapping[str, twin_partition.TwinPartition] | None = None
        async with contextlib.aclosing(self._followed.states()) as states:
            async for state in states:
                found = partitions.read(state)
                if found != told:
                    told = found
                    yield found

    async def report(
        self, shard_id: str, change: Callable[[twin_partition.Status], twin_partition.Status]
    ) -> twin_partition.Status:
        return await control_plane.report(self._control, shard_id, change)

    def look_again(self) -> None:
        """A watch tells at once."""


class Partitions:
    """Reads objects, those that changed only. trouble: what can't be read of them; "" when all can."""

    def __init__(self) -> None:
        self.trouble = ""
        self._read: dict[str, tuple[kubernetes_api.Json, twin_partition.TwinPartition | None, str]] = {}

    def read(self, objects: kubernetes_watch.Objects) -> dict[str, twin_partition.TwinPartition]:
        """By shard id. One that can't be read any more stays as it was read last."""
        self._read = {name: self._one(name, found) for name, found in objects.items()}
        self.trouble = "; ".join(mistake for _, _, mistake in self._read.values() if mistake)[:1_000]
        return {entry.spec.shard_id: entry for _, entry, _ in self._read.values() if entry is not None}

    def _one(
        self, name: str, found: kubernetes_api.Json
    ) -> tuple[kubernetes_api.Json, twin_partition.TwinPartition | None, str]:
        before = self._read.get(name)
        if before is not None and before[0] is found:
            return before
        try:
            return found, twin_partition_document.parse_document(found), ""
        except sections.InvalidFleetError as error:
            mistake = f"TwinPartition {name} can't be read, and stays as it was: {error}"
            if before is None or before[2] != mistake:
                log.error("%s", mistake)
            return found, before[1] if before is not None else None, mistake


def readable(document: kubernetes_api.Json) -> spec.FleetSpec:
    """Without its rules: a mistake in them is the operator's to tell, and keeps no worker from starting. Raises InvalidFleetError."""
    found = document.get("spec")
    rest = {key: value for key, value in (found if isinstance(found, dict) else {}).items() if key not in RULES}
    return parse.parse({**document, "spec": rest})


RULES = ("rules", "profiles")


def _stored(shard_id: str, document: kubernetes_api.Json) -> twin_partition.TwinPartition:
    try:
        read = twin_partition_document.parse_document(document)
    except sections.InvalidFleetError as error:
        raise errors.ControlPlaneUnavailableError(
            f"partition {shard_id}: its TwinPartition can't be read: {error}"
        ) from error
    if read.spec.shard_id != shard_id:
        raise errors.ControlPlaneUnavailableError(
            f"partition {shard_id}: its TwinPartition {read.name} is of shard {read.spec.shard_id}"
        )
    return read


@contextlib.contextmanager
def _understood(shard_id: str) -> Iterator[None]:
    """What a refusal means for what was asked about the partition."""
    try:
        yield
    except kubernetes_api.NotFoundError as error:
        raise errors.PartitionGoneError(f"partition {shard_id}: {error}") from error
    except kubernetes_api.RefusedError as error:
        if error.status not in LASTING:
            raise
        raise errors.ControlPlaneRefusedError(f"partition {shard_id}: {error}", LASTING[error.status]) from error
