"""`fleet-twin bench worker`: a whole worker process over HTTP, against the replaying endpoint, watched from outside.

    behind:  a backlog lies in the stream; how many records/s does one core take?
    rate:    records arrive as they would from a fleet; what does the worker cost, and how soon is an alert acknowledged?

The worker is the command that users run. What it does is read from the kernel and at the endpoint, never asked of itself, but for
the count of applied records that is compared with the tape at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from fleet_cli import parent_death
from fleet_cli.bench import kernel
from fleet_cli.bench import tape as tapes
from fleet_worker import errors

CAUGHT_UP_S_MAX = 900.0
CAUGHT_UP_MS = 3_000
"""A shard is polled each second; what lies there unread for longer than this is a backlog."""
SETTLE_S = 10.0
"""After catching up: the commits of the backlog, and one whole interval of them as they are in rest."""
MEASURED_S_MIN = 0.5
ANSWER_S_MAX = 120.0
STOP_S_MAX = 30.0
POLL_S = 0.05
_FLEET = """\
apiVersion: fleettwin.io/v1alpha1
kind: DeviceFleet
metadata: {name: bench}
spec:
  aws: {region: us-east-1, endpointURL: "http://127.0.0.1:%d"}
  streams:
    telemetry: {name: device-telemetry, startPosition: TrimHorizon}
    alerts: {name: device-alerts}
    commands: {name: device-commands}
"""


class BenchError(errors.FleetTwinError):
    """A process of the benchmark ended or didn't do its part in time; the message has its last words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """folder: for tapes, data and logs. cpu: the worker's, None = any; the endpoint then gets the others."""

    folder: pathlib.Path
    cpu: int | None


class Child:
    """A process of the benchmark; its errors go to a log in the folder."""

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: pathlib.Path,
        cpus: set[int] | None,
        environment: Mapping[str, str] = types.MappingProxyType({}),
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        # Emulators take any credentials, but requests are signed all the same.
        whole = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", **os.environ, **environment}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=whole,
                preexec_fn=parent_death.before_exec(),
            )
        if cpus:
            kernel.pin(self.process.pid, cpus)

    def check(self) -> None:
        """Raises BenchError when it has ended."""
        if self.process.poll() is not None:
            words = self._log.read_text(errors="replace")[-2000:]
            raise BenchError(f"The {self.name} ended with code {self.process.returncode}:\n{words}")

    def stop(self) -> float:
        """SIGTERM; seconds until it ended."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            raise BenchError(f"The {self.name} didn't end within {STOP_S_MAX:.0f} s of SIGTERM") from error
        finally:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
        return time.monotonic() - started


class Endpoint:
    """The replaying endpoint's process, and its own questions."""

    def __init__(self, child: Child, port: int) -> None:
        self.child = child
        self.port = port

    def ask(self, what: str) -> dict[str, Any]:
        """begin?shift_ms=N, mark, report: the report after it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/bench/{what}", method="POST")
        with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as response:
            told: dict[str, Any] = json.load(response)
        return told


class Bench:
    """One run: the endpoint, and workers started on one data folder, one after the other."""

    def __init__(self, options: Options, endpoint: Endpoint, tell: Callable[[str], None]) -> None:
        self._options = options
        self._tell = tell
        self._fleet = options.folder / "fleet.yaml"
        self._fleet.write_text(_FLEET % endpoint.port)
        self._data = options.folder / "data"
        self._data.mkdir(exist_ok=True)
        self._port = 0
        self.endpoint = endpoint
        self.disk = kernel.Disk(self._data)
        self.worker: Child | None = None

    def start_worker(self) -> Child:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self._port = taken.getsockname()[1]
        command = [sys.executable, "-m", "fleet_cli", "worker", "--fleet", str(self._fleet)]
        command += ["--data", str(self._data), "--port", str(self._port)]
        cpus = None if self._options.cpu is None else {self._options.cpu}
        self.worker = Child("worker", command, self._options.folder, cpus)
        return self.worker

    def wait(self, what: str, reached: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """Looks at the endpoint until it is so; the report that said so."""
        self._tell(what)
        deadline = time.monotonic() + seconds
        while True:
            told = self.endpoint.ask("report")
            if reached(told):
                return told
            if self.worker is not None:
                self.worker.check()
            self.endpoint.child.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{what}: not within {seconds:.0f} s")
            time.sleep(POLL_S)

    def applied_records(self) -> int:
        """Of all partitions, by the worker's own metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=ANSWER_S_MAX) as response:
            text = response.read().decode()
        found = re.findall(r"^fleet_twin_records_total\{[^}]*\} (\S+)$", text, flags=re.MULTILINE)
        return round(sum(map(float, found)))

    def restart(self) -> dict[str, float]:
        """Stops the worker and starts it on the same folder: seconds to stop, and from exec until every shard was read."""
        assert self.worker is not None
        self._tell("stopping, and starting again on the same folder")
        stop_s = self.worker.stop()
        self.endpoint.ask("mark")
        started_ms = time.time_ns() // 1_000_000
        self.start_worker()
        told = self.wait("restarting", lambda told: told["first_read_ms"] is not None, ANSWER_S_MAX)
        return {"stop_s": stop_s, "restart_s": (told["first_read_ms"] - started_ms) / 1000}


@contextlib.contextmanager
def running(options: Options, tell: Callable[[str], None]) -> Iterator[Bench]:
    """The endpoint, with the tapes in the folder; all processes end with the block."""
    others = set(kernel.allowed_cpus()) - {options.cpu}
    tell("making the answers")
    command = [sys.executable, "-m", "fleet_cli.bench.endpoint", str(options.folder / "tapes")]
    child = Child("endpoint", command, options.folder, others if options.cpu is not None else None)
    bench: Bench | None = None
    try:
        bench = Bench(options, Endpoint(child, port_of(child)), tell)
        yield bench
    finally:
        if bench is not None and bench.worker is not None and bench.worker.process.poll() is None:
            bench.worker.stop()
        child.stop()


def port_of(child: Child) -> int:
    """What a server says on its standard output once it serves."""
    output: IO[bytes] | None = child.process.stdout
    assert output is not None
    line = output.readline()
    if not line:
        child.process.wait(STOP_S_MAX)
        child.check()
    told = json.loads(line)  # the endpoint's {"port": …}, or the emulator's bare number
    port: int = told["port"] if isinstance(told, dict) else told
    return port


# ── behind ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def behind(bench: Bench, found: list[tapes.Tape]) -> dict[str, Any]:
    """The whole tape has arrived: records/s from the first tenth of what follows each device's first record, to the last."""
    last_arrival_ms = max(int(tape.arrival_ms[-1]) for tape in found)
    bench.endpoint.ask(f"begin?shift_ms={time.time_ns() // 1_000_000 - last_arrival_ms}")
    total, first = sum(map(len, found)), sum(tape.devices for tape in found)
    low, high = first + (total - first) // 10, total - (total - first) // 10
    worker = bench.start_worker()
    pid = worker.process.pid
    begun = bench.wait("catching up", lambda told: told["served"] >= low, CAUGHT_UP_S_MAX)
    begun_cpu_s = kernel.cpu_s(pid)
    ended = bench.wait("catching up", lambda told: told["served"] >= high, CAUGHT_UP_S_MAX)
    cpu_s = kernel.cpu_s(pid) - begun_cpu_s
    wall_s = (ended["at_ms"] - begun["at_ms"]) / 1000
    records = ended["served"] - begun["served"]
    if wall_s < MEASURED_S_MIN or not cpu_s:
        raise BenchError(f"It was over in {wall_s:.2f} s, too soon to be measured: ask for more --records")
    anonymous_bytes = kernel.anonymous_bytes(pid)
    applied = wait_until_applied(bench, total)
    return {
        "records": records,
        "records_per_s": records / wall_s,
        "records_per_cpu_s": records / cpu_s,
        "cpu_us_a_record": cpu_s / records * 1e6,
        "cpu_share": cpu_s / wall_s,
        "anonymous_bytes": anonymous_bytes,
        "applied": applied,
        "sent": total,
    }


def wait_until_applied(bench: Bench, records: int) -> int:
    """Until the worker says that it has applied so many; what it said last."""
    deadline = time.monotonic() + ANSWER_S_MAX
    while (applied := bench.applied_records()) < records and time.monotonic() < deadline:
        time.sleep(1.0)
    return applied


# ── rate ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def paced(bench: Bench, found: list[tapes.Tape], interval_s: float, duration_s: float) -> dict[str, Any]:
    """Each device's first record lies there; the rest arrives in its time. Measured from when the worker has caught up."""
    first_ms = min(int(tape.arrival_ms[0]) for tape in found)
    bench.endpoint.ask(f"begin?shift_ms={time.time_ns() // 1_000_000 - first_ms - int(interval_s * 1000)}")
    worker = bench.start_worker()
    pid = worker.process.pid
    bench.wait("reading each device's first record", _caught_up, CAUGHT_UP_S_MAX)
    _rest(bench, "settling", SETTLE_S)
    begun = bench.endpoint.ask("mark")
    begun_cpu_s, begun_writes = kernel.cpu_s(pid), bench.disk.writes() if bench.disk.name else None
    _rest(bench, "measuring", duration_s)
    ended = bench.endpoint.ask("report")
    if ended["available"] == sum(map(len, found)):
        raise BenchError("The input ended before the measurement: catching up took too long on this machine")
    cpu_s = kernel.cpu_s(pid) - begun_cpu_s
    wall_s = (ended["at_ms"] - begun["at_ms"]) / 1000
    result: dict[str, Any] = {
        "records": ended["served"] - begun["served"],
        "records_per_s": (ended["served"] - begun["served"]) / wall_s,
        "cpu_share": cpu_s / wall_s,
        "anonymous_bytes": kernel.anonymous_bytes(pid),
        "behind_ms": ended["behind_ms"],
        "get_records_per_s": ended["calls"].get("GetRecords", 0) / wall_s,
        "disk": bench.disk.name,
    }
    if begun_writes is not None:
        writes = bench.disk.writes()
        result["disk_writes_per_s"] = (writes.count - begun_writes.count) / wall_s
        result["disk_bytes_per_s"] = (writes.size_bytes - begun_writes.size_bytes) / wall_s
    result |= latencies(ended["latency_ms"])
    return result | bench.restart()


def latencies(by_trigger: dict[str, list[int]]) -> dict[str, Any]:
    """From the causing record's arrival to the acknowledgement. Offline alerts wait for the partition clock by design."""
    waited = sorted(ms for trigger, found in by_trigger.items() if trigger != "offline" for ms in found)
    if len(waited) < 2:
        return {"alerts": len(waited), "alert_latency_p50_ms": None, "alert_latency_p99_ms": None}
    cuts = statistics.quantiles(waited, n=100, method="inclusive")
    return {"alerts": len(waited), "alert_latency_p50_ms": cuts[49], "alert_latency_p99_ms": cuts[98]}


def _caught_up(told: dict[str, Any]) -> bool:
    return bool(told["served"] > 0 and told["behind_ms"] < CAUGHT_UP_MS)


def _rest(bench: Bench, what: str, seconds: float) -> None:
    until_ms = time.time_ns() // 1_000_000 + seconds * 1000
    bench.wait(f"{what} for {seconds:.0f} s", lambda told: told["at_ms"] >= until_ms, seconds + ANSWER_S_MAX)
