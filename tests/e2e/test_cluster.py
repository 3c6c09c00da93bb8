"""Fleets on a real cluster: real pods, volumes, nodes and images, the operator installed by the chart; each scenario judged by the
reference.

FLEET_TWIN_E2E_RATE=500 FLEET_TWIN_E2E_PATIENCE=3 pytest tests/e2e/test_cluster.py      on a busy machine
"""

from __future__ import annotations

import random

import pytest

from tests.e2e import images, providers, scenarios, scene

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
A = providers.Ability


def needs(a_scene: scene.Scene, *abilities: providers.Ability) -> None:
    cluster = a_scene.stage.cluster
    lacks = [str(ability) for ability in abilities if ability not in cluster.can]
    if lacks:
        pytest.skip(f"the cluster {cluster.name} can't: {', '.join(lacks)}")


async def test_hot_records(a_scene: scene.Scene) -> None:
    await scenarios.three_hot_records_cool_the_device_down(a_scene)


async def test_edits(a_scene: scene.Scene) -> None:
    await scenarios.edited_rules_hold_without_a_restart(a_scene)


async def test_scaling_and_resharding(a_scene: scene.Scene) -> None:
    needs(a_scene, A.REACH_PROCESSES)
    await scenarios.workers_come_and_go(a_scene, random.Random(1))


async def test_image_update(a_scene: scene.Scene, project_images: images.Images) -> None:
    needs(a_scene, A.REACH_PROCESSES, A.IMAGES)
    await scenarios.an_update_rolls(a_scene, {"image": project_images.next_project.name}, random.Random(2))


async def test_bad_image(a_scene: scene.Scene, project_images: images.Images) -> None:
    needs(a_scene, A.IMAGES)
    bad, good = project_images.broken_project.name, project_images.next_project.name
    await scenarios.a_bad_update_is_mended_by_the_next(a_scene, bad, good)


async def test_suspension(a_scene: scene.Scene) -> None:
    await scenarios.a_suspended_fleet_goes_on_where_it_was(a_scene)


async def test_volume_growth(a_scene: scene.Scene) -> None:
    await scenarios.volumes_grow(a_scene)


async def test_deaths(a_scene: scene.Scene) -> None:
    needs(a_scene, A.REACH_PROCESSES)
    await scenarios.workers_die(a_scene, random.Random(3))


async def test_lost_node(a_scene: scene.Scene) -> None:
    needs(a_scene, A.LOSE_NODES, A.REACH_PROCESSES)
    await scenarios.a_node_is_lost(a_scene, random.Random(4))


async def test_zombie(a_scene: scene.Scene) -> None:
    needs(a_scene, A.LOSE_NODES, A.REACH_PROCESSES)
    await scenarios.a_zombie_is_fenced(a_scene)


async def test_api_server_away(a_scene: scene.Scene) -> None:
    needs(a_scene, A.STOP_API_SERVER)
    await scenarios.the_api_server_goes_away(a_scene)


async def test_deletion(a_scene: scene.Scene) -> None:
    await scenarios.a_deleted_fleet_comes_back(a_scene)
