"""The marks beside an environment that say whether its bytes may be trusted when it is opened again.

LMDB runs without fsync here, so a crash of the machine may leave any mixture of old and new pages. Nothing inside the
file can tell; these files do. This module reads and writes them, durably and in the right order. It refuses to judge
the environment's contents, and it never opens it.

    opened    JSON: the boot id under which the environment was last opened, and the sync policy it was written with
    closed    empty: closed cleanly, every page on disk. Gone, durably, before the first write after opening
    broken    why the environment must not be used any more (a failed fsync)
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fleet_model import spec
from fleet_worker.adapters import durable

OPENED = "opened"
CLOSED = "closed"
BROKEN = "broken"


def reason_against(folder: Path, boot_id: str) -> str | None:
    """Why the environment in `folder` is not to be used under this boot id; None when it is fit."""
    if (folder / BROKEN).exists():
        return f"marked broken: {(folder / BROKEN).read_text(errors='replace').strip() or 'no reason was left'}"
    if (folder / CLOSED).exists():
        return None
    try:
        opened = json.loads((folder / OPENED).read_bytes())
        same_boot = opened["boot_id"] == boot_id
        every_commit_synced = opened["sync"] == spec.Sync.COMMIT
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "not closed cleanly, and nothing says under which boot it was written"
    if same_boot or every_commit_synced:
        return None
    return "not closed cleanly, and the machine (or pod) has restarted since: pages may be torn"


def leave_opened(folder: Path, boot_id: str, sync: spec.Sync) -> None:
    """Says, durably, that the environment is in use and by whom; from here on only this boot may trust it."""
    opened = json.dumps({"boot_id": boot_id, "sync": str(sync)}).encode()
    path = folder / OPENED
    if not path.exists() or path.read_bytes() != opened:  # A full disk must not keep a restarted process out.
        durable.replace(path, opened)
    (folder / CLOSED).unlink(missing_ok=True)
    durable.sync_folder(folder)


def leave_closed(folder: Path) -> None:
    """Says, durably, that the environment was synced and closed."""
    descriptor = os.open(folder / CLOSED, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    durable.sync_folder(folder)


def leave_broken(folder: Path, reason: str) -> None:
    """Says that the environment must be thrown away. Both marks alone suffice, since the disk may be failing: without
    OPENED nobody trusts the environment either. Raises OSError or FleetTwinError when one couldn't be left."""
    try:
        (folder / OPENED).unlink(missing_ok=True)
        durable.sync_folder(folder)
    finally:
        durable.replace(folder / BROKEN, reason.encode())


def clear(folder: Path) -> None:
    """Forgets every mark, durably: for a folder whose environment has just been moved away."""
    for name in (OPENED, CLOSED, BROKEN):
        (folder / name).unlink(missing_ok=True)
    durable.sync_folder(folder)
