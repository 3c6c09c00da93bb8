"""The benchmarks' own parts: a tape that is a fleet, an endpoint that is faithful, figures that mean what they say."""

from __future__ import annotations

import asyncio
import binascii
import itertools
import json
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
import orjson
import pytest
from click import testing

from fleet_cli import main
from fleet_cli.bench import endpoint, kernel, replay
from fleet_cli.bench import tape as tapes
from fleet_model import hashing
from fleet_proto import fleet_pb2
from fleet_worker.adapters import kinesis_client

DEVICES, RECORDS, PARTITIONS = 300, 1_000, 3
START_MS = 1_700_000_000_000
HEADERS = {"date": "Fri, 15 Jan 2027 08:00:00 GMT"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tapes.Tape]:
    folder = tmp_path_factory.mktemp("tapes")
    told: list[int] = []
    made = tapes.make(tapes.Plan(DEVICES, RECORDS, PARTITIONS, START_MS), folder, told.append)
    assert told == sorted(told)
    return made


def ids(tape: tapes.Tape, first: int, last: int) -> list[str]:
    return [fleet_pb2.Telemetry.FromString(data).device_id for data in tape.slice(first, last)]


def test_a_tape_holds_its_partitions_devices_only_each_once_first(found: list[tapes.Tape]) -> None:
    assert sum(map(len, found)) == RECORDS
    assert sum(tape.devices for tape in found) == DEVICES
    for tape in found:
        first_round = ids(tape, 0, tape.devices)
        assert len(set(first_round)) == tape.devices == len(first_round)
        assert set(ids(tape, tape.devices, len(tape))) <= set(first_round)
        assert all(hashing.hash_key(device_id) in tape.hash_key_range for device_id in first_round)


def test_a_tape_shuffles_each_interval_anew_and_time_only_rises(found: list[tapes.Tape]) -> None:
    for tape in found:
        first_round, second_round = ids(tape, 0, tape.devices), ids(tape, tape.devices, 2 * tape.devices)
        assert sorted(first_round) == sorted(second_round)
        assert first_round != second_round
        assert (np.diff(tape.arrival_ms) >= 0).all()
        assert len({len(number) for number in tape.sequence_numbers(0, len(tape))} ^ {56}) == 0


def test_ranges_cover_the_hash_space_once() -> None:
    covering = tapes.ranges(7)
    assert covering[0].start == 0
    assert covering[-1].end == hashing.HASH_KEY_MAX
    assert all(low.end + 1 == high.start for low, high in itertools.pairwise(covering))


def test_an_answer_holds_what_has_arrived_and_says_how_far_behind_it_is(
    found: list[tapes.Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "ANSWER_RECORDS_MAX", 50)
    shard = endpoint.Shard(found[0])
    shift_ms = 123_456
    shard.begin(shift_ms)
    at_ms = int(found[0].arrival_ms[119]) + shift_ms
    arrived = int(np.searchsorted(found[0].arrival_ms + shift_ms, at_ms, side="right"))
    seen: list[bytes] = []
    numbers: list[str] = []
    arrivals: list[int] = []
    following = 0
    while following < arrived:
        body, following = shard.answer(following, at_ms)
        answer = kinesis_client.parse_records(body, HEADERS)
        seen += answer.batch.data
        numbers += answer.batch.sequence_numbers
        arrivals += answer.batch.arrival_ms.tolist()
        expected_ms = 0 if following == arrived else at_ms - arrivals[-1]
        assert answer.batch.millis_behind == expected_ms
        assert answer.next_iterator == f"{tapes.shard_id(0)}:{following}"
    assert seen == found[0].slice(0, arrived)
    assert numbers == found[0].sequence_numbers(0, arrived)
    assert arrivals == (found[0].arrival_ms[:arrived] + shift_ms).tolist()
    nothing = kinesis_client.parse_records(shard.answer(following, at_ms)[0], HEADERS)
    assert (nothing.batch.data, nothing.batch.millis_behind) == ([], 0)
    assert nothing.next_iterator == f"{tapes.shard_id(0)}:{following}"


def test_an_answer_names_the_device_as_partition_key(found: list[tapes.Tape]) -> None:
    shard = endpoint.Shard(found[1])
    shard.begin(0)
    told = orjson.loads(shard.answer(0, START_MS + 10**6)[0])["Records"]
    assert [record["PartitionKey"] for record in told] == ids(found[1], 0, len(told))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"ShardIteratorType": "TRIM_HORIZON"}, 0),
        ({"ShardIteratorType": "LATEST"}, RECORDS),
        (
            {
                "ShardIteratorType": "AFTER_SEQUENCE_NUMBER",
                "StartingSequenceNumber": str(tapes.SEQUENCE_BASE + 41),
            },
            42,
        ),
        ({"ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": str(tapes.SEQUENCE_BASE + 41)}, 41),
    ],
)
def test_an_iterator_begins_where_it_is_asked_to(found: list[tapes.Tape], where: dict[str, Any], expected: int) -> None:
    served = endpoint.Endpoint([endpoint.Shard(tape) for tape in found])
    answer = orjson.loads(served._get_shard_iterator({"ShardId": tapes.shard_id(2), **where}))
    assert answer["ShardIterator"] == f"{tapes.shard_id(2)}:{min(expected, len(found[2]))}"


def test_an_acknowledged_alert_is_timed_from_the_arrival_that_caused_it(found: list[tapes.Tape]) -> None:
    served = endpoint.Endpoint([endpoint.Shard(tape) for tape in found])
    now_ms = endpoint.now_ms()
    alert = fleet_pb2.DeviceAlert(device_id="d", trigger="temp_spike", timestamp=now_ms - 700)
    data = binascii.b2a_base64(alert.SerializeToString()).decode()
    record = {"Data": data, "PartitionKey": "d"}
    told = orjson.loads(served._put_records({"StreamName": endpoint.ALERTS_STREAM, "Records": [record, record]}))
    assert told["FailedRecordCount"] == 0
    assert len({entry["SequenceNumber"] for entry in told["Records"]}) == 2
    waited = served._report()["latency_ms"]["temp_spike"]
    assert len(waited) == 2
    assert all(700 <= ms < 10_000 for ms in waited)


def test_latencies_leave_offline_alerts_out() -> None:
    told = replay.latencies({"temp_spike": list(range(101)), "offline": [1_000_000] * 50})
    assert (told["alerts"], told["alert_latency_p50_ms"], told["alert_latency_p99_ms"]) == (101, 50, 99)
    assert replay.latencies({})["alert_latency_p50_ms"] is None


def test_the_kernel_tells_cpu_memory_and_writes(tmp_path: pathlib.Path) -> None:
    pid = os.getpid()
    begun_s, begun_bytes = kernel.cpu_s(pid), kernel.anonymous_bytes(pid)
    held = np.ones(8 * 2**20)
    deadline = time.monotonic() + 20
    while kernel.cpu_s(pid) < begun_s + 0.05 and time.monotonic() < deadline:
        held += 1
    assert kernel.cpu_s(pid) >= begun_s + 0.05
    assert kernel.anonymous_bytes(pid) >= begun_bytes + 48 * 2**20
    disk = kernel.Disk(tmp_path)
    if disk.name is None:
        pytest.skip("this folder's file system lies on no block device")
    before = disk.writes()
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(4 * 2**20))
        file.flush()
        os.fsync(file.fileno())
    after = disk.writes()
    assert after.count > before.count
    assert after.size_bytes - before.size_bytes >= 4 * 2**20


def test_bench_engine_says_what_a_record_costs(tmp_path: pathlib.Path) -> None:
    asked = ["bench", "engine", "--devices", "400", "--records", "4000", "--partitions", "10", "--batch", "500"]
    result = testing.CliRunner().invoke(main.main, [*asked, "--repeat", "1", "--json", "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["records"], told["twins"], told["asked"]["partitions"]) == (4000, 400, 10)
    assert told["commits"] >= 2
    assert 0 < told["ratio"] < 1
    assert told["records_per_cpu_s"] > 0
    steps = told["cpu_us_a_record_by_step"]
    assert set(steps) == {"decode", "rules", "collect", "commit", "rest"}
    assert sum(steps.values()) == pytest.approx(told["cpu_us_a_record"], rel=1e-3)
    assert 200 < told["disk_bytes_a_twin"] < 1000
    assert list(tmp_path.iterdir()) == []


def test_bench_worker_refuses_two_benchmarks_at_once() -> None:
    result = testing.CliRunner().invoke(main.main, ["bench", "worker", "--behind", "--rate", "5"])
    assert result.exit_code == 2
    assert "two benchmarks" in result.output


def test_the_endpoint_ends_with_its_parent(found: list[tapes.Tape], tmp_path: pathlib.Path) -> None:
    async def run() -> int:
        folder = pathlib.Path(str(found[0].data.filename)).parent  # type: ignore[attr-defined]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fleet_cli.bench.endpoint", str(folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        assert json.loads(await process.stdout.readline())["port"] > 0
        process.stdin.close()
        async with asyncio.timeout(20):
            return await process.wait()

    assert asyncio.run(run()) == 0
