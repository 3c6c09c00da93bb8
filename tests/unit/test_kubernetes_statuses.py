"""What the API server's refusals of a partition's status mean for whoever tells it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import test_utils, web

from fleet_model import hashing, twin_partition, twin_partition_document
from fleet_worker import errors, ports
from fleet_worker.adapters import clock, kubernetes_api, kubernetes_control

SHARD = "shardId-000000000000"
FLEET = kubernetes_control.Fleet("depot", "trucks")
NAME = twin_partition.object_name(FLEET.name, SHARD)
STORED = twin_partition.TwinPartition(
    FLEET.namespace,
    NAME,
    twin_partition.Spec(FLEET.name, "telemetry", SHARD, hashing.HashKeyRange()),
    resource_version="7",
)
PATH = f"{kubernetes_control.API}/{FLEET.namespace}/twinpartitions/{NAME}"


@contextlib.asynccontextmanager
async def answering(folder: Path, get: int, patch: int) -> AsyncIterator[ports.Ownership]:
    """A worker's ownership over an API server that answers so."""

    async def answer(request: web.Request) -> web.Response:
        status = get if request.method == "GET" else patch
        document = twin_partition_document.document(STORED) if status == 200 else {"message": "no"}
        return web.json_response(document, status=status)

    (folder / "token").write_text("first")
    application = web.Application()
    application.router.add_get(PATH, answer)
    application.router.add_patch(f"{PATH}/status", answer)
    async with test_utils.TestServer(application) as server:
        with clock.RealClock() as real:
            access = kubernetes_api.Access(str(server.make_url("")).rstrip("/"), folder)
            async with kubernetes_control.KubernetesControl.open(access, FLEET, real) as control:
                yield control.ownership("trucks-0")


def running(stored: twin_partition.Status) -> twin_partition.Status:
    return dataclasses.replace(stored, phase=twin_partition.Phase.RUNNING)


@pytest.mark.parametrize(("get", "patch"), [(200, 403), (403, 200), (200, 422), (200, 400), (200, 415)])
async def test_what_trying_again_doesnt_mend_says_what_does(tmp_path: Path, get: int, patch: int) -> None:
    async with answering(tmp_path, get, patch) as ownership:
        with pytest.raises(errors.ControlPlaneRefusedError, match=f"answered {max(get, patch)}: no") as refused:
            await ownership.report(SHARD, running)
    expected = "auth can-i patch twinpartitions/status" if 403 in (get, patch) else "definitions of this version"
    assert expected in refused.value.remedy
    assert SHARD in str(refused.value)


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_what_passes_by_itself_is_no_lasting_refusal(tmp_path: Path, status: int) -> None:
    async with answering(tmp_path, 200, status) as ownership:
        with pytest.raises(errors.ControlPlaneUnavailableError) as refused:
            await ownership.report(SHARD, running)
    assert not isinstance(refused.value, errors.ControlPlaneRefusedError)


async def test_an_object_that_is_gone_is_gone(tmp_path: Path) -> None:
    async with answering(tmp_path, 200, 404) as ownership:
        with pytest.raises(errors.PartitionGoneError, match=SHARD):
            await ownership.report(SHARD, running)
