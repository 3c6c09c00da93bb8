"""A fleet that several real workers share: a control folder, a bucket, and for each worker a data folder of its own.

Kinesis and the object store are two endpoints here, as they are on AWS. Workers are known by name, and each stands for one
process after another on its own disk, which may also be taken away.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from aiobotocore import session as aio_session

from fleet_model import spec, twin_partition
from fleet_worker import control_plane, custody, errors, ports
from fleet_worker.adapters import clock as clocks
from fleet_worker.adapters import control_files, s3
from tests.support import aws_env, live_fleet, streams, worker_process

BUCKET = "twins"


class SharedFleet:
    """fleet: its streams, its file, its folder. endpoints: of Kinesis, which may be a proxy, and of the object store."""

    def __init__(self, fleet: live_fleet.LiveFleet, kinesis_url: str, store_url: str) -> None:
        self.fleet = fleet
        self.control = fleet.folder / "control"
        self.files = control_files.ControlFiles(self.control)
        self._environment = {"AWS_ENDPOINT_URL_KINESIS": kinesis_url, "AWS_ENDPOINT_URL_S3": store_url}
        self._store_url = store_url
        self._look = control_files.Look(self.files)

    def data_folder(self, name: str) -> Path:
        return self.fleet.folder / "data" / name

    def partitions_folder(self, name: str) -> Path:
        return self.data_folder(name) / "default" / "trucks" / "partitions"

    def worker(self, name: str) -> worker_process.WorkerProcess:
        return worker_process.WorkerProcess(
            self.fleet.path,
            self.data_folder(name),
            self.fleet.folder / f"{name}.log",
            ("--control", str(self.control), "--name", name),
            self._environment,
        )

    def take_disk(self, name: str) -> None:
        """As a volume that is lost."""
        shutil.rmtree(self.data_folder(name), ignore_errors=True)

    def partitions(self) -> dict[str, twin_partition.TwinPartition]:
        """Every object as it is now, by shard id."""
        try:
            return self._look.partitions()
        except errors.ControlPlaneUnavailableError:
            if (self.control / "version").exists():
                raise
            return {}  # the control loop hasn't made it yet

    def heartbeats(self) -> dict[str, control_plane.Heartbeat]:
        return self.files.heartbeats()

    @contextlib.asynccontextmanager
    async def objects(self) -> AsyncIterator[ports.ObjectStore]:
        """The fleet's, as its workers see it. Needs aws_env.apply()."""
        aws = spec.Aws(region=aws_env.REGION, endpoint_url=self._store_url)
        told = self.fleet.spec()
        with clocks.RealClock() as clock:
            async with s3.open_store(aws, told.checkpoint, (told.namespace, told.name), clock) as objects:
                yield objects

    @contextlib.asynccontextmanager
    async def manifests(self) -> AsyncIterator[custody.Manifests]:
        async with self.objects() as objects:
            yield custody.Manifests(objects)


async def make_bucket(store_url: str) -> None:
    """One for all the fleets of a test: each has a prefix of its own. Needs aws_env.apply()."""
    plain = aio_session.get_session().create_client("s3", region_name=aws_env.REGION, endpoint_url=store_url)
    async with plain as client:
        await client.create_bucket(Bucket=BUCKET)


@contextlib.asynccontextmanager
async def made(
    folder: Path, kinesis: streams.Streams, kinesis_url: str, store_url: str, shards: int, **settings: object
) -> AsyncIterator[SharedFleet]:
    """kinesis_url: where workers find Kinesis. settings: further sections of `spec`."""
    sections = {
        "aws": {"region": aws_env.REGION},
        "checkpoint": {"bucket": BUCKET, "prefix": folder.name, "interval": "2s"},
        "rebalance": {"drainTimeout": "20s"},
    }
    async with live_fleet.made(folder, kinesis, kinesis_url, shards, **{**sections, **settings}) as fleet:
        yield SharedFleet(fleet, kinesis_url, store_url)
