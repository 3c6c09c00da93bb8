"""The wheels that the project's image is installed from, fetched by hash with this machine's own pip and made for the base image's Python."""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

from packaging import markers

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


def _fill(folder: Path, python: str, sources: list[Path]) -> None:
    machine = platform.machine()
    platforms = ["any", f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS)]
    with tempfile.TemporaryDirectory() as name:
        for source in sources:
            wanted = Path(name) / source.name
            wanted.write_text(pins_for(source.read_text(), python))
            making.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
                    *(
                        "--require-hashes",
                        "--only-binary",
                        ":all:",
                        "--dest",
                        str(folder),
                        "--requirement",
                        str(wanted),
                    ),
                    *("--python-version", python, "--implementation", "cp"),
                    *(word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)),
                    *(word for tag in platforms for word in ("--platform", tag)),
                ]
            )


def pins_for(requirements: str, python: str) -> str:
    """The pins that hold for that Python, without their conditions: pip would ask the Python that it runs on."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    kept: list[str] = []
    holds = True
    for line in requirements.splitlines():
        if not line.startswith(" "):
            pin, _, rest = line.partition(";")
            condition = rest.strip().removesuffix("\\").strip()
            holds = not condition or markers.Marker(condition).evaluate(environment)
            line = f"{pin.strip()} \\" if condition else line
        if holds:
            kept.append(line)
    return "\n".join(kept) + "\n"
