"""`fleet-twin checkpoint` as a process of its own, over moto's S3: what a shell sees of it."""

from __future__ import annotations

import asyncio
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from aiobotocore import session as aio_session

from fleet_model import manifest
from fleet_worker.adapters import clock, s3
from tests.support import aws_env, moto_server
from tests.support import fleet_in_bucket as made
from tests.support.fleet_in_bucket import FIRST, SECOND

pytestmark = pytest.mark.processes
COMMAND = [sys.executable, "-m", "fleet_cli", "checkpoint"]


class Shell:
    """A fleet file, and the bucket that it names."""

    def __init__(self, endpoint_url: str, folder: pathlib.Path) -> None:
        self.endpoint_url = endpoint_url
        self.folder = folder
        self.document = made.fleet_of(endpoint_url)
        self.fleet_file = made.write_fleet_file(folder, self.document)
        self.manifests: dict[str, manifest.Manifest] = {}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments, "--fleet", str(self.fleet_file)],
            cwd=self.folder,
            env=aws_env.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def fill(self) -> None:
        async def body() -> None:
            fleet = made.settings(self.document)
            async with self._client() as client:
                await client.create_bucket(Bucket=made.BUCKET)
            with clock.RealClock() as real:
                name = (fleet.namespace, fleet.name)
                async with s3.open_store(fleet.aws, fleet.checkpoint, name, real) as objects:
                    self.manifests = await made.fill(objects, fleet, real)

        asyncio.run(body())

    def key(self, shard_id: str, kind: manifest.Kind) -> str:
        checkpoint = self.manifests[shard_id].checkpoint
        assert checkpoint is not None
        name = next(part.name for part in checkpoint.parts if part.kind is kind)
        return f"fleet-twin/default/trucks/{shard_id}/{name}"

    def change(self, key: str, data: bytes | None) -> bytes:
        """Puts other bytes there, or removes it; what was there."""

        async def body() -> bytes:
            async with self._client() as client:
                answer = await client.get_object(Bucket=made.BUCKET, Key=key)
                before = await answer["Body"].read()
                if data is None:
                    await client.delete_object(Bucket=made.BUCKET, Key=key)
                else:
                    await client.put_object(Bucket=made.BUCKET, Key=key, Body=data)
                return bytes(before)

        return asyncio.run(body())

    def put_back(self, key: str, data: bytes) -> None:
        async def body() -> None:
            async with self._client() as client:
                await client.put_object(Bucket=made.BUCKET, Key=key, Body=data)

        asyncio.run(body())

    def _client(self) -> Any:
        session = aio_session.get_session()
        return session.create_client("s3", region_name=aws_env.REGION, endpoint_url=self.endpoint_url)


@pytest.fixture
def shell(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    aws_env.apply(monkeypatch)
    with moto_server.running() as url:
        shell = Shell(url, tmp_path)
        yield shell


def test_a_fleet_is_listed_shown_verified_exported_and_its_damage_found(shell: Shell) -> None:
    missing = shell.run("ls")
    assert missing.returncode == 1, missing.stderr
    assert "NoSuchBucket" in missing.stderr
    assert "spec.checkpoint.bucket" in missing.stderr
    shell.fill()

    listed = json.loads(shell.run("ls", "--json").stdout)
    assert [entry["shard_id"] for entry in listed] == [FIRST, SECOND]
    assert sum(entry["checkpoint"]["twins"] for entry in listed) == len(made.DEVICES)
    shown = shell.run("show", SECOND)
    assert shown.returncode == 0, shown.stderr
    assert "50 % of the devices" in shown.stdout
    verified = shell.run("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "All is well" in verified.stdout

    exported = shell.run("export", "--out", "twins.parquet")
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout == ""
    counted = (
        duckdb.connect()
        .execute(f"SELECT count(*), count(DISTINCT device_id) FROM '{shell.folder}/twins.parquet'")
        .fetchall()
    )
    assert counted == [(len(made.DEVICES) - 1, len(made.DEVICES) - 1)]
    lines = shell.run("export", "--open-alerts", "--columns", "device_id").stdout.splitlines()
    assert {json.loads(line)["device_id"] for line in lines} == {made.HOT, made.SILENT}

    base, delta = shell.key(FIRST, manifest.Kind.BASE), shell.key(SECOND, manifest.Kind.DELTA)
    whole = shell.change(base, None)
    shell.put_back(base, whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    gone = shell.change(delta, None)
    broken = shell.run("verify")
    assert broken.returncode == 1
    assert base.rsplit("/", 1)[1] in broken.stdout
    assert "checksum is wrong" in broken.stdout
    assert "is gone" in broken.stdout
    assert "2 things are wrong" in broken.stdout
    failed = shell.run("export", "--out", "again.parquet")
    assert failed.returncode == 1
    assert not list(shell.folder.glob("*again*"))

    shell.put_back(base, whole)
    shell.put_back(delta, gone)
    assert shell.run("verify", SECOND).returncode == 0
    assert shell.run("verify", "--parallel", "1").returncode == 0


def test_a_reader_that_has_enough_ends_the_export_quietly(shell: Shell) -> None:
    shell.fill()
    command = [*COMMAND, "export", "--fleet", str(shell.fleet_file)]
    with subprocess.Popen(
        command, env=aws_env.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["device_id"] in made.DEVICES
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(60) != 0
    assert "Traceback" not in told


def test_a_store_that_does_not_answer_is_told_with_its_own_exit_code(shell: Shell) -> None:
    text = shell.fleet_file.read_text()
    shell.fleet_file.write_text(text.replace(shell.endpoint_url, "http://127.0.0.1:9"))
    result = shell.run("ls")
    assert result.returncode == 4, result.stderr
    assert "spec.aws.endpointURL" in result.stderr
    assert "Traceback" not in result.stderr
