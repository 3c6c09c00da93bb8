"""One partition at this worker, from the moment that the control plane names us for it until it names somebody else.

    keep:     as a standby, as its owner, and from one to the other; again after each failure
    owning:   wait for parents → claim → open → run the pipeline → release; taken back while it drains, it goes on

It follows what is wanted and never decides it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fleet_model import partition, rules, twin_partition
from fleet_worker import claimed, environments, errors, pipeline, standby, surroundings, tenure
from fleet_worker import ports as worker_ports
from fleet_worker.core import lifecycle

log = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
LOOK_AGAIN_S = 5.0
"""Without any news, a waiting partition looks again after this long."""
RELEASE_AGAIN_S = 1.0


Tenures = Callable[["Holding", environments.Place], tenure.Tenure]


class Role(enum.Enum):
    OWNER = "owner"
    STANDBY = "standby"
    NONE = "none"


@dataclasses.dataclass(frozen=True, slots=True)
class Crew:
    """What the holdings of a worker share. new_tenure: for a holding's place. stop: the worker is to end. changed: something that others
    may wait for has. generations: of the rules."""

    around: surroundings.Surroundings
    name: str
    environments: environments.Environments
    stream: worker_ports.Stream
    checkpoints: claimed.Checkpoints | None
    new_tenure: Tenures
    generations: Callable[[], Sequence[rules.RulesGeneration]]
    changed: Callable[[Holding], None]
    tell: Callable[[str], None]
    stop: asyncio.Event


class Holding:
    """wanted: the partition's object as last seen. has_begun: its twins are its own. refused_epoch: of the manifest that refused our
    claim, 0 = none did. fenced_by: the nonce of the claim that fenced us last. unclean: why its last commit, or closing its environment,
    failed when the worker stopped; "" = neither did."""

    def __init__(self, crew: Crew, wanted: twin_partition.TwinPartition, lost: str = "") -> None:
        """lost: why it can never be read to its end; "" when it can."""
        self.wanted = wanted
        self.lost = lost
        self.life = lifecycle.Life(on_change=self._tell)
        self.pipeline: pipeline.PartitionPipeline | None = None
        self.tenure: tenure.Tenure | None = None
        self.standby: standby.Standby | None = None
        self.has_begun = False
        self.refused_epoch = 0
        self.fenced_by = ""
        self.unclean = ""
        self.closed = asyncio.Event()
        self._crew = crew
        self._changed = asyncio.Event()
        self._asked_epoch = 0
        self._fenced_epoch = -1

    @property
    def shard_id(self) -> str:
        return self.wanted.spec.shard_id

    @property
    def identity(self) -> partition.PartitionIdentity:
        fleet, spec = self._crew.around.fleet, self.wanted.spec
        return partition.PartitionIdentity(
            fleet.namespace, fleet.name, fleet.streams.telemetry.stream_name, spec.shard_id, spec.hash_key_range
        )

    @property
    def role(self) -> Role:
        """Who was fenced isn't its owner again before the control plane says so anew."""
        spec, name = self.wanted.spec, self._crew.name
        if spec.worker == name and spec.epoch > self._fenced_epoch:
            return Role.OWNER
        # There is nothing more to follow of one that is closed, and nobody who will ever take it over.
        is_closed = self.wanted.status.phase is twin_partition.Phase.CLOSED
        is_standby = name in spec.standby and not is_closed and self._crew.checkpoints is not None
        return Role.STANDBY if is_standby else Role.NONE

    @property
    def _is_owner(self) -> bool:
        return self.role is Role.OWNER

    @property
    def is_shared(self) -> bool:
        """Other workers may own it as well: there are claims."""
        return self._crew.checkpoints is not None

    @property
    def has_claim(self) -> bool:
        return self.tenure is not None and bool(self.tenure.nonce)

    def want(self, wanted: twin_partition.TwinPartition) -> None:
        if wanted == self.wanted:
            return
        is_anew = wanted.uid != self.wanted.uid
        if is_anew and self.was_fenced:
            # Whoever made it anew didn't go by our fence, and its epochs may be lower: what it says counts, the manifest decides.
            self._fenced_epoch, self.tenure = -1, None
        self.wanted = wanted
        self.kick()
        if is_anew:
            self._crew.tell(self.shard_id)  # it knows nothing yet of what the one before was told

    def kick(self) -> None:
        """Something that it may wait for has changed."""
        self._changed.set()

    def _tell(self) -> None:
        self._crew.around.metrics.partition(self.shard_id).set_phase(self.life.phase.value)
        self._crew.tell(self.shard_id)

    # ── again and again ──────────────────────────────────────────────────────────────────────────────────────────

    async def keep(self) -> None:
        """Until it is closed, nobody wants us for it any more, or the worker stops. A bug is raised, and ends the worker."""
        retry_s = RETRY_FIRST_S
        if self.lost:
            self._fail(self.lost)
            log.error("partition %s: %s", self.shard_id, self.lost)
            return
        while not self._is_over:
            started = self._crew.around.clock.monotonic()
            self.tenure = self.standby = None
            try:
                async with self._crew.environments.place(self.identity) as place:
                    await self._hold(place)
            except errors.FencedError as error:
                # Of the claim that was fenced: the control plane may have named us anew since.
                self.fenced_by = error.by_nonce
                self._fenced_epoch = self.tenure.epoch if self.has_claim and self.tenure else self._asked_epoch
                self._fail(str(error))
                log.error("partition %s: %s", self.shard_id, error)
            except errors.FleetTwinError as error:
                if self.closed.is_set():  # its final checkpoint stands, so what is on this disk is of no more use
                    log.warning("partition %s: closed, though its environment wasn't cleanly: %s", self.shard_id, error)
                    return
                self._fail(str(error))
                if self._crew.stop.is_set():
                    log.warning("partition %s: its stop wasn't clean: %s", self.shard_id, error)
                    self.unclean = str(error) if self.tenure is not None and self.has_begun else ""
                    return
                lasted_s = self._crew.around.clock.monotonic() - started
                retry_s = RETRY_FIRST_S if lasted_s > RETRY_MAX_S else retry_s
                log.error("partition %s failed, next try in %g s: %s", self.shard_id, retry_s, error)
                await self._pause(retry_s)
                retry_s = min(RETRY_MAX_S, retry_s * 2)
            except Exception as error:
                error.add_note(f"in partition {self.shard_id}")
                raise
        if self.standby is not None:
            self.standby = None
            self._crew.tell(self.shard_id)

    @property
    def was_fenced(self) -> bool:
        return self._fenced_epoch >= self.wanted.spec.epoch

    @property
    def _is_over(self) -> bool:
        return self._crew.stop.is_set() or self.closed.is_set() or self.role is Role.NONE

    def _fail(self, why: str) -> None:
        if self.life.phase is lifecycle.Phase.FAILED:
            self.life.tell(why)
        else:
            self.life.step(lifecycle.Event.FAIL, why)

    async def _pause(self, seconds: float) -> None:
        """Before the next try: until the time is over, something else is wanted, or the worker stops."""
        clock, wanted = self._crew.around.clock, self.wanted.spec
        deadline = clock.monotonic() + seconds
        while not self._crew.stop.is_set() and self.wanted.spec == wanted and clock.monotonic() < deadline:
            await self.news(deadline - clock.monotonic())

    async def news(self, seconds: float = LOOK_AGAIN_S) -> None:
        """Returns when something changed that may concern it, at the latest after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    async def _hold(self, place: environments.Place) -> None:
        """One go: everything from opening the environment to closing it."""
        while not self._is_over:
            if self.role is Role.STANDBY:
                await self._stand_by(place)
            elif not await self._own(place):
                return

    async def _stand_by(self, place: environments.Place) -> None:
        assert self._crew.checkpoints is not None
        clock = self._crew.around.clock
        self.standby = standby.Standby(self._crew.checkpoints, place, clock, lambda: self._crew.tell(self.shard_id))
        await self.standby.follow(lambda: not self._is_over and self.role is Role.STANDBY, self.news)

    # ── owning ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _own(self, place: environments.Place) -> bool:
        """From the claim to the release. False when the go is over; True when it has another role now."""
        if self.life.phase is lifecycle.Phase.FAILED:
            self.life.step(lifecycle.Event.RETRY)
        elif self.life.phase is lifecycle.Phase.RELEASED:
            self.life.step(lifecycle.Event.REASSIGNED)
        held = self._crew.new_tenure(self, place)
        if not await self._may_begin(held):
            return True
        if held.is_closed:  # by an owner who couldn't say so any more
            if self.life.phase is lifecycle.Phase.PENDING:
                self.life.step(lifecycle.Event.START)
            self._ended()
            return False
        if not await self._claim(held):
            return True
        copy = self.standby.copy if self.standby is not None else None
        self.standby = None
        self.tenure, self.refused_epoch = held, 0
        if self.life.phase is lifecycle.Phase.PENDING:
            self.life.step(lifecycle.Event.START)
        store = await held.open(copy)
        self.has_begun = not store.state.ended
        if store.state.ended and not await self._crew.around.clock.in_thread(store.outbox):
            await self._close(held)
            return False
        # Otherwise the worker may have died between the commit of the shard's end and the publishing of its last effects.
        while True:
            await self._run(held, store)
            if store.state.ended:
                await self._close(held)
                return False
            if self._crew.stop.is_set():
                if self._crew.checkpoints is None:
                    self.life.step(lifecycle.Event.DRAINED)
                return False
            if await self._release(held):
                return False

    async def _may_begin(self, held: tenure.Tenure) -> bool:
        """Waits for its parents. False when it has another role now, or the worker stops."""
        while not self._is_over and self.role is Role.OWNER:
            try:
                why = await held.waits_for()
            except errors.ObjectStoreUnavailableError as error:
                why = f"it can't be seen whether it may begin: {error}"
            self.life.tell(why)
            if not why:
                return True
            await self.news()
        return False

    async def _claim(self, held: tenure.Tenure) -> bool:
        """Until it is ours. A former owner that still drains makes us wait. False when we are no longer named."""
        while not self._is_over and self.role is Role.OWNER:
            self._asked_epoch = self.wanted.spec.epoch
            try:
                await held.claim(self.wanted.spec)
            except errors.ClaimRefusedError as refused:
                self.refused_epoch = refused.manifest_epoch
                self.life.tell(str(refused))
                self._crew.tell(self.shard_id)
            except errors.ObjectStoreUnavailableError as error:
                self.life.tell(f"can't be claimed: {error}")
            else:
                return True
            await self.news()
        return False

    async def _run(self, held: tenure.Tenure, store: worker_ports.TwinStore) -> None:
        """The pipeline, until its shard ended, the partition is to go elsewhere, or the worker stops."""
        crew = self._crew
        source = crew.stream.open_shard(self.shard_id, held.start(store))
        drain = asyncio.Event()
        stay = pipeline.Stay(self.life, held.may_publish, self._drain_max_s, held.may_go_on)
        piped = pipeline.PartitionPipeline(crew.around, self.identity, store, source, crew.generations(), stay)
        self.pipeline = piped
        crew.changed(self)
        try:
            await accompanied(piped.run(drain), [*held.companions(), self._call_it_in(held, drain)])
        except errors.PositionExpiredError as error:
            raise errors.PositionExpiredError(f"{error}. {held.way_out}") from error
        finally:
            self.pipeline = None
            crew.changed(self)

    def _drain_max_s(self) -> float | None:
        assert self.tenure is not None
        return None if self._crew.stop.is_set() else self.tenure.drain_max_s()

    async def _call_it_in(self, held: tenure.Tenure, drain: asyncio.Event) -> None:
        """Sets `drain` when the worker stops or the partition is to go elsewhere."""
        while not self._crew.stop.is_set():
            if not self._is_owner:
                await held.before_leaving()
                if not self._is_owner:
                    break
            elif self.wanted.spec.epoch > held.epoch:
                with contextlib.suppress(errors.ObjectStoreUnavailableError):  # it is ours all the same
                    await held.resume(self.wanted.spec.epoch)
                    self._crew.tell(self.shard_id)
            await self.news()
        drain.set()

    async def _release(self, held: tenure.Tenure) -> bool:
        """Lets go of what is drained; what can't be let go is tried again, until it is taken back. False when it is ours again."""
        while not self._crew.stop.is_set():
            try:
                if self.role is Role.OWNER:
                    return not await self._taken_back(held)
                await held.release(ended=False)
            except (errors.ObjectStoreUnavailableError, errors.DiskFullError) as error:
                self.life.tell(f"can't be released: {error}")
                await self.news(RELEASE_AGAIN_S)
            else:
                self.life.step(lifecycle.Event.DRAINED)
                return True
        return True

    async def _taken_back(self, held: tenure.Tenure) -> bool:
        """Whether it goes on here. Without an answer from the object store it does, if nobody else can have claimed it."""
        try:
            await held.resume(self.wanted.spec.epoch)
        except errors.ObjectStoreUnavailableError:
            if held.is_released:
                raise
        return True

    async def _close(self, held: tenure.Tenure) -> None:
        """Its shard ended and all of it is applied."""
        while True:
            try:
                await held.release(ended=True)
                break
            except (errors.ObjectStoreUnavailableError, errors.DiskFullError) as error:
                self.life.tell(f"can't be closed: {error}")
                if self._crew.stop.is_set():
                    return
                await self.news(RELEASE_AGAIN_S)
        self._ended()

    def _ended(self) -> None:
        self.closed.set()
        self.life.step(lifecycle.Event.ENDED)
        log.info("partition %s: the shard ended, all of it is applied", self.shard_id)
        self._crew.changed(self)


async def accompanied(main: Coroutine[Any, Any, None], companions: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs `main` to its end, the companions beside it. One that fails ends it, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(companion) for companion in companions]
            await main
            for task in beside:
                task.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
