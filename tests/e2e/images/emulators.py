"""An image of AWS in pods: kinesis-local and versitygw (S3 over a folder), neither of which this project wrote. Two containers of one image.

`kinesis [NAME:SHARDS:REGION,…]` listens on port 4568, `s3 [BUCKET …]` on 7070, both without TLS and with any credentials that the fleet has
(S3: test / test). Each keeps its data under /data, or in memory; they are good for tests and for trying out, and for nothing else.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.e2e.images import archive, making
from tests.support import go_toolchain, kinesis_local, node, versitygw

NAME = "localhost/fleet-twin-emulators:dev"
START = Path(__file__).with_name("emulator.sh")
MADE_BY = "1"


def build(cache: Path, base: archive.Image) -> archive.Image:
    """Raises making.ImageFailedError."""
    parts: list[str | bytes | Path] = [
        MADE_BY,
        base.archive.parent.name,
        kinesis_local.VERSION,
        versitygw.VERSION,
        node.NODE_WHEEL_VERSION,
        START,
    ]
    folder = making.once(cache, "emulators", making.key(parts), lambda made: _fill(made, base))
    making.forget_others(cache, "emulators", folder)
    return archive.Image(NAME, folder / "image.tar")


def _fill(folder: Path, base: archive.Image) -> None:
    try:
        programs = {
            "opt/kinesis-local": kinesis_local.installed(),
            "usr/local/bin/node": Path(
                node.from_wheel().node
            ).resolve(),  # one that runs on any glibc; the machine's own may not
            "usr/local/bin/versitygw": versitygw.installed(),
            "usr/local/bin/emulator": START,
        }
    except (node.NoNodeError, go_toolchain.NoGoError) as error:
        raise making.CannotMakeImagesError(str(error)) from error
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root, layer = Path(name) / "root", Path(name) / "layer.tar"
        for target, source in programs.items():
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, root / target)
            else:
                shutil.copy(source, root / target)
        making.pack(root, layer)
        start = {
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp"],
            "User": "65532:65532",
            "Entrypoint": ["emulator"],
            "ExposedPorts": {"4568/tcp": {}, "7070/tcp": {}},
        }
        layers = [*archive.extract_layers(base.archive, base.name, Path(name)), layer]
        archive.write(folder / "image.tar", [archive.Content(NAME, layers, start)])
