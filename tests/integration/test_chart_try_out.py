"""The try-out's emulator, as it stands in the example: its streams and its bucket are there when it answers, and a worker with the example's own
fleet answers hot records on it. How all of it runs in pods is looked at on a cluster.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import aws_env, charts, server_process, worker_process

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

TRY_S_MAX = 120
CREDENTIALS = charts.one(charts.example("try-out.yaml"), "Secret")["stringData"]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL: the script of the ConfigMap with the environment of the Deployment, on a port of its own."""
    documents = charts.example("try-out.yaml")
    script = tmp_path_factory.mktemp("emulator") / "emulator.py"
    script.write_text(charts.one(documents, "ConfigMap", "emulator")["data"]["emulator.py"], encoding="utf-8")
    container = charts.one(documents, "Deployment", "emulator")["spec"]["template"]["spec"]["containers"][0]
    told = {entry["name"]: entry["value"] for entry in container["env"] if entry["name"] != "HOME"}

    def start(port: int) -> server_process.ServerProcess:
        environment = aws_env.environment(**CREDENTIALS, **told, HOST="127.0.0.1", PORT=str(port))
        return server_process.ServerProcess([sys.executable, str(script)], environment)

    with server_process.at_a_port(start, "/moto-api/") as port:
        yield f"http://127.0.0.1:{port}"


async def test_its_fleet_answers_hot_records(emulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aws_env.apply(monkeypatch)
    document = charts.one(charts.example("try-out.yaml"), "DeviceFleet")
    assert document["spec"]["aws"]["endpointURL"] == "http://emulator.fleet-twin.svc:5000"
    document["spec"]["aws"]["endpointURL"] = emulator
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump(document), encoding="utf-8")
    async with worker_process.WorkerProcess(fleet, tmp_path / "data", tmp_path / "worker.log") as worker:
        worker.start()
        await worker.ready()
        assert len((await worker.get("/v1/status"))["partitions"]) == 4
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "fleet_cli", "try", "--fleet", str(fleet)],
            env=aws_env.environment(**CREDENTIALS),
            capture_output=True,
            text=True,
            timeout=TRY_S_MAX,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "target 55 °C" in done.stdout
        await worker.stop()
