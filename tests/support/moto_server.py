"""moto's server, Kinesis and S3 in one, as a process of a test.

Quick (about 15,000 records/s), but it never closes a split shard, never expires an iterator, never throttles, and checks
before it puts where S3 would do both in one: good for what doesn't touch these.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from tests.support import aws_env, server_process

_PROGRAM = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print("listening on", server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def running() -> Iterator[str]:
    """An empty server; its endpoint URL."""
    process = server_process.ServerProcess([sys.executable, "-c", _PROGRAM], aws_env.environment())
    try:
        port = _port(process)
        process.wait_until_it_answers(port, "/moto-api/")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stop()


def _port(process: server_process.ServerProcess) -> int:
    deadline = time.monotonic() + server_process.START_S_MAX
    while time.monotonic() < deadline:
        for line in process.output().splitlines():
            if line.startswith("listening on "):
                return int(line.split()[-1])
        process.check_alive()
        time.sleep(0.05)  # a poll with a deadline
    raise server_process.ServerFailedError(f"moto told no port:\n{process.output()[-2000:]}")
