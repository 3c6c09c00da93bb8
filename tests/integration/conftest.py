"""What several integration tests stand on: an emulator of Kinesis of the module's own, streams on it, the operator's surroundings.

A module that wants another emulator has a `kinesis_url` of its own; the rest follows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support import aws_env, kinesis_local, node, streams
from tests.support.api_server import ApiServer
from tests.support.operator_scene import Scene


@pytest.fixture(scope="module")
def kinesis_url() -> Iterator[str]:
    """kinesis-local's, empty when the module begins."""
    try:
        kinesis_local.installed()
    except node.NoNodeError as missing:
        pytest.skip(f"kinesis-local can't run here: {missing}")
    with kinesis_local.running() as url:
        yield url


@pytest.fixture
async def kinesis(kinesis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[streams.Streams]:
    aws_env.apply(monkeypatch)
    async with streams.Streams.at(kinesis_url) as made:
        yield made


@pytest.fixture
def scene(api_server_with_controllers: ApiServer, kinesis_url: str, tmp_path: Path) -> Scene:
    """A namespace with a fleet and a stream for the operator as a process."""
    return Scene(api_server_with_controllers, kinesis_url, tmp_path)
