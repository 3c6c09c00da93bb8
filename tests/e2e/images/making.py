"""What all images are made with: commands that tell why they failed, keys of content, and folders that are whole or not there."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tests.e2e.cluster import errors
from tests.support import node

PROJECT = Path(__file__).parents[3]
OUTPUT_CHARACTERS_MAX = 3_000
COMMAND_S_MAX = 1_200
KEY_LENGTH = 16
OTHERS_MAX = 2


class ImageFailedError(Exception):
    """An image could not be made, with the end of what the tool said; or the tool isn't there."""


class CannotMakeImagesError(ImageFailedError, errors.NotHereError):
    """This machine lacks what images are made with: the only reason to skip what needs them."""


def say(text: str) -> None:
    print(f"fleet-twin: {text}", file=sys.stderr, flush=True)


def program(name: str) -> str:
    """Its path. Raises CannotMakeImagesError."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise CannotMakeImagesError(f"there is no {name} here; tests/e2e/packages.sh installs it")
    return found


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
    """Its standard output. Raises ImageFailedError with the end of everything that it said."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageFailedError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-OUTPUT_CHARACTERS_MAX:]
        raise ImageFailedError(f"{Path(command[0]).name} ended with {done.returncode}:\n{said}")
    return done.stdout


def pack(root: Path, layer: Path) -> None:
    """A folder as a layer: everything belongs to root, and everybody may read it."""
    run(
        [
            *(program("tar"), "--create", "--file", str(layer), "--directory", str(root)),
            *("--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--mode=u=rwX,go=rX", "."),
        ]
    )


def key(parts: Iterable[str | bytes | Path]) -> str:
    """Of texts as they are and of files by name, mode and content; the machine's kind is always in it."""
    digest = hashlib.sha256(platform.machine().encode())
    for part in parts:
        if isinstance(part, Path):
            content = part.read_bytes()
            head = f"\0file {part.name} {part.stat().st_mode:o} {len(content)}\0"
        else:
            content = part.encode() if isinstance(part, str) else part
            head = f"\0text {len(content)}\0"
        digest.update(head.encode())
        digest.update(content)
    return digest.hexdigest()[:KEY_LENGTH]


def once(cache: Path, kind: str, content_key: str, fill: Callable[[Path], None]) -> Path:
    """The folder of that kind and key, filled if it isn't there. One that an interrupted run left half done is never taken for it."""
    folder = cache / f"{kind}-{content_key}"
    if not folder.exists():
        say(f"making {kind}")
        started = time.monotonic()
        node.once(folder, fill)
        say(f"made {kind} in {time.monotonic() - started:.0f} s")
    return folder


def forget_others(cache: Path, kind: str, keep: Path) -> None:
    """Removes what earlier inputs made of this kind, a few hundred megabytes for every edit; but for the newest, which someone may be using."""
    others = [
        folder
        for folder in cache.glob(f"{kind}-*")
        if folder != keep and len(folder.name) == len(kind) + 1 + KEY_LENGTH
    ]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in others[OTHERS_MAX:]:
        shutil.rmtree(folder)
