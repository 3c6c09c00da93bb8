"""The stage of the end-to-end tests: one cluster for the session, the chart's operator on it, a namespace for each scenario.

FLEET_TWIN_E2E_PROVIDER: kind, local (made on this machine: Debian, root), or current (the kubeconfig at hand: never chosen by itself).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e import artifacts, images, providers, scene, staging
from tests.e2e.cluster import errors, needs
from tests.e2e.providers import current, kind, local
from tests.support import aws_env, go_toolchain, node

NODES = 2
MISSING = (errors.NotHereError, go_toolchain.NoGoError, node.NoNodeError)


def chosen() -> str:
    told = os.environ.get("FLEET_TWIN_E2E_PROVIDER")
    return told or ("kind" if shutil.which("docker") and shutil.which("kind") else "local")


def provided(request: pytest.FixtureRequest) -> tuple[contextlib.AbstractContextManager[providers.Cluster], str]:
    """And the project's image."""
    name = chosen()
    if name == "current":
        return current.running(), os.environ.get(current.IMAGE, "")
    assert name in ("local", "kind"), f"FLEET_TWIN_E2E_PROVIDER is {name!r}: kind, local or current"
    made: images.Images = request.getfixturevalue("project_images")
    cluster = local.running(NODES, made.of_fleets()) if name == "local" else kind.running(made.of_fleets())
    return cluster, made.project.name


@pytest.fixture(scope="session")
def project_images() -> images.Images:
    if chosen() == "current":
        pytest.skip("the cluster at hand takes no images that are made here")
    try:
        if chosen() == "local":
            needs.check()  # says everything that a machine lacks; what makes images says the first thing only
        return images.build_all()
    except MISSING as missing:
        pytest.skip(f"no cluster can be made here: {missing}")


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[scene.Stage]:
    folder = tmp_path_factory.mktemp("stage")
    provider, image = provided(request)
    with pytest.MonkeyPatch.context() as patched:
        aws_env.apply(patched)
        try:
            with (
                provider as cluster,
                cluster.entered(),
                staging.with_chart(cluster, image, folder) as made,
            ):
                yield made
                request.config.stash[artifacts.REPORT] = made.report
        except MISSING as missing:
            pytest.skip(f"no cluster can be made here: {missing}")


@pytest.fixture
async def a_scene(
    stage: scene.Stage, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[scene.Scene]:
    aws_env.apply(monkeypatch)
    async with artifacts.scene_of(stage, request) as opened:
        yield opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash.get(artifacts.REPORT, [])
    if report:
        terminalreporter.section("fleets on a cluster")
        terminalreporter.write_line("\n".join(report))
