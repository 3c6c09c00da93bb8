"""Whole fleets on a real API server, their pods played as processes: scaled, resharded, killed, cut off, deleted, each judged by the
reference. The same scenarios run on real clusters in tests/e2e.

FLEET_TWIN_E2E_RATE=500 FLEET_TWIN_E2E_PATIENCE=3 pytest tests/integration/test_kubernetes.py      on a busy machine
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e import artifacts, scenarios, scene, staging
from tests.e2e.providers import processes
from tests.support import aws_env, go_toolchain, node

pytestmark = [pytest.mark.e2e_only, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[scene.Stage]:
    folder = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patched:
        aws_env.apply(patched)
        try:
            with processes.running(folder / "cluster") as cluster, staging.with_processes(cluster, folder) as made:
                yield made
                print("\n" + "\n".join(made.report))
        except (go_toolchain.NoGoError, node.NoNodeError) as missing:
            pytest.skip(f"the programs that this needs can't be had here: {missing}")


@pytest.fixture
async def a_scene(
    stage: scene.Stage, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[scene.Scene]:
    aws_env.apply(monkeypatch)
    async with artifacts.scene_of(stage, request) as opened:
        yield opened


async def test_hot_records(a_scene: scene.Scene) -> None:
    await scenarios.three_hot_records_cool_the_device_down(a_scene)


async def test_edits(a_scene: scene.Scene) -> None:
    await scenarios.edited_rules_hold_without_a_restart(a_scene)


async def test_scaling_and_resharding(a_scene: scene.Scene) -> None:
    await scenarios.workers_come_and_go(a_scene)


async def test_scaling_while_the_operator_dies(a_scene: scene.Scene) -> None:
    await scenarios.workers_come_and_go(a_scene, random.Random(1))


async def test_deaths(a_scene: scene.Scene) -> None:
    await scenarios.workers_die(a_scene)


async def test_deaths_while_the_operator_dies(a_scene: scene.Scene) -> None:
    await scenarios.workers_die(a_scene, random.Random(2))


async def test_lost_node(a_scene: scene.Scene) -> None:
    await scenarios.a_node_is_lost(a_scene, random.Random(3))


async def test_zombie(a_scene: scene.Scene) -> None:
    await scenarios.a_zombie_is_fenced(a_scene)


async def test_api_server_away(a_scene: scene.Scene) -> None:
    await scenarios.the_api_server_goes_away(a_scene)


async def test_rolling_update(a_scene: scene.Scene) -> None:
    await scenarios.an_update_rolls(a_scene, {"checkpoint": {"interval": "6s"}}, random.Random(4))


async def test_suspension(a_scene: scene.Scene) -> None:
    await scenarios.a_suspended_fleet_goes_on_where_it_was(a_scene)


async def test_deletion(a_scene: scene.Scene) -> None:
    await scenarios.a_deleted_fleet_comes_back(a_scene)
