"""Which object store has passed its probe, kept in the data folder: a restart on the same disk needn't wait for another probe.

The probe is made at each start all the same; on a disk that knows the store it runs beside the partitions, and what it finds still
ends the worker. The note tells nothing of what lies in the store. It blocks on the disk: call it through Clock.in_thread.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fleet_model import spec
from fleet_worker import errors
from fleet_worker.adapters import durable

FILE = "object-store.json"


class Probed:
    """The note of one fleet's store. folder: the fleet's in the data folder."""

    def __init__(self, folder: Path, aws: spec.Aws, checkpoint: spec.Checkpoint) -> None:
        self._path = folder / FILE
        where = {"region": aws.region, "bucket": checkpoint.bucket, "prefix": checkpoint.prefix}
        endpoint = aws.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._store = json.dumps({**where, "endpoint": endpoint}, indent=1).encode() + b"\n"

    def has_passed(self) -> bool:
        """Whether this very store has. A note that can't be read is none."""
        try:
            return self._path.read_bytes() == self._store
        except OSError:
            return False

    def note(self) -> None:
        """Raises DiskFullError, DataFolderError."""
        durable.replace(self._path, self._store)

    def forget(self) -> None:
        """Raises DataFolderError."""
        try:
            self._path.unlink(missing_ok=True)
            durable.sync_folder(self._path.parent)
        except OSError as error:
            raise errors.DataFolderError(
                f"{self._path}: can't be removed ({error.strerror}); remove it by hand"
            ) from error
