"""Kinesis and S3 on a free port of this machine, for the demo: moto's server in a process of its own.

`python -m fleet_cli.emulator [PORT]` prints its port and serves until its standard input ends, so it never outlives the
demo, however that ends. Nothing is kept on disk.

moto is made for tests of seconds. So that a demo may run for hours, this gives it shards that find a place in a stream without
walking through all of it, forget what is older than KEPT_S, and take records from several connections at once; and an S3 whose
conditional writes look and write in one step, as several workers need it.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

KEPT_S = 300.0
KEPT_RECORDS_MAX = 200_000
"""Of a shard: at 10,000 records/s on four shards, the last 80 seconds."""
_TRIMMED_AT_ONCE = 100


def light_shards() -> None:
    """Replaces moto's Shard and its own metrics of each call. Raises ImportError when moto isn't installed."""
    from moto.core import utils
    from moto.kinesis import models

    class LightRecord:
        """moto's own is kept for ever in a list of all instances."""

        __slots__ = ("created_at", "created_at_datetime", "data", "partition_key", "sequence_number")

        def __init__(self, partition_key: str, data: str, sequence_number: int) -> None:
            self.partition_key = partition_key
            self.data = data
            self.sequence_number = sequence_number
            self.created_at_datetime = utils.utcnow()
            self.created_at = utils.unix_time(self.created_at_datetime)

        to_json = models.Record.to_json

    class LightShard(models.Shard):
        """Sequence numbers count up from 1 without holes, so a record is found by its number."""

        __module__ = models.__name__  # moto files a model under the service that its module names

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._lock = threading.Lock()
            self._last = 0
            self._first = 1

        def put_record(self, partition_key: str, data: str, explicit_hash_key: str) -> str:
            with self._lock:
                self._last += 1
                self.records[self._last] = LightRecord(partition_key, data, self._last)  # type: ignore[assignment]
                self._trim()
                return str(self._last)

        def get_records(self, last_sequence_id: str, limit: int | None) -> tuple[list[Any], int, int]:
            with self._lock:
                start = max(int(last_sequence_id) + 1, self._first)
                end = min(self._last, start + (limit or 10_000) - 1)
                found = [self.records[number] for number in range(start, end + 1)]
                if not found:
                    return [], int(last_sequence_id), 0
                behind_s = self.records[self._last].created_at - found[-1].created_at
                return found, end, int(behind_s * 1000)

        def get_sequence_number_at(self, at_timestamp: float) -> int:
            with self._lock:
                return int(super().get_sequence_number_at(at_timestamp))

        def get_min_sequence_number(self) -> int:
            return self._first if self.records else 0

        def get_max_sequence_number(self) -> int:
            return self._last

        def _trim(self) -> None:
            oldest = time.time() - KEPT_S
            for _ in range(_TRIMMED_AT_ONCE):
                is_old = self._first < self._last and self.records[self._first].created_at < oldest
                if not is_old and self._last - self._first < KEPT_RECORDS_MAX:
                    return
                del self.records[self._first]
                self._first += 1

    def no_metrics(*_: object, **__: object) -> None:
        """moto keeps a CloudWatch datum of each call for ever."""

    models.Shard = LightShard  # type: ignore[misc]
    models.KinesisBackend._send_stream_metrics = no_metrics  # type: ignore[method-assign]


def writes_in_one_step() -> None:
    """moto looks at a PutObject's condition, then writes: between the two another request may have its turn."""
    from moto.s3 import responses

    alone = threading.Lock()
    put_object = responses.S3Response.put_object

    def put_object_alone(self: Any) -> Any:
        with alone:
            return put_object(self)

    responses.S3Response.put_object = put_object_alone  # type: ignore[method-assign]


def serve(port: int) -> None:
    """Serves until standard input ends. port: 0 = a free one."""
    import logging

    from moto.moto_server import threaded_moto_server

    light_shards()
    writes_in_one_step()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = threaded_moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.buffer.read()
    server.stop()


if __name__ == "__main__":
    serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
