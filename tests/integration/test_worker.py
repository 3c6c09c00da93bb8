"""A real worker as its users meet it: stopped under load, started twice, edited while it runs, its output streams failing, its
devices misrouted and instructed. kinesis-local is the Kinesis, a proxy in front of it brings the trouble.

Besides what each test looks at, the reference judges everything that the worker left (live_judge).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import lmdb
import orjson
import pytest
import yaml

from fleet_model import hashing
from fleet_proto import fleet_pb2
from fleet_worker.adapters import local_folder
from tests.reference import raw
from tests.reference.words import TEMPERATURE, Control
from tests.support import (
    aws_env,
    catching_up,
    live_fleet,
    live_judge,
    proxy,
    streams,
    waiting,
    worker_process,
)

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(240)]

TICK_S = 0.05
SOON_S_MAX = 60.0
ALWAYS = 1_000_000
THROTTLED_CALLS = 5
"""A second or two of back-off: the stop waits for six."""


@dataclasses.dataclass
class Scene:
    """A fleet with two shards of telemetry, its worker (not started), and the proxy between it and Kinesis."""

    fleet: live_fleet.LiveFleet
    worker: worker_process.WorkerProcess
    faults: proxy.FaultProxy

    async def put(self, *puts: tuple[str, bytes]) -> None:
        await self.fleet.streams.put(self.fleet.stream(live_fleet.TELEMETRY), puts)

    async def start(self) -> None:
        self.worker.start()
        await self.worker.ready()

    async def alerts(self) -> list[fleet_pb2.DeviceAlert]:
        read = await self.fleet.streams.read_all(self.fleet.stream(live_fleet.ALERTS))
        return [fleet_pb2.DeviceAlert.FromString(record.data) for record in read]

    async def finish(self) -> live_judge.Judgement:
        """Everything applied and published, a clean stop, and no complaint of the judge's."""
        await catching_up.caught_up(self.fleet, self.worker)
        await self.stop()
        return await self.judged()

    async def stop(self) -> None:
        assert await self.worker.stop() < worker_process.STOP_S_MAX

    async def judged(self) -> live_judge.Judgement:
        judgement = await live_judge.judged(self.fleet)
        assert judgement.problems == []
        return judgement

    def outbox(self) -> int:
        """Effects that the stopped worker's stores still hold, read without any code of the worker's."""
        count = 0
        folders = list(self.fleet.data_folder.glob("*/*/partitions/*"))
        assert folders
        for folder in folders:
            with (
                lmdb.open(str(folder / "environment"), readonly=True, lock=False, max_dbs=5) as environment,
                environment.begin() as transaction,
            ):
                count += int(transaction.stat(environment.open_db(b"outbox", txn=transaction, create=False))["entries"])
        return count

    def was_closed_cleanly(self) -> bool:
        folders = list(self.fleet.data_folder.glob("*/*/partitions/*"))
        return bool(folders) and all((folder / "closed").exists() for folder in folders)


@contextlib.asynccontextmanager
async def scene(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    aws_env.apply(monkeypatch)
    async with (
        streams.Streams.at(url) as kinesis,
        proxy.FaultProxy(url) as faults,
        live_fleet.made(folder / "fleet", kinesis, faults.endpoint_url, shards=2) as fleet,
        fleet.worker() as worker,
    ):
        fleet.edit({})
        yield Scene(fleet, worker, faults)


def telemetry(device_id: str, temperature_c: float = 20.0, timestamp_ms: int = 0) -> bytes:
    message = fleet_pb2.Telemetry(
        device_id=device_id, timestamp=timestamp_ms, temperature_c=temperature_c, battery_pct=80, cpu_load=0.5
    )
    return message.SerializeToString()


class Load:
    """Devices that become hot and cool down again, ever faster than a commit: effects are on their way all the time."""

    def __init__(self, on: Scene, devices: int = 25) -> None:
        self._on = on
        self._devices = [f"device-{number}" for number in range(devices)]
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.ticks = 0

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.end()

    async def end(self) -> None:
        self._stop.set()
        assert self._task is not None
        await self._task

    async def flowing(self, effects_min: int = 100) -> None:
        """Alerts come out."""
        deadline = time.monotonic() + SOON_S_MAX
        while len(await self._on.alerts()) < effects_min:
            assert time.monotonic() < deadline, "hardly any alert comes"
            await asyncio.sleep(TICK_S)

    async def _run(self) -> None:
        while not self._stop.is_set():
            self.ticks += 1
            temperature_c = 75.0 if self.ticks % 5 else 20.0
            await self._on.put(
                *[(device, telemetry(device, temperature_c, 1_000_000 + self.ticks)) for device in self._devices]
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), TICK_S)


# Stopping


async def test_a_stop_under_load_is_clean(tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        await on.start()
        async with Load(on) as load:
            await load.flowing()
            await on.stop()
            assert on.outbox() == 0
            assert on.was_closed_cleanly()
            assert "Traceback" not in on.worker.log()
        await on.start()
        judgement = await on.finish()
        assert judgement.repeated == 0, "a clean stop makes nobody hear anything twice"
        assert judgement.effects >= 100


async def test_a_stop_waits_for_an_output_stream_that_throttles_for_a_while(
    tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        await on.start()
        async with Load(on) as load:
            await load.flowing()
            throttling = proxy.Rule(
                "PutRecords", times=THROTTLED_CALLS, stream=on.fleet.stream(live_fleet.ALERTS), throttle=True
            )
            on.faults.add(throttling)
            await waiting.until(lambda: throttling.times < THROTTLED_CALLS, "nothing was throttled", SOON_S_MAX)
            await on.stop()
            assert throttling.times == 0
            assert on.outbox() == 0
            assert on.was_closed_cleanly()
        await on.start()
        assert (await on.finish()).repeated == 0


async def test_a_stop_does_not_wait_for_ever_and_what_is_left_is_published_after_the_next_start(
    tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        await on.start()
        async with Load(on) as load:
            await load.flowing()
            throttling = proxy.Rule(
                "PutRecords", times=ALWAYS, stream=on.fleet.stream(live_fleet.ALERTS), throttle=True
            )
            on.faults.add(throttling)
            await waiting.until(lambda: throttling.times < ALWAYS, "nothing was throttled", SOON_S_MAX)
            await on.stop()
            assert on.outbox() > 0
            assert on.was_closed_cleanly()
        on.faults.clear()
        await on.start()
        await on.finish()
        assert on.outbox() == 0


# Starting


async def test_a_second_worker_on_the_same_folder_is_refused(
    tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        await on.start()
        second = worker_process.WorkerProcess(on.fleet.path, on.fleet.data_folder, tmp_path / "second.log")
        async with second:
            second.start()
            with pytest.raises(worker_process.WorkerFailedError) as refused:
                await second.until(lambda status: False, "it neither runs nor ends", SOON_S_MAX)
        assert "ended by itself with 1" in str(refused.value)
        assert "the data folder is in use by process" in str(refused.value)
        assert "Traceback" not in str(refused.value)
        assert (await on.worker.status() or {})["ready"], "the first goes on"
        await on.stop()


async def test_a_restart_keeps_twins(tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        await on.start()
        devices = [f"device-{number}" for number in range(20)]
        for number in range(4):
            await on.put(*[(device, telemetry(device, 50.0 + 8.0 * number, 1_000_000 + number)) for device in devices])
        await on.put(("device-1", control("device-1", Control("update_threshold", 0, TEMPERATURE, 90.0))))
        await catching_up.caught_up(on.fleet, on.worker)
        before = [await twin_of(on, device) for device in devices]
        assert [len(twin["alerts"]) for twin in before] == [0] * 20, "two samples above 60 °C"
        await on.stop()
        await on.start()
        assert [await twin_of(on, device) for device in devices] == before
        await on.put(*[(device, telemetry(device, 75.0, 2_000_000)) for device in devices])
        await catching_up.caught_up(on.fleet, on.worker)
        after = [await twin_of(on, device) for device in devices]
        assert [len(twin["alerts"]) for twin in after] == [1, 0, *[1] * 18], "the run went on over the restart"
        assert [twin["counters"]["samples"] for twin in after] == [5] * 20
        await on.stop()
        await on.judged()


async def twin_of(on: Scene, device_id: str) -> dict[str, Any]:
    """Without what moves by itself."""
    twin = await on.worker.get(f"/v1/twins/{device_id}")
    del twin["partition"]["clock_ms"]
    return twin


# Edits of the rules


async def test_an_edit_judges_what_arrives_two_seconds_later(
    tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        await on.start()
        edited_ms: list[int] = []
        async with Load(on) as load:
            await load.flowing(20)
            for number, threshold in enumerate((30.0, 40.0, 50.0), start=2):
                on.fleet.edit({"temperature": {"threshold": threshold}})
                edited_ms.append(time.time_ns() // 1_000_000)
                status = await on.worker.until(
                    lambda status, number=number: (  # type: ignore[misc]
                        status["rules"]["generation"] == number
                        and all(entry["generation"] == number for entry in status["partitions"])
                    ),
                    "the edit isn't taken up",
                    SOON_S_MAX,
                )
                assert status["rules"]["last_error"] is None
                await load.flowing(len(await on.alerts()) + 50)
        await on.finish()

        arrival_ms = await arrivals(on)
        thresholds = {1: 60.0, 2: 30.0, 3: 40.0, 4: 50.0}
        judged: set[int] = set()
        for alert in await on.alerts():
            judged.add(alert.generation)
            assert f"above {thresholds[alert.generation]} for" in alert.explanation
            came_ms = arrival_ms[alert.sequence_number]
            assert alert.generation <= 1 + sum(came_ms >= at_ms for at_ms in edited_ms), (
                "by rules that weren't there yet"
            )
        assert judged == {1, 2, 3, 4}
        with local_folder.LocalFolder(on.fleet.data_folder, "default", "trucks") as folder:
            effective_ms = [entry.effective_ms for entry in folder.generations[1:]]
        # The judge has held each record against the generation of its arrival; when these began is the promise. A machine
        # that stalls may break it once.
        waits_ms = [begun - edited for begun, edited in zip(effective_ms, edited_ms, strict=True)]
        assert min(waits_ms) <= 2_000, waits_ms
        assert max(waits_ms) <= 20_000, waits_ms


async def arrivals(on: Scene) -> dict[str, int]:
    """Each telemetry record's arrival by its sequence number."""
    read = await on.fleet.streams.read_all(on.fleet.stream(live_fleet.TELEMETRY))
    return {record.sequence_number: record.arrival_ms for record in read}


async def test_an_invalid_edit_is_told_and_leaves_the_old_rules_in_force(
    tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        await on.start()
        on.fleet.edit({"temperature": {"threshold": 50.0}})
        good = on.fleet.path.read_text()
        document = copy.deepcopy(on.fleet.document)
        document["spec"]["rules"]["temperature"] |= {"threshold": "hot", "treshold": 40}
        await on.worker.until(lambda status: status["rules"]["generation"] == 2, "no second generation", SOON_S_MAX)

        on.fleet.path.write_text(yaml.safe_dump(document))
        status = await on.worker.until(
            lambda status: status["rules"]["last_error"] is not None, "the mistake isn't told", SOON_S_MAX
        )
        for path in ("spec.rules.temperature.threshold", "spec.rules.temperature.treshold"):
            assert path in status["rules"]["last_error"], "all mistakes at once"
        assert status["rules"]["generation"] == 2
        assert status["ready"]
        await on.worker.until(
            lambda status: all(entry["generation"] == 2 for entry in status["partitions"]), "not reached", SOON_S_MAX
        )
        for number in range(3):
            await on.put(("device-7", telemetry("device-7", 55.0, 1_000_000 + number)))
        await catching_up.caught_up(on.fleet, on.worker)
        (alert,) = await on.alerts()
        assert (alert.generation, alert.explanation) == (2, "temperature 55.0°C above 50.0 for 3 samples")

        on.fleet.path.write_text(good)
        status = await on.worker.until(
            lambda status: status["rules"]["last_error"] is None, "the mistake taken back isn't seen", SOON_S_MAX
        )
        assert status["rules"]["generation"] == 2, "nothing has changed"
        await on.finish()


# Effects


async def test_effects_of_a_device_keep_their_order_whatever_puts_do(
    tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries fail, replies are lost, calls are throttled, refused and late."""
    dice = random.Random(11)
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        on.fleet.edit({"temperature": {"resolvedNotice": True}})
        rules = [proxy.Rule("PutRecords", fail=frozenset(dice.sample(range(25), 8))) for _ in range(30)]
        rules += [proxy.Rule("PutRecords", lose_reply=True) for _ in range(5)]
        rules += [proxy.Rule("PutRecords", throttle=True) for _ in range(4)]
        rules += [proxy.Rule("PutRecords", server_error=True) for _ in range(4)]
        rules += [proxy.Rule("PutRecords", delay_s=0.4) for _ in range(10)]
        dice.shuffle(rules)
        for rule in rules:
            on.faults.add(rule)
        await on.start()
        async with Load(on) as load:
            await load.flowing(300)
        judgement = await on.finish()
        assert sum(rule.times for rule in rules) < len(rules) // 2, "hardly any of the trouble came"
        assert judgement.repeated > 0, "lost replies publish some again"
        by_device: dict[str, list[tuple[int, int]]] = {}
        seen: set[str] = set()
        for alert in await on.alerts():
            if alert.alert_id not in seen:
                seen.add(alert.alert_id)
                by_device.setdefault(alert.device_id, []).append((int(alert.sequence_number), alert.state))
        for device_id, told in by_device.items():
            assert told == sorted(told, key=lambda entry: entry[0]), device_id
            states = [state for _, state in told]
            assert (
                states == [fleet_pb2.FIRING, fleet_pb2.RESOLVED] * (len(states) // 2) + states[len(states) // 2 * 2 :]
            )


# Misrouted records


async def test_misrouted_records_end_in_the_right_partition_once(
    tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent under a gateway's partition key, as some producers do."""
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        shards = await on.fleet.streams.shards(on.fleet.stream(live_fleet.TELEMETRY))
        devices = [f"device-{number}" for number in range(30)]
        await on.start()
        for number in range(3):
            for key in gateways(shards):
                half = devices[:15] if key == gateways(shards)[0] else devices[15:]
                await on.put(*[(key, telemetry(device, 75.0, 1_000_000 + number)) for device in half])
            await catching_up.caught_up(on.fleet, on.worker)  # or a device's three would race each other
        for device in devices:
            twin = await on.worker.get(f"/v1/twins/{device}")
            (owner,) = [shard for shard in shards if hashing.hash_key(device) in shard.hash_key_range]
            assert twin["partition"]["shard_id"] == owner.shard_id
            assert twin["counters"] == {"samples": 3, "late": 0, "gaps": 0}
        judgement = await on.finish()
        assert 20 < judgement.misrouted < 70
        assert sorted(alert.device_id for alert in await on.alerts()) == sorted(devices)
        again = [
            (message.device_id, message.timestamp)
            for record in await on.fleet.streams.read_all(on.fleet.stream(live_fleet.TELEMETRY))
            if (message := fleet_pb2.Telemetry.FromString(record.data)).HasField("origin")
        ]
        assert len(again) == len(set(again)) == judgement.misrouted


async def test_a_second_hop_is_a_dead_letter(tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        shards = await on.fleet.streams.shards(on.fleet.stream(live_fleet.TELEMETRY))
        await on.start()
        wrong_key = next(
            key
            for key, shard in zip(gateways(shards), shards, strict=True)
            if hashing.hash_key("device-7") not in shard.hash_key_range
        )
        message = fleet_pb2.Telemetry.FromString(telemetry("device-7", 75.0, 1_000_000))
        message.origin.CopyFrom(
            fleet_pb2.Origin(shard_id="shardId-000000000009", sequence_number="7", arrival_ms=1_000_000, hop=1)
        )
        await on.put((wrong_key, message.SerializeToString()))
        await catching_up.caught_up(on.fleet, on.worker)
        (letter,) = (await on.worker.get("/v1/dead-letters"))["dead_letters"]
        assert (letter["reason"], letter["device_id"]) == ("second_hop", "device-7")
        with pytest.raises(aiohttp.ClientResponseError) as unknown:
            await on.worker.get("/v1/twins/device-7")
        assert unknown.value.status == 404
        await on.stop()
        (record,) = await on.fleet.streams.read_all(on.fleet.stream(live_fleet.DEAD_LETTERS))
        assert orjson.loads(record.data)["reason"] == "second_hop"
        telemetry_stream = on.fleet.stream(live_fleet.TELEMETRY)
        assert len(await on.fleet.streams.read_all(telemetry_stream)) == 1, "it isn't put again"


def gateways(shards: Sequence[Any]) -> list[str]:
    """A partition key for each shard."""
    names = [f"gateway-{number}" for number in range(50)]
    return [next(name for name in names if hashing.hash_key(name) in shard.hash_key_range) for shard in shards]


# Control records


def control(device_id: str, order: Control) -> bytes:
    return raw.control_message(device_id, order).SerializeToString()


async def test_instructions_over_the_stream(tmp_path: Path, kinesis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold for one device, an alert acknowledged, a device forgotten; each seen from the outside."""
    async with scene(tmp_path, kinesis_url, monkeypatch) as on:
        now_ms = time.time_ns() // 1_000_000
        await on.start()
        devices = ("patient", "acknowledged", "noisy")
        await on.put(("patient", control("patient", Control("update_threshold", now_ms, TEMPERATURE, 80.0))))

        async def three_hot(first: int) -> None:
            for number in range(first, first + 3):
                await on.put(*[(device, telemetry(device, 75.0, now_ms + number)) for device in devices])
            await catching_up.caught_up(on.fleet, on.worker)

        await three_hot(0)
        alerts = {alert.device_id: alert for alert in await on.alerts()}
        assert sorted(alerts) == ["acknowledged", "noisy"]
        patient = await on.worker.get("/v1/twins/patient")
        assert patient["limits"]["temperature_c"] == 80.0
        assert patient["overrides"] == {"temperature": {"threshold": 80.0, "issued_ms": now_ms}}

        order = Control("acknowledge", now_ms, alert_id=alerts["acknowledged"].alert_id)
        await on.put(("acknowledged", control("acknowledged", order)))
        await three_hot(10)
        assert sorted(alert.device_id for alert in await on.alerts()) == ["acknowledged", "noisy", "noisy"]
        (open_alert,) = (await on.worker.get("/v1/twins/acknowledged"))["alerts"]
        assert open_alert["acknowledged"] is True

        await on.put(("patient", control("patient", Control("clear_override", now_ms + 1, TEMPERATURE))))
        await three_hot(20)
        assert [alert.device_id for alert in await on.alerts()].count("patient") == 1

        # Straight to "forget", and an older record that was on its way.
        await on.put(("noisy", control("noisy", Control("forget_device", now_ms + 100))))
        await on.put(("noisy", telemetry("noisy", 75.0, now_ms + 50)))
        await catching_up.caught_up(on.fleet, on.worker)
        with pytest.raises(aiohttp.ClientResponseError) as unknown:
            await on.worker.get("/v1/twins/noisy")
        assert unknown.value.status == 404
        await on.put(("noisy", telemetry("noisy", 20.0, now_ms + 200)))
        await catching_up.caught_up(on.fleet, on.worker)
        twin = await on.worker.get("/v1/twins/noisy")
        assert twin["counters"]["samples"] == 1
        assert twin["alerts"] == []
        judgement = await on.finish()
        assert judgement.twins == 3
