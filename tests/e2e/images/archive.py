"""Image archives as `docker save` makes them, written and read here: a tar of layers, a configuration for each image, and manifest.json."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import platform
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
BLOCK = 1 << 20
CREATED = "2020-01-01T00:00:00Z"
"""Of every image, so that equal layers make equal images. Without it buildah finds no layer of an earlier build again."""


@dataclasses.dataclass(frozen=True)
class Image:
    """name: as pods name it. archive: for `ctr images import`; it may hold other images, too."""

    name: str
    archive: Path


@dataclasses.dataclass(frozen=True)
class Content:
    """One image: its layers as uncompressed tars, the lowest first, and what its configuration says of a container's start."""

    name: str
    layers: Sequence[Path]
    start: Mapping[str, Any]


def digest_of(layer: Path) -> str:
    digest = hashlib.sha256()
    with layer.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write(path: Path, images: Sequence[Content]) -> None:
    """A layer that several images have is written once."""
    digests = {layer: digest_of(layer) for image in images for layer in image.layers}
    manifest = []
    with tarfile.open(path, "w") as archive:
        for layer, digest in digests.items():
            archive.add(layer, f"{digest}.tar")
        for image in images:
            config = {
                "created": CREATED,
                "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
                "os": "linux",
                "config": dict(image.start),
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digests[layer]}" for layer in image.layers]},
                "history": [{"created": CREATED, "created_by": "tests/e2e/images"} for _ in image.layers],
            }
            content = json.dumps(config, sort_keys=True).encode()
            name = f"{hashlib.sha256(content).hexdigest()}.json"
            _add(archive, name, content)
            manifest.append(
                {
                    "Config": name,
                    "RepoTags": [image.name],
                    "Layers": [f"{digests[layer]}.tar" for layer in image.layers],
                }
            )
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@dataclasses.dataclass(frozen=True)
class Opened:
    """An archive being read: the configuration of an image and the names of its layers, by the image's name."""

    file: tarfile.TarFile
    configs: Mapping[str, Mapping[str, Any]]
    layers: Mapping[str, Sequence[str]]

    def layer(self, name: str) -> BinaryIO:
        member = self.file.getmember(name)
        if member.issym() or member.islnk():  # some writers store a layer once more as a link
            member = self.file.getmember(
                str(Path(name).parent / member.linkname) if member.issym() else member.linkname
            )
        stream = self.file.extractfile(member)
        if stream is None:
            raise ValueError(f"{name} is no file in the archive")
        return stream  # type: ignore[return-value]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    with tarfile.open(path) as file:

        def member(name: str) -> bytes:
            stream = file.extractfile(name)
            if stream is None:
                raise ValueError(f"{path.name} has no file {name}")
            return stream.read()

        configs: dict[str, Mapping[str, Any]] = {}
        layers: dict[str, Sequence[str]] = {}
        for entry in json.loads(member("manifest.json")):
            for name in entry["RepoTags"] or [""]:
                configs[name] = json.loads(member(entry["Config"]))
                layers[name] = entry["Layers"]
        yield Opened(file, configs, layers)


def extract_layers(path: Path, image: str, folder: Path) -> list[Path]:
    """The image's layers as files of the folder, the lowest first."""
    made = []
    with opened(path) as archive:
        for number, name in enumerate(archive.layers[image]):
            made.append(folder / f"layer-{number}.tar")
            with made[-1].open("wb") as target:
                shutil.copyfileobj(archive.layer(name), target, BLOCK)
    return made
