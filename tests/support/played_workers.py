"""Pods and workers that a test plays where there is no kubelet: it says that a StatefulSet's pods run, answers the operator's probes as they
would, and reports partitions as their owners do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.server
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

from fleet_model import situation, twin_partition
from fleet_model.twin_partition import CheckpointStatus, Phase, StandbyStatus
from tests.support import kube_api
from tests.support.operator_process import MERGE_PATCH, Fleet

PORT = 8080
_addresses = itertools.count(1)


class _Worker:
    """One pod's HTTP side, on a loopback address of its own."""

    def __init__(self) -> None:
        number = next(_addresses)
        self.address = f"127.77.{number // 250}.{number % 250 + 1}"
        self.generation = 0
        worker = self

        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told = {"can_take_partitions": True, "rules": {"generation": worker.generation}, "load": {}}
                body = json.dumps(told).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._server = http.server.ThreadingHTTPServer((self.address, PORT), Answers)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Idempotent."""
        self._server.shutdown()
        self._server.server_close()


class Played:
    """Of one fleet. `play` is one round: call it until what is waited for is there."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._workers: dict[str, _Worker] = {}
        self._silent: set[str] = set()

    def play(self) -> None:
        pods = self.pods()
        for pod in pods:
            self._run(pod)
        for name in self._workers.keys() - {pod["metadata"]["uid"] for pod in pods}:
            self._workers.pop(name).close()
        try:
            status = self.fleet.status()
        except kube_api.RefusedError as refused:
            if refused.status != 404:
                raise
            status = {}  # it has gone
        newest = int((status.get("rules") or {}).get("generation") or 0)
        for worker in self._workers.values():
            worker.generation = newest
        entries = self.fleet.partitions()
        ended = {parent for entry in entries for parent in entry.spec.parents}
        for entry in entries:
            self._own(entry, is_ended=entry.spec.shard_id in ended)

    def silence(self, name: str) -> None:
        """The worker is gone with its node: it answers nobody, its pod isn't ready any more, and nobody takes the pod away."""
        pod = next(found for found in self.pods() if found["metadata"]["name"] == name)
        self._silent.add(name)
        self._workers[pod["metadata"]["uid"]].close()
        now = _now()
        unready = [{"type": "Ready", "status": "False", "lastTransitionTime": now}]
        self._patch(self.fleet.path("pods", name) + "/status", {"status": {"conditions": unready}})

    def pods(self) -> list[dict[str, Any]]:
        selector = f"?labelSelector=fleettwin.io/fleet={self.fleet.name}"
        found: list[dict[str, Any]] = self.fleet.server.request("GET", self.fleet.path("pods") + selector)["items"]
        return found

    def _run(self, pod: dict[str, Any]) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        if uid in self._workers:
            return
        worker = self._workers[uid] = _Worker()
        now = _now()
        image = pod["spec"]["containers"][0]["image"]
        container = {"name": "worker", "image": image, "imageID": "", "ready": True, "restartCount": 0}
        status = {
            "phase": "Running",
            "podIP": worker.address,
            "podIPs": [{"ip": worker.address}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            "containerStatuses": [{**container, "state": {"running": {"startedAt": now}}}],
        }
        self._patch(self.fleet.path("pods", name) + "/status", {"status": status})

    def _own(self, entry: twin_partition.TwinPartition, is_ended: bool) -> None:
        """Whoever is named claims and runs; whoever isn't any more, lets go with a final checkpoint; copies are warm at once. A shard that
        has children is at its end."""
        spec, status = entry.spec, entry.status
        now_ms = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
        checkpoint = CheckpointStatus(key="base-1.parquet", epoch=spec.epoch, time_ms=now_ms, sequence_number="1")
        if situation.stage(entry) is situation.Stage.CLOSED:
            return
        if spec.worker in self._silent or (not spec.worker and status.worker in self._silent):
            return
        if spec.worker and (status.worker, status.epoch) != (spec.worker, spec.epoch):
            is_free = not status.worker or status.phase is Phase.RELEASED or spec.takeover == spec.epoch
            if status.worker in ("", spec.worker) or is_free:
                self._report(
                    entry,
                    phase=Phase.RUNNING,
                    worker=spec.worker,
                    epoch=spec.epoch,
                    nonce=f"n-{spec.epoch}",
                    checkpoint=checkpoint,
                )
                return
        warm = tuple(StandbyStatus(name, 1, True) for name in spec.standby)
        if status.phase is Phase.RUNNING and status.worker != spec.worker:
            self._report(entry, phase=Phase.RELEASED, checkpoint=checkpoint)
        elif status.phase is Phase.RUNNING and is_ended:
            self._report(entry, phase=Phase.CLOSED, checkpoint=checkpoint)
        elif status.standby != warm:
            self._report(entry, standby=warm)

    def _report(self, entry: twin_partition.TwinPartition, **changes: Any) -> None:
        with contextlib.suppress(_Conflict):
            self._write(entry, dataclasses.replace(entry.status, **changes))

    def _write(self, entry: twin_partition.TwinPartition, status: twin_partition.Status) -> None:
        try:
            self.fleet.write_status(entry, status)
        except kube_api.RefusedError as refused:
            if refused.status in (404, 409):
                raise _Conflict from refused
            raise

    def _patch(self, path: str, change: dict[str, Any]) -> None:
        try:
            self.fleet.server.request("PATCH", path, change, MERGE_PATCH)
        except kube_api.RefusedError as refused:
            if refused.status not in (404, 409):
                raise

    def close(self) -> None:
        while self._workers:
            self._workers.popitem()[1].close()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class _Conflict(Exception):
    """Somebody was quicker; the next round sees it."""


@contextlib.contextmanager
def playing(fleet: Fleet) -> Iterator[Played]:
    played = Played(fleet)
    try:
        yield played
    finally:
        played.close()
