"""What the demo plays on: a folder, a fleet file that invites edits, and the streams and the bucket that it names."""

from __future__ import annotations

import asyncio
import pathlib
import urllib.parse
from typing import Any

from aiobotocore import config as aio_config
from aiobotocore import session as aio_session
from botocore import exceptions as botocore_exceptions

from fleet_model import spec
from fleet_worker import errors

TELEMETRY_SHARDS_MIN = 4
SHARDS_PER_WORKER = 2
REGION = "eu-central-1"
READY_S = 20.0

FAULTS = "hot=3%,drain=4%,silent=2%,json=3%,poison=0.2%,duplicate=1%,clock=1%"
TIME_SCALE = 20.0
"""The world's time in the demo: a day takes 72 minutes, and faults come often enough to be seen."""

FLEET_FILE = """\
# The demo's fleet. Edit rules or profiles and save: the worker takes them up within 2 seconds, while records flow.
# Try: temperature threshold 60 -> 30, and watch the alerts and the rules generation.
apiVersion: fleettwin.io/v1alpha1
kind: DeviceFleet
metadata:
  name: demo
spec:
  aws:
    region: {region}
    endpointURL: {endpoint}       # the demo's own Kinesis and S3; gone when it ends
  streams:
    telemetry: {{name: telemetry, startPosition: TrimHorizon}}
    alerts: {{name: alerts, format: JSON}}
    commands: {{name: commands, format: JSON}}
    deadLetter: {{name: dead-letter}}
  checkpoint:
    bucket: fleet-twin-demo
    interval: 10s                 # 60s by default; short here, so that moves have little to catch up
  rules:
    temperature:
      threshold: 60.0             # °C; above it for 3 samples in a row: alert and the command cool_down
      consecutiveSamples: 3
      repeatInterval: 30s
    battery:
      maxDropPerHour: 10.0        # % of charge an hour, while idle
      minObservation: 20s         # 10m by default; short here, so that the demo shows something soon
    offline:
      after: 20s                  # 5m by default; short here for the same reason
  profiles:
    - name: trucks
      match: {{deviceIdPrefix: truck-}}
      rules:
        temperature: {{threshold: 70.0}}
"""


def write_fleet_file(path: pathlib.Path, endpoint: str) -> None:
    path.write_text(FLEET_FILE.format(region=REGION, endpoint=endpoint))


def emulator_port(fleet: spec.FleetSpec) -> int:
    """The port that a user's own fleet file wants the emulator on; 0 = any, when it names no endpoint.

    Raises FleetTwinError for an endpoint elsewhere: the demo makes streams, and floods them.
    """
    if fleet.aws.endpoint_url is None:
        return 0
    address = urllib.parse.urlsplit(fleet.aws.endpoint_url)
    if address.scheme != "http" or address.hostname not in ("127.0.0.1", "localhost") or not address.port:
        raise errors.FleetTwinError(
            f"The demo runs on its own Kinesis and S3 only, and this fleet file names {fleet.aws.endpoint_url}. Remove "
            "spec.aws.endpointURL from a copy of it, or make it http://127.0.0.1:PORT with a port that is free."
        )
    return address.port


async def make_streams(fleet: spec.FleetSpec, endpoint: str, workers: int) -> None:
    """Every stream and the bucket that the fleet names."""
    streams = fleet.streams
    names = [streams.alerts.name, streams.commands.name, streams.control, streams.dead_letter]
    region = fleet.aws.region or REGION
    async with _client("kinesis", region, endpoint) as kinesis:
        shards = max(TELEMETRY_SHARDS_MIN, SHARDS_PER_WORKER * workers)
        await _create(kinesis, streams.telemetry.stream_name, shards)
        for name in filter(None, names):
            await _create(kinesis, name, 1)
    if fleet.checkpoint.bucket is not None:
        async with _client("s3", region, endpoint) as s3:
            where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            await s3.create_bucket(Bucket=fleet.checkpoint.bucket, **where)


def _client(service: str, region: str, endpoint: str) -> Any:
    settings = aio_config.AioConfig(s3={"addressing_style": "path"})
    return aio_session.get_session().create_client(service, region_name=region, endpoint_url=endpoint, config=settings)


async def _create(kinesis: Any, name: str, shards: int) -> None:
    try:
        await kinesis.create_stream(StreamName=name, ShardCount=shards)
        async with asyncio.timeout(READY_S):
            while True:
                answer = await kinesis.describe_stream_summary(StreamName=name)
                if answer["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
                    return
                await asyncio.sleep(0.1)
    except (botocore_exceptions.ClientError, botocore_exceptions.HTTPClientError, TimeoutError) as error:
        raise errors.FleetTwinError(f"The demo's Kinesis could not make the stream {name!r}: {error}") from error
