"""The base image: Debian's smallest system with its Python, from Debian's own archive. It stands in for the one that a registry would give."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.e2e.images import archive, making

NAME = "localhost/fleet-twin-base:dev"
SUITE = "bookworm"
PYTHON = "3.11"
"""Of that suite."""
PACKAGES = ("python3", "ca-certificates")
MADE_BY = "3"
"""Another number makes every cached base anew."""
LEFT_OUT = (
    *(
        "./dev/*",
        "./proc/*",
        "./sys/*",
        "./tmp/*",
        "./run/*",
        "./debootstrap",
        "./etc/apt/sources.list",
        "./etc/resolv.conf",
        "./etc/hostname",
    ),
    *(
        "./var/cache/apt/*",
        "./var/lib/apt/lists/*",
        "./var/log/*",
        "./usr/share/doc/*",
        "./usr/share/man/*",
        "./usr/share/locale/*",
    ),
)


def build(cache: Path) -> archive.Image:
    """Raises making.ImageFailedError."""
    folder = making.once(cache, "base", making.key([MADE_BY, SUITE, *PACKAGES, *LEFT_OUT]), _fill)
    making.forget_others(cache, "base", folder)
    return archive.Image(NAME, folder / "image.tar")


def _fill(folder: Path) -> None:
    if os.geteuid() != 0:
        raise making.CannotMakeImagesError("making a base image needs root")
    debootstrap = making.program("debootstrap")
    with tempfile.TemporaryDirectory(dir=folder, prefix="root-") as name:
        root, layer = Path(name) / "root", Path(name) / "layer.tar"
        making.run([debootstrap, "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root), *_mirror()])
        making.run(
            [
                *(making.program("tar"), "--create", "--file", str(layer), "--directory", str(root)),
                *("--numeric-owner", "--sort=name", "--one-file-system"),
                *(f"--exclude={pattern}" for pattern in LEFT_OUT),
                ".",
            ]
        )
        start = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["python3"]}
        archive.write(folder / "image.tar", [archive.Content(NAME, [layer], start)])


def _mirror() -> list[str]:
    """Where this machine's own apt gets the suite from; debootstrap's default where it doesn't."""
    wanted = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    targets = making.run([making.program("apt-get"), "indextargets", "--format", wanted, "Created-By: Packages"])
    return sorted({line.split()[2] for line in targets.splitlines() if line.split()[:2] == [SUITE, "main"]})[:1]
