"""The image, built the way users build it: what is in it, what isn't, and that it runs where nothing but /tmp and its volume can be written to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import stat
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import botocore.session
import pytest
import yaml

from tests.e2e import images
from tests.e2e.images import archive, containers, making
from tests.support import aws_env, moto_server, server_process

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

MB = 1_000_000
SIZE_MAX = 350 * MB
OWN_SIZE_MAX = 220 * MB
"""Of what the Dockerfile adds: with Python's own slim image as the base, about 125 MB, it stays below SIZE_MAX."""
USER = 65532
READY_S_MAX = 60.0
END_S_MAX = 15.0
SECRETS = re.compile(rb"AKIA[0-9A-Z]{16}\b(?<!EXAMPLE)|-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]")
REGISTRIES = re.compile(rb"index-url|index_url\s*=|registry\s*=\s*http|://[\w.+-]+:[^\s/@\"'{}<>]+@")
SETTINGS = re.compile(r"\.(conf|cfg|ini|toml|npmrc|netrc|env|pth|json)$|/(RECORD|INSTALLER|REQUESTED)$")
LEFT_BEHIND = re.compile(r"(^|/)(pip\.conf|\.pip|\.netrc|\.npmrc|\.git|\.cache|uv\.toml|direct_url\.json|[^/]+\.whl)$")

IMPORT_ALL = """
import importlib, pkgutil
for room in ("fleet_proto", "fleet_model", "fleet_worker", "fleet_operator", "fleet_cli"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""

USE_WHAT_WAS_STRIPPED = """
import io
import botocore.session, kopf, kubernetes, numpy, pyarrow, pyarrow.compute, pyarrow.csv, pyarrow.ipc, pyarrow.parquet
import rich.console

table = pyarrow.table({"device": ["a", "b"], "value": [1.5, 2.5]})
for compression in ("none", "zstd", "snappy"):
    written = io.BytesIO()
    pyarrow.parquet.write_table(table, written, compression=compression)
    assert pyarrow.parquet.read_table(io.BytesIO(written.getvalue())).equals(table)
pyarrow.csv.write_csv(table, io.BytesIO())
assert pyarrow.compute.sum(table["value"]).as_py() == 4.0
assert numpy.linalg.solve(numpy.eye(2), numpy.ones(2)).tolist() == [1.0, 1.0]
numpy.random.default_rng(1).normal()
session = botocore.session.get_session()
for service in ("kinesis", "s3", "sts", "sso", "sso-oidc", "signin"):
    session.create_client(service, region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")
kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(kubernetes.client.Configuration()))
try:
    raise ValueError("shown")
except ValueError:
    rich.console.Console().print_exception()
"""


@dataclasses.dataclass(frozen=True)
class Built:
    images: images.Images
    unpacked: containers.Unpacked


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    if os.geteuid() != 0:
        pytest.skip("images are made and unpacked by root only")
    try:
        made = images.build_all()
        making.program("runc")
    except making.CannotMakeImagesError as missing:
        pytest.skip(str(missing))
    with tempfile.TemporaryDirectory(prefix="fleet-twin-image-") as folder:
        yield Built(made, containers.unpack(made.project, Path(folder)))


def python(image: containers.Unpacked, *arguments: str) -> tuple[int, str]:
    """Of a container with Python as its entry point."""
    other = containers.Unpacked(image.root, {**image.start, "Entrypoint": ["python3"]})
    return containers.output_of(other, arguments)


def client_of(service: str, endpoint: str, region: str = aws_env.REGION) -> Any:
    return botocore.session.get_session().create_client(
        service,
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def own_files(image: archive.Image) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """What the Dockerfile adds to its base: each entry with its content."""
    with archive.opened(image.archive) as made:
        for name in made.layers[image.name][1:]:
            with tarfile.open(fileobj=made.layer(name), mode="r|") as layer:
                for entry in layer:
                    file = layer.extractfile(entry) if entry.isfile() else None
                    yield entry, file.read() if file is not None else b""


def test_it_is_small(built: Built) -> None:
    image = built.images.project
    with archive.opened(image.archive) as made:
        sizes = [made.file.getmember(name).size for name in made.layers[image.name]]
    print(f"layers, the base first: {[round(size / MB, 1) for size in sizes]} MB")
    assert sum(sizes) < SIZE_MAX
    assert sum(sizes[1:]) < OWN_SIZE_MAX
    assert len(sizes) == 3, "an edit of the code makes the last layer anew, and no other"
    assert sizes[2] < 10 * MB


def test_it_says_what_it_is_and_runs_as_nobody(built: Built) -> None:
    start = built.unpacked.start
    assert start["User"] == f"{USER}:{USER}"
    assert start["Entrypoint"] == ["fleet-twin"]
    labels = start["Labels"]
    assert labels["org.opencontainers.image.title"] == "Fleet Twin"
    assert labels["org.opencontainers.image.version"] == "dev"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert [word for word in start["Env"] if re.match(r"(?i)(pip|uv|npm|aws|https?_proxy)", word)] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--version"], "fleet-twin, version"),
        (["--help"], "operator"),
        (["worker", "--help"], "--kubernetes"),
        (["operator", "--help"], "--namespace"),
        (["checkpoint", "--help"], "verify"),
    ],
)
def test_commands_run_on_a_root_that_cannot_be_written_to(built: Built, arguments: list[str], told: str) -> None:
    code, said = containers.output_of(built.unpacked, arguments)
    assert (code, told in said) == (0, True), said


def test_its_user_has_a_name_whatever_its_number(built: Built) -> None:
    other = containers.Unpacked(built.unpacked.root, {**built.unpacked.start, "User": "10007:10007"})
    code, said = python(other, "-c", "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())")
    assert (code, said) == (0, "fleet-twin /tmp\n")


def test_what_was_left_out_is_missed_by_nobody(built: Built) -> None:
    for program in (IMPORT_ALL, USE_WHAT_WAS_STRIPPED):
        code, said = python(built.unpacked, "-c", program)
        assert code == 0, said


def test_nothing_is_compiled_when_it_starts(built: Built) -> None:
    """With -v, Python tells for each module what its code was made from."""
    code, said = python(built.unpacked, "-v", "-c", IMPORT_ALL)
    assert code == 0, said[-2000:]
    assert said.count("# code object from ") > 500
    assert re.findall(r"# code object from '?([^'\n]+\.py)'?\n", said) == []


def test_files_belong_to_root_and_cannot_be_changed(built: Built) -> None:
    places = 0
    for path in built.unpacked.root.rglob("*"):
        found = path.lstat()
        relative = path.relative_to(built.unpacked.root)
        if stat.S_ISLNK(found.st_mode) or relative.parts[0] in ("tmp", "dev", "run"):
            continue
        places += 1
        assert found.st_uid == 0, relative
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        assert sticky or not found.st_mode & stat.S_IWOTH, relative
        assert USER not in (found.st_uid, found.st_gid), relative
    assert places > 5_000


def test_what_it_adds_has_no_secrets_no_build_tools_and_no_privileges(built: Built) -> None:
    names = set()
    for entry, content in own_files(built.images.project):
        names.add(entry.name)
        assert not LEFT_BEHIND.search(entry.name), entry.name
        assert not entry.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH | stat.S_IWGRP) or entry.issym(), entry.name
        if not entry.name.endswith((".so", ".pyc", ".gz")):
            assert not SECRETS.search(content), entry.name
        if SETTINGS.search(entry.name):
            assert not REGISTRIES.search(content), entry.name
    assert len(names) > 3_000
    outside = [
        name for name in names if not re.match(r"\.?/?(opt($|/$|/fleet-twin)|usr($|/$|/(local/?)?(lib/?)?))", name)
    ]
    assert outside == []
    assert [name for name in names if re.search(r"/site-packages/(pip|setuptools|hatchling)/", name)] == []


def test_a_worker_runs_on_a_root_that_cannot_be_written_to(built: Built) -> None:
    port = server_process.free_port()
    with moto_server.running() as endpoint, tempfile.TemporaryDirectory(prefix="fleet-twin-data-") as name:
        kinesis = client_of("kinesis", endpoint)
        for stream in ("device-telemetry", "device-alerts", "device-commands"):
            kinesis.create_stream(StreamName=stream, ShardCount=2)
        data = Path(name) / "data"
        data.mkdir()
        fleet = {
            "apiVersion": "fleettwin.io/v1alpha1",
            "kind": "DeviceFleet",
            "metadata": {"name": "trucks", "namespace": "default"},
            "spec": {
                "aws": {"region": aws_env.REGION, "endpointURL": endpoint},
                "streams": {kind: {"name": f"device-{kind}"} for kind in ("telemetry", "alerts", "commands")},
            },
        }
        (data / "fleet.yaml").write_text(json.dumps(fleet))
        for path in (data, data / "fleet.yaml"):
            os.chown(path, USER, USER)
        arguments = ["worker", "--fleet", "/data/fleet.yaml", "--data", "/data", "--port", str(port)]
        environment = aws_env.VARIABLES
        started = time.monotonic()
        with containers.running(built.unpacked, arguments, environment, {"/data": data}) as worker:
            status = wait_for_status(port, worker)
            print(
                f"its API answers {time.monotonic() - started:.2f} s after its start: {len(status['partitions'])} partitions"
            )
            worker.send_signal(signal.SIGTERM)
            said, complained = worker.communicate(timeout=END_S_MAX)
        assert worker.returncode == 0, (said + complained).decode()[-2000:]
        assert b"Traceback" not in complained
        written = [path for path in data.rglob("*") if path.is_file() and path.name != "fleet.yaml"]
        assert written
        assert {path.lstat().st_uid for path in written} == {USER}


def wait_for_status(port: int, worker: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline and worker.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/status", timeout=5) as answer,
        ):
            found: dict[str, Any] = json.load(answer)
            return found
        time.sleep(0.05)  # a poll with a deadline: there is nothing to be told by
    worker.terminate()
    raise AssertionError(f"no answer within {READY_S_MAX} s, or it ended: {worker.communicate(timeout=END_S_MAX)}")


def test_the_next_and_the_broken_image_share_its_layers(built: Built) -> None:
    made = built.images
    with archive.opened(made.project.archive) as opened:
        assert (
            opened.layers[made.project.name]
            == opened.layers[made.next_project.name]
            == opened.layers[made.broken_project.name]
        )
        digests = {
            json.dumps(opened.configs[image.name], sort_keys=True)
            for image in (made.project, made.next_project, made.broken_project)
        }
        broken = containers.Unpacked(built.unpacked.root, opened.configs[made.broken_project.name]["config"])
    assert len(digests) == 3
    assert containers.output_of(broken, ["worker"])[0] != 0


def wait_for_names(list_names: Callable[[], list[str]], process: subprocess.Popen[bytes]) -> list[str]:
    """The first that are told, sorted."""
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            if names := list_names():
                return sorted(names)
        time.sleep(0.1)  # a poll with a deadline: there is nothing to be told by
    process.terminate()
    raise AssertionError(f"nothing within {READY_S_MAX} s, or it ended: {process.communicate(timeout=END_S_MAX)}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone with the test: an image's files are some hundred megabytes."""
    with tempfile.TemporaryDirectory(prefix="fleet-twin-image-") as name:
        yield Path(name)


def test_the_emulators_run_on_a_root_that_cannot_be_written_to(built: Built, folder: Path, tmp_path: Path) -> None:
    made = containers.unpack(built.images.emulators, folder)
    (made.root / "data").mkdir()
    os.chown(tmp_path, USER, USER)
    plain, other, s3_port = (server_process.free_port() for _ in range(3))
    settings = {
        "KINESIS_MOCK_PLAIN_PORT": str(plain),
        "KINESIS_MOCK_TLS_PORT": str(other),
        "S3_PORT": f"127.0.0.1:{s3_port}",
    }
    volumes = {"/data": tmp_path}
    arguments = ["kinesis", f"telemetry:2:{aws_env.REGION},alerts:1:{aws_env.REGION}"]
    with containers.running(made, arguments, settings) as process:
        kinesis = client_of("kinesis", f"http://127.0.0.1:{plain}")
        assert wait_for_names(lambda: list(kinesis.list_streams()["StreamNames"]), process) == ["alerts", "telemetry"]
    with containers.running(made, ["s3", "one", "two"], settings, volumes) as process:
        s3 = client_of("s3", f"http://127.0.0.1:{s3_port}")
        buckets = wait_for_names(lambda: [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]], process)
        assert buckets == ["one", "two"]
        s3.put_object(Bucket="one", Key="a/b", Body=b"kept", IfNoneMatch="*")
        assert s3.get_object(Bucket="one", Key="a/b")["Body"].read() == b"kept"


def test_the_try_outs_emulator_runs_on_the_image_that_it_names(built: Built, folder: Path) -> None:
    documents = list(yaml.safe_load_all((making.PROJECT / "charts/fleet-twin/examples/try-out.yaml").read_text()))
    (program,) = [
        found["data"]["emulator.py"] for found in documents if found and "emulator.py" in found.get("data", {})
    ]
    assert f'"{built.images.moto.name.removeprefix("docker.io/")}"' in json.dumps(documents)
    made = containers.unpack(built.images.moto, folder)
    start = {**made.start, "Entrypoint": ["python3", "-c", program], "User": f"{USER}:{USER}"}
    port = server_process.free_port()
    environment = {"PORT": str(port), **aws_env.VARIABLES}
    with containers.running(containers.Unpacked(made.root, start), [], environment) as process:
        kinesis = client_of("kinesis", f"http://127.0.0.1:{port}", region="eu-central-1")
        names = wait_for_names(lambda: list(kinesis.list_streams()["StreamNames"]), process)
    assert names == ["device-alerts", "device-commands", "device-telemetry"]
