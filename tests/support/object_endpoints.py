"""The stores that the object store contract is checked on: in memory, versitygw, moto's server.

An Endpoint has a bucket of its own and what a test needs beside the calls under test. How a store differs from S3 is told by its
flags, and explained in the contract suite's table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections.abc import AsyncIterator

from aiobotocore import session as aio_session

from fleet_model import spec
from fleet_worker import ports
from fleet_worker.adapters import clock, memory_objects, objects, objects_api, s3
from tests.support import aws_env


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """Where stores differ; see the table of tests/contract/test_object_store.py."""

    writes_in_one_step: bool = True


@dataclasses.dataclass
class Endpoint:
    """api: to a bucket of its own."""

    api: objects_api.ObjectApi
    clock: ports.Clock
    behaviour: Behaviour

    def store(self, prefix: str = "fleet-twin/default/cars/") -> ports.ObjectStore:
        return objects.Objects(self.api, self.clock, random.Random(1), prefix, "the bucket")


MEMORY = Behaviour()
VERSITYGW = Behaviour()
MOTO = Behaviour(writes_in_one_step=False)

_numbers = itertools.count(1)


def unused_bucket() -> str:
    """A name that no test of this process has used: they share a server."""
    return f"bucket-{next(_numbers)}"


@contextlib.asynccontextmanager
async def memory(list_page_max: int) -> AsyncIterator[Endpoint]:
    with clock.RealClock() as real:
        bucket = memory_objects.Bucket(real)
        yield Endpoint(memory_objects.MemoryApi(bucket, real, list_page_max=list_page_max), real, MEMORY)


async def create_bucket(endpoint_url: str) -> str:
    """Over plain aiobotocore, so that the adapter under test doesn't prepare its own tests. Needs aws_env.apply()."""
    name = unused_bucket()
    plain = aio_session.get_session().create_client("s3", region_name=aws_env.REGION, endpoint_url=endpoint_url)
    async with plain as client:
        await client.create_bucket(Bucket=name)
    return name


@contextlib.asynccontextmanager
async def at(endpoint_url: str, behaviour: Behaviour) -> AsyncIterator[Endpoint]:
    """Needs aws_env.apply()."""
    bucket = await create_bucket(endpoint_url)
    aws = spec.Aws(region=aws_env.REGION, endpoint_url=endpoint_url)
    with clock.RealClock() as real:
        async with s3.open_api(aws, bucket, real) as api:
            yield Endpoint(api, real, behaviour)
