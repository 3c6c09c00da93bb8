"""The operator's process: startup → loop → shutdown. Puts the parts together, and decides nothing but when the Lease lets them act.

Started it sweeps, watches and asks for the Lease. While it holds that, fleets are reconciled; when it loses it, nothing more is written, and it
goes on watching until it holds it again. SIGTERM ends what is being written, gives the Lease back and leaves.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import functools
import logging
import random
import socket
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp

from fleet_operator import (
    acting,
    alive,
    clock,
    errors,
    handlers,
    kinds,
    lease,
    looking,
    pod_template,
    probing,
    reconciling,
    serving,
    stream_watch,
    sweeping,
    telling,
    triggers,
)
from fleet_operator.adapters import kubernetes_api, streams, worker_http
from fleet_operator.cache import Cache
from fleet_operator.kinds import FleetKey
from fleet_operator.metrics import Metrics

log = logging.getLogger(__name__)

FIRST_SWEEP_S = 60.0
"""So long the API server may stay away at the start."""
LEAD_LOOK_S = 0.1

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """namespaces: none = all of the cluster. host, port: of /healthz, /readyz and /metrics. lease: its namespace and name."""

    namespaces: tuple[str, ...]
    defaults: pod_template.Defaults
    lease: tuple[str, str]
    host: str = "0.0.0.0"
    port: int = 8081
    pod: str = ""


async def run(options: Options, stop: asyncio.Event) -> None:
    """Until `stop`. Raises SettingsError."""
    connections = triggers.AT_ONCE_MAX + 4
    connection = await asyncio.to_thread(kubernetes_api.connect, connections)
    async with streams.Streams() as looks, aiohttp.ClientSession() as session:
        operator = _Operator(options, connection, looks, session)
        async with serving.serving(options.host, options.port, operator.metrics, operator.signs) as port:
            log.info("http://%s:%d/healthz, /readyz, /metrics", options.host, port)
            await operator.run(stop)


class _Operator:
    def __init__(
        self, options: Options, connection: Any, looks: streams.Streams, session: aiohttp.ClientSession
    ) -> None:
        self._options, self._clock = options, clock.SystemClock()
        self._loop = asyncio.get_running_loop()
        self._began_s = self._clock.monotonic()
        self._beat_s: float | None = None
        self._threads = ThreadPoolExecutor(triggers.AT_ONCE_MAX, "reconcile")
        self._lease_thread = ThreadPoolExecutor(1, "lease")
        self._sweep_thread = ThreadPoolExecutor(1, "sweep")
        self.metrics = Metrics()
        self._api = kubernetes_api.KubernetesApi(connection, self.metrics.request)
        identity = f"{options.pod or socket.gethostname()}_{uuid.uuid4()}"
        self._lease = lease.Lease(self._api, lease.Where(*options.lease, identity), self._clock)
        self._cache = Cache(self._wake_from_anywhere)
        self._edits: dict[FleetKey, int] = {}
        self._triggers: triggers.Triggers | None = None
        self._watches = handlers.Watches(
            handlers.Scope(options.namespaces, options.lease),
            self._cache,
            self._clock,
            self._beat_seen,
            self.metrics.watch_restarts.inc,
        )
        self._sweeping = sweeping.Sweeping(self._api, self._cache, options.namespaces, self.metrics, self._clock)
        self._streams = stream_watch.StreamWatch(looks, self._credentials, self._clock, self._wake)
        self._probing = probing.Probing(
            self._cache,
            worker_http.WorkerHttp(session, lambda outcome: self.metrics.workers_probed.labels(outcome).inc()),
            lambda node: self._api.get(kinds.LEASE, probing.NODE_NAMESPACE, node),
            self._clock,
            self._wake,
        )
        self._looking = looking.Looking(
            looking.Sources(self._api.get, self._cache, self._streams, self._probing, self._clock, options.defaults)
        )
        self._reconciling = reconciling.Reconciling(
            reconciling.Parts(
                self._looking,
                acting.Acting(self._api, self._cache, self._lease.check, self._clock),
                self._streams,
                self._probing,
                self.metrics,
                telling.Telling(self._api, self._lease.check, self._clock, identity).tell,
                self._lease.check,
            )
        )

    # ── startup, loop, shutdown ──────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        try:
            await self._first_sweep(stop)
            self._watches.start()
            async with asyncio.TaskGroup() as tasks:
                loops = [tasks.create_task(each) for each in (self._hold_the_lease(), self._sweep(), self._lead())]
                await stop.wait()
                log.info("ending: what is being written comes to its end first")
                for each in reversed(loops):
                    each.cancel()
        finally:
            await self._in(self._lease_thread, self._lease.release)
            await asyncio.to_thread(self._watches.stop)
            for pool in (self._threads, self._lease_thread, self._sweep_thread):
                pool.shutdown(wait=False, cancel_futures=True)

    async def _first_sweep(self, stop: asyncio.Event) -> None:
        deadline_s = self._clock.monotonic() + FIRST_SWEEP_S
        while not stop.is_set():
            try:
                await self._in(self._sweep_thread, self._sweeping.sweep)
                return
            except errors.ApiUnavailableError as error:
                if self._clock.monotonic() > deadline_s:
                    raise errors.SettingsError(f"the API server doesn't answer: {error}") from error
                await asyncio.sleep(1.0)
            except errors.MissingError as error:
                raise errors.SettingsError(f"Fleet Twin's definitions aren't installed (crds/): {error}") from error
            except errors.RefusedError as error:
                raise errors.SettingsError(f"the operator's service account lacks a right: {error}") from error

    async def _hold_the_lease(self) -> None:
        said = ""
        while True:
            wait_s = await self._in(self._lease_thread, self._lease.step)
            if self._lease.trouble and self._lease.trouble != said:
                log.warning("the Lease: %s", self._lease.trouble)
            said = self._lease.trouble
            await asyncio.sleep(wait_s)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(sweeping.EVERY_S * random.uniform(0.9, 1.0))
            try:
                await self._in(self._sweep_thread, self._sweeping.sweep)
            except errors.OperatorError as error:
                log.warning("a sweep failed: %s", error)

    async def _lead(self) -> None:
        while True:
            if not self._lease.is_held:
                await asyncio.sleep(LEAD_LOOK_S)
                continue
            # What another operator wrote until now must be seen before anything is written.
            try:
                await self._in(self._sweep_thread, self._sweeping.sweep)
            except errors.OperatorError as error:
                log.warning("not acting yet: %s", error)
                await asyncio.sleep(1.0)
                continue
            await self._act_while_leading()

    async def _act_while_leading(self) -> None:
        log.info("this operator acts")
        self.metrics.is_leader.set(1)
        self._looking.watching_since_s = self._clock.monotonic()
        self._triggers = triggers.Triggers(self._reconcile, self._clock.monotonic, random.Random())
        for fleet in self._cache.fleets():
            self._triggers.wake(fleet)
        loops = [
            asyncio.create_task(self._triggers.run(), name="triggers"),
            asyncio.create_task(self._streams.run(), name="streams"),
            asyncio.create_task(self._probing.run(self._cache.fleets), name="probing"),
        ]
        try:
            while self._lease.is_held:
                done, _ = await asyncio.wait(loops, timeout=LEAD_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                    raise AssertionError(f"{task.get_name()} ended by itself")
            log.warning("the Lease is lost: nothing more is written")
        finally:
            self.metrics.is_leader.set(0)
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            self._triggers = None
            self.metrics.forget_all()

    # ── between the parts ────────────────────────────────────────────────────────────────────────────────────────

    async def _reconcile(self, fleet: FleetKey) -> triggers.Outcome:
        try:
            return await self._in(self._threads, functools.partial(self._reconciling.reconcile, fleet))
        except Exception:
            log.exception("fleet %s: its round failed; this is a bug", "/".join(fleet))
            self.metrics.reconciles.labels("bug").inc()
            return triggers.Outcome(0.0, failed=True)

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[[], Answer]) -> Answer:
        return await asyncio.shield(self._loop.run_in_executor(pool, function))

    def _wake_from_anywhere(self, fleet: FleetKey, kind: kinds.Kind) -> None:
        is_edited = False
        if kind is kinds.FLEET:
            found = self._cache.get(kinds.FLEET, *fleet)
            edit = int(found["metadata"].get("generation") or 0) if found is not None else -1
            is_edited = self._edits.get(fleet) != edit
            self._edits[fleet] = edit
            if found is None:
                self._edits.pop(fleet, None)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so has everything
            self._loop.call_soon_threadsafe(functools.partial(self._wake, fleet, is_edited=is_edited))

    def _wake(self, fleet: FleetKey, *, is_edited: bool = False) -> None:
        if self._triggers is not None:
            self._triggers.wake(fleet, is_edited=is_edited)

    def _beat_seen(self) -> None:
        self._beat_s = self._clock.monotonic()

    async def _credentials(self, fleet: FleetKey, secret: str) -> streams.Credentials:
        try:
            found = await asyncio.to_thread(self._api.get, kinds.SECRET, fleet[0], secret)
        except errors.OperatorError as error:
            raise errors.StreamUnavailableError(f"spec.aws.credentialsSecretRef: {error}") from error
        return streams.Credentials(
            _decoded(found, "AWS_ACCESS_KEY_ID"),
            _decoded(found, "AWS_SECRET_ACCESS_KEY"),
            _decoded(found, "AWS_SESSION_TOKEN"),
        )

    def signs(self) -> alive.Signs:
        now_s = self._clock.monotonic()

        def age(moment_s: float | None) -> float | None:
            return None if moment_s is None else now_s - moment_s

        acts = self._triggers
        down_since_s = self._watches.down_since_s
        return alive.Signs(
            age=now_s - self._began_s,
            answered=age(self._lease.answered_s or None),
            beat=age(self._beat_s),
            swept=age(self._sweeping.swept_s),
            watches_down=0.0 if down_since_s is None else now_s - down_since_s,
            oldest_run=acts.oldest_run_s() if acts is not None else 0.0,
            late=tuple(sorted(self._sweeping.late)),
        )


def _decoded(secret: Mapping[str, Any], key: str) -> str:
    try:
        return base64.b64decode((secret.get("data") or {}).get(key, "")).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise errors.StreamUnavailableError(f"spec.aws.credentialsSecretRef: {key} can't be read") from error
