"""The wheels that the project's image is installed from, fetched by hash with this machine's own pip and made for the base image's Python."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

from packaging import markers, requirements, utils

from tests.e2e.images import making

REQUIREMENTS = ("requirements.txt", "requirements-build.txt")
GLIBC_MINORS = range(17, 37)
"""manylinux_2_N wheels that Debian 12's glibc runs."""


def fetch(cache: Path, python: str) -> Path:
    """A folder of wheels. Raises making.ImageFailedError."""
    sources = [making.PROJECT / name for name in REQUIREMENTS]
    folder = making.once(cache, "wheels", making.key([python, *sources]), lambda made: _fill(made, python, sources))
    making.forget_others(cache, "wheels", folder)
    return folder


def install(folder: Path, python: str, pins: str) -> None:
    """The packages of those pins as that Python would import them, put into the folder. Raises making.ImageFailedError."""
    _pip("install", python, pins, "--no-compile", "--target", str(folder))


def _fill(folder: Path, python: str, sources: list[Path]) -> None:
    for source in sources:
        _pip("download", python, pins_for(source.read_text(), python), "--dest", str(folder))


def _pip(command: str, python: str, pins: str, *where: str) -> None:
    machine = platform.machine()
    platforms = ["any", f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pins)
        file.flush()
        making.run(
            [
                *(sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-deps"),
                *("--require-hashes", "--only-binary", ":all:", "--requirement", file.name, *where),
                *("--python-version", python, "--implementation", "cp"),
                *(word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)),
                *(word for tag in platforms for word in ("--platform", tag)),
            ]
        )


def pins_for(text: str, python: str, names: Collection[str] = ()) -> str:
    """The pins that hold for that Python, without their conditions: pip would ask the Python that it runs on. names: only these."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    kept: list[str] = []
    holds = True
    for line in text.splitlines():
        if not line.startswith(" "):
            pin, _, rest = line.partition(";")
            condition = rest.strip().removesuffix("\\").strip()
            holds = not condition or markers.Marker(condition).evaluate(environment)
            name = pin.partition("==")[0].partition("[")[0]
            holds = holds and (not names or canonical(name) in names)
            line = f"{pin.strip()} \\" if condition else line
        if holds:
            kept.append(line)
    return "\n".join(kept) + "\n"


def canonical(name: str) -> str:
    return str(utils.canonicalize_name(name))


def closure(name: str, extra: str) -> set[str]:
    """That package, which is installed here, and everything that it needs with that extra; by canonical names."""
    found: set[tuple[str, str]] = set()
    waiting = {(canonical(name), extra)}
    while waiting:
        package, wanted = waiting.pop()
        found.add((package, wanted))
        for line in metadata.requires(package) or ():
            needed = requirements.Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": wanted}):
                waiting |= {(canonical(needed.name), more) for more in ("", *needed.extras)} - found
    return {package for package, _ in found}
