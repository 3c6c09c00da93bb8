"""The AWS CLI for tests: the one that `make test` names, else the same one, made in the user's cache folder.

It lives in an environment of its own, since it pins another botocore than the project does.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import node

ROOT = Path(__file__).parents[2]
INSTALL_S_MAX = 300


def program() -> Path:
    """The path of `aws`. Raises RuntimeError with what went wrong while it was made."""
    named = os.environ.get("FLEET_TWIN_AWSCLI")
    if named:
        return Path(named).absolute()
    folder = node.cache_folder() / "awscli"
    done = subprocess.run(
        [str(ROOT / "scripts" / "make_venv.sh"), str(folder), str(ROOT / "requirements-awscli.txt")],
        capture_output=True,
        text=True,
        timeout=INSTALL_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the AWS CLI can't be installed: {done.stderr.strip()[-1000:]}")
    return folder / "bin" / "aws"
