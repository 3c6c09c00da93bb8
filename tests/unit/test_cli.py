"""The commands as a user meets them: help that teaches, mistakes that are told with what to do, exit codes, plain output."""

from __future__ import annotations

import http.server
import json
import logging
import pathlib
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any, ClassVar

import click
import pytest
from click import testing

from fleet_cli import console, logs, main, show
from fleet_worker import control_plane
from fleet_worker.adapters import control_files

FLEET = """\
apiVersion: fleettwin.io/v1alpha1
kind: DeviceFleet
metadata: {name: test}
spec:
  aws: {region: eu-central-1, endpointURL: "http://127.0.0.1:%d"}
  streams:
    telemetry: {name: telemetry}
    alerts: {name: alerts}
    commands: {name: commands}
"""


def run(*arguments: str, **environment: str) -> testing.Result:
    return testing.CliRunner().invoke(main.main, list(arguments), env=environment, prog_name="fleet-twin")


def every_command(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            assert found is not None
            yield from every_command(found, (*path, name))


COMMANDS = dict(every_command(main.main))

# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_commands_are_there() -> None:
    named = {" ".join(path) for path in COMMANDS}
    assert {"worker", "demo", "simulate", "twin get", "twin list", "alerts", "status"} <= named
    assert set(main.COMMANDS) >= {path[0] for path in COMMANDS if path}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_teaches_with_examples(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    if path[:1] == ("bench",) and len(path) > 1:
        return  # its group's help has the examples of both
    assert "Examples:" in result.output
    example = "fleet-twin " + " ".join(path)
    assert example.strip() in result.output, "an example of this very command"
    assert "Exit codes:" in result.output
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            assert parameter.help or parameter.metavar, f"{parameter.opts} tells nothing"


def test_help_imports_nothing_heavy() -> None:
    """The list of commands must come at once, so it may not load what the commands need."""
    program = (
        "import sys\n"
        "from fleet_cli import main\n"
        "try: main.main(['--help'], prog_name='fleet-twin')\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'aiobotocore', 'aiohttp', 'lmdb', 'rich', 'google.protobuf', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fleet_cli", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("fleet-twin, version ")


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [("worker", "--data", "data"), ("simulate", "--devices", "5")])
def test_a_fleet_file_with_mistakes_is_told_with_all_of_them(
    command: tuple[str, ...], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET % 1 + "  rules: {temperature: {treshold: 5}, offline: {after: 1s}}\n")
    result = run(*command, "--fleet", str(path))
    assert result.exit_code == console.EXIT_USAGE
    assert "spec.rules.temperature.treshold" in result.stderr
    assert "spec.rules.offline.after" in result.stderr
    assert "Traceback" not in result.output
    missing = run(*command, "--fleet", str(tmp_path / "none.yaml"))
    assert missing.exit_code == console.EXIT_USAGE
    assert "none.yaml" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--devices", "5", "--faults", "warm=1%"), "'warm' is no fault; there are hot"),
        (("--devices", "5", "--rate", "1000"), "5 devices can send between 0 and 500 together"),
        (("--devices", "0"), "1<=x"),
        ((), "Missing option '--devices'"),
    ],
)
def test_wrong_usage_of_simulate_is_told(arguments: tuple[str, ...], said: str) -> None:
    result = run("simulate", "--fleet", "fleet.yaml", *arguments)
    assert result.exit_code == console.EXIT_USAGE
    assert said in result.stderr


def test_a_worker_that_shares_a_fleet_needs_a_name(tmp_path: pathlib.Path) -> None:
    for missing in (["--control", str(tmp_path)], ["--name", "worker-0"]):
        result = run("worker", "--fleet", "fleet.yaml", "--data", str(tmp_path), *missing)
        assert result.exit_code == console.EXIT_USAGE
        assert "--control and --name go together" in result.stderr
    result = run("worker", "--fleet", "f", "--data", "d", "--control", str(tmp_path), "--name", "../worker")
    assert result.exit_code == console.EXIT_USAGE
    assert "such as worker-0" in result.stderr


def test_the_demo_says_how_to_get_moto_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "moto" else found(name, *more))
    result = run("demo", "--duration", "1")
    assert result.exit_code == console.EXIT_FAILED
    assert "pip install 'fleet-twin[demo]'" in result.stderr


def test_the_demo_refuses_a_fleet_that_is_elsewhere(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text((FLEET % 1).replace("http://127.0.0.1:1", "https://kinesis.eu-central-1.amazonaws.com"))
    result = run("demo", "--duration", "1", "--fleet-file", str(path))
    assert result.exit_code == console.EXIT_FAILED
    assert "on its own Kinesis and S3 only" in result.stderr


def test_the_demo_keeps_to_an_empty_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "something").write_text("x")
    result = run("demo", "--duration", "1", "--keep", str(tmp_path))
    assert result.exit_code == console.EXIT_FAILED
    assert "is not empty" in result.stderr


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), console.told_plainly():
        _ = 1 / 0


# ── a worker's answers ───────────────────────────────────────────────────────────────────────────────────────────

ALERT = {
    "trigger": "temp_spike",
    "severity": "critical",
    "acknowledged": False,
    "alert_id": "ab" * 16,
    "last_fired_ms": 1_700_000_000_000,
    "repeats": 2,
    "generation": 3,
}
METRIC = {"last": 75.0, "mean": 60.5, "variance": 4.0, "deviation": 2.0, "minimum": 20.0, "maximum": 75.0}


def twin(device_id: str, **members: Any) -> dict[str, Any]:
    usual = {
        "device_id": device_id,
        "last_seen_ms": 1_700_000_000_000,
        "telemetry": {
            "timestamp": 1_700_000_000_000,
            "temperature_c": 75.0,
            "battery_pct": 80.5,
            "cpu_load": 0.5,
            "location": "48.1,17.1",
            "firmware": "1.4.2",
        },
        "health": {"score": 41.2, "lost": {}},
        "alerts": [ALERT],
        "statistics": {"window_ms": 3_600_000, "temperature_c": METRIC, "battery_pct": METRIC, "cpu_load": METRIC},
        "battery": {"rate_pct_per_hour": None, "drop_pct": 0.0, "idle_ms": 0, "observed_enough": False},
        "limits": {"temperature_c": 60.0, "battery_pct_per_hour": 10.0, "offline_after_ms": 300_000},
        "overrides": {},
        "counters": {"samples": 3, "late": 0, "gaps": 0},
        "partition": {"shard_id": "shard-0", "epoch": 0, "clock_ms": 1_700_000_009_000},
        "rules": {"generation": 3, "profile": "default"},
    }
    return {**usual, **members}


SILENT = twin("si/lent", telemetry=None, statistics=None, alerts=[], last_seen_ms=None, health={"score": None})

STATUS = {
    "fleet": "default/test",
    "worker": "local",
    "time_ms": 1_700_000_009_000,
    "rules": {"generation": 3, "last_error": "spec.rules: is wrong"},
    "ready": True,
    "not_ready_because": [],
    "totals": {
        "partitions": 1,
        "running": 1,
        "twins": 2,
        "lag_ms": 0,
        "outbox_effects": 0,
        "alerts_open": {"temp_spike": 1, "battery_drop": 0, "offline": 0},
    },
    "partitions": [
        {
            "shard_id": "shard-0",
            "phase": "Running",
            "message": None,
            "clock_ms": 1_700_000_008_000,
            "lag_ms": None,
            "twins": 2,
            "alerts_open": {"temp_spike": 1, "battery_drop": 0, "offline": 0},
            "outbox": {"effects": 0, "oldest_ms": None},
            "generation": 3,
        }
    ],
    "elsewhere": [],
}


class Worker(http.server.BaseHTTPRequestHandler):
    """Answers as a worker's API does; two twins, a page each."""

    asked: ClassVar[list[str]] = []
    is_ready = True

    def do_GET(self) -> None:
        Worker.asked.append(self.path)
        split = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(split.query))
        first = "cursor" not in query
        match split.path:
            case "/v1/twins/sensor-7":
                self.answer(200, twin("sensor-7"))
            case "/v1/twins/si%2Flent":
                self.answer(200, SILENT)
            case "/v1/twins/elsewhere":
                self.answer(503, {"detail": "partition shard-1 is Restoring", "remedy": "ask again after Retry-After"})
            case "/v1/twins/others":
                self.answer(503, {"detail": "partition shard-1 is Running at worker-1", "owner": "worker-1"})
            case "/v1/twins":
                page = [twin("sensor-7")] if first else [SILENT]
                self.answer(200, {"twins": page, "next": "more" if first else None})
            case "/v1/alerts":
                self.answer(200, {"alerts": [{"device_id": "sensor-7", "last_seen_ms": 1, **ALERT}], "next": None})
            case "/v1/status":
                reasons = [] if Worker.is_ready else ["partition shard-0 is Restoring"]
                self.answer(200, STATUS | {"ready": Worker.is_ready, "not_ready_because": reasons})
            case "/v1/twins/odd":
                self.answer(200, None)
            case _:
                self.answer(404, {"detail": "no twin of device", "remedy": "check the id"})

    def answer(self, status: int, value: Any) -> None:
        body = b"<html>" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def worker_url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _fresh_worker() -> None:
    Worker.asked = []
    Worker.is_ready = True


def test_a_twin_is_shown_in_words_or_as_json(worker_url: str) -> None:
    shown = run("twin", "get", "sensor-7", "--url", worker_url)
    assert shown.exit_code == 0
    for words in (
        "sensor-7",
        "health 41",
        "9 s ago",
        "60.0 °C",
        "offline after 5 min",
        "temp_spike",
        "critical",
        "60.50",
    ):
        assert words in shown.output
    assert "\x1b" not in shown.output, "no colour in a pipe"
    assert json.loads(run("twin", "get", "sensor-7", "--json", FLEET_TWIN_URL=worker_url).stdout) == twin("sensor-7")


class OtherWorker(Worker):
    """Has what the first one has not."""

    def do_GET(self) -> None:
        self.answer(200, twin("others"))


def test_a_twin_of_another_worker_is_asked_for_there_when_its_address_is_known(
    worker_url: str, tmp_path: pathlib.Path
) -> None:
    asked = ["twin", "get", "others", "--json", "--url", worker_url]
    nowhere = run(*asked, FLEET_TWIN_CONTROL=str(tmp_path / "control"))
    assert nowhere.exit_code == console.EXIT_NOT_READY
    assert "Running at worker-1" in nowhere.stderr

    files = control_files.ControlFiles(tmp_path / "control")
    files.prepare()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OtherWorker) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        files.put_heartbeat(
            control_plane.Heartbeat("worker-1", f"http://127.0.0.1:{other.server_address[1]}", True, 1, 1)
        )
        found = run(*asked, FLEET_TWIN_CONTROL=str(tmp_path / "control"))
        other.shutdown()
        thread.join()
    assert json.loads(found.stdout) == twin("others")

    # It is asked for elsewhere once only, or two that name each other would go on for ever.
    files.put_heartbeat(control_plane.Heartbeat("worker-1", worker_url, True, 1, 1))
    assert run(*asked, FLEET_TWIN_CONTROL=str(tmp_path / "control")).exit_code == console.EXIT_NOT_READY


def test_a_twin_that_said_nothing_yet_is_shown_and_any_id_can_be_asked_for(worker_url: str) -> None:
    shown = run("twin", "get", "si/lent", "--url", worker_url)
    assert shown.exit_code == 0
    assert "no open alerts" in shown.output
    assert Worker.asked == ["/v1/twins/si%2Flent"]


@pytest.mark.parametrize(
    ("device", "code", "said"),
    [
        ("nobody", console.EXIT_NOT_FOUND, "check the id"),
        ("elsewhere", console.EXIT_NOT_READY, "ask again"),
        ("odd", console.EXIT_FAILED, "is no Fleet Twin worker"),
    ],
)
def test_what_a_worker_refuses_is_told_in_its_words(worker_url: str, device: str, code: int, said: str) -> None:
    result = run("twin", "get", device, "--url", worker_url)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


def test_lists_follow_the_pages_up_to_the_limit(worker_url: str) -> None:
    both = run("twin", "list", "--alert", "any", "--offline", "--prefix", "s", "--url", worker_url)
    assert both.exit_code == 0
    assert [line.split()[0] for line in both.stdout.splitlines()] == ["device", "sensor-7", "si/lent"]
    assert Worker.asked[0] == "/v1/twins?alert=any&offline=true&prefix=s&limit=20"
    assert Worker.asked[1].endswith("limit=19&cursor=more")
    one = run("twin", "list", "--limit", "1", "--json", "--url", worker_url)
    assert [entry["device_id"] for entry in json.loads(one.stdout)] == ["sensor-7"]


def test_alerts_and_status_are_shown(worker_url: str) -> None:
    alerts = run("alerts", "--trigger", "temp_spike", "--url", worker_url)
    assert alerts.exit_code == 0
    assert "sensor-7" in alerts.stdout
    assert "ab" * 16 in alerts.stdout
    assert json.loads(run("alerts", "--json", "--url", worker_url).stdout)[0]["trigger"] == "temp_spike"
    status = run("status", "--url", worker_url)
    assert status.exit_code == 0
    for words in ("default/test", "ready", "1 of 1 running", "generation 3", "spec.rules: is wrong", "shard-0"):
        assert words in status.stdout


def test_status_exits_with_4_until_the_worker_is_ready(worker_url: str) -> None:
    Worker.is_ready = False
    result = run("status", "--json", "--url", worker_url)
    assert result.exit_code == console.EXIT_NOT_READY
    assert json.loads(result.stdout)["ready"] is False
    assert "shard-0 is Restoring" in run("status", "--url", worker_url).stdout


def test_a_worker_that_does_not_answer_is_told_with_what_to_do() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        result = run("status", "--url", f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert result.exit_code == console.EXIT_NOT_READY
    assert "fleet-twin worker" in result.stderr
    assert "FLEET_TWIN_URL" in result.stderr
    assert run("status", "--url", "ftp://x").exit_code == console.EXIT_USAGE


# ── log lines and figures ────────────────────────────────────────────────────────────────────────────────────────


def test_a_log_line_is_one_line_whatever_it_says() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("fleet_worker.x", logging.ERROR, "f", 1, 'said "%s"', ("no\nway",), sys.exc_info())
    line = logs.KeyValue().format(record)
    assert "\n" not in line
    assert line.startswith("time=")
    assert r'level=error from=fleet_worker.x message="said \"no\nway\""' in line
    assert "ValueError" in line


def test_spans_are_told_in_the_unit_that_suits() -> None:
    spans = [show.age(ms) for ms in (None, 0, 90_000, 180_000, 9_000_000, 200_000_000)]
    assert spans == ["–", "0 s", "90 s", "3 min", "2 h", "2 d"]
    assert show.moment(10**18) == f"{10**18} ms"
    assert show.number(None) == "–"
