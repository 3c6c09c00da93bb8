"""The worker's connection to Kinesis: one aiobotocore client for every partition, the telemetry stream and the sink.

Endpoint and region come from the fleet's spec, credentials from botocore's default chain (see `kinesis_client`).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import botocore.exceptions
from aiobotocore import config as aio_config
from aiobotocore import session as aio_session

from fleet_model import spec
from fleet_worker import errors, ports
from fleet_worker.adapters import kinesis_api, kinesis_client, kinesis_sink, kinesis_source

CONNECTIONS_MAX = 256
"""Connections are made as they are needed: about one a partition, and one a stream of effects."""
CONNECT_S_MAX = 5
READ_S_MAX = 15
"""A GetRecords answer has up to 10 MB."""


class KinesisConnection:
    """An open client. `async with KinesisConnection.open(aws) as connection`."""

    def __init__(
        self,
        api: kinesis_api.KinesisApi,
        randomness: random.Random,
        on_retry: kinesis_api.OnRetry = kinesis_api.ignore_retry,
    ) -> None:
        self.api = api
        self._randomness = randomness
        self._on_retry = on_retry

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        aws: spec.Aws,
        randomness: random.Random | None = None,
        on_retry: kinesis_api.OnRetry = kinesis_api.ignore_retry,
        connections_max: int = CONNECTIONS_MAX,
    ) -> AsyncIterator[KinesisConnection]:
        """randomness: of the jitter. on_retry: told of each failed attempt. Raises AwsSettingsError.

        connections_max should be above the number of the worker's partitions, or they wait for one another.
        """
        session = aio_session.get_session()
        session.register_component("response_parser_factory", kinesis_client.LeanParserFactory())
        context = session.create_client(
            "kinesis",
            region_name=aws.region,
            endpoint_url=aws.endpoint_url,
            config=aio_config.AioConfig(
                connect_timeout=CONNECT_S_MAX,
                read_timeout=READ_S_MAX,
                max_pool_connections=connections_max,
                parameter_validation=False,  # the sink checks what matters, and PutRecords is half as costly without
                retries={"mode": "standard", "total_max_attempts": 1},
                tcp_keepalive=True,
            ),
        )
        async with contextlib.AsyncExitStack() as stack:
            yield cls(
                kinesis_client.KinesisClient(await _entered(stack, context, aws)),
                randomness or random.Random(),
                on_retry,
            )

    def stream(
        self, name_or_arn: str, clock: ports.Clock, pacing: kinesis_source.Pacing | None = None
    ) -> kinesis_source.KinesisStream:
        return kinesis_source.KinesisStream(
            kinesis_source.Reading(
                self.api, name_or_arn, clock, self._randomness, pacing or kinesis_source.Pacing(), self._on_retry
            )
        )

    def sink(self, streams: spec.Streams, clock: ports.Clock) -> kinesis_sink.KinesisSink:
        return kinesis_sink.KinesisSink(self.api, streams, clock, self._randomness, self._on_retry)


async def _entered(stack: contextlib.AsyncExitStack, context: Any, aws: spec.Aws) -> Any:
    try:
        client = await stack.enter_async_context(context)
    except (botocore.exceptions.NoRegionError, botocore.exceptions.InvalidRegionError, ValueError) as error:
        raise errors.AwsSettingsError(
            f"spec.aws (region {aws.region}, endpointURL {aws.endpoint_url}): {error}; "
            "give spec.aws.region or AWS_DEFAULT_REGION, and an endpoint with http:// or https://"
        ) from error
    protocol = client.meta.service_model.resolved_protocol
    if protocol != "json":
        raise errors.AwsSettingsError(
            f"botocore speaks {protocol} to Kinesis; this version of Fleet Twin reads json only"
        )
    return client
