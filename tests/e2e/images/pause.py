"""The pause image: one static program that holds a pod's namespaces and does nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.e2e.images import archive, making

NAME = "localhost/pause:dev"
SOURCE = Path(__file__).with_name("pause.c")


def build(cache: Path) -> archive.Image:
    """Raises making.ImageFailedError."""
    folder = making.once(cache, "pause", making.key([SOURCE]), _fill)
    making.forget_others(cache, "pause", folder)
    return archive.Image(NAME, folder / "image.tar")


def _fill(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        program, layer = Path(name) / "pause", Path(name) / "layer.tar"
        making.run([making.program("gcc"), "-static", "-Os", "-s", "-Wall", "-Werror", "-o", str(program), str(SOURCE)])
        making.run(
            [
                *(making.program("tar"), "--create", "--file", str(layer), "--directory", name),
                *("--owner=0", "--group=0", "--numeric-owner", "--mode=0755", "pause"),
            ]
        )
        start = {"Entrypoint": ["/pause"], "User": "65535:65535"}
        archive.write(folder / "image.tar", [archive.Content(NAME, [layer], start)])
