"""Kinesis or the object store out of reach is told: in the log often enough and not more, as a metric each time, beside the partition."""

from __future__ import annotations

import asyncio
import logging

import prometheus_client
import pytest

from fleet_worker import metrics, retries
from fleet_worker.adapters import kinesis_api, memory_kinesis, objects_api
from tests.support import piped, virtual_time

AWAY = kinesis_api.Failure(kinesis_api.Trouble.TRANSIENT, "EndpointConnectionError", "could not connect")
FAST = kinesis_api.Failure(kinesis_api.Trouble.THROTTLED, "ProvisionedThroughputExceededException", "rate exceeded")
OLD = kinesis_api.Failure(kinesis_api.Trouble.EXPIRED_ITERATOR, "ExpiredIteratorException", "too old")


def failing(told: retries.Retries, failure: kinesis_api.Failure, every_s: float, seconds: float) -> None:
    """The same trouble, so often, for so long."""

    async def body() -> None:
        for _ in range(round(seconds / every_s)):
            told(kinesis_api.Retry("GetRecords", "telemetry, shard shardId-000000000000", failure))
            await asyncio.sleep(every_s)

    virtual_time.run(body())


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> retries.Retries:
    caplog.set_level(logging.INFO)
    return retries.Retries(virtual_time.VirtualClock(), metrics.Metrics())


def test_an_outage_is_told_when_it_begins_and_then_once_a_minute(
    told: retries.Retries, caplog: pytest.LogCaptureFixture
) -> None:
    failing(told, AWAY, every_s=2.0, seconds=600.0)
    assert 10 <= len(caplog.messages) <= 11
    assert caplog.messages[0] == (
        "Kinesis: GetRecords of telemetry, shard shardId-000000000000 failed and is tried again: "
        "EndpointConnectionError: could not connect"
    )
    assert "failed 30 times and" in caplog.messages[1]


def test_throttling_now_and_then_is_only_counted(told: retries.Retries, caplog: pytest.LogCaptureFixture) -> None:
    failing(told, FAST, every_s=10.0, seconds=3_600.0)
    assert caplog.messages == []


def test_dense_throttling_is_told(told: retries.Retries, caplog: pytest.LogCaptureFixture) -> None:
    failing(told, FAST, every_s=0.5, seconds=120.0)
    assert 1 <= len(caplog.messages) <= 3
    assert "rate exceeded" in caplog.messages[0]


def test_iterators_that_expire_are_only_counted(caplog: pytest.LogCaptureFixture) -> None:
    measured = metrics.Metrics()
    failing(retries.Retries(virtual_time.VirtualClock(), measured), OLD, every_s=1.0, seconds=100.0)
    assert caplog.messages == []
    line = 'fleet_twin_kinesis_retries_total{operation="GetRecords",trouble="expired_iterator"} 100.0'
    assert line in prometheus_client.generate_latest(measured.registry).decode()


def test_the_object_store_is_told_by_its_own_name_and_counted_apart(caplog: pytest.LogCaptureFixture) -> None:
    measured = metrics.Metrics()
    told = retries.ObjectRetries(virtual_time.VirtualClock(), measured)
    busy = objects_api.Failure(objects_api.Trouble.BUSY, "SlowDown", "please reduce your request rate")
    at_once = objects_api.Failure(objects_api.Trouble.CONFLICT, "ConditionalRequestConflict", "another one writes")

    async def body() -> None:
        for _ in range(3):
            told(objects_api.Retry("PutObject", "shard-0/manifest.json", busy))
            told(objects_api.Retry("PutObject", "shard-0/manifest.json", at_once))

    virtual_time.run(body())
    assert caplog.messages == [
        "The object store: PutObject of shard-0/manifest.json failed and is tried again: SlowDown: please reduce your request rate"
    ]
    page = prometheus_client.generate_latest(measured.registry).decode()
    for trouble in ("busy", "conflict"):
        assert f'fleet_twin_object_store_retries_total{{operation="PutObject",trouble="{trouble}"}} 3.0' in page
    assert "fleet_twin_kinesis_retries_total{" not in page


def test_another_trouble_is_told_by_itself(told: retries.Retries, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        for operation, failure in (("GetRecords", AWAY), ("PutRecords", AWAY), ("GetRecords", AWAY)):
            told(kinesis_api.Retry(operation, "somewhere", failure))

    virtual_time.run(body())
    assert [message.split()[1] for message in caplog.messages] == ["GetRecords", "PutRecords"]


def test_a_partition_says_that_it_has_no_answer() -> None:
    async def body() -> None:
        async with piped.running() as partition:
            await partition.until(lambda: partition.source.answered_s)
            await partition.pass_time(30.0)
            assert partition.pipeline.message == ""
            partition.kinesis.plan = lambda call: memory_kinesis.Fault(
                failure=memory_kinesis.UNAVAILABLE if call.operation == "GetRecords" else None
            )
            await partition.pass_time(10.0)
            assert partition.pipeline.message == ""
            await partition.pass_time(20.0)
            assert partition.pipeline.message.startswith("no answer from Kinesis for ")
            partition.kinesis.plan = memory_kinesis.no_faults
            await partition.until(lambda: partition.pipeline.message == "", 15.0)

    virtual_time.run(body())
