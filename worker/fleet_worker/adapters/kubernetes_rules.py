"""The rules generations in the status of the worker's own fleet: followed by a watch, and proved complete by asking.

A watch that lives says nothing of what is still on its way, so whoever must know that nothing is missing asks for the object itself
(ADR 18): mostly for its metadata alone, a few hundred bytes, since its resourceVersion says whether it is the one that is known here. What can't be
read, or contradicts what was judged by, changes nothing: the last good rules stay, and it is told.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import AsyncGenerator

from fleet_model import packed_generations, rules
from fleet_worker import errors, ports
from fleet_worker.adapters import kubernetes_api, kubernetes_watch
from fleet_worker.core import horizon

log = logging.getLogger(__name__)

UNPACKED_AT_ONCE_MAX = 600
"""Characters of packed generations that are read within a millisecond or two; more of them are read in a thread."""
ASK_S_MAX = 2.0
"""For one question; the next one may find another API server."""


class FleetRules:
    """Of one fleet, for one reader. trouble: why the rules aren't known for sure; "" when all is well. unanswered, unanswered_since: why
    the last question had no answer, and when the first of those in a row was begun; "" and None once one is answered. late: generations that came
    after this worker had been told that it knew all up to where they start."""

    def __init__(self, api: kubernetes_api.KubernetesApi, folder: str, fleet: str, clock: ports.Clock) -> None:
        """folder: the path of the namespace's fleets."""
        self.unreadable = ""
        self.unanswered = ""
        self.unanswered_since: float | None = None
        self.late = 0
        self._api = api
        self._path = f"{folder}/{fleet}"
        self._clock = clock
        self._followed = kubernetes_watch.Followed(api, folder, {"fieldSelector": f"metadata.name={fleet}"}, clock)
        self._fleet = fleet
        self._horizon = horizon.Horizon()
        self._uid = ""
        self._version = ""  # of the object that is known
        self._packed = ""
        self._kept: tuple[rules.RulesGeneration, ...] = ()
        self._given: tuple[rules.RulesGeneration, ...] = ()
        self._changed = asyncio.Condition()
        self._taking = asyncio.Lock()
        self._asking: asyncio.Task[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="fleet-twin-rules")

    @property
    def trouble(self) -> str:
        return self._followed.trouble or self.unreadable or self.unanswered

    @property
    def known_until_ms(self) -> int:
        return self._horizon.known_until_ms(self._clock.monotonic())

    async def follow(self) -> AsyncGenerator[tuple[rules.RulesGeneration, ...], None]:
        """As control_plane.ForWorkers.follow_generations."""
        self._given = ()
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                await self._until_others(watching)
                kept = self._kept
                yield kept
                async with self._changed:
                    self._given = kept  # whoever asks for the next ones has taken these up
                    self._changed.notify_all()
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    def note(self, arrival_ms: int) -> None:
        """The stream has reached that arrival time."""
        self._horizon.seen(arrival_ms, self._clock.monotonic())

    def reached_ms(self) -> int:
        """What the stream's clock reads at least."""
        return self._horizon.stream_ms(self._clock.monotonic())

    async def known(self, arrival_ms: int) -> None:
        """Returns when every generation that starts at or before arrival_ms was given to whoever follows; at once, when it is known to be so.
        Else it asks, once for all who wait. Raises ControlPlaneUnavailableError."""
        self.note(arrival_ms)
        while self.known_until_ms < arrival_ms:
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
                self._asking.add_done_callback(self._asked)
            await asyncio.shield(self._asking)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        async with contextlib.aclosing(self._followed.states()) as states:
            async for found in states:
                if self._fleet in found:
                    await self._take(found[self._fleet])

    async def _until_others(self, watching: asyncio.Task[None]) -> None:
        changed = asyncio.ensure_future(self._others())
        try:
            await asyncio.wait((changed, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        if watching.done():
            watching.result()

    async def _others(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._kept and self._kept != self._given)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self) -> None:
        """Keeps its failure for whoever looks: those who ask again and again have no other word for it."""
        begun_at = self._clock.monotonic()
        try:
            await self._look()
        except errors.ControlPlaneUnavailableError as error:
            if str(error) == self.unreadable:  # another trouble: the API server did answer
                self.unanswered, self.unanswered_since = "", None
            else:
                self.unanswered = str(error)
                self.unanswered_since = begun_at if self.unanswered_since is None else self.unanswered_since
            raise
        self.unanswered, self.unanswered_since = "", None

    async def _look(self) -> None:
        stream_ms = self.reached_ms()
        try:
            async with asyncio.timeout(ASK_S_MAX):
                told = await self._api.get(self._path, accept=kubernetes_api.METADATA_ONLY)
                if (told.get("metadata") or {}).get("resourceVersion") != self._version or self.unreadable:
                    await self._take(await self._api.get(self._path))
                if self.unreadable:
                    raise errors.ControlPlaneUnavailableError(self.unreadable)
                async with self._changed:
                    await self._changed.wait_for(lambda: self._given == self._kept)
        except TimeoutError as error:
            raise errors.ControlPlaneUnavailableError(
                f"GET {self._path}: not answered, or not taken up, within {ASK_S_MAX:.0f} s"
            ) from error
        self._horizon.looked(stream_ms)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # whoever waited has heard of it

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take(self, document: kubernetes_api.Json) -> None:
        """Whichever way it came. An older object than the known one brings nothing new: generations only become more."""
        async with self._taking:
            metadata = document.get("metadata") or {}
            try:
                await self._read(metadata.get("uid"), document)
            except packed_generations.UnreadableGenerationsError as error:
                if self.unreadable != str(error):
                    log.error("the fleet's rules can't be taken up, the last good ones stay in force: %s", error)
                self.unreadable = str(error)
            else:
                if self.unreadable:
                    log.info("the fleet's rules can be read again")
                self.unreadable = ""
            self._version = str(metadata.get("resourceVersion") or "")

    async def _read(self, uid: object, document: kubernetes_api.Json) -> None:
        """Raises UnreadableGenerationsError."""
        if self._uid and uid != self._uid:
            raise packed_generations.UnreadableGenerationsError(
                f"{self._path} is another fleet of that name by now; this worker ends with the one that it belongs to"
            )
        packed = ((document.get("status") or {}).get("rules") or {}).get("generations") or ""
        if not isinstance(packed, str) or (not packed and self._kept):
            raise packed_generations.UnreadableGenerationsError(
                f"{self._path}: status.rules.generations is gone; the operator writes it anew"
            )
        if packed == self._packed:
            return
        found = await self._unpacked(packed)
        if not found:
            raise packed_generations.UnreadableGenerationsError(f"{self._path}: status.rules.generations is empty")
        self._check(found)
        self._uid, self._packed = str(uid or ""), packed
        self._count_late(found)
        if not self._kept or found[-1].generation > self._kept[-1].generation:
            async with self._changed:
                self._kept = found
                self._changed.notify_all()

    async def _unpacked(self, packed: str) -> tuple[rules.RulesGeneration, ...]:
        """Not by the clock's few threads: all of them may be in slow fsyncs, and edits must not wait for those."""
        if len(packed) <= UNPACKED_AT_ONCE_MAX:
            return packed_generations.unpack(packed)
        return await asyncio.get_running_loop().run_in_executor(self._thread, packed_generations.unpack, packed)

    def _count_late(self, found: tuple[rules.RulesGeneration, ...]) -> None:
        """Whoever stamps promises to publish in time; a paused operator or a stalled etcd can break that."""
        if not self._kept:
            return
        until_ms = self.known_until_ms
        for entry in found:
            if entry.generation > self._kept[-1].generation and entry.effective_ms <= until_ms:
                self.late += 1
                log.error(
                    "rules generation %d starts at %d and came when all until %d was taken to be known: "
                    "records of these %d ms may have been judged by the one before",
                    *(entry.generation, entry.effective_ms, until_ms, until_ms - entry.effective_ms),
                )

    def _check(self, found: tuple[rules.RulesGeneration, ...]) -> None:
        """What was judged by stays what it was."""
        known = {entry.generation: entry for entry in self._kept}
        for entry in found:
            if known.get(entry.generation, entry) != entry:
                raise packed_generations.UnreadableGenerationsError(
                    f"{self._path}: generation {entry.generation} is another one than was judged by; the operator's status or a restored "
                    "backup contradicts it"
                )
