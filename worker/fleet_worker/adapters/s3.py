"""S3, or what speaks like it: ObjectApi over aiobotocore, and the fleet's object store on it.

Endpoint and region come from the fleet's spec, credentials from botocore's default chain. botocore's own tries are off: one who writes on a
condition has to know of every try (`objects` tries again). Objects go in one request each, at most 5 GB; their MD5 goes
with them, so the store checks what it got, and the body isn't hashed a second time for the signature, which would stop the event loop.
It knows nothing of what is in an object. Nothing of it is imported or made unless the fleet has a bucket.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import io
import os
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.parsers
from aiobotocore import config as aio_config
from aiobotocore import session as aio_session

from fleet_model import spec
from fleet_worker import errors, ports
from fleet_worker.adapters import objects, objects_api

CONNECTIONS_MAX = 32
CONNECT_S_MAX = 5
READ_S_MAX = 15
"""Without a byte from the store."""
CALL_S_MAX = 30.0
SLOWEST_BYTES_PER_SECOND = 1_000_000
"""A call may take CALL_S_MAX and its bytes at this rate."""
DOWNLOAD_BYTES_MAX = 5_000_000_000
"""Of one object: the most that one PutObject takes, by the S3 API reference."""
STREAMED_FROM_BYTES = 2**20
"""Larger bodies are hashed in a thread and written piece by piece, so that neither stops the event loop."""

_TROUBLE_BY_CODE = {
    "PreconditionFailed": objects_api.Trouble.PRECONDITION,
    "ConditionalRequestConflict": objects_api.Trouble.CONFLICT,
    "OperationAborted": objects_api.Trouble.CONFLICT,
    "NoSuchKey": objects_api.Trouble.MISSING,
    "NoSuchBucket": objects_api.Trouble.REFUSED,
    "NotImplemented": objects_api.Trouble.REFUSED,
    "InternalError": objects_api.Trouble.BUSY,
    "ServiceUnavailable": objects_api.Trouble.BUSY,
    "SlowDown": objects_api.Trouble.BUSY,
    "RequestTimeout": objects_api.Trouble.BUSY,
    "RequestTimeoutException": objects_api.Trouble.BUSY,
    "Throttling": objects_api.Trouble.BUSY,
    "ThrottlingException": objects_api.Trouble.BUSY,
    "RequestLimitExceeded": objects_api.Trouble.BUSY,
    "BadDigest": objects_api.Trouble.BUSY,  # the body came broken; a second time it may not
    "IncompleteBody": objects_api.Trouble.BUSY,
}
_TROUBLE_BY_STATUS = {
    404: objects_api.Trouble.MISSING,
    408: objects_api.Trouble.BUSY,
    409: objects_api.Trouble.CONFLICT,
    412: objects_api.Trouble.PRECONDITION,
    429: objects_api.Trouble.BUSY,
}


def trouble_of(code: str, http_status: int) -> objects_api.Trouble:
    """By the error code; an unknown one by its HTTP status. An unknown 4xx is one for a human: REFUSED."""
    known = _TROUBLE_BY_CODE.get(code) or _TROUBLE_BY_STATUS.get(http_status)
    if known is not None:
        return known
    return objects_api.Trouble.BUSY if http_status >= 500 else objects_api.Trouble.REFUSED


@contextlib.asynccontextmanager
async def open_store(
    aws: spec.Aws,
    checkpoint: spec.Checkpoint,
    fleet: tuple[str, str],
    clock: ports.Clock,
    randomness: random.Random | None = None,
    on_retry: objects_api.OnRetry = objects_api.ignore_retry,
) -> AsyncIterator[ports.ObjectStore]:
    """fleet: its namespace and name; keys are below `<prefix>/<namespace>/<name>/`. randomness: of the jitter.

    Raises AwsSettingsError. Sends nothing yet: `probe.check` tells whether the store is one to build on.
    """
    assert checkpoint.bucket, "no bucket"
    async with open_api(aws, checkpoint.bucket, clock) as api:
        where = f"s3://{checkpoint.bucket}"
        yield objects.Objects(
            api, clock, randomness or random.Random(), fleet_prefix(checkpoint.prefix, fleet), where, on_retry
        )


def fleet_prefix(prefix: str, fleet: tuple[str, str]) -> str:
    return "/".join([*([prefix.strip("/")] if prefix.strip("/") else []), *fleet, ""])


@contextlib.asynccontextmanager
async def open_api(aws: spec.Aws, bucket: str, clock: ports.Clock) -> AsyncIterator[S3Api]:
    """Raises AwsSettingsError."""
    is_own_endpoint = bool(
        aws.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    context = aio_session.get_session().create_client(
        "s3",
        region_name=aws.region,
        endpoint_url=aws.endpoint_url,
        config=aio_config.AioConfig(
            connect_timeout=CONNECT_S_MAX,
            read_timeout=READ_S_MAX,
            max_pool_connections=CONNECTIONS_MAX,
            retries={"mode": "standard", "total_max_attempts": 1},
            # An endpoint that someone runs himself seldom has a name for each bucket.
            s3={"addressing_style": "path" if is_own_endpoint else "auto", "payload_signing_enabled": False},
            # Many stores that speak S3 don't know the newer checksum headers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
        ),
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(context)
        except (botocore.exceptions.NoRegionError, botocore.exceptions.InvalidRegionError, ValueError) as error:
            raise errors.AwsSettingsError(
                f"spec.aws (region {aws.region}, endpointURL {aws.endpoint_url}): {error}; "
                "give spec.aws.region or AWS_DEFAULT_REGION, and an endpoint with http:// or https://"
            ) from error
        yield S3Api(client, bucket, clock)


class S3Api:
    """objects_api.ObjectApi over an open aiobotocore client. Shared by all partitions."""

    def __init__(self, client: Any, bucket: str, clock: ports.Clock) -> None:
        self._client = client
        self._bucket = bucket
        self._clock = clock

    async def get(self, key: str) -> ports.Object:
        with _translated("GetObject"):
            async with asyncio.timeout(_limit_s(DOWNLOAD_BYTES_MAX)):
                answer = await self._client.get_object(Bucket=self._bucket, Key=key)
                async with answer["Body"] as body:
                    return ports.Object(await body.read(), answer["ETag"])

    async def get_range(self, key: str, start: int, stop: int) -> bytes:
        try:
            with _translated("GetObject"):
                async with asyncio.timeout(_limit_s(stop - start)):
                    answer = await self._client.get_object(
                        Bucket=self._bucket, Key=key, Range=f"bytes={start}-{stop - 1}"
                    )
                    async with answer["Body"] as body:
                        data: bytes = await body.read()
        except objects_api.ApiError as error:
            if error.failure.code == "InvalidRange":  # it begins after the end
                return b""
            raise
        # A store that passes over the Range header answers the whole object.
        return data if "ContentRange" in answer else data[start:stop]

    async def put(self, key: str, data: bytes, if_match: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if if_match is None else {"IfMatch": if_match}
        is_large = len(data) > STREAMED_FROM_BYTES
        digest = await self._clock.in_thread(lambda: _md5(data)) if is_large else _md5(data)
        with _translated("PutObject"):
            async with asyncio.timeout(_limit_s(len(data))):
                answer = await self._client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=io.BytesIO(data) if is_large else data,
                    ContentMD5=digest,
                    **condition,
                )
        return str(answer["ETag"])

    async def list_page(self, prefix: str, token: str | None) -> objects_api.Page:
        more = {} if token is None else {"ContinuationToken": token}
        with _translated("ListObjectsV2"):
            async with asyncio.timeout(_limit_s(0)):
                answer = await self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=prefix, MaxKeys=objects_api.LIST_PAGE_MAX, **more
                )
        found = [
            ports.ObjectInfo(each["Key"], each["Size"], _ms(each["LastModified"]))
            for each in answer.get("Contents") or ()
        ]
        return objects_api.Page(found, (answer.get("NextContinuationToken") or None) if answer["IsTruncated"] else None)

    async def delete(self, key: str) -> None:
        try:
            with _translated("DeleteObject"):
                async with asyncio.timeout(_limit_s(0)):
                    await self._client.delete_object(Bucket=self._bucket, Key=key)
        except objects_api.ApiError as error:
            if error.trouble is not objects_api.Trouble.MISSING:
                raise


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _ms(time: datetime.datetime) -> int:
    return round(time.timestamp() * 1000)


def _limit_s(size_bytes: int) -> float:
    return CALL_S_MAX + size_bytes / SLOWEST_BYTES_PER_SECOND


@contextlib.contextmanager
def _translated(operation: str) -> Iterator[None]:
    """botocore's errors become ApiError; anything else is a bug and passes."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        told = error.response.get("Error", {})
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
        code = str(told.get("Code", "Unknown"))
        message = str(told.get("Message", ""))
        raise objects_api.ApiError(operation, objects_api.Failure(trouble_of(code, status), code, message)) from error
    except (
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.ConnectionError,
        botocore.exceptions.IncompleteReadError,
        botocore.exceptions.CredentialRetrievalError,
        botocore.exceptions.MetadataRetrievalError,
        botocore.parsers.ResponseParserError,
        aiohttp.ClientError,  # a body that broke off passes aiobotocore as it is
        TimeoutError,
    ) as error:
        raise _unanswered(operation, objects_api.Trouble.BUSY, error) from error
    except botocore.exceptions.BotoCoreError as error:  # credentials, profiles, a name that no bucket can have
        raise _unanswered(operation, objects_api.Trouble.REFUSED, error) from error


def _unanswered(operation: str, trouble: objects_api.Trouble, error: Exception) -> objects_api.ApiError:
    return objects_api.ApiError(operation, objects_api.Failure(trouble, type(error).__name__, str(error)))
