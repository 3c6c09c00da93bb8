"""kinesis-local, an independent Kinesis emulator, as a process of a test.

The one to use for everything about resharding: it closes split shards, names their children and ends their iterators. It
takes about 2,500 records/s. The package is installed once into the user's cache folder, by version and by hash.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support import aws_env, node, server_process

VERSION = "0.6.2"
AT_ONCE = "0ms"
_DURATIONS = ("CREATE_STREAM", "DELETE_STREAM", "SPLIT_SHARD", "MERGE_SHARDS", "UPDATE_SHARD_COUNT")


def _install(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(node.PACKAGE / name, folder)
    node.npm_ci(node.find(), folder)


def installed() -> Path:
    """The package's folder. Raises node.NoNodeError where a test has to be skipped, anything else is a failure."""
    folder = node.once(node.cache_folder() / f"kinesis-local-{VERSION}", _install)
    return folder / "node_modules" / "kinesis-local"


@contextlib.contextmanager
def running(shard_limit: int = 200, address: str = "127.0.0.1") -> Iterator[str]:
    """An empty emulator; its endpoint URL, at this address of the machine. Changes of streams are done at once instead of after half a
    second."""
    package = installed()
    program = node.find().node

    def start(port: int) -> server_process.ServerProcess:
        settings = {f"{name}_DURATION": AT_ONCE for name in _DURATIONS} | {
            "KINESIS_MOCK_PLAIN_PORT": str(port),
            "KINESIS_MOCK_TLS_PORT": str(server_process.free_port()),
            "KINESIS_MOCK_CERT_PATH": str(package / "server.json"),
            "SHARD_LIMIT": str(shard_limit),
            "LOG_LEVEL": "ERROR",
        }
        return server_process.ServerProcess([program, str(package / "main.js")], aws_env.environment(**settings))

    with server_process.at_a_port(start, "/healthcheck") as port:
        yield f"http://{address}:{port}"
