"""A small cluster of plain values that carries the operator's plans out: workers, and Kubernetes' controllers, do what they should."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from fleet_model import hashing, partition, twin_partition, twin_partition_document
from fleet_model.twin_partition import Phase, Status, TwinPartition
from fleet_operator import actions, history, naming, observed, plan, workers
from tests.support import operator_objects as objects

NOW_MS = 1_700_000_000_000
STREAM = "device-telemetry"


def document(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((objects.GOLDEN / "minimal.fleet.yaml").read_text())
    found["spec"].update({"replicas": 2, **changes})
    return found


def shards(count: int) -> list[partition.Shard]:
    edges = [2**128 * number // count for number in range(count + 1)]
    return [
        partition.Shard(f"shardId-{number:012d}", hashing.HashKeyRange(edges[number], edges[number + 1] - 1))
        for number in range(count)
    ]


class Cluster:
    """What a plan is made from, and what carrying it out makes of it. Workers and the StatefulSet's controller do what they should when
    `settle` is called."""

    def __init__(self, **changes: Any) -> None:
        self.document = document(**changes)
        self.now_ms = NOW_MS
        self.owner = objects.OWNER
        self.status: dict[str, Any] = {}
        self.has_finalizer = False
        self.deletion: observed.Deletion | None = None
        self.children: dict[tuple[str, str], dict[str, Any]] = {}
        self.claims: dict[str, observed.Claim] = {}
        self.pods: dict[str, workers.Pod] = {}
        self.partitions: dict[str, TwinPartition] = {}
        self.revisions: dict[str, dict[str, Any]] = {}
        self.shards: list[partition.Shard] | None = shards(4)
        self.silent: set[str] = set()
        self.broken = ""
        self.done: list[actions.Action] = []
        self.events: list[str] = []
        self.writes = 0
        self._made = 0

    # ── look, plan, act ──────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> observed.Look:
        newest = int((self.status.get("rules") or {}).get("generation") or 0)
        answers = {
            name: workers.Answer(self.now_ms, True, newest) for name, pod in self.pods.items() if self._answers(pod)
        }
        lost = dict.fromkeys(self.silent, self.now_ms - 60000)
        return observed.Look(
            now_ms=self.now_ms,
            namespace="depot",
            owner=self.owner,
            reading=observed.read(self.document),
            defaults=objects.DEFAULTS,
            has_finalizer=self.has_finalizer,
            deletion=self.deletion,
            status=self.status,
            children=self.children,
            claims=list(self.claims.values()),
            pods=list(self.pods.values()),
            signs=workers.Signs(answers, nodes_ms={f"node-{name}": lost.get(name, self.now_ms) for name in self.pods}),
            partitions=list(self.partitions.values()),
            shards=self.shards,
            rules=self._rules(),
            watching_since_ms=NOW_MS - 60_000,
        )

    def _rules(self) -> observed.Rules:
        published = history.published(history.packed_in(self.status))
        revisions = history.read_revisions(list(self.revisions.values()))
        return observed.Rules(revisions, self.now_ms + 1_000, 0, published=published)

    def _answers(self, pod: workers.Pod) -> bool:
        return pod.running and not pod.terminating and pod.name not in self.silent

    def round(self, stop_after: int | None = None) -> actions.Plan:
        """stop_after: the operator is killed after so many actions."""
        made = plan.plan(self.look())
        self.events += [event.reason for event in made.events]
        for action in made.actions[:stop_after]:
            self._act(action)
        return made

    def _act(self, action: actions.Action) -> None:
        self.done.append(action)
        match action:
            case actions.AddFinalizer():
                self.has_finalizer = True
            case actions.RemoveFinalizer():
                self.has_finalizer = False
            case actions.WriteStatus(status):
                self.status = status
            case actions.Apply(manifest):
                self._apply(manifest)
            case actions.Create(manifest):
                self._create(manifest)
            case actions.Delete("ControllerRevision", name):
                del self.revisions[name]
            case actions.Delete(kind, name, uid, orphan):
                assert self.children.pop((kind, name))["metadata"]["uid"] == uid
                assert orphan == (kind == "StatefulSet")
            case actions.GrowClaim(name, size):
                self.claims[name] = observed.Claim(name, size)
            case actions.ChangePartition(entry):
                kept = self.partitions[entry.spec.shard_id]
                assert entry.spec.epoch > kept.spec.epoch or entry.spec.worker == kept.spec.worker
                self.partitions[entry.spec.shard_id] = dataclasses.replace(kept, spec=entry.spec)
            case actions.DeletePartition(entry):
                del self.partitions[entry.spec.shard_id]
            case actions.RestartPod(name, uid):
                if self.pods[name].uid == uid:
                    self.pods[name] = dataclasses.replace(self.pods[name], terminating=True, ready=False)

    def _apply(self, manifest: dict[str, Any]) -> None:
        key = manifest["kind"], manifest["metadata"]["name"]
        metadata = {**manifest["metadata"], "uid": f"uid of {key}", "generation": 1}
        self.children[key] = {**manifest, "metadata": metadata, "status": {"observedGeneration": 1}}

    def _create(self, manifest: dict[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ControllerRevision":
            assert name not in self.revisions
            self.revisions[name] = manifest
        else:
            entry = twin_partition_document.parse_document(manifest)
            assert entry.spec.shard_id not in self.partitions
            self.partitions[entry.spec.shard_id] = entry

    # ── the others ───────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self) -> None:
        """Pods as the StatefulSet says, workers as their partitions say. A broken template makes broken pods."""
        self.now_ms += 5_000
        found = self.children.get(("StatefulSet", "trucks"))
        if found is not None:
            self._pods(found)
        for shard_id, entry in self.partitions.items():
            self.partitions[shard_id] = dataclasses.replace(entry, status=self._status_of(entry))

    def _pods(self, found: dict[str, Any]) -> None:
        wanted = [naming.worker("trucks", number) for number in range(found["spec"]["replicas"])]
        template = found["spec"]["template"]["metadata"]["labels"][naming.TEMPLATE_HASH]
        size = found["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
        for name, pod in list(self.pods.items()):
            if name not in self.silent and (pod.terminating or name not in wanted):
                del self.pods[name]
        for number, name in enumerate(wanted):
            self.claims.setdefault(f"twins-{name}", observed.Claim(f"twins-{name}", size))
            if name in self.pods:
                is_well = not self.pods[name].broken
                self.pods[name] = dataclasses.replace(self.pods[name], ready=is_well, running=is_well)
            else:
                self._made += 1
                is_bad = self.broken == template
                self.pods[name] = workers.Pod(
                    name=name,
                    ordinal=number,
                    uid=f"pod {self._made}",
                    template=template,
                    created_ms=self.now_ms,
                    node=f"node-{name}",
                    running=not is_bad,
                    broken="CrashLoopBackOff" if is_bad else "",
                )

    def _status_of(self, entry: TwinPartition) -> Status:
        spec, status = entry.spec, entry.status
        checkpoint = twin_partition.CheckpointStatus("key", spec.epoch, self.now_ms // 600_000 * 600_000, "1")
        if spec.worker in self.pods and self._answers(self.pods[spec.worker]):
            has_released = status.phase is Phase.RELEASED or not status.epoch or spec.takeover == spec.epoch
            if has_released or status.worker == spec.worker:
                standby = tuple(twin_partition.StandbyStatus(name, 1, True) for name in spec.standby)
                return Status(Phase.RUNNING, spec.worker, spec.epoch, "n", 10, checkpoint, standby=standby)
        is_held = status.phase is Phase.RUNNING and status.worker != spec.worker
        if is_held and status.worker in self.pods and self._answers(self.pods[status.worker]):
            return dataclasses.replace(status, phase=Phase.RELEASED)
        return status

    def run(self, rounds: int = 40) -> None:
        """Until nothing is left to do."""
        for _ in range(rounds):
            before = (self.status, dict(self.partitions), dict(self.pods), dict(self.children), len(self.done))
            self.round()
            self.settle()
            if before == (self.status, dict(self.partitions), dict(self.pods), dict(self.children), len(self.done)):
                return
        raise AssertionError(f"never settled: {self.condition('Progressing')} {self.condition('Stalled')}")

    def condition(self, kind: str) -> tuple[str, str]:
        (found,) = (each for each in self.status["conditions"] if each["type"] == kind)
        return found["status"], found["reason"]

    @property
    def replicas(self) -> int:
        return int(self.children["StatefulSet", "trucks"]["spec"]["replicas"])

    def owners(self) -> set[str]:
        return {entry.spec.worker for entry in self.partitions.values()}


def running(**changes: Any) -> Cluster:
    cluster = Cluster(**changes)
    cluster.run()
    cluster.done.clear()
    cluster.events.clear()
    return cluster
