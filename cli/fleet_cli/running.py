"""Where a running demo says that it runs, so that commands in another terminal find it: one small file a demo.

The folder is the user's own ($XDG_RUNTIME_DIR, else the cache folder). A file whose process is gone counts as none, and is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator

from fleet_worker import errors


@dataclasses.dataclass(frozen=True, slots=True)
class Demo:
    """pid: of the demo. folder: where its fleet file, logs and twins are. control: its control folder. scale_path: where it looks for
    the number of workers that is wanted."""

    pid: int
    folder: pathlib.Path
    control: pathlib.Path
    scale_path: pathlib.Path


@contextlib.contextmanager
def told(demo: Demo) -> Iterator[None]:
    """For as long as the demo runs. Raises FleetTwinError when the folder can't be written."""
    path = _folder() / f"demo-{demo.pid}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps({field: str(value) for field, value in dataclasses.asdict(demo).items()}))
    except OSError as error:
        raise errors.FleetTwinError(
            f"The demo can't say where it runs: {path}: {error.strerror}; set XDG_RUNTIME_DIR to a folder that can be written"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others may be in it
            path.parent.rmdir()


def find() -> Demo:
    """The one demo that runs. Raises FleetTwinError when none does, or several do."""
    found = []
    for path in sorted(_folder().glob("demo-*.json")):
        demo = _read(path)
        if demo is not None and _is_alive(demo.pid):
            found.append(demo)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    if not found:
        raise errors.FleetTwinError(
            "No demo with several workers runs here. Start one in another terminal: fleet-twin demo --workers 2"
        )
    if len(found) > 1:
        where = "\n".join(f"  --folder {demo.folder}" for demo in found)
        raise errors.FleetTwinError(f"Several demos run here; say which one:\n{where}")
    return found[0]


def find_in(folder: pathlib.Path | None) -> Demo:
    """The demo that runs in the folder; None = the one that runs. Raises FleetTwinError."""
    if folder is None:
        return find()
    for path in sorted(_folder().glob("demo-*.json")):
        demo = _read(path)
        if demo is not None and _is_alive(demo.pid) and demo.folder == folder.resolve():
            return demo
    raise errors.FleetTwinError(f"No demo with several workers runs in {folder}.")


def _folder() -> pathlib.Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and pathlib.Path(runtime).is_dir():
        return pathlib.Path(runtime) / "fleet-twin"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(cache) if cache else pathlib.Path.home() / ".cache") / "fleet-twin"


def _read(path: pathlib.Path) -> Demo | None:
    try:
        told_there = json.loads(path.read_text())
        return Demo(
            int(told_there["pid"]),
            pathlib.Path(told_there["folder"]),
            pathlib.Path(told_there["control"]),
            pathlib.Path(told_there["scale_path"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
