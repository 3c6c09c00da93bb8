"""One container of an image, by runc alone: no cluster, no daemon, no network of its own. The root is read-only, nothing is held that a
restricted pod wouldn't hold, and only /tmp and the folders that are asked for can be written to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.images import archive, making
from tests.support import orphans

NAMESPACES = ("pid", "ipc", "uts", "mount")
"""No namespace for the network: a container reaches the emulators on this machine, and the test reaches it."""
WHITEOUT = ".wh."
END_S_MAX = 15.0


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """An image's layers on top of each other, as a container sees them. start: what its configuration says of containers."""

    root: Path
    start: Mapping[str, Any]


def unpack(image: archive.Image, folder: Path) -> Unpacked:
    """Raises making.ImageFailedError. Of layers that only add files, as these images' are; others are refused."""
    root = folder / "root"
    root.mkdir()
    with archive.opened(image.archive) as made:
        for name in made.layers[image.name]:
            command = [making.program("tar"), "--extract", "--file", "-", "--directory", str(root), "--numeric-owner"]
            with subprocess.Popen([*command, "--same-permissions"], stdin=subprocess.PIPE) as tar:
                assert tar.stdin is not None
                with tar.stdin as target, made.layer(name) as layer:
                    while block := layer.read(archive.BLOCK):
                        target.write(block)
            if tar.returncode != 0:
                raise making.ImageFailedError(
                    f"tar can't unpack a layer of {image.name}: it ended with {tar.returncode}"
                )
        start = made.configs[image.name]["config"]
    removed = [str(path) for path in root.rglob(f"{WHITEOUT}*")]
    if removed:
        raise making.ImageFailedError(f"{image.name} has a layer that removes files of others: {removed[:3]}")
    return Unpacked(root, start)


def _specification(
    image: Unpacked, arguments: Sequence[str], environment: Mapping[str, str], writable: Mapping[str, Path]
) -> dict[str, Any]:
    user, group = (int(word) for word in image.start["User"].split(":"))
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "nodev", "noexec", "size=64m"],
        },
        {
            "destination": "/tmp",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=1777", "size=256m"],
        },
    ]
    mounts += [
        {"destination": place, "type": "bind", "source": str(folder), "options": ["bind", "rw", "nosuid", "nodev"]}
        for place, folder in writable.items()
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user, "gid": group},
            "args": [*(image.start.get("Entrypoint") or ()), *arguments],
            "env": [*image.start["Env"], *(f"{name}={value}" for name, value in environment.items())],
            "cwd": image.start.get("WorkingDir") or "/",
            "capabilities": {name: [] for name in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "noNewPrivileges": True,
        },
        "root": {"path": str(image.root), "readonly": True},
        "hostname": "pod",
        "mounts": mounts,
        "linux": {"namespaces": [{"type": name} for name in NAMESPACES]},
    }


@contextlib.contextmanager
def running(
    image: Unpacked,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    writable: Mapping[str, Path] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """runc in the foreground; its standard output and error are pipes, and signals to it reach the container. writable: place → folder."""
    runc = making.program("runc")
    name = f"fleet-twin-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="fleet-twin-container-") as scratch:
        bundle, state = Path(scratch) / "bundle", Path(scratch) / "state"
        bundle.mkdir()
        specification = _specification(image, arguments, environment or {}, writable or {})
        (bundle / "config.json").write_text(json.dumps(specification))
        process = subprocess.Popen(
            [runc, "--root", str(state), "run", "--bundle", str(bundle), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )
        orphans.prevent(process.pid)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.communicate(timeout=END_S_MAX)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
            subprocess.run([runc, "--root", str(state), "delete", "--force", name], capture_output=True, check=False)


def output_of(
    image: Unpacked, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit code, and what it said to both outputs."""
    with running(image, arguments, environment) as process:
        said, complained = process.communicate(timeout=making.COMMAND_S_MAX)
        return process.returncode, (said + complained).decode()
