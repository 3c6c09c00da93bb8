"""KinesisApi over aiobotocore: requests, the lean GetRecords parser, and the translation of errors.

botocore's own retries are off, because a caller that keeps order and pace has to know of every attempt. Its own parser
takes 15 times as long for a GetRecords answer, so that one operation has a parser of its own; botocore parses all
others. Credentials come from botocore's default chain and from nowhere else: an emulator that wants none still needs
some to sign with, and who starts the worker gives them (AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test).
"""

from __future__ import annotations

import binascii
import contextlib
import datetime
import email.utils
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import botocore.exceptions
import botocore.parsers
import numpy as np
import orjson
from aiobotocore import parsers as aio_parsers

from fleet_model import hashing, partition
from fleet_worker.adapters import kinesis_api
from fleet_worker.core import records

_TROUBLE_BY_CODE = {
    "ProvisionedThroughputExceededException": kinesis_api.Trouble.THROTTLED,
    "LimitExceededException": kinesis_api.Trouble.THROTTLED,
    "KMSThrottlingException": kinesis_api.Trouble.THROTTLED,
    "Throttling": kinesis_api.Trouble.THROTTLED,
    "ThrottlingException": kinesis_api.Trouble.THROTTLED,
    "ThrottledException": kinesis_api.Trouble.THROTTLED,
    "RequestLimitExceeded": kinesis_api.Trouble.THROTTLED,
    "TooManyRequestsException": kinesis_api.Trouble.THROTTLED,
    "InternalFailure": kinesis_api.Trouble.TRANSIENT,
    "InternalFailureException": kinesis_api.Trouble.TRANSIENT,
    "ServiceUnavailable": kinesis_api.Trouble.TRANSIENT,
    "RequestTimeout": kinesis_api.Trouble.TRANSIENT,
    "RequestTimeoutException": kinesis_api.Trouble.TRANSIENT,
    "ResourceInUseException": kinesis_api.Trouble.TRANSIENT,  # the stream is being made or changed
    "ExpiredIteratorException": kinesis_api.Trouble.EXPIRED_ITERATOR,
    "ResourceNotFoundException": kinesis_api.Trouble.NOT_FOUND,
    "InvalidArgumentException": kinesis_api.Trouble.INVALID,
    "ExpiredNextTokenException": kinesis_api.Trouble.INVALID,
    "ValidationException": kinesis_api.Trouble.INVALID,
    "SerializationException": kinesis_api.Trouble.INVALID,
}


def trouble_of(code: str, http_status: int) -> kinesis_api.Trouble:
    """By the error code; an unknown one by its HTTP status. An unknown 4xx is one for a human: DENIED."""
    known = _TROUBLE_BY_CODE.get(code)
    if known is not None:
        return known
    if http_status == 429:
        return kinesis_api.Trouble.THROTTLED
    if http_status == 413:
        return kinesis_api.Trouble.INVALID
    return kinesis_api.Trouble.TRANSIENT if http_status >= 500 else kinesis_api.Trouble.DENIED


def date_ms_of(headers: Mapping[str, str]) -> int:
    """The Date header in ms (whole seconds). Raises ValueError when it is missing or no date."""
    return int(email.utils.parsedate_to_datetime(headers.get("date", "")).timestamp()) * 1000


def _date_ms_or_none(headers: Mapping[str, str]) -> int | None:
    try:
        return date_ms_of(headers)
    except ValueError:  # the error page of some proxy in between
        return None


def parse_records(body: bytes, headers: Mapping[str, str]) -> kinesis_api.RecordsAnswer:
    """A GetRecords answer of protocol JSON 1.1, column by column. Raises ResponseParserError when it isn't one."""
    try:
        answer = orjson.loads(body)
        found = answer["Records"]
        data = [binascii.a2b_base64(record["Data"]) for record in found]
        arrival_s = np.array([record["ApproximateArrivalTimestamp"] for record in found], dtype=np.float64)
        # Partition keys count in characters here: they are nearly always ASCII, and encoding each would cost more.
        payload_bytes = sum(map(len, data)) + sum([len(record["PartitionKey"]) for record in found])
        next_iterator = answer.get("NextShardIterator") or None
        batch = records.ShardBatch(
            sequence_numbers=[record["SequenceNumber"] for record in found],
            arrival_ms=np.rint(arrival_s * 1000.0).astype(np.int64),
            data=data,
            millis_behind=int(answer.get("MillisBehindLatest") or 0),
            poll_ms=date_ms_of(headers),
            shard_ended=next_iterator is None,
            child_shards=tuple(_child_shard(child) for child in answer.get("ChildShards") or ()),
            size_bytes=len(body),
        )
    except (KeyError, TypeError, ValueError) as error:  # a JSON or base64 error is a ValueError
        raise botocore.parsers.ResponseParserError(f"GetRecords: unreadable answer: {error!r}") from error
    return kinesis_api.RecordsAnswer(batch, next_iterator, payload_bytes)


def _range(shard: Mapping[str, Any]) -> hashing.HashKeyRange:
    bounds = shard["HashKeyRange"]
    return hashing.HashKeyRange(int(bounds["StartingHashKey"]), int(bounds["EndingHashKey"]))


def _child_shard(child: Mapping[str, Any]) -> partition.Shard:
    return partition.Shard(child["ShardId"], _range(child), tuple(child["ParentShards"]))


def _listed_shard(shard: Mapping[str, Any]) -> partition.Shard:
    parents = (shard.get("ParentShardId"), shard.get("AdjacentParentShardId"))
    return partition.Shard(
        shard_id=shard["ShardId"],
        hash_key_range=_range(shard),
        parents=tuple(parent for parent in parents if parent),
        # Only a closed shard has an end. Emulators put a number of their own there, so its value is not looked at.
        closed=bool(shard["SequenceNumberRange"].get("EndingSequenceNumber")),
    )


class _LeanParser:
    """Parses good GetRecords answers itself and leaves everything else to botocore's parser."""

    def __init__(self, full: Any) -> None:
        self._full = full

    async def parse(self, response: dict[str, Any], shape: Any) -> Any:
        if response["status_code"] >= 300 or response["context"]["operation_name"] != "GetRecords":
            return await self._full.parse(response, shape)
        return {
            "Answer": parse_records(response["body"], response["headers"]),
            "ResponseMetadata": {"HTTPStatusCode": response["status_code"], "HTTPHeaders": response["headers"]},
        }


class LeanParserFactory:
    """A session's `response_parser_factory`. One parser a protocol is enough: they hold no state between answers."""

    def __init__(self) -> None:
        self._full = aio_parsers.AioResponseParserFactory()
        self._parsers: dict[str, Any] = {}

    def set_parser_defaults(self, **defaults: Any) -> None:
        self._full.set_parser_defaults(**defaults)
        self._parsers.clear()

    def create_parser(self, protocol_name: str) -> Any:
        parser = self._parsers.get(protocol_name)
        if parser is None:
            parser = self._full.create_parser(protocol_name)
            if protocol_name == "json":
                parser = _LeanParser(parser)
            self._parsers[protocol_name] = parser
        return parser


@contextlib.contextmanager
def _translated(operation: str) -> Iterator[None]:
    """botocore's errors become ApiError; anything else is a bug and passes."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        told = error.response.get("Error", {})
        metadata = error.response.get("ResponseMetadata", {})
        code = str(told.get("Code", "Unknown"))
        failure = kinesis_api.Failure(
            trouble_of(code, int(metadata.get("HTTPStatusCode", 500))), code, str(told.get("Message", ""))
        )
        raise kinesis_api.ApiError(operation, failure, _date_ms_or_none(metadata.get("HTTPHeaders", {}))) from error
    except (
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.ConnectionError,
        botocore.exceptions.CredentialRetrievalError,
        botocore.exceptions.MetadataRetrievalError,
        botocore.parsers.ResponseParserError,
    ) as error:
        raise _unanswered(operation, kinesis_api.Trouble.TRANSIENT, error) from error
    except botocore.exceptions.BotoCoreError as error:  # what is left is about credentials, profiles and the like
        raise _unanswered(operation, kinesis_api.Trouble.DENIED, error) from error


def _unanswered(operation: str, trouble: kinesis_api.Trouble, error: Exception) -> kinesis_api.ApiError:
    return kinesis_api.ApiError(operation, kinesis_api.Failure(trouble, type(error).__name__, str(error)))


def _named(stream: str) -> dict[str, str]:
    return {"StreamARN": stream} if stream.startswith("arn:") else {"StreamName": stream}


class KinesisClient:
    """KinesisApi over an open aiobotocore client whose session has the LeanParserFactory. Shared by all partitions."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def get_shard_iterator(
        self, stream: str, shard_id: str, start: kinesis_api.Start
    ) -> kinesis_api.IteratorAnswer:
        where: dict[str, Any] = {"ShardIteratorType": "TRIM_HORIZON"}
        if isinstance(start, str):
            where = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": start}
        elif start is not None:
            time = datetime.datetime.fromtimestamp(start / 1000, datetime.UTC)
            where = {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": time}
        with _translated("GetShardIterator"):
            answer = await self._client.get_shard_iterator(**_named(stream), ShardId=shard_id, **where)
        return kinesis_api.IteratorAnswer(answer.get("ShardIterator") or None, _answer_date_ms(answer))

    async def get_records(self, stream: str, iterator: str) -> kinesis_api.RecordsAnswer:
        # An iterator names its stream; only by ARN is it said again, since that may be in another account.
        by_arn = _named(stream) if stream.startswith("arn:") else {}
        with _translated("GetRecords"):
            answer = await self._client.get_records(**by_arn, ShardIterator=iterator, Limit=kinesis_api.RECORDS_MAX)
        parsed = answer["Answer"]
        assert isinstance(parsed, kinesis_api.RecordsAnswer)
        return parsed

    async def list_shards(self, stream: str, token: str | None) -> kinesis_api.ShardsPage:
        # Kinesis refuses a token together with the stream's name.
        where = _named(stream) if token is None else {"NextToken": token}
        with _translated("ListShards"):
            answer = await self._client.list_shards(**where)
        return kinesis_api.ShardsPage(
            [_listed_shard(shard) for shard in answer["Shards"]], answer.get("NextToken") or None
        )

    async def describe_stream(self, stream: str) -> kinesis_api.StreamSummary:
        with _translated("DescribeStreamSummary"):
            answer = await self._client.describe_stream_summary(**_named(stream))
        hours = int(answer["StreamDescriptionSummary"]["RetentionPeriodHours"])
        return kinesis_api.StreamSummary(hours * 3_600_000, _answer_date_ms(answer))

    async def put_records(self, stream: str, entries: Sequence[kinesis_api.PutRecord]) -> list[kinesis_api.PutOutcome]:
        sent = [{"PartitionKey": entry.partition_key, "Data": entry.data} for entry in entries]
        with _translated("PutRecords"):
            answer = await self._client.put_records(**_named(stream), Records=sent)
        return [_outcome(told) for told in answer["Records"]]


def _answer_date_ms(answer: Mapping[str, Any]) -> int:
    return date_ms_of(answer["ResponseMetadata"]["HTTPHeaders"])


def _outcome(told: Mapping[str, Any]) -> kinesis_api.PutOutcome:
    code = told.get("ErrorCode")
    if not code:
        return kinesis_api.PutOutcome(told["ShardId"], told["SequenceNumber"])
    return kinesis_api.PutOutcome(
        failure=kinesis_api.Failure(trouble_of(code, 500), code, str(told.get("ErrorMessage", "")))
    )
