"""A Kinesis stream as ports.Stream, and a shard as ports.ShardSource: pacing, retries, iterators, positions.

Order and completeness rest on one rule: what was returned last is remembered only when it is returned, so whatever
happens before that (a lost reply, a cancelled read, an expired iterator) ends with the same records again.

What it can't see: Kinesis need not refuse a position whose records are trimmed, it may answer from the oldest record it
still has. Comparing sequence numbers doesn't tell, as an idle shard loses the position's own record harmlessly. The
partition clock against the stream's retention does, and that is judged where the clock is. A position's
sub-sequence number isn't used either: a commit covers whole Kinesis records.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np

from fleet_model import partition
from fleet_worker import errors, ports
from fleet_worker.adapters import kinesis_api
from fleet_worker.core import records

Answer = TypeVar("Answer")

READ_BACKOFF_FIRST_S = 0.2
READ_BACKOFF_MAX_S = 10.0
STREAM_TRIES_MAX = 8
"""For calls about the stream as a whole; with the back-off above they take about 20 s."""
SHARD_PAGES_MAX = 1_000


@dataclasses.dataclass(frozen=True, slots=True)
class Pacing:
    """How often a shard is polled. idle_s: from one poll to the next when caught up. calls_per_second and
    bytes_per_second: Kinesis' own limits for all readers of a shard (5 and 2 MB)."""

    idle_s: float = 1.0
    calls_per_second: float = 5.0
    bytes_per_second: float = 2_000_000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What the shards of a stream share."""

    api: kinesis_api.KinesisApi
    stream: str
    clock: ports.Clock
    randomness: random.Random
    pacing: Pacing = Pacing()
    on_retry: kinesis_api.OnRetry = kinesis_api.ignore_retry

    def backoff(self) -> kinesis_api.Backoff:
        return kinesis_api.Backoff(self.randomness, READ_BACKOFF_FIRST_S, READ_BACKOFF_MAX_S)


class KinesisStream:
    """ports.Stream. Its calls try again for about 20 s, then raise StreamUnavailableError."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def list_shards(self) -> list[partition.Shard]:
        shards: list[partition.Shard] = []
        token: str | None = None
        for _ in range(SHARD_PAGES_MAX):
            page = await self._tried(functools.partial(self._api.list_shards, self._reading.stream, token))
            shards += page.shards
            token = page.next_token
            if token is None:
                return shards
        raise errors.StreamUnavailableError(
            f"stream {self._reading.stream}: its list of shards has more than {SHARD_PAGES_MAX} pages"
        )

    async def now_ms(self) -> int:
        return (await self._described()).date_ms

    async def retention_ms(self) -> int:
        return (await self._described()).retention_ms

    def open_shard(self, shard_id: str, start: partition.Position | int | None) -> KinesisShardSource:
        return KinesisShardSource(self._reading, shard_id, start)

    @property
    def _api(self) -> kinesis_api.KinesisApi:
        return self._reading.api

    async def _described(self) -> kinesis_api.StreamSummary:
        return await self._tried(functools.partial(self._api.describe_stream, self._reading.stream))

    async def _tried(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        backoff = self._reading.backoff()
        for attempt in range(1, STREAM_TRIES_MAX + 1):
            try:
                return await call()
            except kinesis_api.ApiError as error:
                if error.trouble not in (kinesis_api.Trouble.THROTTLED, kinesis_api.Trouble.TRANSIENT):
                    raise _gone(self._reading.stream, error) from error
                if attempt == STREAM_TRIES_MAX:
                    raise errors.StreamUnavailableError(
                        f"stream {self._reading.stream}: no answer in {attempt} tries ({error}); try again later"
                    ) from error
                self._reading.on_retry(kinesis_api.Retry(error.operation, self._reading.stream, error.failure))
                await self._reading.clock.sleep(backoff.next_s())
        raise AssertionError("unreachable")


def _gone(what: str, error: kinesis_api.ApiError) -> errors.StreamGoneError:
    return errors.StreamGoneError(f"{what} can't be read ({error}); check its name, the region and the permissions")


class KinesisShardSource:
    """ports.ShardSource. One reader: reads never overlap."""

    def __init__(self, reading: Reading, shard_id: str, start: partition.Position | int | None) -> None:
        self._reading = reading
        self._shard_id = shard_id
        self._start: kinesis_api.Start = (
            (start.sequence_number or None) if isinstance(start, partition.Position) else start
        )
        self._iterator: str | None = None
        self._iterator_is_new = False
        self._backoff = reading.backoff()
        self._poll_at = reading.clock.monotonic()
        self._was_caught_up = False
        self._ended = False

    async def read(self) -> records.ShardBatch:
        assert not self._ended, f"shard {self._shard_id} was read to its end"
        while True:
            await self._wait_until(self._poll_at)
            # Set before the call, so that a cancelled or failed one counts against the limit as well.
            polled_at = self._reading.clock.monotonic()
            self._poll_at = polled_at + 1.0 / self._reading.pacing.calls_per_second
            try:
                answer = await self._poll()
            except kinesis_api.ApiError as error:
                self._settle(error)
                continue
            return self._returned(answer, polled_at)

    async def _poll(self) -> kinesis_api.RecordsAnswer:
        if self._iterator is None:
            found = await self._reading.api.get_shard_iterator(self._reading.stream, self._shard_id, self._start)
            if found.iterator is None:
                return _nothing_left(found.date_ms)
            self._iterator, self._iterator_is_new = found.iterator, True
        return await self._reading.api.get_records(self._reading.stream, self._iterator)

    def _settle(self, error: kinesis_api.ApiError) -> None:
        """Makes the next round do the right thing after an error, or raises what read() promises."""
        reads_records = self._iterator is not None
        match error.trouble:
            case kinesis_api.Trouble.THROTTLED | kinesis_api.Trouble.TRANSIENT:
                self._wait_longer()
            case kinesis_api.Trouble.EXPIRED_ITERATOR | kinesis_api.Trouble.INVALID if reads_records:
                # An emulator that was restarted calls its old iterators invalid.
                self._iterator = None
                if self._iterator_is_new:
                    self._wait_longer()
            case kinesis_api.Trouble.INVALID if isinstance(self._start, int) and _lies_ahead(self._start, error):
                self._wait_longer()
            case kinesis_api.Trouble.INVALID | kinesis_api.Trouble.EXPIRED_ITERATOR:
                raise errors.PositionExpiredError(
                    f"stream {self._reading.stream}, shard {self._shard_id}: nothing can be read from {self._start} on"
                    f" ({error}): its records left the stream before they were read, or it isn't the stream they were read from"
                ) from error
            case _:
                raise _gone(f"stream {self._reading.stream}, shard {self._shard_id}", error) from error
        where = f"{self._reading.stream}, shard {self._shard_id}"
        self._reading.on_retry(kinesis_api.Retry(error.operation, where, error.failure))

    def _wait_longer(self) -> None:
        waited_until = self._reading.clock.monotonic() + self._backoff.next_s()
        self._poll_at = max(self._poll_at, waited_until)

    def _returned(self, answer: kinesis_api.RecordsAnswer, polled_at: float) -> records.ShardBatch:
        """Nothing here waits: a read is either cancelled before it, or returns."""
        self._backoff.reset()
        batch = answer.batch
        full = len(batch.data) >= kinesis_api.RECORDS_MAX
        if isinstance(self._start, int):
            batch = _from_time(batch, self._start)
        if batch.sequence_numbers:
            self._start = batch.sequence_numbers[-1]
        self._iterator, self._iterator_is_new = answer.next_iterator, False
        self._ended = batch.shard_ended

        # A full answer means more, whatever MillisBehindLatest says (emulators say 0).
        caught_up = batch.millis_behind == 0 and not full
        pacing = self._reading.pacing
        budget_s = answer.payload_bytes / pacing.bytes_per_second
        if caught_up:
            # The first wait is a random part, which spreads shards that caught up together; later ones keep the phase.
            part = 1.0 if self._was_caught_up else self._reading.randomness.random()
            budget_s = max(budget_s, pacing.idle_s * part)
        self._was_caught_up = caught_up
        self._poll_at = max(self._poll_at, polled_at + budget_s)
        return batch

    async def _wait_until(self, monotonic_s: float) -> None:
        wait_s = monotonic_s - self._reading.clock.monotonic()
        if wait_s > 0:
            await self._reading.clock.sleep(wait_s)


def _lies_ahead(start_ms: int, error: kinesis_api.ApiError) -> bool:
    """Kinesis refuses a time that it hasn't reached; such a start is waited for."""
    return error.date_ms is not None and start_ms >= error.date_ms


def _nothing_left(date_ms: int) -> kinesis_api.RecordsAnswer:
    empty = records.ShardBatch(
        sequence_numbers=[],
        arrival_ms=np.zeros(0, dtype=np.int64),
        data=[],
        millis_behind=0,
        poll_ms=date_ms,
        shard_ended=True,
    )
    return kinesis_api.RecordsAnswer(empty, None, 0)


def _from_time(batch: records.ShardBatch, start_ms: int) -> records.ShardBatch:
    """Without the records before the first that arrived at or after start_ms: an iterator by time may begin up to a
    second early, as some clients send whole seconds."""
    reached = np.flatnonzero(batch.arrival_ms >= start_ms)
    first = int(reached[0]) if len(reached) else len(batch.data)
    if first == 0:
        return batch
    return dataclasses.replace(
        batch,
        sequence_numbers=batch.sequence_numbers[first:],
        arrival_ms=batch.arrival_ms[first:],
        data=batch.data[first:],
    )
