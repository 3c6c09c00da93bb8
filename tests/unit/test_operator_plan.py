"""The operator's whole plan for a fleet: scenes on a small cluster of plain values that carries the plans out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from fleet_model import control, generations, hashing, partition, twin_partition, twin_partition_document
from fleet_model.twin_partition import Phase, Status, TwinPartition
from fleet_operator import actions, history, naming, observed, plan, pod_template, reasons, workers
from tests.unit import test_operator_resources as objects

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
            rules=observed.Rules(history.read_revisions(list(self.revisions.values())), self.now_ms + 1_000, 0),
            watching_since_ms=NOW_MS - 60_000,
        )

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


# ── the beginning, and rest ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_fleet_comes_up() -> None:
    cluster = Cluster()
    cluster.run()
    assert isinstance(cluster.done[0], actions.AddFinalizer)
    assert cluster.condition("Ready") == ("True", "AllPartitionsRunning")
    assert cluster.condition("RulesApplied") == ("True", "EveryWorkerJudges")
    assert cluster.condition("Stalled") == ("False", "NotStalled")
    assert cluster.status["partitions"] == {"total": 4, "running": 4, "moving": 0, "failed": 0}
    assert (cluster.status["replicas"], cluster.status["readyReplicas"], cluster.status["twins"]) == (2, 2, 40)
    assert cluster.status["selector"].endswith("fleettwin.io/fleet=trucks")
    assert list(cluster.revisions) == ["trucks-rules-0000000001"]


def test_at_rest_nothing_is_written() -> None:
    cluster = running()
    for _ in range(5):
        assert cluster.round().actions == ()
        cluster.now_ms += 5_000
    assert cluster.round().why == "done"


def test_the_same_look_gives_the_same_plan() -> None:
    look = Cluster().look()
    assert plan.plan(look) == plan.plan(look)


@pytest.mark.parametrize("killed_after", range(12))
def test_an_operator_that_is_killed_anywhere_is_gone_on_with(killed_after: int) -> None:
    cluster = Cluster()
    cluster.round(stop_after=killed_after)
    cluster.settle()
    cluster.run()
    assert cluster.condition("Ready") == ("True", "AllPartitionsRunning")
    assert history.published(cluster.status["rules"]["generations"]) == tuple(
        history.read_revisions(list(cluster.revisions.values())).values()
    )


def test_an_object_of_somebody_else_is_left_alone_and_told() -> None:
    cluster = Cluster()
    theirs = {"kind": "Service", "metadata": {"name": "trucks-api", "uid": "theirs"}}
    cluster.children["Service", "trucks-api"] = theirs
    cluster.run()
    assert cluster.children["Service", "trucks-api"] is theirs
    assert cluster.condition("Stalled") == ("True", "NameTaken")
    assert cluster.condition("Ready")[0] == "True"


def test_an_account_that_is_not_used_any_more_goes() -> None:
    cluster = running()
    cluster.document["spec"]["serviceAccountName"] = "mine"
    cluster.run()
    assert ("ServiceAccount", "trucks-worker") not in cluster.children


def test_what_the_api_server_refuses_is_told() -> None:
    cluster = running()
    refused = dataclasses.replace(cluster.look(), refusals=("StatefulSet trucks: exceeded quota",))
    (written,) = plan.plan(refused).actions
    assert isinstance(written, actions.WriteStatus)
    (stalled,) = (each for each in written.status["conditions"] if each["type"] == "Stalled")
    assert (stalled["reason"], stalled["message"]) == ("WriteRefused", "StatefulSet trucks: exceeded quota")


# ── scaling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_growing_starts_workers_at_once_and_shrinking_empties_them_first() -> None:
    cluster = running()
    cluster.document["spec"]["replicas"] = 4
    cluster.round()
    assert cluster.replicas == 4
    cluster.run()
    assert cluster.owners() == {f"trucks-{number}" for number in range(4)}
    cluster.document["spec"]["replicas"] = 1
    for _ in range(40):
        cluster.round()
        assert {naming.ordinal("trucks", name) or 0 for name in cluster.owners()} <= set(range(cluster.replicas))
        cluster.settle()
    assert (cluster.replicas, cluster.owners(), set(cluster.pods)) == (1, {"trucks-0"}, {"trucks-0"})


def test_a_lost_node_costs_its_worker_the_partitions_while_its_pod_stays_terminating() -> None:
    cluster = running(replicas=3)
    cluster.silent.add("trucks-2")
    cluster.pods["trucks-2"] = dataclasses.replace(cluster.pods["trucks-2"], terminating=True, ready=False)
    cluster.now_ms += 25_000
    for _ in range(5):
        cluster.round()
        cluster.settle()
    assert cluster.owners() == {"trucks-0", "trucks-1"}
    assert cluster.condition("Ready")[0] == "True"


# ── updates ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_update_restarts_one_worker_at_a_time_which_keeps_its_partitions() -> None:
    cluster = running(replicas=3)
    owners = {entry.spec.shard_id: entry.spec.worker for entry in cluster.partitions.values()}
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    for _ in range(30):
        cluster.round()
        assert sum(not pod.ready for pod in cluster.pods.values()) <= 1
        cluster.settle()
    restarted = [action.name for action in cluster.done if isinstance(action, actions.RestartPod)]
    assert restarted == ["trucks-2", "trucks-1", "trucks-0"]
    assert {entry.spec.shard_id: entry.spec.worker for entry in cluster.partitions.values()} == owners
    assert all(entry.spec.epoch == 1 for entry in cluster.partitions.values())
    assert "restarting" not in cluster.status
    assert cluster.condition("Progressing") == ("False", "Settled")
    assert "UpdatingWorkers" in cluster.events


def test_whose_pod_is_made_anew_is_written_down_before_it_is_deleted() -> None:
    cluster = running()
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    cluster.round()
    cluster.settle()
    made = plan.plan(cluster.look())
    kinds = [type(action) for action in made.actions]
    assert kinds.index(actions.WriteStatus) < kinds.index(actions.RestartPod)
    cluster.round(stop_after=1)  # killed in between: the next one goes on with the same pod
    assert cluster.status["restarting"]["worker"] == "trucks-1"
    assert not cluster.pods["trucks-1"].terminating
    (again,) = (action for action in cluster.round().actions if isinstance(action, actions.RestartPod))
    assert again.name == "trucks-1"


def test_a_bad_update_stops_at_the_first_and_the_next_one_mends_it() -> None:
    cluster = running(replicas=3)
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:bad"
    cluster.round()
    cluster.broken = cluster.children["StatefulSet", "trucks"]["spec"]["template"]["metadata"]["labels"][
        naming.TEMPLATE_HASH
    ]
    for _ in range(60):
        cluster.settle()
        cluster.round()
    assert [pod.broken for pod in cluster.pods.values()] == ["", "", "CrashLoopBackOff"]
    assert cluster.condition("Stalled") == ("True", "UpdateStuck")
    assert cluster.owners() == {"trucks-0", "trucks-1"}  # its time to come back was over
    assert cluster.condition("Ready")[0] == "True"
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    cluster.run(80)
    assert all(pod.ready for pod in cluster.pods.values())
    assert cluster.condition("Stalled") == ("False", "NotStalled")
    assert cluster.owners() == {"trucks-0", "trucks-1", "trucks-2"}


# ── volumes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_volumes_grow_claims_first_then_the_template_and_no_pod_goes() -> None:
    cluster = running()
    pods = {name: pod.uid for name, pod in cluster.pods.items()}
    cluster.document["spec"]["storage"] = {"size": "20Gi"}
    cluster.round()
    assert {claim.size for claim in cluster.claims.values()} == {"20Gi"}
    assert cluster.condition("Progressing") == ("True", "GrowingVolumes")
    made = cluster.round()
    assert actions.Delete("StatefulSet", "trucks", "uid of ('StatefulSet', 'trucks')", orphan=True) in made.actions
    cluster.run()
    claim = cluster.children["StatefulSet", "trucks"]["spec"]["volumeClaimTemplates"][0]["spec"]
    assert claim["resources"]["requests"]["storage"] == "20Gi"
    assert {name: pod.uid for name, pod in cluster.pods.items()} == pods


@pytest.mark.parametrize("storage", [{"size": "1Gi"}, {"storageClassName": "slow"}])
def test_what_volumes_cannot_become_is_told_and_nothing_is_touched(storage: dict[str, str]) -> None:
    cluster = running(storage={"size": "10Gi", "storageClassName": "fast"})
    cluster.document["spec"]["storage"] = {"size": "10Gi", "storageClassName": "fast", **storage}
    cluster.run()
    assert cluster.condition("Stalled") == ("True", "StorageCannotChange")
    assert {type(action) for action in cluster.done} == {actions.WriteStatus}


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_edit_becomes_a_generation_that_is_published_before_it_is_kept() -> None:
    cluster = running()
    uids = {pod.uid for pod in cluster.pods.values()}
    cluster.document["spec"]["rules"] = {"temperature": {"threshold": 70.0}}
    made = plan.plan(cluster.look())
    assert [type(action) for action in made.actions] == [actions.WriteStatus, actions.Create]
    cluster.round(stop_after=1)
    newest = history.published(cluster.status["rules"]["generations"])[-1]
    assert (newest.generation, newest.effective_ms) == (2, cluster.now_ms + 1_000)
    assert newest.default.temperature.threshold == 70.0
    assert cluster.condition("RulesApplied") == ("False", "WorkersCatchUp")
    cluster.run()
    assert cluster.condition("RulesApplied") == ("True", "EveryWorkerJudges")
    assert list(cluster.revisions) == ["trucks-rules-0000000001", "trucks-rules-0000000002"]
    assert {pod.uid for pod in cluster.pods.values()} == uids


def test_a_mistake_in_the_rules_leaves_the_last_good_ones_and_names_the_field() -> None:
    cluster = running(replicas=3)
    before = cluster.status["rules"]["generations"]
    cluster.document["spec"]["profiles"] = [{"name": "a", "match": {"deviceIdRegex": "("}, "rules": {}}]
    cluster.run()
    assert cluster.status["rules"]["generations"] == before
    assert cluster.condition("RulesApplied") == ("False", "SpecInvalid")
    (told,) = (each for each in cluster.status["conditions"] if each["type"] == "RulesApplied")
    assert told["message"].startswith("spec.profiles[0].match.deviceIdRegex:")
    cluster.silent.add("trucks-2")  # and the fleet goes on all the same
    cluster.now_ms += 25_000
    for _ in range(5):
        cluster.round()
        cluster.settle()
    assert cluster.owners() == {"trucks-0", "trucks-1"}


def test_a_status_that_got_lost_is_published_anew_from_what_was_kept() -> None:
    cluster = running()
    cluster.document["spec"]["rules"] = {"temperature": {"threshold": 70.0}}
    cluster.run()
    kept = cluster.status["rules"]["generations"]
    cluster.status = {}
    cluster.run()
    assert history.published(cluster.status["rules"]["generations"]) == history.published(kept)


def test_a_history_that_contradicts_itself_is_told_and_left_as_it_is() -> None:
    cluster = running()
    kept = cluster.status["rules"]
    other = dataclasses.replace(history.published(kept["generations"])[0], effective_ms=7)
    cluster.revisions["trucks-rules-0000000001"]["data"] = generations.rules_document(other)
    cluster.document["spec"]["rules"] = {"temperature": {"threshold": 70.0}}
    cluster.run()
    assert cluster.condition("RulesApplied") == ("False", "HistoryBroken")
    assert {key: cluster.status["rules"][key] for key in kept if key != "appliedWorkers"} == {
        key: kept[key] for key in kept if key != "appliedWorkers"
    }


def test_a_template_that_cannot_be_laid_over_leaves_the_pods_and_names_the_field() -> None:
    cluster = running()
    uids = {pod.uid for pod in cluster.pods.values()}
    cluster.document["spec"]["template"] = {"spec": {"hostname": "x"}}
    cluster.run()
    assert cluster.condition("Stalled") == ("True", "SpecInvalid")
    assert {pod.uid for pod in cluster.pods.values()} == uids


def test_a_spec_that_cannot_be_read_at_all_changes_nothing_but_the_conditions() -> None:
    cluster = running()
    cluster.document["spec"]["streams"]["alerts"] = {"name": STREAM}
    cluster.run()
    assert {type(action) for action in cluster.done} == {actions.WriteStatus}
    assert cluster.condition("Stalled") == ("True", "SpecInvalid")
    assert cluster.condition("Ready") == ("True", "AllPartitionsRunning")
    del cluster.document["spec"]["streams"]
    fresh = Cluster()
    fresh.document = cluster.document
    fresh.run()
    assert fresh.condition("Ready") == ("False", "SpecInvalid")


# ── suspended, deleted ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_suspended_fleet_lets_its_partitions_go_then_its_workers_and_comes_back() -> None:
    cluster = running()
    cluster.document["spec"]["suspend"] = True
    cluster.round()
    assert cluster.owners() == {""}
    assert cluster.replicas == 2
    cluster.run()
    assert (cluster.replicas, cluster.pods) == (0, {})
    assert {entry.status.phase for entry in cluster.partitions.values()} == {Phase.RELEASED}
    assert cluster.condition("Ready") == ("False", "Suspended")
    assert cluster.condition("Stalled") == ("False", "NotStalled")
    assert cluster.round().actions == ()
    cluster.document["spec"]["suspend"] = False
    cluster.run()
    assert cluster.condition("Ready") == ("True", "AllPartitionsRunning")


def test_a_deleted_fleet_goes_when_every_partition_has_its_final_checkpoint() -> None:
    cluster = running()
    cluster.deletion = observed.Deletion(cluster.now_ms)
    cluster.round()
    assert cluster.has_finalizer
    assert cluster.condition("Ready") == ("False", "Deleting")
    cluster.settle()
    assert {entry.status.phase for entry in cluster.partitions.values()} == {Phase.RELEASED}
    cluster.round()
    assert not cluster.has_finalizer
    assert cluster.events[-1] == "FinalCheckpointTaken"
    assert cluster.round().actions == ()


def test_a_deleted_fleet_does_not_wait_for_workers_that_are_gone() -> None:
    cluster = running()
    cluster.silent = set(cluster.pods)
    cluster.deletion = observed.Deletion(cluster.now_ms)
    cluster.round()
    cluster.now_ms += 25_000
    cluster.round()
    assert not cluster.has_finalizer
    assert cluster.events[-1] == "FinalCheckpointMissing"


def test_a_deleted_fleet_waits_no_longer_than_its_drain_timeout_and_a_margin() -> None:
    cluster = running()
    cluster.deletion = observed.Deletion(cluster.now_ms)
    cluster.round()
    cluster.now_ms += 89_000
    cluster.round()
    assert cluster.has_finalizer
    cluster.now_ms += 2_000
    cluster.round()
    assert not cluster.has_finalizer


def test_who_does_not_want_to_wait_need_not() -> None:
    cluster = running()
    cluster.deletion = observed.Deletion(cluster.now_ms, at_once=True)
    cluster.round()
    assert not cluster.has_finalizer
    assert cluster.events == ["FinalCheckpointSkipped"]


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_condition_keeps_its_time_until_its_status_turns() -> None:
    cluster = running()
    before = {each["type"]: each["lastTransitionTime"] for each in cluster.status["conditions"]}
    cluster.now_ms += 60_000
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    cluster.owner = dataclasses.replace(cluster.owner, generation=4)
    cluster.round()
    after = {each["type"]: each["lastTransitionTime"] for each in cluster.status["conditions"]}
    assert {kind for kind in before if before[kind] != after[kind]} == {"Progressing"}
    assert {each["observedGeneration"] for each in cluster.status["conditions"]} == {4}
    assert cluster.status["observedGeneration"] == 4


def test_conditions_always_come_in_the_same_order_and_each_reason_has_its_place() -> None:
    cluster = running()
    assert tuple(each["type"] for each in cluster.status["conditions"]) == reasons.KINDS
    for each in cluster.status["conditions"]:
        assert reasons.TABLE[each["type"], each["reason"]][0] == (each["status"] == "True")


def test_a_reason_of_another_condition_is_a_bug() -> None:
    with pytest.raises(KeyError):
        reasons.told("Ready", "Settled", "")


def test_events_tell_only_what_turns() -> None:
    cluster = running()
    cluster.round()
    assert cluster.events == []
    cluster.shards = None
    cluster.run()
    assert cluster.events == ["StreamNotListed"]


def test_the_last_checkpoint_is_the_oldest_of_the_partitions() -> None:
    cluster = running()
    first, *_ = cluster.partitions.values()
    assert first.status.checkpoint is not None
    old = dataclasses.replace(first.status.checkpoint, time_ms=NOW_MS - 3_600_000)
    cluster.partitions[first.spec.shard_id] = dataclasses.replace(
        first, status=dataclasses.replace(first.status, checkpoint=old)
    )
    cluster.round()
    assert cluster.status["lastCheckpoint"] == "2023-11-14T21:13:20Z"


def test_defaults_hold_for_every_fleet() -> None:
    defaults = pod_template.Defaults("i", "Always", "critical")
    made = pod_template.pod_template(objects.fleet(), defaults)["spec"]
    assert (made["priorityClassName"], made["containers"][0]["imagePullPolicy"]) == ("critical", "Always")


def test_rules_are_applied_only_when_whoever_still_judges_has_them_also_a_worker_that_leaves() -> None:
    cluster = running(replicas=3)
    look = cluster.look()
    behind = dataclasses.replace(look.signs.answers["trucks-2"], generation=0)
    signs = dataclasses.replace(look.signs, answers={**look.signs.answers, "trucks-2": behind})
    cluster.document["spec"]["replicas"] = 2
    made = plan.plan(dataclasses.replace(look, signs=signs, reading=observed.read(cluster.document)))
    (written,) = (action for action in made.actions if isinstance(action, actions.WriteStatus))
    assert written.status["rules"]["appliedWorkers"] == 2
    (told,) = (each for each in written.status["conditions"] if each["type"] == "RulesApplied")
    assert (told["status"], told["message"]) == ("False", "2 of 3 workers judge by generation 1")


# ── what others rely on ──────────────────────────────────────────────────────────────────────────────────────────────

ROOT = objects.GOLDEN.parents[2]


def unknown(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Fields of the value that the schema doesn't have: the API server would drop them."""
    if isinstance(value, list):
        return [
            each for number, entry in enumerate(value) for each in unknown(entry, schema["items"], f"{path}[{number}]")
        ]
    if not isinstance(value, dict):
        return []
    known = schema.get("properties", {})
    found = [f"{path}.{name}" for name in value if name not in known]
    return found + [
        each for name, entry in value.items() if name in known for each in unknown(entry, known[name], f"{path}.{name}")
    ]


def schema(kind: str) -> dict[str, Any]:
    definition = yaml.safe_load((ROOT / "crds" / f"fleettwin.io_{kind}.yaml").read_text())
    found: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return found


def test_nothing_of_what_is_written_is_dropped_by_the_api_server() -> None:
    cluster = running()
    cluster.document["spec"]["image"] = "registry.example/fleet-twin:2"
    cluster.round()
    cluster.settle()
    cluster.round()
    assert "restarting" in cluster.status
    assert unknown(cluster.status, schema("devicefleets")["status"]) == []
    for entry in cluster.partitions.values():
        assert unknown(twin_partition_document.spec_document(entry.spec), schema("twinpartitions")["spec"]) == []
    assert unknown({"nobody": 1}, schema("devicefleets")["status"]) == [".nobody"]


def test_the_documentation_has_every_reason_as_the_table_has_it() -> None:
    text = (ROOT / "docs" / "reference" / "kubernetes.md").read_text()
    rows = [
        f"| `{kind}` | `{reason}` | {status} | {meaning} |"
        for (kind, reason), (status, meaning) in reasons.TABLE.items()
    ]
    told = [line for line in text[text.index("## Conditions") :].splitlines() if line.startswith("| `")]
    assert told == rows


def test_every_reason_of_the_model_has_its_place() -> None:
    placed = {str(reason) for _, reason in reasons.TABLE}
    assert {str(reason) for reason in (*control.Reason, *reasons.Own)} == placed
