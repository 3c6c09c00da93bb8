"""The local test of the page that Fleet Twin grew out of, in its own words: typed into a real shell, with the real AWS CLI,
against kinesis-local and a real worker.

The page runs its commands by `docker exec CONTAINER awslocal …`; here two shell functions of these names run the AWS CLI at the
emulator instead, so that the words stay the page's. AWS CLI version 1 stores the base64 text that it is given as it is,
line breaks and all: that the worker understands it is part of the test.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_proto import fleet_pb2
from tests.support import aws_env, awscli, fleets, worker_process

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SHELL_S_MAX = 120.0
"""Each call of the AWS CLI takes a second or two of CPU."""
READ_S_MAX = 60.0

WORDS = r"""
docker() { shift 2; "$@"; }
awslocal() { "$AWS" --endpoint-url "$ENDPOINT_URL" "$@"; }
"""

CREATE_THE_STREAMS = r"""
docker exec statefun-localstack awslocal kinesis create-stream \
--stream-name device-telemetry --shard-count 1
docker exec statefun-localstack awslocal kinesis create-stream \
--stream-name device-alerts --shard-count 1
docker exec statefun-localstack awslocal kinesis create-stream \
--stream-name device-commands --shard-count 1
"""

SEND_A_TEMPERATURE_SPIKE = r"""
for i in 1 2 3; do
docker exec statefun-localstack awslocal kinesis put-record \
--stream-name device-telemetry --partition-key device-7 \
--data "$(echo '{"device_id":"device-7","temperature_c":75,"battery_pct":80,"cpu_load":0.5,"timestamp":'$(date +%s%3N)'}' | base64)"
sleep 1
done
"""

READ_THE_RESULTING_COMMAND = r"""
docker exec statefun-localstack awslocal kinesis get-records \
--shard-iterator $(docker exec statefun-localstack awslocal kinesis get-shard-iterator \
--stream-name device-commands --shard-id shardId-000000000000 \
--shard-iterator-type TRIM_HORIZON --query 'ShardIterator' --output text)
"""

READ_THE_ALERTS = READ_THE_RESULTING_COMMAND.replace("device-commands", "device-alerts")


class Shell:
    def __init__(self, endpoint_url: str) -> None:
        self._environment = aws_env.environment(AWS=str(awscli.program()), ENDPOINT_URL=endpoint_url)

    async def run(self, script: str) -> str:
        """Its standard output; it has to end well, each of its commands."""
        process = await asyncio.create_subprocess_exec(
            str(shutil.which("bash")),
            "-c",
            f"set -euo pipefail\n{WORDS}{script}",
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(SHELL_S_MAX):
                output, complaints = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"{script}\nended with {process.returncode}: {complaints.decode()}"
        return output.decode()

    async def records(self, script: str) -> list[bytes]:
        """The data of the records that a get-records gives."""
        answer: dict[str, Any] = json.loads(await self.run(script))
        return [base64.b64decode(record["Data"]) for record in answer["Records"]]

    async def first_records(self, script: str) -> list[bytes]:
        """As soon as there are any."""
        deadline = time.monotonic() + READ_S_MAX
        while not (found := await self.records(script)):
            assert time.monotonic() < deadline, f"nothing on the stream after {READ_S_MAX} s"
        return found


def write_fleet(folder: Path, endpoint_url: str) -> Path:
    """What a user writes who has read the page: three stream names, everything else by default."""
    document = fleets.smallest()
    document["spec"] = {
        "aws": {"region": aws_env.REGION, "endpointURL": endpoint_url},
        "streams": {
            "telemetry": {"name": "device-telemetry"},
            "alerts": {"name": "device-alerts"},
            "commands": {"name": "device-commands"},
        },
    }
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


async def test_three_hot_samples_of_device_7_give_one_alert_and_a_cool_down(tmp_path: Path, kinesis_url: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash on this machine")
    shell = Shell(kinesis_url)
    await shell.run(CREATE_THE_STREAMS)
    fleet_path = write_fleet(tmp_path, kinesis_url)
    async with worker_process.WorkerProcess(fleet_path, tmp_path / "data", tmp_path / "worker.log") as worker:
        worker.start()
        await worker.ready()
        before_ms = time.time_ns() // 1_000_000
        put = await shell.run(SEND_A_TEMPERATURE_SPIKE)
        last_sequence_number = re.findall(r'"SequenceNumber": "(\d+)"', put)[-1]
        await shell.first_records(READ_THE_RESULTING_COMMAND)
        after_ms = time.time_ns() // 1_000_000
        twin = await worker.get("/v1/twins/device-7")
        stop_s = await worker.stop()
    (command,) = map(fleet_pb2.DeviceCommand.FromString, await shell.records(READ_THE_RESULTING_COMMAND))
    (alert,) = map(fleet_pb2.DeviceAlert.FromString, await shell.records(READ_THE_ALERTS))

    assert stop_s < worker_process.STOP_S_MAX
    assert (command.device_id, command.command) == ("device-7", "cool_down")
    assert command.parameters == '{"target_c":55.0}'
    assert before_ms <= command.timestamp <= after_ms
    assert (alert.device_id, alert.trigger, alert.severity) == ("device-7", "temp_spike", "critical")
    assert alert.state == fleet_pb2.FIRING
    assert alert.explanation == "temperature 75.0°C above 60.0 for 3 samples"
    assert alert.sequence_number == last_sequence_number, "it takes the third sample"
    assert (alert.last.device_id, alert.last.temperature_c, alert.last.battery_pct) == ("device-7", 75.0, 80.0)
    assert before_ms <= alert.last.timestamp <= after_ms
    assert twin["counters"] == {"samples": 3, "late": 0, "gaps": 0}
    assert [entry["trigger"] for entry in twin["alerts"]] == ["temp_spike"]
