"""What tests of several folders share: servers that are too slow to start for each test, and that no example is timed: a machine may be busy."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from tests.support import api_server as api_servers
from tests.support import go_toolchain

hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def api_server() -> Iterator[api_servers.ApiServer]:
    """A real API server with our CRDs, of the whole session: a test makes a namespace of its own."""
    yield from _running(api_servers.Settings())


@pytest.fixture(scope="session")
def api_server_with_controllers() -> Iterator[api_servers.ApiServer]:
    """The same with Kubernetes' own controllers and scheduler: StatefulSets make pods, owners take their children along."""
    yield from _running(api_servers.Settings(programs=api_servers.FEATURES))


def _running(settings: api_servers.Settings) -> Iterator[api_servers.ApiServer]:
    try:
        with api_servers.running(settings) as server:
            server.apply_crds()
            yield server
    except go_toolchain.NoGoError as missing:
        pytest.skip(f"Kubernetes' programs can't be built here: {missing}")
