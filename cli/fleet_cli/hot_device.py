"""A device that is too hot, for `fleet-twin try`: its records, its answer on the output streams, its end.

Records go one by one, since Kinesis promises no order inside a call.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import secrets
import time
from types import TracebackType

import orjson
from google.protobuf import message as protobuf

from fleet_cli import kinesis
from fleet_cli.simulator import commands
from fleet_model import generations, spec
from fleet_proto import fleet_pb2
from fleet_worker import errors
from fleet_worker.adapters import kinesis_api

ABOVE_C = 15.0
"""Over the limit by so much."""
POLL_S = 0.25
FORGET_S = 10.0
"""Forgetting is a courtesy: it mustn't take long when Kinesis has just gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """samples: records in a row that the rule wants. command: None: the rule has none, and its alert is waited for."""

    device_id: str
    samples: int
    temperature_c: float
    command: str | None

    @property
    def awaited(self) -> str:
        return self.command or "temp_spike"


def plan(fleet: spec.FleetSpec, device_id: str | None) -> Plan:
    """By the rules that the fleet's document has for the device. Raises FleetTwinError when no temperature makes it alert."""
    device_id = device_id or f"fleet-twin-try-{secrets.token_hex(4)}"
    generation = generations.first_generation(fleet)
    rule = generation.rules(generation.profile_index(device_id, "")).temperature
    if not rule.enabled:
        raise errors.FleetTwinError(
            f"The temperature rule is off for device {device_id}, so nothing would come. Name a device that it is on for with --device."
        )
    return Plan(device_id, rule.consecutive_samples, rule.threshold + ABOVE_C, rule.command or None)


async def put(api: kinesis_api.KinesisApi, fleet: spec.FleetSpec, hot: Plan, timeout_s: float) -> None:
    """Raises StreamGoneError when the stream doesn't take them in time."""
    first_ms = time.time_ns() // 1_000_000 - hot.samples
    for index in range(hot.samples):
        await _put_one(api, fleet, hot.device_id, _telemetry(fleet, hot, first_ms + index), timeout_s)


async def forget(api: kinesis_api.KinesisApi, fleet: spec.FleetSpec, hot: Plan) -> None:
    """Control records are understood as protobuf whatever the stream's format. Raises StreamGoneError."""
    message = fleet_pb2.Telemetry(device_id=hot.device_id)
    message.control.issued_ms = time.time_ns() // 1_000_000
    message.control.forget_device.SetInParent()
    await _put_one(api, fleet, hot.device_id, message.SerializeToString(), FORGET_S)


def _telemetry(fleet: spec.FleetSpec, hot: Plan, timestamp_ms: int) -> bytes:
    if fleet.streams.telemetry.format != "JSON":
        return fleet_pb2.Telemetry(
            device_id=hot.device_id, timestamp=timestamp_ms, temperature_c=hot.temperature_c, battery_pct=100.0
        ).SerializeToString()
    sample = {"device_id": hot.device_id, "timestamp": timestamp_ms, "temperature_c": hot.temperature_c}
    return json.dumps(sample | {"battery_pct": 100.0}).encode()


async def _put_one(
    api: kinesis_api.KinesisApi, fleet: spec.FleetSpec, device_id: str, data: bytes, timeout_s: float
) -> None:
    """Tries again what passes by itself. A record that was put twice is a duplicate to the fleet."""
    stream = fleet.streams.telemetry.arn or fleet.streams.telemetry.stream_name
    backoff = kinesis_api.Backoff(random.Random(), 0.2, 2.0)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            failure = (await api.put_records(stream, [kinesis_api.PutRecord(device_id, data)]))[0].failure
        except kinesis_api.ApiError as error:
            failure = error.failure
        if failure is None:
            return
        if failure.trouble not in kinesis.PASSING or time.monotonic() > deadline:
            raise kinesis.gone(stream, kinesis_api.ApiError("PutRecords", failure))
        await asyncio.sleep(backoff.next_s())


class Hearing:
    """The output stream from the moment of entering on. Entered, it gives a future of the answer's text; the future raises
    StreamGoneError when the stream can't be read."""

    def __init__(self, api: kinesis_api.KinesisApi, fleet: spec.FleetSpec, hot: Plan) -> None:
        self._api = api
        self._stream = (fleet.streams.commands if hot.command else fleet.streams.alerts).name
        self._hot = hot
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> asyncio.Future[str]:
        try:
            since_ms = (await self._api.describe_stream(self._stream)).date_ms
        except kinesis_api.ApiError as error:
            raise kinesis.gone(self._stream, error) from error
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(records: list[bytes]) -> None:
            for data in records:
                found = self._answer(data)
                if found is not None and not answer.done():
                    answer.set_result(found)

        def over(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and not answer.done():
                answer.set_exception(task.exception() or errors.FleetTwinError(f"{self._stream} came to an end"))

        self._task = asyncio.create_task(kinesis.follow(self._api, self._stream, take, POLL_S, since_ms))
        self._task.add_done_callback(over)
        return answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    def _answer(self, data: bytes) -> str | None:
        """None: of another device, or something else."""
        if self._hot.command is None:
            return _alert(data, self._hot.device_id)
        command = commands.read(data)
        if command is None or (command.device_id, command.command) != (self._hot.device_id, self._hot.command):
            return None
        return "no target" if command.target_c is None else f"target {command.target_c:g} °C"


def _alert(data: bytes, device_id: str) -> str | None:
    try:
        if data[:1] == b"{":
            told = orjson.loads(data)
            found, trigger, explanation = told["device_id"], told["trigger"], told.get("explanation", "")
        else:
            message = fleet_pb2.DeviceAlert.FromString(data)
            found, trigger, explanation = message.device_id, message.trigger, message.explanation
    except (protobuf.DecodeError, ValueError, KeyError, TypeError):
        return None
    return str(explanation) if (found, trigger) == (device_id, "temp_spike") else None
