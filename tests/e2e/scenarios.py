"""What must hold on a cluster, as scenarios that any provider can play: each takes a scene and tells a story in steps.

Those who call them (tests/integration/test_kubernetes.py with pods as processes, tests/e2e/test_cluster.py on a real cluster) say how
long they may take and what they need.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

from tests.e2e import scene as scenes
from tests.e2e.steps import given, then, when

BEFORE_S = 10.0
"""Of load, before something happens, so that there is something to lose."""
API_AWAY_S = 60.0


async def three_hot_records_cool_the_device_down(scene: scenes.Scene) -> None:
    """The first thing that anybody tries."""
    await given.a_fleet(scene, workers=1, shards=1)
    hot = json.dumps({"device_id": "truck-17", "temperature_c": 75.0, "battery_pct": 80, "cpu_load": 0.2}).encode()
    for _ in range(3):
        await scene.kinesis.put(scene.telemetry, [("truck-17", hot)])
    await then.a_command_comes(scene, "truck-17", "cool_down")
    await then.the_tables_read_well(scene)
    await then.workers_may_do_no_more(scene)


async def edited_rules_hold_without_a_restart(scene: scenes.Scene) -> None:
    await given.a_fleet(scene, workers=2)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    before = await then.restarts(scene)
    took = []
    for number in range(scenes.EDITS):
        threshold = {"temperature": {"threshold": 66.5 - number % 10}}
        busy = {"name": "busy", "match": {"deviceIdPrefix": "busy-"}, "rules": threshold}
        profiles = [*scene.document["spec"]["profiles"], busy]
        section: dict[str, object] = {"profiles": profiles} if number % 2 else {"rules": threshold}
        edited_s = await when.the_fleet_is_patched(scene, section)
        took.append(await then.alerts_come_by_the_new_rules(scene, edited_s, f"an edit of {next(iter(section))}"))
    await then.edits_were_in_time(scene, took)
    await then.no_worker_was_restarted(scene, before)
    await then.twins_and_effects_equal_the_model(scene, f"{scenes.EDITS} edits")


async def workers_come_and_go(scene: scenes.Scene, operator_dies: random.Random | None = None) -> None:
    """Scaled 1 → 3 → 2, then split and merged. operator_dies: in the middle of each, at moments that it draws."""
    await given.a_fleet(scene, workers=1)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    for workers in (3, 2):
        await when.the_fleet_is_scaled_to(scene, workers)
        await _in_the_middle(scene, operator_dies)
        seconds = await then.the_fleet_has_settled(scene, workers)
        await then.twins_and_effects_equal_the_model(scene, f"scaled to {workers} in {seconds:.1f} s")
    for what, step in (("a split", when.a_shard_is_split), ("a merge", when.two_shards_are_merged)):
        await step(scene)
        await _in_the_middle(scene, operator_dies)
        seconds = await then.the_fleet_has_settled(scene, 2)
        await then.twins_and_effects_equal_the_model(scene, f"{what}, settled in {seconds:.1f} s")


async def workers_die(scene: scenes.Scene, operator_dies: random.Random | None = None) -> None:
    """kill -9; a disk with its pod; a node."""
    await given.a_fleet(scene, workers=2)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    await when.a_worker_is_killed(scene, 1)
    await _in_the_middle(scene, operator_dies)
    seconds = await then.the_fleet_has_settled(scene, 2)
    await then.twins_and_effects_equal_the_model(scene, f"kill -9, settled in {seconds:.1f} s")
    before = (await scene.pod(0))["metadata"]["uid"]
    await when.a_worker_loses_its_disk(scene, 0)
    await _in_the_middle(scene, operator_dies)
    await then.the_worker_is_back(scene, 0, before)
    seconds = await then.the_fleet_has_settled(scene, 2)
    await then.twins_and_effects_equal_the_model(scene, f"a disk lost with its pod, settled in {seconds:.1f} s")


async def a_node_is_lost(scene: scenes.Scene, operator_dies: random.Random | None = None) -> None:
    """One where no operator leads; then the one where it does, while the other operator dies, too, and with the pod Terminating for good.
    Nobody waits for either."""
    await given.a_fleet(scene, workers=2)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    ordinal = await scene.worker_elsewhere(await asyncio.to_thread(scene.stage.operator.leads_at))
    async with _a_node_away(scene, ordinal, "a node"):
        pass
    if operator_dies is None:
        return
    ordinal = 1 - await scene.worker_elsewhere(await asyncio.to_thread(scene.stage.operator.leads_at))
    async with _a_node_away(scene, ordinal, "the operator's node", seconds_max=120.0):
        await when.a_pod_is_deleted(scene, ordinal)
        await _in_the_middle(scene, operator_dies)


@contextlib.asynccontextmanager
async def _a_node_away(
    scene: scenes.Scene, ordinal: int, what: str, seconds_max: float = then.TAKEOVER_S_MAX
) -> AsyncIterator[None]:
    """That of a worker. Inside: what happens right after; at the end others have taken over, within seconds_max from there, and it is back."""
    node = await when.the_node_of_a_worker_is_lost(scene, ordinal)
    try:
        yield
        seconds = await then.nothing_runs_at(scene, f"{scenes.NAME}-{ordinal}", seconds_max)
        await then.twins_and_effects_equal_the_model(scene, f"{what} lost, taken over in {seconds:.1f} s")
    finally:
        await when.the_node_comes_back(scene, node)
    await then.the_fleet_has_settled(scene, 2)
    await then.twins_and_effects_equal_the_model(scene, f"{what} came back")


async def the_api_server_goes_away(scene: scenes.Scene) -> None:
    """For a minute, and nobody notices who looks at effects."""
    await given.a_fleet(scene, workers=2)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    before, workers = await then.restarts(scene), await scene.pods()
    async with when.the_api_server_is_away(scene):
        await asyncio.sleep(API_AWAY_S)
        await then.workers_say_that_the_control_plane_is_away(scene, workers)
    await then.the_fleet_has_settled(scene, 2)
    await then.no_worker_was_restarted(scene, before)
    await then.twins_and_effects_equal_the_model(scene, f"the API server away for {API_AWAY_S:.0f} s")


async def a_zombie_is_fenced(scene: scenes.Scene) -> None:
    """Its node's kubelet is gone, its pod is deleted by force, its process lives on, hears of nothing, and writes: what stops it is that its
    writes are refused."""
    await given.a_fleet(scene, workers=2)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    zombie = await scene.pod(1)
    had = await scene.shards_of(zombie["metadata"]["name"])
    await when.a_worker_is_cut_off_from_the_api_server(scene, zombie)
    node = await when.the_node_of_a_worker_is_lost(scene, 1, processes_live_on=True)
    try:
        await when.a_pod_is_force_deleted(scene, 1)
        await then.the_zombie_runs(scene, zombie, had)
        await then.the_worker_is_back_or_others_have_taken_over(scene, 1, zombie["metadata"]["uid"])
        await then.the_zombie_runs(scene, zombie, ())
        await then.twins_and_effects_equal_the_model(scene, "a zombie")
    finally:
        await when.the_node_comes_back(scene, node)
    await then.the_fleet_has_settled(scene, 2)


async def a_deleted_fleet_comes_back(scene: scenes.Scene) -> None:
    """From its final checkpoint, under the same name; its volumes stay the first time, and go the second."""
    await given.a_fleet(scene, workers=2, storage={"size": "1Gi", "retentionPolicy": "Retain"})
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    seconds = await when.the_fleet_is_deleted(scene)
    scene.tell(f"deleted in {seconds:.1f} s")
    await then.every_partition_has_a_final_checkpoint(scene)
    await then.claims_are_there(scene, 2)
    scene.document["spec"]["storage"] = {"size": "1Gi", "retentionPolicy": "Delete"}
    await when.the_fleet_is_applied_again(scene)
    await then.the_fleet_has_settled(scene, 2)
    await then.twins_and_effects_equal_the_model(scene, "deleted and applied again")
    await scene.load.stop()
    await when.the_fleet_is_deleted(scene)
    await then.claims_are_there(scene, 0)


async def volumes_grow(scene: scenes.Scene) -> None:
    """Twice, under both policies: the StatefulSet is made anew for it, and takes its pods and claims in again. No worker notices."""
    await given.a_fleet(scene, workers=2, storage={"size": "1Gi", "retentionPolicy": "Retain"})
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    before = await then.restarts(scene)
    for size, policy in (("2Gi", "Retain"), ("3Gi", "Delete")):
        of_before = await scene.stateful_set_uid()
        await when.the_fleet_is_patched(scene, {"storage": {"size": size, "retentionPolicy": policy}})
        seconds = await then.volumes_have_grown(scene, size, of_before)
        await then.the_fleet_has_settled(scene, 2)
        await then.no_worker_was_restarted(scene, before)
        await then.twins_and_effects_equal_the_model(scene, f"volumes of {size} after {seconds:.1f} s")
    await scene.load.stop()
    await when.the_fleet_is_deleted(scene)
    await then.claims_are_there(scene, 0)


async def an_update_rolls(
    scene: scenes.Scene, sections: dict[str, object], operator_dies: random.Random | None = None
) -> None:
    """sections: of the spec, whatever makes every worker start anew (an image, the template)."""
    await given.a_fleet(scene, workers=2)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    before = {name: uid for name, (uid, _) in (await then.restarts(scene)).items()}
    await when.the_fleet_is_patched(scene, sections)
    await _in_the_middle(scene, operator_dies)
    seconds = await then.every_worker_is_another(scene, before)
    await then.the_fleet_has_settled(scene, 2)
    await then.twins_and_effects_equal_the_model(scene, f"a rolling update in {seconds:.1f} s")


async def a_bad_update_is_mended_by_the_next(scene: scenes.Scene, bad: str, good: str) -> None:
    """Of images: the first doesn't start. It costs one worker, whose partitions go to the other; nobody has to lend a hand."""
    await given.a_fleet(scene, workers=2)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    before = {name: uid for name, (uid, _) in (await then.restarts(scene)).items()}
    await when.the_fleet_is_patched(scene, {"image": bad})
    seconds = await then.the_condition_says(scene, "Stalled", "UpdateStuck", seconds_max=240.0)
    await then.one_worker_of_another_pod(scene, before)
    await then.nothing_runs_at(scene, f"{scenes.NAME}-1")
    await then.twins_and_effects_equal_the_model(scene, f"a bad update, told after {seconds:.1f} s")
    await when.the_fleet_is_patched(scene, {"image": good})
    seconds = await then.every_worker_is_another(scene, before)
    await then.the_fleet_has_settled(scene, 2)
    await then.twins_and_effects_equal_the_model(scene, f"the next update, in {seconds:.1f} s")


async def a_suspended_fleet_goes_on_where_it_was(scene: scenes.Scene) -> None:
    """Records come meanwhile; nobody is called offline for it."""
    await given.a_fleet(scene, workers=2)
    await given.a_steady_load(scene)
    await asyncio.sleep(BEFORE_S)
    await when.the_fleet_is_patched(scene, {"suspend": True})
    seconds = await then.the_condition_says(scene, "Ready", "Suspended")
    await then.no_pods_are_left(scene)
    await then.every_partition_has_a_final_checkpoint(scene)
    await when.the_fleet_is_patched(scene, {"suspend": False})
    again = await then.the_fleet_has_settled(scene, 2)
    await then.twins_and_effects_equal_the_model(scene, f"suspended in {seconds:.1f} s, back in {again:.1f} s")


async def _in_the_middle(scene: scenes.Scene, operator_dies: random.Random | None) -> None:
    if operator_dies is not None:
        await when.the_operator_is_killed_in_the_middle(scene, operator_dies)
