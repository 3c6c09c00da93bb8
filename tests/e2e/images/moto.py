"""moto's server under the name that the chart's try-out gives it, so that the example runs here as it is: the same version, from PyPI.

For what isn't about resharding or about conditional writes: see tests/support/moto_server.
"""

from __future__ import annotations

import tempfile
from importlib import metadata
from pathlib import Path

from tests.e2e.images import archive, making, wheels
from tests.e2e.images import base as base_image

PINS = making.PROJECT / "requirements-dev.txt"
NAME = f"docker.io/motoserver/moto:{metadata.version('moto')}"
MADE_BY = "1"
HOME = Path("opt/moto")


def build(cache: Path, base: archive.Image) -> archive.Image:
    """Raises making.ImageFailedError."""
    pins = wheels.pins_for(PINS.read_text(), base_image.PYTHON, wheels.closure("moto", "server"))
    key = making.key([MADE_BY, base.archive.parent.name, pins])
    folder = making.once(cache, "moto", key, lambda made: _fill(made, base, pins))
    making.forget_others(cache, "moto", folder)
    return archive.Image(NAME, folder / "image.tar")


def _fill(folder: Path, base: archive.Image, pins: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root, layer = Path(name) / "root", Path(name) / "layer.tar"
        wheels.install(root / HOME, base_image.PYTHON, pins)
        making.pack(root, layer)
        start = {
            "Env": [f"PATH=/{HOME}/bin:/usr/local/bin:/usr/bin:/bin", f"PYTHONPATH=/{HOME}", "PYTHONUNBUFFERED=1"],
            "Cmd": ["python3", "-m", "moto.server", "-H", "0.0.0.0"],
            "ExposedPorts": {"5000/tcp": {}},
        }
        layers = [*archive.extract_layers(base.archive, base.name, Path(name)), layer]
        archive.write(folder / "image.tar", [archive.Content(NAME, layers, start)])
