"""Sets a stage up for a session: emulators where pods reach them, the bucket, the operator. Which cluster is somebody else's choice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from aiobotocore import session as aio_session

from tests.e2e import operators, providers, scene
from tests.e2e.steps import given
from tests.support import aws_env, go_tools, kinesis_local, memory_kinesis_server, versitygw


@contextlib.contextmanager
def with_processes(cluster: providers.Cluster, folder: Path) -> Iterator[scene.Stage]:
    """The operator as a process beside the test. Needs aws_env.apply(). Raises node.NoNodeError, go_toolchain.NoGoError where emulators can't
    be had."""
    folder.mkdir(parents=True, exist_ok=True)
    with _kinesis() as kinesis_url, versitygw.running() as store_url:
        asyncio.run(_make_bucket(store_url))
        environment = {
            "AWS_ENDPOINT_URL_KINESIS": kinesis_url,
            "AWS_ENDPOINT_URL_S3": store_url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        operator = operators.OperatorProcess(cluster.kubeconfig, folder / "operator.log", environment)
        stage = scene.Stage(cluster, operator, kinesis_url, store_url, folder)
        asyncio.run(_make_namespace(stage))
        operator.start()
        try:
            yield stage
        finally:
            operator.stop()


@contextlib.contextmanager
def with_chart(cluster: providers.Cluster, image: str, folder: Path) -> Iterator[scene.Stage]:
    """The operator by the chart, emulators beside the cluster at the address that pods see. From inside `cluster.entered()`; raises as
    with_processes."""
    folder.mkdir(parents=True, exist_ok=True)
    helm = go_tools.program("helm-3")
    with (
        _kinesis(cluster.address) as kinesis_url,
        versitygw.running(cluster.address) as store_url,
    ):
        asyncio.run(_make_bucket(store_url))
        operator = operators.OperatorPod(cluster, helm, image, {"AWS_ENDPOINT_URL_KINESIS": kinesis_url})
        stage = scene.Stage(cluster, operator, kinesis_url, store_url, folder)
        asyncio.run(_make_namespace(stage))
        operator.install()
        try:
            yield stage
        finally:
            operator.uninstall()


def _kinesis(address: str = "127.0.0.1") -> contextlib.AbstractContextManager[str]:
    match scene.KINESIS:
        case "memory":
            return memory_kinesis_server.running(address)
        case "kinesis-local":
            return kinesis_local.running(address=address)
        case other:
            raise AssertionError(f"FLEET_TWIN_E2E_KINESIS is {other!r}: memory or kinesis-local")


async def _make_bucket(store_url: str) -> None:
    plain = aio_session.get_session().create_client("s3", region_name=aws_env.REGION, endpoint_url=store_url)
    async with plain as client:
        await client.create_bucket(Bucket=scene.BUCKET)


async def _make_namespace(stage: scene.Stage) -> None:
    """Of the operator; it has to be admitted as fleets have."""
    metadata = {"name": operators.LEASE_NAMESPACE, "labels": given.RESTRICTED}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    await stage.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))
