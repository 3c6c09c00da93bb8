"""The lean GetRecords parser against botocore's own, and the translation of errors."""

from __future__ import annotations

import base64
import datetime
import random
from typing import Any

import botocore.exceptions
import botocore.parsers
import botocore.session
import orjson
import pytest
from aiobotocore import parsers as aio_parsers

from fleet_model import hashing, partition, spec
from fleet_worker import errors
from fleet_worker.adapters import kinesis, kinesis_api, kinesis_client

HEADERS = {"date": "Tue, 14 Nov 2023 22:13:20 GMT", "content-type": "application/x-amz-json-1.1"}
DATE_MS = 1_700_000_000_000


def body(count: int, **more: Any) -> bytes:
    randomness = random.Random(count)
    found = [
        {
            "SequenceNumber": str(49 * 10**54 + index),
            "ApproximateArrivalTimestamp": (DATE_MS + randomness.randrange(10_000)) / 1000,
            "Data": base64.b64encode(randomness.randbytes(randomness.randrange(80))).decode(),
            "PartitionKey": f"device-{index}",
            "EncryptionType": "NONE",
        }
        for index in range(count)
    ]
    return orjson.dumps({"Records": found, "NextShardIterator": "next", "MillisBehindLatest": 17} | more)


def response(content: bytes, operation: str = "GetRecords", status: int = 200) -> dict[str, Any]:
    return {
        "status_code": status,
        "headers": HEADERS,
        "body": content,
        "context": {"operation_name": operation},
    }


def output_shape(operation: str) -> Any:
    model = botocore.session.get_session().get_service_model("kinesis")
    return model.operation_model(operation).output_shape


@pytest.mark.parametrize("count", [0, 1, 10_000])
async def test_it_reads_what_botocore_reads(count: int) -> None:
    content = body(count)
    full = await aio_parsers.create_parser("json").parse(response(content), output_shape("GetRecords"))
    parser = kinesis_client.LeanParserFactory().create_parser("json")
    lean = (await parser.parse(response(content), output_shape("GetRecords")))["Answer"]

    batch = lean.batch
    assert batch.data == [record["Data"] for record in full["Records"]]
    assert batch.sequence_numbers == [record["SequenceNumber"] for record in full["Records"]]
    epoch = datetime.datetime.fromtimestamp(0, datetime.UTC)
    exact = [
        (record["ApproximateArrivalTimestamp"] - epoch) / datetime.timedelta(milliseconds=1)
        for record in full["Records"]
    ]
    assert batch.arrival_ms.tolist() == [round(at) for at in exact]
    assert batch.millis_behind == full["MillisBehindLatest"] == 17
    assert batch.poll_ms == DATE_MS
    assert batch.size_bytes == len(content)
    assert not batch.shard_ended
    assert lean.next_iterator == full["NextShardIterator"]
    assert lean.payload_bytes == sum(len(record["Data"]) + len(record["PartitionKey"]) for record in full["Records"])


async def test_it_reads_the_end_of_a_shard() -> None:
    child = {
        "ShardId": "shardId-000000000002",
        "ParentShards": ["shardId-000000000000", "shardId-000000000001"],
        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(hashing.HASH_KEY_MAX)},
    }
    answer = kinesis_client.parse_records(body(1, NextShardIterator=None, ChildShards=[child]), HEADERS)
    assert answer.next_iterator is None
    assert answer.batch.shard_ended
    assert answer.batch.child_shards == (
        partition.Shard(
            "shardId-000000000002", hashing.HashKeyRange(), ("shardId-000000000000", "shardId-000000000001")
        ),
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"[]", b'{"Records":[{}]}', b'{"Records":[{"Data":"a","SequenceNumber":"1","PartitionKey":"k"}]}'],
)
def test_an_unreadable_answer_is_an_error_and_nothing_else(content: bytes) -> None:
    with pytest.raises(botocore.parsers.ResponseParserError):
        kinesis_client.parse_records(content, HEADERS)


def test_an_answer_without_a_date_is_an_error() -> None:
    with pytest.raises(botocore.parsers.ResponseParserError):
        kinesis_client.parse_records(body(0), {})


async def test_everything_else_is_botocores() -> None:
    parser = kinesis_client.LeanParserFactory().create_parser("json")
    listed = await parser.parse(response(b'{"Shards":[]}', "ListShards"), output_shape("ListShards"))
    assert listed["Shards"] == []
    expired = orjson.dumps({"__type": "ExpiredIteratorException", "message": "old"})
    refused = await parser.parse(response(expired, status=400), output_shape("GetRecords"))
    assert refused["Error"]["Code"] == "ExpiredIteratorException"


@pytest.mark.parametrize(
    ("code", "status", "trouble"),
    [
        ("ProvisionedThroughputExceededException", 400, kinesis_api.Trouble.THROTTLED),
        ("LimitExceededException", 400, kinesis_api.Trouble.THROTTLED),
        ("KMSThrottlingException", 400, kinesis_api.Trouble.THROTTLED),
        ("SomethingNew", 429, kinesis_api.Trouble.THROTTLED),
        ("InternalFailure", 500, kinesis_api.Trouble.TRANSIENT),
        ("503", 503, kinesis_api.Trouble.TRANSIENT),
        ("ExpiredIteratorException", 400, kinesis_api.Trouble.EXPIRED_ITERATOR),
        ("ResourceNotFoundException", 400, kinesis_api.Trouble.NOT_FOUND),
        ("InvalidArgumentException", 400, kinesis_api.Trouble.INVALID),
        ("ValidationException", 400, kinesis_api.Trouble.INVALID),
        ("AccessDeniedException", 400, kinesis_api.Trouble.DENIED),
        ("ExpiredTokenException", 400, kinesis_api.Trouble.DENIED),
        ("KMSDisabledException", 400, kinesis_api.Trouble.DENIED),
    ],
)
def test_troubles_by_code_and_status(code: str, status: int, trouble: kinesis_api.Trouble) -> None:
    assert kinesis_client.trouble_of(code, status) is trouble


class Failing:
    """A client whose every call raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def get_records(self, **parameters: Any) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("error", "trouble", "date_ms"),
    [
        (
            botocore.exceptions.ClientError(
                {
                    "Error": {"Code": "ThrottlingException"},
                    "ResponseMetadata": {"HTTPStatusCode": 400, "HTTPHeaders": HEADERS},
                },
                "GetRecords",
            ),
            kinesis_api.Trouble.THROTTLED,
            DATE_MS,
        ),
        (
            botocore.exceptions.ClientError(
                {"Error": {"Code": "502"}, "ResponseMetadata": {"HTTPStatusCode": 502}}, "x"
            ),
            kinesis_api.Trouble.TRANSIENT,
            None,
        ),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="u"), kinesis_api.Trouble.TRANSIENT, None),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="u"), kinesis_api.Trouble.TRANSIENT, None),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="u"), kinesis_api.Trouble.TRANSIENT, None),
        (botocore.exceptions.NoCredentialsError(), kinesis_api.Trouble.DENIED, None),
        (botocore.parsers.ResponseParserError("cut"), kinesis_api.Trouble.TRANSIENT, None),
    ],
)
async def test_errors_become_ours(error: Exception, trouble: kinesis_api.Trouble, date_ms: int | None) -> None:
    with pytest.raises(kinesis_api.ApiError) as caught:
        await kinesis_client.KinesisClient(Failing(error)).get_records("s", "iterator")
    assert caught.value.trouble is trouble
    assert caught.value.date_ms == date_ms
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("aws", [spec.Aws(), spec.Aws(region="us-east-1", endpoint_url="localhost:4568")])
async def test_missing_settings_are_told_by_their_field(aws: spec.Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(errors.AwsSettingsError, match=r"spec\.aws"):
        async with kinesis.KinesisConnection.open(aws):
            pass
