"""A program made from a Go module of this project, built once into the user's cache folder, by version and by what the module says.

Go checks every module that it takes against the go.sum beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import go_toolchain, node

BUILD_S_MAX = 3_600
"""Cold, on two busy cores."""


@dataclasses.dataclass(frozen=True)
class Module:
    """folder: of go.mod, go.sum and main.go. links: names of the program beside its own. variables: set when it is linked."""

    name: str
    version: str
    folder: Path
    links: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def built(module: Module) -> Path:
    """The folder that the program is in. Raises go_toolchain.NoGoError where a test has to be skipped."""
    told = hashlib.sha256(b"".join((module.folder / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")))
    folder = node.cache_folder() / f"{module.name}-{module.version}-{told.hexdigest()[:12]}"
    if not folder.exists():
        # Whoever comes second waits: two builds at once take longer than one after the other, which then finds it done.
        with _alone(node.cache_folder() / f".{module.name}.lock"):
            node.once(folder, lambda made: _build(module, made))
    return folder


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _build(module: Module, made: Path) -> None:
    go = go_toolchain.find()
    print(f"fleet-twin: building {module.name} {module.version}, once: it takes minutes", file=sys.stderr, flush=True)
    linked = " ".join(f"-X {name}={value}" for name, value in module.variables)
    done = subprocess.run(
        [
            *(str(go), "build", "-mod=readonly", "-trimpath", "-buildvcs=false"),
            *("-ldflags", f"-s -w {linked}", "-o", str(made / module.name), "."),
        ],
        cwd=module.folder,
        env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"},
        capture_output=True,
        text=True,
        timeout=BUILD_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"go build failed with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    for name in module.links:
        (made / name).symlink_to(module.name)
