"""The token of the pod, in a folder in memory that lives and dies with the pod: what one container left on the disk, the next one of the
same pod may trust, and another pod on the same volume may not.

The first container makes it. It is whole or not there, since it gets its name only when it was written; what is no token is replaced, and then
nothing on the disk is trusted that wasn't closed cleanly. It proves nothing to anybody else.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from fleet_worker import errors

FILE = "token"
_TOKEN = re.compile(r"[0-9a-f]{32}")


def read_or_make(folder: Path) -> str:
    """Blocks on the disk. Raises DataFolderError."""
    path = folder / FILE
    try:
        if path.exists():
            found = path.read_text("ascii", "replace").strip()
            if _TOKEN.fullmatch(found):
                return found
        made = secrets.token_hex(16)
        draft = folder / f"{FILE}.new"
        draft.write_text(made)
        draft.replace(path)
    except OSError as error:
        raise errors.DataFolderError(
            f"{path}: the pod's token can't be kept ({error.strerror}); --pod-token is a folder in memory (emptyDir with medium Memory) that "
            "the worker may write to"
        ) from error
    return made


def boot_id(machines: str, token: str) -> str:
    """What an environment's marks know this start by."""
    return f"{machines}/{token}" if token else machines
