"""versitygw, an S3 gateway over a folder, as a process of a test: a real store, whose conditional writes are one step.

It is one of `go_tools`. Buckets are folders; metadata is in extended attributes where the temporary folder's file system has them, else in
files beside it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import aws_env, go_tools, server_process

NAME = "versitygw"
VERSION = go_tools.TOOLS[NAME].version


def installed() -> Path:
    """The program. Raises go_toolchain.NoGoError where a test has to be skipped, anything else is a failure."""
    return go_tools.program(NAME)


def _has_attributes(folder: Path) -> bool:
    probe = folder / "attributes"
    probe.touch()
    try:
        os.setxattr(probe, "user.fleet-twin", b"1")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


@contextlib.contextmanager
def running(address: str = "127.0.0.1") -> Iterator[str]:
    """An empty gateway; its endpoint URL, at this address of the machine."""
    program = installed()
    with tempfile.TemporaryDirectory(prefix="fleet-twin-versitygw-") as name:
        root, sidecar = Path(name) / "root", Path(name) / "sidecar"
        root.mkdir()
        sidecar.mkdir()
        options = [] if _has_attributes(root) else ["--sidecar", str(sidecar)]

        def start(port: int) -> server_process.ServerProcess:
            command = [
                *(str(program), "--access", "test", "--secret", "test", "--region", aws_env.REGION),
                *("--port", f"{address}:{port}", "--health", "/healthz", "--quiet"),
                *("posix", *options, str(root)),
            ]
            return server_process.ServerProcess(command, aws_env.environment())

        with server_process.at_a_port(start, "/healthz", address) as port:
            yield f"http://{address}:{port}"
