"""The poison corpus among good records, through a real worker: each poison ends as a dead letter with its reason, kept and on
the dead-letter stream, and the good records before and after it are as if it had never come.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from fleet_proto import fleet_pb2
from fleet_worker.core import deaggregate, decode
from tests.support import (
    aws_env,
    catching_up,
    live_fleet,
    live_judge,
    moto_server,
    poison,
    streams,
    worker_process,
)

GOOD = [f"good-{number}" for number in range(4)]
MEMBERS = {"aggregate inside an aggregate": deaggregate.aggregate([("b", poison.protobuf())])}

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


@dataclasses.dataclass(frozen=True, slots=True)
class Dose:
    """One poison on its way: name in the corpus, the key it was put under."""

    name: str
    key: str
    poison: poison.Poison

    @property
    def refused(self) -> bytes:
        """What the dead letter holds: the record; of an aggregate that is sound in itself, the member."""
        return MEMBERS.get(self.name, self.poison.data)


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[live_fleet.LiveFleet]:
    """On moto's server: megabytes take kinesis-local seconds each."""
    aws_env.apply(monkeypatch)
    with moto_server.running() as url:
        async with streams.Streams.at(url) as kinesis, live_fleet.made(tmp_path, kinesis, url) as made:
            yield made


async def test_every_poison_is_a_dead_letter_and_the_records_around_it_are_processed(
    fleet: live_fleet.LiveFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    doses = [Dose(name, f"poison-{number}", entry) for number, (name, entry) in enumerate(poison.CORPUS.items())]
    stream = fleet.stream(live_fleet.TELEMETRY)
    start_ms = time.time_ns() // 1_000_000 - 600_000
    async with fleet.worker() as worker:
        worker.start()
        for number, dose in enumerate(doses):
            await fleet.streams.put(stream, [*good(start_ms + 1_000 * number), (dose.key, dose.poison.data)])
        await fleet.streams.put(stream, good(start_ms + 1_000 * len(doses)))
        await catching_up.caught_up(fleet, worker)
        await kept_with_their_reasons(fleet, worker, doses)
        for device_id in GOOD:
            twin = await worker.get(f"/v1/twins/{device_id}")
            assert twin["counters"]["samples"] == len(doses) + 1
        metrics = await worker.text("/metrics")
        assert await worker.stop() < worker_process.STOP_S_MAX
    await published_with_their_reasons(fleet, doses)
    counted = sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("fleet_twin_dead_letters_total{")
    )
    assert counted == len(doses)
    judgement = await live_judge.judged(fleet)
    assert not judgement.problems, "\n".join(judgement.problems[:40])
    with capsys.disabled():
        print(f"\n{len(doses)} poisons among {judgement.records} records in {time.monotonic() - began:.1f} s", end="")


async def kept_with_their_reasons(
    fleet: live_fleet.LiveFleet, worker: worker_process.WorkerProcess, doses: list[Dose]
) -> None:
    """By the API, newest first, each with the place on the stream where the poison is."""
    places = await places_of(fleet, doses)
    kept = (await worker.get("/v1/dead-letters?limit=1000"))["dead_letters"]
    by_place = {letter["sequence_number"]: letter for letter in kept}
    assert len(by_place) == len(kept) == len(doses)
    for dose in doses:
        letter = by_place[places[dose.key]]
        assert (letter["reason"], letter["device_id"]) == (dose.poison.reason, dose.poison.device_id or None), dose.name
        assert letter["detail"], dose.name
        assert letter["size_bytes"] == len(dose.refused), dose.name
    for reason, count in collections.Counter(dose.poison.reason for dose in doses).items():
        told = (await worker.get(f"/v1/dead-letters?limit=1000&reason={reason}"))["dead_letters"]
        assert len(told) == count, reason


async def published_with_their_reasons(fleet: live_fleet.LiveFleet, doses: list[Dose]) -> None:
    places = await places_of(fleet, doses)
    published = {}
    for record in await fleet.streams.read_all(fleet.stream(live_fleet.DEAD_LETTERS)):
        envelope = orjson.loads(record.data)
        published[envelope["sequence_number"]] = envelope
    for dose in doses:
        envelope = published.pop(places[dose.key])
        assert envelope["reason"] == dose.poison.reason, dose.name
        data = base64.b64decode(envelope["data_base64"], validate=True)
        assert data == dose.refused[: decode.DEAD_LETTER_BYTES_MAX], dose.name
        assert envelope["size_bytes"] == len(dose.refused), dose.name
    assert published == {}


async def places_of(fleet: live_fleet.LiveFleet, doses: list[Dose]) -> dict[str, str]:
    """Sequence number by partition key."""
    telemetry = await fleet.streams.read_all(fleet.stream(live_fleet.TELEMETRY))
    return {
        record.partition_key: record.sequence_number
        for record in telemetry
        if record.partition_key.startswith("poison-")
    }


def good(at_ms: int) -> list[tuple[str, bytes]]:
    """A sample of each good device, one of them hot, so that there are alerts to be right about."""
    return [
        (
            device_id,
            fleet_pb2.Telemetry(
                device_id=device_id,
                timestamp=at_ms,
                temperature_c=75.0 if number == 0 else 20.0,
                battery_pct=80,
                cpu_load=0.5,
            ).SerializeToString(),
        )
        for number, device_id in enumerate(GOOD)
    ]
